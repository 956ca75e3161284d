"""Baselines on small worlds with known answers; every prompt here is written for these tests."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from router_ml.errors import NotFittedError, TableError
from training.baselines import (
    NearestNeighbours,
    PerTaskTable,
    PromptLength,
    RandomMixture,
    SingleModel,
    oracle,
    out_of_fold,
    standard_baselines,
)
from training.cost_quality import hull_area, realised_curve
from training.heuristics import ComplexityHeuristic
from training.metrics import FloatArray, IntArray, auc
from training.prediction import Baseline, GroupTable, Prediction, Requests

NAN = math.nan
EASY = "hello, what is the capital of Peru?"
HARD = (
    "Think carefully, step by step: refactor this Python function; its distributed protocol has latency and memory bugs"
)


def blank(n: int, tasks: list[str | None] | None = None, d: int = 2) -> Requests:
    return Requests(["some text"] * n, tasks or [None] * n, np.ones((n, d)))


def two_task_world(n: int, seed: int) -> tuple[Requests, FloatArray, FloatArray]:
    """Task "add": the cheap model does as well as the dear one (.9); task "sue": it fails (.1 against .9)."""
    rng = np.random.default_rng(seed)
    is_hard = np.arange(n) % 2 == 1
    chance = np.where(is_hard[:, None], [0.1, 0.9], [0.9, 0.9])
    score = (rng.random((n, 2)) < chance).astype(float)
    cost = np.where(is_hard[:, None], [2.0, 20.0], [1.0, 10.0]) * rng.uniform(0.9, 1.1, (n, 2))
    embedding = np.where(is_hard[:, None], [1.0, 0.1], [0.1, 1.0]) + rng.normal(0, 0.05, (n, 2))
    texts = [HARD if hard else EASY for hard in is_hard]
    return Requests(texts, ["sue" if hard else "add" for hard in is_hard], embedding), score, cost


def area(prediction: Prediction, score: FloatArray, cost: FloatArray) -> float:
    return prediction.curve(score, cost).value(hull_area)


def folds(n: int) -> IntArray:
    return (np.arange(n) // 2 % 5).astype(np.intp)


@pytest.mark.parametrize("name", standard_baselines(["cheap", "dear"]))
def test_every_baseline_gives_probabilities_costs_and_choices_on_a_sparse_table(name: str) -> None:
    requests, score, cost = two_task_world(200, 0)
    score[np.random.default_rng(1).random(score.shape) < 0.5] = NAN
    cost[np.isnan(score)] = NAN
    make = standard_baselines(["cheap", "dear"])[name]
    prediction = out_of_fold(make, requests, score, cost, folds(200))
    assert prediction.p.shape == prediction.c.shape == (200, 2)
    assert ((prediction.p >= 0) & (prediction.p <= 1)).all()
    assert (np.isfinite(prediction.c) & (prediction.c >= 0)).all()
    curve = prediction.curve(score, cost)
    assert curve.choices.min() >= 0 and curve.choices.max() <= 1
    assert curve.n == (~np.isnan(score).any(axis=1)).sum()


@pytest.mark.parametrize("make", [*standard_baselines(["only"]).values(), lambda: NearestNeighbours(3)])
def test_predicting_before_fitting_is_refused(make: type[Baseline]) -> None:
    with pytest.raises(NotFittedError, match="has not been fitted; call fit"):
        make().predict(blank(1))


def test_a_model_without_outcomes_falls_back_to_what_the_others_show() -> None:
    score = np.array([[1.0, 0.0, NAN], [1.0, 1.0, NAN]])
    cost = np.array([[1.0, 4.0, NAN], [3.0, NAN, NAN]])
    found = RandomMixture().fit(blank(2), score, cost).predict(blank(1))
    np.testing.assert_allclose(found.p, [[1.0, 0.5, 0.75]])
    np.testing.assert_allclose(found.c, [[2.0, 4.0, 4.0]])


def test_single_models_are_picked_on_training_rows() -> None:
    score, cost = np.array([[0.4, 0.6, 0.5]] * 3), np.array([[1.0, 3.0, 2.0]] * 3)
    for pick, expected in (("cheapest", 0), ("best", 1), (2, 2)):
        choices = SingleModel(pick).fit(blank(3), score, cost).predict(blank(4)).choices  # type: ignore[arg-type]
        assert choices is not None and choices.tolist() == [[expected] * 4]


def test_random_mixture_is_the_hull_of_the_training_rows_single_models() -> None:
    train = np.array([[0.2, 0.3, 0.9]] * 4), np.array([[1.0, 2.0, 3.0]] * 4)
    # on the judged rows the middle model is a bargain, but training rows did not show that
    judged = np.array([[0.0, 1.0, 1.0]] * 4), np.array([[1.0, 2.0, 3.0]] * 4)
    mixture = RandomMixture().fit(blank(4), *train).predict(blank(4))
    assert area(mixture, *judged) == pytest.approx(0.5)
    everything = realised_curve(np.repeat([[0], [1], [2]], 4, axis=1), *judged)
    assert everything.value(hull_area) == pytest.approx(0.75)


def test_group_table_shrinks_small_groups_and_gives_unseen_ones_the_model_mean() -> None:
    score = np.array([[1.0], [1.0], [1.0], [0.0]])
    cost = np.array([[2.0], [2.0], [2.0], [10.0]])
    table = GroupTable(pseudo_counts=1.0).fit(["a", "a", "a", "b"], score, cost)
    found = table.predict(["a", "b", "new", None])
    np.testing.assert_allclose(found.p[:, 0], [3.75 / 4, 0.75 / 2, 0.75, 0.75])
    np.testing.assert_allclose(found.c[:, 0], [10 / 4, 14 / 2, 4.0, 4.0])
    assert table.predict([]).p.shape == (0, 1)


def test_tables_and_neighbours_beat_the_mixture_where_the_task_decides() -> None:
    requests, score, cost = two_task_world(300, 2)
    mixture = area(out_of_fold(RandomMixture, requests, score, cost, folds(300)), score, cost)
    for make in (PerTaskTable, lambda: NearestNeighbours(20), PromptLength, ComplexityHeuristic):
        assert area(out_of_fold(make, requests, score, cost, folds(300)), score, cost) > mixture + 0.05


def test_neighbours_average_success_and_cost_of_the_nearest_by_angle() -> None:
    train = Requests(["t"] * 4, [None] * 4, np.array([[1.0, 0.0], [9.0, 0.9], [0.0, 1.0], [0.0, 5.0]]))
    score = np.array([[1.0, NAN], [0.0, NAN], [1.0, 1.0], [1.0, 0.0]])
    cost = np.array([[1.0, 2.0], [3.0, NAN], [5.0, 6.0], [7.0, 8.0]])
    query = Requests(["q"], [None], np.array([[1.0, 0.3]]))
    found = NearestNeighbours(2).fit(train, score, cost).predict(query)
    # model 1 was tried by neither neighbour: its training mean, .5
    np.testing.assert_allclose(found.p, [[0.5, 0.5]])
    np.testing.assert_allclose(found.c, [[2.0, 2.0]])
    everything = NearestNeighbours(99).fit(train, score, cost).predict(query)
    np.testing.assert_allclose(everything.p, [[0.75, 0.5]])


def test_inner_validation_takes_many_neighbours_on_noise_and_few_on_fine_structure() -> None:
    rng = np.random.default_rng(3)
    embedding = rng.normal(size=(300, 3))
    noise = (rng.random((300, 1)) < 0.5).astype(float)
    cost = np.ones((300, 1))
    requests = Requests(["t"] * 300, [None] * 300, embedding)
    assert NearestNeighbours(None, grid=(2, 100)).fit(requests, noise, cost).k_ == 100
    clusters = Requests(["t"] * 300, [None] * 300, np.repeat(rng.normal(size=(30, 8)), 10, axis=0))
    by_cluster = np.repeat(rng.integers(0, 2, 30), 10).astype(float)[:, None]
    assert NearestNeighbours(None, grid=(5, 200)).fit(clusters, by_cluster, cost).k_ == 5


def test_prompt_length_is_monotone_and_leaves_thin_models_at_their_mean() -> None:
    texts = ["x" * n for n in range(1, 201)]
    requests = Requests(texts, [None] * 200, np.ones((200, 1)))
    score = np.full((200, 3), NAN)
    score[:, 0] = np.arange(200) < 100
    score[:, 1] = 1.0
    score[:3, 2] = [1.0, 0.0, 0.0]
    cost = np.column_stack([np.arange(200) * 0.5, np.arange(200)[::-1] * 1.0, np.full(200, NAN)])
    found = PromptLength().fit(requests, score, cost).predict(requests)
    assert (np.diff(found.p[:, 0]) < 0).all() and auc(score[:, 0], found.p[:, 0]) == 1.0
    assert (found.p[:, 1] == 1.0).all()
    np.testing.assert_allclose(found.p[:, 2], 1 / 3)
    np.testing.assert_allclose(found.c[:, 0], cost[:, 0], atol=1e-9)
    assert np.ptp(found.c[:, 1]) == 0.0  # a longer prompt is never taken as cheaper
    longer = PromptLength().fit(requests, score, cost).predict(Requests(["x" * 9000], [None], np.ones((1, 1))))
    assert longer.c[0, 0] == pytest.approx(99.5)


def test_oracle_calls_the_cheapest_model_that_succeeds_and_the_cheapest_where_none_does() -> None:
    score = np.array([[0.0, 1.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    cost = np.tile([1.0, 2.0, 3.0], (3, 1))
    curve = oracle(score, cost).curve(score, cost)
    assert curve.choices[0].tolist() == [1, 0, 0]
    assert curve.points()[:, 1].max() == pytest.approx(2 / 3)
    untried = oracle(np.array([[NAN, 1.0]]), np.array([[NAN, 2.0]]))
    assert untried.p.tolist() == [[0.0, 1.0]] and untried.c.tolist() == [[2.0, 2.0]]


@settings(deadline=None)
@given(
    arrays(np.float64, (6, 3), elements=st.integers(0, 1).map(float)),
    arrays(np.float64, (6, 3), elements=st.integers(1, 9).map(float)),
    arrays(np.intp, (4, 6), elements=st.integers(0, 2)),
)
def test_no_choice_of_one_model_per_request_beats_the_oracle(
    score: FloatArray, cost: FloatArray, choices: IntArray
) -> None:
    best = area(oracle(score, cost), score, cost)
    assert best >= realised_curve(choices, score, cost).value(hull_area) - 1e-9


def test_out_of_fold_never_fits_on_the_row_it_predicts() -> None:
    score, cost = np.array([[1.0], [1.0], [0.0], [0.0]]), np.ones((4, 1))
    found = out_of_fold(RandomMixture, blank(4), score, cost, np.array([0, 0, 1, 1]))
    assert found.p[:, 0].tolist() == [0.0, 0.0, 1.0, 1.0]
    picks = out_of_fold(lambda: SingleModel("cheapest"), blank(4), np.ones((4, 2)),
                        np.array([[1.0, 2.0], [1.0, 2.0], [2.0, 1.0], [2.0, 1.0]]), np.array([0, 0, 1, 1]))  # fmt: skip
    assert picks.choices is not None and picks.choices.tolist() == [[1, 1, 0, 0]]
    with pytest.raises(TableError, match="1 fold"):
        out_of_fold(RandomMixture, blank(4), score, cost, np.zeros(4, dtype=np.intp))


def test_requests_of_unequal_length_are_refused() -> None:
    with pytest.raises(TableError, match="2 texts, 1 tasks, 2 embeddings"):
        Requests(["a", "b"], [None], np.ones((2, 1)))
