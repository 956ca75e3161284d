"""Loadings and the hopeless share, learned from worlds in which they are known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import ndtri

from router_ml.dependence import DEFAULT_HOPELESS, DEFAULT_LOADING, Dependence
from router_ml.errors import ArtifactError
from training.dependence import FittedDependence, _Likelihood, fit_dependence
from training.metrics import FloatArray


def world(n: int, loadings: list[float], hopeless: float = 0.0, seed: int = 0) -> tuple[FloatArray, FloatArray]:
    """Outcomes and their true probabilities (n, m)."""
    rng = np.random.default_rng(seed)
    m, b = len(loadings), np.array(loadings)
    p = np.clip(rng.uniform(0.2, 0.8, (n, 1)) + rng.uniform(-0.15, 0.15, m), 0.05, 0.95)
    beyond = hopeless * (1.0 - p.max(axis=1, keepdims=True))
    offset = ndtri(p / (1.0 - beyond)) * np.sqrt(1.0 + b**2)
    right = b * rng.standard_normal((n, 1)) + rng.standard_normal((n, m)) < offset
    return (right & (rng.random((n, 1)) >= beyond)).astype(float), p


def test_loadings_are_found_again() -> None:
    success, p = world(4_000, [0.3, 0.8, 1.5, 2.5])
    fitted = fit_dependence(success, p)
    assert fitted.loadings == pytest.approx([0.3, 0.8, 1.5, 2.5], rel=0.2, abs=0.1)
    assert fitted.hopeless <= 0.1 and fitted.n_requests == 4_000 and fitted.n_pairs == 4_000 * 6


def test_the_hopeless_share_is_found_again() -> None:
    assert fit_dependence(*world(4_000, [0.8] * 5, hopeless=0.4)).hopeless == pytest.approx(0.4, abs=0.1)


def test_a_log_of_cascades_gives_the_same_loadings_as_a_full_grid() -> None:
    """The second model is tried only where the first failed, the third only where both did."""
    success, p = world(20_000, [1.2, 1.2, 1.2], seed=1)
    logged = success.copy()
    logged[success[:, 0] > 0, 1:] = np.nan
    logged[np.nan_to_num(success[:, 1]) > 0, 2] = np.nan
    assert fit_dependence(logged, p).loadings.mean() == pytest.approx(1.2, rel=0.25)


def test_what_is_seldom_seen_stays_at_the_default() -> None:
    success, p = world(200, [2.0, 2.0, 2.0])
    success[3:, 2] = np.nan
    assert abs(np.log(fit_dependence(success, p).loadings[2] / fit_dependence(success, p).loadings[:2].mean())) < 0.5
    success[:, 1:] = np.nan  # no pair at all
    nothing = fit_dependence(success, p)
    assert nothing.loadings.tolist() == [DEFAULT_LOADING] * 3 and nothing.hopeless == DEFAULT_HOPELESS
    assert (nothing.n_requests, nothing.n_pairs) == (0, 0)


def test_the_gradient_is_that_of_the_likelihood() -> None:
    success, p = world(50, [0.5, 1.0, 2.0])
    success[::3, 1] = np.nan
    model = _Likelihood(success, p, hopeless=0.3)
    theta = np.array([0.2, -0.3, 0.5, 0.1])
    step = np.eye(4) * 1e-5
    numeric = [(model(theta + h)[0] - model(theta - h)[0]) / 2e-5 for h in step]
    assert model(theta)[1] == pytest.approx(numeric, rel=1e-5, abs=1e-6)


def test_it_goes_into_a_manifest_by_name() -> None:
    fitted = FittedDependence(np.array([0.5, 1.25]), 0.3, 10, 10)
    assert fitted.to_dict(("a", "b")) == {
        "loadings": {"a": 0.5, "b": 1.25}, "hopeless": 0.3, "n_requests": 10, "n_pairs": 10
    }  # fmt: skip


@pytest.mark.parametrize("loadings", [[-0.1], [float("nan")], [11.0]])
def test_a_loading_out_of_range_is_refused(loadings: list[float]) -> None:
    with pytest.raises(ArtifactError, match="expected numbers in"):
        Dependence(loadings)


def test_a_hopeless_share_out_of_range_is_refused() -> None:
    with pytest.raises(ArtifactError, match="hopeless share"):
        Dependence([1.0], 1.5)
