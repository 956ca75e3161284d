"""Base rates, the noise floor of the calibration error, and the reliability diagram's numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.calibration import base_rates, calibration_report, ece_noise_floor, reliability, wilson_interval
from training.metrics import FloatArray, expected_calibration_error, reliability_bins

NAN = math.nan


def calibrated_world(n: int, m: int, seed: int, *, together: bool = False) -> tuple[FloatArray, FloatArray]:
    """Outcomes drawn from p itself; ``together``: one draw decides all models of a request."""
    rng = np.random.default_rng(seed)
    p = np.tile(rng.uniform(0.1, 0.9, (n, 1)), (1, m))
    return (rng.random((n, 1 if together else m)) < p).astype(float), p


def test_base_rates_leave_the_judged_fold_out() -> None:
    success = np.array([[1.0, NAN], [1.0, 0.0], [0.0, NAN], [0.0, NAN]])
    found = base_rates(success, np.array([0, 0, 1, 1]))
    # model 1 has no outcome outside fold 0: the rate of everything there, 0 of 2
    np.testing.assert_allclose(found.per_model, [[0, 0], [0, 0], [1, 0], [1, 0]])
    np.testing.assert_allclose(found.overall[:, 0], [0, 0, 2 / 3, 2 / 3])


def test_base_rates_of_an_empty_rest_are_even_odds() -> None:
    found = base_rates(np.array([[1.0], [NAN]]), np.array([0, 1]))
    np.testing.assert_allclose(found.overall[:, 0], [0.5, 1.0])


@pytest.mark.parametrize("together", [False, True])
def test_noise_floor_is_what_a_calibrated_predictor_shows(together: bool) -> None:
    observed, floors = [], []
    for seed in range(12):
        success, p = calibrated_world(150, 8, seed, together=together)
        observed.append(expected_calibration_error(success, p))
        floors.append(ece_noise_floor(success, p, seed))
    assert np.mean(floors) == pytest.approx(np.mean(observed), rel=0.2)


def test_noise_floor_rises_where_outcomes_of_a_request_hang_together() -> None:
    alone, together = (ece_noise_floor(*calibrated_world(150, 8, 3, together=flag)) for flag in (False, True))
    assert together > 1.5 * alone
    assert math.isnan(ece_noise_floor(np.full((2, 2), NAN), np.full((2, 2), 0.5)))


def test_report_tells_a_miscalibrated_predictor_from_a_calibrated_one() -> None:
    success, p = calibrated_world(400, 4, 0)
    fold = np.arange(400) % 5
    tasks = ["a", "b"] * 200
    good = calibration_report(success, p, tasks, base_rates(success, fold), fold=fold)
    bad = calibration_report(success, p**3, tasks, base_rates(success, fold), fold=fold)
    assert good["ece"] < 0.04 < 0.1 < bad["ece"]
    assert good["brier_skill"] > 0.1 > bad["brier_skill"]
    assert good["auc"] == pytest.approx(bad["auc"])  # the order is the same
    assert good["n"]["ece"] == 1600 and good["n_models_in_auc"] == 4 and good["n_cells_in_auc_within_task"] == 8


def test_pooled_figures_credit_telling_good_models_from_bad_ones() -> None:
    rng = np.random.default_rng(1)
    p = np.tile([0.2, 0.8], (300, 1))
    success = (rng.random((300, 2)) < p).astype(float)
    fold = np.arange(300) % 5
    found = calibration_report(success, p, [None] * 300, base_rates(success, fold), fold=fold)
    assert found["auc"] == pytest.approx(0.5) and found["auc_pooled"] > 0.75
    assert abs(found["brier_skill"]) < 0.02 and found["brier_skill_pooled"] > 0.25
    assert found["auc_within_task"] is None  # no request has a task


@given(st.integers(1, 60), st.integers(0, 10_000))
def test_reliability_has_the_bins_of_the_calibration_error(n: int, seed: int) -> None:
    success, p = calibrated_world(n, 3, seed)
    success[0, 0] = NAN
    found, bins = reliability(success, p, np.arange(n)), reliability_bins(success, p)
    np.testing.assert_array_equal(found.counts, bins.counts)
    np.testing.assert_allclose(found.mean_p, bins.mean_p)
    np.testing.assert_allclose(found.success_rate, bins.success_rate)
    assert (found.low <= found.success_rate).all() and (found.high >= found.success_rate).all()
    assert (found.edge <= found.mean_p).all() and (found.mean_p <= found.edge + 1 / 15 + 1e-12).all()


def test_reliability_intervals_widen_where_outcomes_of_a_group_hang_together() -> None:
    success, p = np.repeat(np.array([1.0, 0.0] * 50)[:, None], 4, axis=1), np.full((100, 4), 0.5)
    one = reliability(success, p, np.arange(100))
    # four equal outcomes per request are worth one: the interval of 50 of 100
    assert (one.low[0], one.high[0]) == pytest.approx(wilson_interval(0.5, 100))


def test_wilson_interval_of_known_cases() -> None:
    assert wilson_interval(0.5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson_interval(0.0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)


@given(st.integers(1, 500), st.floats(1.0, 500.0))
def test_wilson_interval_holds_the_rate(successes: int, n: float) -> None:
    rate = min(1.0, successes / 500)
    low, high = wilson_interval(rate, n)
    assert -1e-12 <= low <= rate <= high <= 1 + 1e-12
