"""Calibration and discrimination against hand-computed cases and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, roc_auc_score  # type: ignore[import-untyped]

from router_ml.errors import TableError
from training.metrics import (
    auc,
    auc_within_task,
    brier,
    brier_skill,
    expected_calibration_error,
    mean_auc,
    reliability_bins,
    successes,
)

NAN = math.nan
UNIT = st.floats(0.0, 1.0, width=32)
CENT = st.integers(0, 100).map(lambda cents: cents / 100)  # coarse, so that ties occur


def test_success_starts_at_one_half_and_untried_stays_unknown() -> None:
    np.testing.assert_array_equal(successes([0.0, 0.49, 0.5, 1.0, NAN]), [0, 0, 1, 1, NAN])


def test_ece_of_a_hand_computed_example() -> None:
    p = [0.1, 0.2, 0.7, 0.8, 0.9]
    y = [0, 1, 1, 1, 0]
    # two bins: |1/2 - .15| * 2/5 + |2/3 - .8| * 3/5
    assert expected_calibration_error(y, p, n_bins=2) == pytest.approx(0.35 * 0.4 + (0.8 - 2 / 3) * 0.6)


def test_bins_are_closed_on_the_right_and_zero_is_in_the_first() -> None:
    bins = reliability_bins([1, 1, 0], [0.0, 0.5, 0.50001], n_bins=2)
    np.testing.assert_array_equal(bins.counts, [2, 1])
    np.testing.assert_allclose(bins.success_rate, [1.0, 0.0])


def test_equal_mass_bins_share_the_cells_evenly_and_keep_equal_predictions_together() -> None:
    p = np.linspace(0.3, 0.4, 60)
    assert reliability_bins(np.ones(60), p, 4, equal_mass=True).counts.tolist() == [15, 15, 15, 15]
    assert reliability_bins(np.ones(60), np.full(60, 0.3), 4, equal_mass=True).counts.tolist() == [60]


@given(st.lists(st.tuples(st.booleans(), UNIT), min_size=1, max_size=60), st.integers(1, 20), st.booleans())
def test_bins_hold_every_cell_and_ece_is_a_fraction(
    cells: list[tuple[bool, float]], n_bins: int, equal_mass: bool
) -> None:
    y, p = [float(outcome) for outcome, _ in cells], [value for _, value in cells]
    bins = reliability_bins(y, p, n_bins, equal_mass=equal_mass)
    assert bins.counts.sum() == len(cells)
    assert bins.mean_p @ bins.counts == pytest.approx(sum(p), abs=1e-6)
    assert 0.0 <= expected_calibration_error(y, p, n_bins, equal_mass=equal_mass) <= 1.0


def test_untried_cells_do_not_count() -> None:
    y, p = np.array([[1.0, NAN], [0.0, NAN]]), np.array([[0.9, 0.0], [0.1, NAN]])
    assert brier(y, p) == pytest.approx(0.01)
    assert expected_calibration_error(y, p) == pytest.approx(0.1)
    assert math.isnan(brier([NAN], [0.5])) and math.isnan(expected_calibration_error([NAN], [0.5]))


@pytest.mark.parametrize("wrong", [NAN, -0.01, 1.01])
def test_a_prediction_that_is_no_probability_is_refused(wrong: float) -> None:
    with pytest.raises(TableError, match="1 of 2 are not a probability"):
        brier([1, 0], [0.5, wrong])


def test_brier_equals_the_reference_implementation_and_skill_compares_with_base_rates() -> None:
    rng = np.random.default_rng(0)
    p = rng.random((50, 2))
    y = (rng.random((50, 2)) < p).astype(float)
    assert brier(y, p) == pytest.approx(brier_score_loss(y.ravel(), p.ravel()))
    base = y.mean(axis=0)
    assert brier_skill(y, np.tile(base, (50, 1)), base) == pytest.approx(0.0)
    assert brier_skill(y, y, base) == 1.0
    assert brier_skill(y, 1 - y, base) < 0


@given(st.lists(st.tuples(st.booleans(), CENT), min_size=2, max_size=80))
def test_auc_equals_scikit_learn_with_ties(cells: list[tuple[bool, float]]) -> None:
    y, p = [outcome for outcome, _ in cells], [value for _, value in cells]
    if len(set(y)) < 2:
        assert math.isnan(auc(y, p))
    else:
        assert auc(y, p) == pytest.approx(roc_auc_score(y, p))


def test_auc_inside_strata_does_not_blame_a_constant_for_its_folds() -> None:
    y = np.array([1, 1, 1, 0, 0, 0, 0, 1])
    fold = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    left_out_means = np.where(fold == 0, 0.25, 0.75)  # each fold is predicted from the other one
    assert auc(y, left_out_means) == pytest.approx(0.25)
    assert auc(y, left_out_means, fold) == 0.5
    # pairs of both strata count alike: 2 of 3, then 3 of 3
    assert auc(y, [0.9, 0.8, 0.1, 0.5, 0.1, 0.2, 0.3, 0.4], fold) == pytest.approx(5 / 6)


def test_mean_auc_leaves_out_models_with_few_rows_or_one_class() -> None:
    score = np.full((40, 3), NAN)
    score[:, 0] = np.arange(40) % 2
    score[:, 1] = 1.0
    score[:19, 2] = np.arange(19) % 2
    p = np.repeat(np.nan_to_num(score[:, :1]), 3, axis=1)
    assert mean_auc(score, p) == (1.0, 40, 1)


def test_auc_within_task_weighs_cells_by_rows_and_ignores_what_separates_the_tasks() -> None:
    # task a (20 rows): ordered perfectly; task b (40 rows): reversed; no task: would be perfect
    a, b = np.tile([1.0, 0.0], 10), np.tile([1.0, 0.0], 20)
    score = np.concatenate([a, b, a])[:, None]
    p = np.concatenate([0.5 + 0.1 * a, 0.2 - 0.1 * b, a])[:, None]
    task: list[str | None] = ["a"] * 20 + ["b"] * 40 + [None] * 20
    found = auc_within_task(score, p, task)
    assert found.value == pytest.approx(20 / 60) and found[1:] == (60, 2)
    assert auc_within_task(score, p, task, min_per_class=11) == (0.0, 40, 1)
    assert math.isnan(auc_within_task(score, p, task, min_per_class=21).value)
    with pytest.raises(TableError, match="3 task names for 80 requests"):
        auc_within_task(score, p, ["a", "b", None])
