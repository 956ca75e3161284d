from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge

from training.estimator import CostEstimator, RequestMap, SuccessEstimator, TaskRates, _newton, ridge_path
from training.metrics import expected_calibration_error, mean_auc


def world(n: int, m: int = 5, signal: float = 1.5, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """phi, true P(success), outcomes: one visible difficulty shared by all models."""
    rng = np.random.default_rng(seed)
    phi = rng.normal(size=(n, 12)) / 4
    z = np.linspace(-1, 2, m) - signal * 4 * phi[:, :1]
    p = 1 / (1 + np.exp(-z))
    return phi, p, (rng.random((n, m)) < p).astype(float)


def test_ridge_path_equals_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    X, Y = rng.normal(size=(80, 7)) + 3, rng.normal(size=(80, 2))
    center = X.mean(axis=0)
    for penalty, weights in zip((0.5, 20.0), ridge_path(X, center, Y, (0.5, 20.0)), strict=True):
        reference = Ridge(alpha=penalty, fit_intercept=False).fit(X - center, Y)
        np.testing.assert_allclose(weights, reference.coef_.T, atol=1e-9)


def test_newton_equals_scikit_learns_logistic_regression() -> None:
    rng = np.random.default_rng(2)
    F = rng.normal(size=(300, 3))
    y = (rng.random(300) < 1 / (1 + np.exp(-F @ [1.0, -0.5, 0.2]))).astype(float)
    ours = _newton(F, y, np.zeros(3), np.full(3, 2.0))
    reference = LogisticRegression(C=0.5, fit_intercept=False, tol=1e-10).fit(F, y)
    np.testing.assert_allclose(ours, reference.coef_[0], atol=1e-5)


def test_learns_the_truth_and_is_calibrated_on_new_rows() -> None:
    phi, _, y = world(3_000)
    phi_new, p_new, y_new = world(3_000, seed=1)
    predicted = SuccessEstimator().fit(phi, y).predict_proba(phi_new)
    assert np.abs(predicted - p_new).mean() < 0.03
    assert expected_calibration_error(y_new.ravel(), predicted.ravel()) < 0.02


def test_sparse_outcomes_teach_the_same_as_a_full_grid_does_more_slowly() -> None:
    phi, _, y = world(6_000)
    rng = np.random.default_rng(3)
    sparse = np.full_like(y, np.nan)
    chosen = rng.integers(0, 5, len(y))
    sparse[np.arange(len(y)), chosen] = y[np.arange(len(y)), chosen]
    phi_new, p_new, _ = world(2_000, seed=4)
    predicted = SuccessEstimator().fit(phi, sparse).predict_proba(phi_new)
    assert np.abs(predicted - p_new).mean() < 0.05


def test_without_signal_it_is_the_base_rate() -> None:
    phi, _, y = world(500, signal=0.0)
    predicted = SuccessEstimator().fit(phi, y).predict_proba(phi)
    base = y.mean(axis=0)
    assert np.abs(predicted - base).max() < 0.06
    assert predicted.std(axis=0).max() < 0.03


@pytest.mark.parametrize("n", [6, 12, 25])
def test_few_rows_stay_near_the_base_rate(n: int) -> None:
    phi, _, y = world(n, seed=5)
    predicted = SuccessEstimator().fit(phi, y).predict_proba(world(200, seed=6)[0])
    assert np.isfinite(predicted).all()
    assert ((predicted > 0.02) & (predicted < 0.98)).all()


def test_a_model_without_outcomes_gets_the_pools_rate_not_noise() -> None:
    phi, _, y = world(800)
    y[:, 2] = np.nan
    estimator = SuccessEstimator().fit(phi, y)
    new = estimator.predict_proba(world(500, seed=7)[0])[:, 2]
    assert abs(new.mean() - np.nanmean(y)) < 0.1
    assert estimator.n_outcomes_[2] == 0


def test_a_constant_outcome_stays_off_zero_and_one() -> None:
    phi, _, _ = world(100)
    predicted = SuccessEstimator().fit(phi, np.ones((100, 2))).predict_proba(phi)
    assert (predicted > 0.9).all() and (predicted < 1.0).all()


def test_tasks_are_used_where_they_say_more_than_the_text() -> None:
    rng = np.random.default_rng(8)
    phi = rng.normal(size=(1_200, 6)) / 4
    task = [["easy", "hard"][i] for i in rng.integers(0, 2, 1_200)]
    p = np.where(np.array(task)[:, None] == "easy", 0.9, 0.3) * np.ones((1, 3))
    y = (rng.random(p.shape) < p).astype(float)
    estimator = SuccessEstimator().fit(phi, y, task=task)
    assert estimator.tasks_ == ("easy", "hard")
    easy, hard, unknown = (estimator.predict_proba(phi[:50], [t] * 50).mean() for t in ("easy", "hard", "new"))
    assert abs(easy - 0.9) < 0.05 and abs(hard - 0.3) < 0.05 and hard < unknown < easy


def test_tasks_that_say_nothing_are_dropped() -> None:
    phi, _, y = world(800)
    rng = np.random.default_rng(9)
    labels = [f"t{i}" for i in rng.integers(0, 40, 800)]
    estimator = SuccessEstimator().fit(phi, y, task=labels)
    spread = np.ptp([estimator.predict_proba(phi[:1], [t])[0, 0] for t in sorted(set(labels))])
    assert estimator.tasks_ == () or spread < 0.05


def test_task_rates_shrink_with_the_rows_behind_them() -> None:
    rng = np.random.default_rng(10)
    codes = np.array([0] * 400 + [1] * 400 + [2] * 4)
    p = np.array([0.2, 0.8, 0.8])[codes][:, None] * np.ones((1, 4))
    y = (rng.random(p.shape) < p).astype(float)
    y[codes == 2] = 1.0
    rates = TaskRates.fit(y, codes, 3)
    assert abs(rates.rate[0].mean() - 0.2) < 0.05
    assert rates.rate[2].mean() < 0.97
    np.testing.assert_allclose(rates.rate[-1], rates.base)


def test_groups_are_respected_in_inner_folds() -> None:
    """Every request twice: without groups the copy in the other fold would be learned by heart."""
    rng = np.random.default_rng(11)
    phi = np.repeat(rng.normal(size=(150, 100)), 2, axis=0)
    y = np.repeat((rng.random((150, 3)) < 0.5).astype(float), 2, axis=0)
    groups = [str(i // 2) for i in range(300)]
    grouped = SuccessEstimator().fit(phi, y, groups=groups).predict_proba(phi)
    naive = SuccessEstimator().fit(phi, y).predict_proba(phi)
    assert grouped.std() < 0.5 * naive.std()


def test_the_same_seed_gives_the_same_numbers() -> None:
    phi, _, y = world(300)
    a, b = (SuccessEstimator(random_state=3).fit(phi, y).predict_proba(phi) for _ in range(2))
    np.testing.assert_array_equal(a, b)


def test_ranking_within_a_model_follows_the_visible_difficulty() -> None:
    phi, _, y = world(2_000)
    phi_new, _, y_new = world(2_000, seed=12)
    predicted = SuccessEstimator().fit(phi, y).predict_proba(phi_new)
    assert mean_auc(y_new, predicted).value > 0.75


def test_cost_is_unbiased_in_dollars_and_follows_the_request() -> None:
    rng = np.random.default_rng(13)
    phi = rng.normal(size=(2_000, 8)) / 3
    price = np.array([0.001, 0.02])
    cost = price * np.exp(2 * phi[:, :1] + rng.normal(scale=0.5, size=(2_000, 2)))
    predicted = CostEstimator().fit(phi[:1_000], cost[:1_000]).predict(phi[1_000:])
    np.testing.assert_allclose(predicted.mean(axis=0), cost[1_000:].mean(axis=0), rtol=0.1)
    assert np.corrcoef(np.log(predicted[:, 0]), phi[1_000:, 0])[0, 1] > 0.95


def test_cost_of_zero_and_of_nobody_knows() -> None:
    phi = np.random.default_rng(14).normal(size=(60, 4))
    cost = np.full((60, 3), np.nan)
    cost[:, 0] = 0.0
    cost[:30, 1] = 2.0
    predicted = CostEstimator().fit(phi, cost).predict(phi)
    np.testing.assert_allclose(predicted[:, 0], 0.0)
    np.testing.assert_allclose(predicted[:, 1], 2.0)
    assert np.isfinite(predicted).all()


def test_the_request_map_vanishes_far_from_training_data() -> None:
    X = np.random.default_rng(15).normal(size=(200, 30))
    request_map = RequestMap(n_components=5, n_landmarks=40).fit(X, n_features=10)
    near, far = request_map.transform(X), request_map.transform(np.full((1, 30), 1e3))
    assert np.abs(far).max() < 1e-3 * np.abs(near).max()
