"""True and false acceptance where most answers have no label, against worlds whose truth is known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import beta

from training.acceptance import Acceptance, Verdicts, _alike, _design_effect, acceptance

TRUE, FALSE = 0.9, 0.25


def verdicts(accepted: Any, right: Any, task: Any = None, model: Any = None, decision: Any = None) -> Verdicts:
    n, none = len(accepted), np.zeros(len(accepted), dtype=int)
    codes = [none if one is None else np.asarray(one) for one in (task, model)]
    return Verdicts(
        *codes, np.arange(n) if decision is None else np.asarray(decision), np.asarray(accepted, dtype=bool),
        np.asarray(right, dtype=int),
    )  # fmt: skip


def counted(*groups: tuple[bool, int, int]) -> Verdicts:
    """Verdicts from groups of (accepted, right, how many)."""
    accepted, right, n = zip(*groups, strict=True)
    return verdicts(np.repeat(accepted, n), np.repeat(right, n))


def world(
    seed: int, n: int, tasks: int = 1, *, spread: float = 0.0, labelled: tuple[float, float] = (0.1, 0.6)
) -> tuple[Verdicts, list[float], list[float]]:
    """A log whose tasks differ in difficulty and size, and with ``spread`` in how well they are checked.

    :param labelled: P(label) of rejected and of accepted answers.
    :return: with the true and the false acceptance of each task.
    """
    rng = np.random.default_rng(seed)

    def about(rate: float) -> Any:
        odds = rate / (1.0 - rate) * np.exp(spread * rng.standard_normal(tasks))
        return odds / (1.0 + odds)

    true, false, difficulty = about(TRUE), about(FALSE), rng.uniform(0.3, 0.8, tasks)
    task = np.concatenate([np.arange(tasks), rng.choice(tasks, n - tasks, p=rng.dirichlet(np.ones(tasks)))])
    right = rng.random(n) < difficulty[task]
    accepted = rng.random(n) < np.where(right, true[task], false[task])
    known = rng.random(n) < np.where(accepted, labelled[1], labelled[0])
    return verdicts(accepted, np.where(known, right, -1), task), true.tolist(), false.tolist()


def naive(log: Verdicts) -> float:
    return float(log.accepted[log.right == 1].mean())


# -- the correction


def test_the_point_estimate_is_that_of_begg_and_greenes() -> None:
    # 60,000 accepted, 90 % of the labelled right; 40,000 rejected, 10 % of the labelled right
    log = counted((True, 1, 9_000), (True, 0, 1_000), (True, -1, 50_000), (False, 1, 200), (False, 0, 1_800),
                  (False, -1, 38_000))  # fmt: skip
    whole, _ = acceptance(log)
    right, wrong = 0.6 * 0.9 + 0.4 * 0.1, 0.6 * 0.1 + 0.4 * 0.9
    assert whole.true_accept.value == pytest.approx(0.6 * 0.9 / right, abs=0.003)
    assert whole.false_accept.value == pytest.approx(0.6 * 0.1 / wrong, abs=0.003)
    assert (whole.true_accept.n, whole.false_accept.n) == (9_200, 2_800)


def test_labels_that_depend_on_the_verdict_bias_the_naive_rate_and_not_this_one() -> None:
    log, _, _ = world(0, 20_000)
    rate = acceptance(log)[0].true_accept
    assert naive(log) > 0.97 and rate.low <= TRUE <= rate.high and abs(rate.value - TRUE) < 0.02


def test_labels_that_depend_on_the_model_too_are_corrected_for() -> None:
    """One model is mostly right and seldom talked about, the other is mostly wrong and always."""
    rng = np.random.default_rng(0)
    model = rng.integers(0, 2, 20_000)
    right = rng.random(20_000) < np.where(model == 0, 0.9, 0.2)
    accepted = rng.random(20_000) < np.where(right, TRUE, FALSE)
    known = rng.random(20_000) < np.where(model == 0, 0.1, 0.9)
    labels = np.where(known, right, -1)
    by_model, _ = acceptance(verdicts(accepted, labels, model=model))
    blind, _ = acceptance(verdicts(accepted, labels))
    assert by_model.true_accept.value == pytest.approx(TRUE, abs=0.02)
    assert by_model.false_accept.value == pytest.approx(FALSE, abs=0.02)
    assert not blind.true_accept.low <= TRUE <= blind.true_accept.high
    assert not blind.false_accept.low <= FALSE <= blind.false_accept.high


def coverage(worlds: list[tuple[Verdicts, list[float], list[float]]]) -> tuple[float, float]:
    """Share of intervals of all tasks that hold the truth, and of cautious ends that lie on its safe side."""
    inside, safe = [], []
    for seed, (log, true, false) in enumerate(worlds):
        for found, t, f in zip(acceptance(log, 0.9, draws=800, seed=seed)[1], true, false, strict=True):
            inside += [found.true_accept.low <= t <= found.true_accept.high]
            inside += [found.false_accept.low <= f <= found.false_accept.high]
            safe += [found.true_accept.low <= t, found.false_accept.high >= f]
    return float(np.mean(inside)), float(np.mean(safe))


@pytest.mark.parametrize(
    ("n", "tasks", "spread"),
    [
        (60, 1, 0.0),
        (300, 1, 0.0),
        (1_000, 4, 0.7),
        pytest.param(1_000, 4, 0.0, marks=pytest.mark.slow),
        pytest.param(3_000, 1, 0.0, marks=pytest.mark.slow),
        pytest.param(3_000, 15, 0.7, marks=pytest.mark.slow),
    ],
)
def test_intervals_hold_the_truth_about_as_often_as_they_say(n: int, tasks: int, spread: float) -> None:
    inside, safe = coverage([world(seed, n, tasks, spread=spread) for seed in range(300)])
    assert 0.86 <= inside <= 0.97, inside
    assert safe >= 0.93, safe


def test_without_a_label_of_a_rejected_answer_the_cautious_end_takes_them_all_for_right() -> None:
    log = counted((True, 1, 900), (True, 0, 100), (False, -1, 1_000))
    rate = acceptance(log)[0].true_accept
    assert rate.low == pytest.approx(0.9 / 1.9, abs=0.03) and rate.high > 0.98


def test_labels_that_all_say_the_same_leave_an_interval() -> None:
    rate = acceptance(counted((True, 1, 20), (False, 0, 20)))[0].true_accept
    assert rate.low < 0.95 and rate.high > 0.99


def test_a_task_without_labels_is_about_what_the_others_are_and_less_certain() -> None:
    n = 2_000
    parts = [world(seed, n, labelled=(0.5, 0.5))[0] for seed in range(4)]
    right = np.concatenate([one.right for one in parts[:3]] + [np.full(n, -1)])
    log = verdicts(np.concatenate([one.accepted for one in parts]), right, np.repeat(np.arange(4), n))
    _, tasks = acceptance(log)
    assert tasks[3].true_accept.n == tasks[3].false_accept.n == 0
    assert tasks[3].true_accept.low < tasks[0].true_accept.low
    assert tasks[3].true_accept.low <= TRUE <= tasks[3].true_accept.high


def test_one_task_is_the_whole() -> None:
    whole, (task,) = acceptance(world(3, 200)[0])
    assert whole == task


def test_a_seed_gives_the_same_numbers_and_a_higher_level_wider_ones() -> None:
    log, _, _ = world(1, 500, 3)
    assert acceptance(log, seed=1) == acceptance(log, seed=1) != acceptance(log, seed=2)
    narrow, wide = acceptance(log, 0.5)[0].true_accept, acceptance(log, 0.95)[0].true_accept
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high


# -- answers of one decision


def test_a_decision_repeated_counts_once() -> None:
    log, _, _ = world(5, 400)
    many = Verdicts(*(np.tile(column, 5) for column in log))
    blind = many._replace(decision=np.arange(2_000))

    def width(found: tuple[Acceptance, list[Acceptance]]) -> float:
        return found[0].true_accept.high - found[0].true_accept.low

    once = width(acceptance(log))
    assert width(acceptance(many)) == pytest.approx(once, rel=0.1)
    assert width(acceptance(blind)) < 0.6 * once


def test_the_design_effect_is_that_of_clusters_of_one_size() -> None:
    # 1 + (size - 1) * correlation, which is 1 where all of a cluster say the same
    y, decision = np.repeat([0, 1, 1, 0, 1, 0], 4), np.repeat(np.arange(6), 4)
    one_cell = np.zeros(24, dtype=int)
    assert _design_effect(y, one_cell, decision) == pytest.approx(4.0)
    assert _design_effect(y, one_cell, np.arange(24)) == 1.0
    assert _design_effect(np.tile([0, 1], 12), one_cell, decision) == 1.0  # less spread than chance: no credit for it


def test_one_rate_alone_is_near_the_posterior_of_a_uniform_prior() -> None:
    drawn = _alike(np.array([30.0]), np.array([40.0]), 40_000, np.random.default_rng(0))[0]
    assert np.quantile(drawn, [0.05, 0.95]) == pytest.approx(beta(31, 11).ppf([0.05, 0.95]), abs=0.015)


def test_rates_that_are_alike_share_and_rates_that_differ_do_not() -> None:
    def small(x: list[float]) -> float:
        """The mean of a member with one success in two trials, beside ``x`` of 100 each."""
        n = np.array([2.0] + [100.0] * len(x))
        return float(_alike(np.array([1.0, *x]), n, 20_000, np.random.default_rng(0))[0].mean())

    assert small([90.0] * 12) > 0.8
    assert math.isclose(small([2.0, 98.0] * 6), 0.5, abs_tol=0.05)
