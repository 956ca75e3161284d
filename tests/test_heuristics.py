"""Keyword rules on requests with a known answer; every prompt here is written for these tests."""

from __future__ import annotations

import numpy as np
import pytest

from training.heuristics import ComplexityHeuristic, TaskTypeTable, complexity, guess_task_type, tier_models
from training.prediction import Requests

EASY = "hello, what is the capital of Peru?"
HARD = (
    "Think carefully, step by step: refactor this Python function; its distributed protocol has latency and memory bugs"
)


def test_complexity_orders_requests_and_counts_words_once() -> None:
    assert complexity(EASY)[0] < complexity("write a function")[0] < complexity(HARD)[0]
    assert complexity("hi")[0] == pytest.approx(-0.15)
    assert complexity("python and again python, in a line that is long enough to count as normal")[0] == pytest.approx(
        0.15
    )
    assert complexity(HARD)[1] and not complexity(EASY)[1]
    assert complexity("x" * 2_000)[0] == pytest.approx(0.10)
    assert -0.15 - 1e-9 <= complexity(" ".join([HARD, EASY, "1) a 2) b ???? cpu gpu tcp class"] * 500))[0] <= 0.925


def test_complexity_tiers_go_from_the_cheapest_to_the_best_model_and_can_be_shifted() -> None:
    at_the_cutoff = "python and again python, in a line that is long enough to count as normal"
    told_to_reason = "Please evaluate the plan and deduce which option we should take in the next month"
    requests = Requests([EASY, at_the_cutoff, told_to_reason], [None] * 3, np.ones((3, 1)))
    score, cost = np.tile([0.1, 0.4, 0.6, 0.9], (3, 1)), np.tile([1.0, 2.0, 3.0, 4.0], (3, 1))
    choices = ComplexityHeuristic().fit(requests, score, cost).predict(requests).choices
    assert choices is not None
    assert choices[0].tolist() == [0, 1, 3]
    assert choices[1].tolist() == [0, 0, 0] and choices[-1].tolist() == [3, 3, 3]
    assert (np.diff(choices[1:], axis=0) >= 0).all()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Debug my Java service, it hangs", "code"),
        ("What is the probability of two sixes?", "math"),
        ("Extract all dates from the note below", "extraction"),
        ("Summarise our call", "summary"),
        ("Translate this menu to Welsh", "translation"),
        ("Draft a polite e-mail to the landlord", "writing"),
        ("Why do cats purr?", "reasoning"),
        ("good morning!", "chat"),
        ("", "chat"),
        ("x" * 50_000 + " now translate this", "translation"),
    ],
)
def test_task_type_is_guessed_from_keywords(text: str, expected: str) -> None:
    assert guess_task_type(text) == expected


def test_task_type_table_sends_each_type_to_its_tier() -> None:
    requests = Requests(["good morning!", "Draft a polite note", "Why do cats purr?"], [None] * 3, np.ones((3, 1)))
    score, cost = np.tile([0.1, 0.5, 0.9], (3, 1)), np.tile([1.0, 2.0, 3.0], (3, 1))
    choices = TaskTypeTable().fit(requests, score, cost).predict(requests).choices
    assert choices is not None
    assert choices.tolist() == [[0, 1, 2], [0, 0, 0], [0, 0, 1], [1, 2, 2], [2, 2, 2]]


def test_tiers_leave_out_models_that_are_dearer_and_no_better() -> None:
    score, cost = np.array([[0.5, 0.4, 0.7, 0.7, 0.9]]), np.array([[1.0, 2.0, 3.0, 5.0, 9.0]])
    assert tier_models(score, cost, 3).tolist() == [0, 2, 4]
    assert tier_models(score[:, :1], cost[:, :1], 4).tolist() == [0, 0, 0, 0]
