"""Learn how the successes of models hang together, from outcomes and out-of-fold probabilities.

Only requests that at least two models were tried on say anything. A log of cascades has them: the second model is
called where the first was rejected. Which pairs are seen then depends on what else was seen, so the likelihood of what
was observed is the right one (missing at random; Rubin, Biometrika 1976).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize  # type: ignore[import-untyped]
from scipy.special import log_ndtr, ndtri  # type: ignore[import-untyped]

from router_ml.classifier import P_FLOOR
from router_ml.dependence import DEFAULT_HOPELESS, DEFAULT_LOADING, MAX_LOADING, difficulty_nodes
from training.outcome_columns import FloatArray

N_NODES = 21
MOST_REQUESTS = 5_000  # a sample says as much
# Log loadings of the models lie around a common one, which lies around the default: what is little seen stays there.
SPREAD_OF_MODELS, SPREAD_OF_COMMON = 0.5, 1.0
HOPELESS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)  # shares that are tried


@dataclass(frozen=True)
class FittedDependence:
    """Loadings per model (m,), the hopeless share, and how much stands behind them."""

    loadings: FloatArray
    hopeless: float
    n_requests: int
    n_pairs: int

    def to_dict(self, models: tuple[str, ...]) -> dict[str, Any]:
        """For the manifest."""
        loadings = {name: round(float(b), 4) for name, b in zip(models, self.loadings, strict=True)}
        return {
            "loadings": loadings, "hopeless": self.hopeless, "n_requests": self.n_requests, "n_pairs": self.n_pairs
        }  # fmt: skip


def fit_dependence(success: FloatArray, p: FloatArray, seed: int = 0) -> FittedDependence:
    """Maximum a posteriori loadings and hopeless share of the model of ``router_ml.dependence``.

    :param success: (n_requests, n_models) in {0, 1}, NaN where not tried.
    :param p: same shape: P(success) predicted by a fit that did not see the row.
    """
    tried = ~np.isnan(success)
    rows = np.flatnonzero(tried.sum(axis=1) > 1)
    n_pairs = int((tried[rows].sum(axis=1) * (tried[rows].sum(axis=1) - 1) // 2).sum())
    if len(rows) > MOST_REQUESTS:
        rows = np.sort(np.random.default_rng(seed).choice(rows, MOST_REQUESTS, replace=False))
    m = success.shape[1]
    if not len(rows):
        return FittedDependence(np.full(m, DEFAULT_LOADING), DEFAULT_HOPELESS, 0, 0)
    theta = np.full(m + 1, np.log(DEFAULT_LOADING))
    bounds = [(-6.0, np.log(MAX_LOADING))] * (m + 1)
    best, chosen, share = np.inf, theta, DEFAULT_HOPELESS
    for hopeless in HOPELESS:
        model = _Likelihood(success[rows], p[rows], hopeless)
        found = minimize(model, theta, jac=True, method="L-BFGS-B", bounds=bounds)
        theta = found.x  # the next share begins here
        if found.fun < best:
            best, chosen, share = found.fun, theta, hopeless
    return FittedDependence(np.exp(chosen[:-1]), share, len(rows), n_pairs)


class _Likelihood:
    """Negative log posterior of the log loadings (m,) and their common level, with its gradient.

    :param hopeless: the share of the strongest model's failures that are everybody's.
    """

    def __init__(self, success: FloatArray, p: FloatArray, hopeless: float = 0.0) -> None:
        self.nodes, self.weights = difficulty_nodes(N_NODES)
        self.tried = ~np.isnan(success)
        self.sign = np.where(np.where(self.tried, success, 0.0) >= 0.5, 1.0, -1.0)
        self.hopeless = hopeless * (1.0 - p.max(axis=1))  # of each request
        self.all_failed = (~self.tried | (self.sign < 0)).all(axis=1)
        else_p = p / (1.0 - self.hopeless)[:, None]
        self.probit = ndtri(np.clip(else_p, P_FLOOR, 1.0 - P_FLOOR))

    def __call__(self, theta: FloatArray) -> tuple[float, FloatArray]:
        log_b, common = theta[:-1], theta[-1]
        b = np.exp(log_b)
        # the mean of Phi(a + b z) is p where a = Phi^-1(p) sqrt(1 + b^2)
        stretch = np.sqrt(1.0 + b * b)
        log_lik = np.zeros((len(self.probit), len(self.nodes)))
        slopes = []
        for m in range(len(b)):  # one model at a time: (n, nodes) is all that memory has to hold
            rows = self.tried[:, m]
            sign = self.sign[rows, m, None]
            x = sign * ((self.probit[rows, m] * stretch[m])[:, None] + b[m] * self.nodes)
            log_cdf = log_ndtr(x)
            log_lik[rows] += log_cdf
            moved = (self.probit[rows, m] * b[m] / stretch[m])[:, None] + self.nodes
            slopes.append(sign * _inverse_mills(x, log_cdf) * moved * b[m])
        # over the nodes, and hopeless as one more; a posterior over all of them
        joint = log_lik + np.log(self.weights * (1.0 - self.hopeless)[:, None])
        top = joint.max(axis=1, keepdims=True)
        mass = np.exp(joint - top)
        total = mass.sum(axis=1, keepdims=True)
        with np.errstate(divide="ignore"):
            beyond = np.where(self.all_failed, np.log(self.hopeless), -np.inf)
        evidence = np.logaddexp((np.log(total) + top)[:, 0], beyond)
        posterior = np.exp(joint - evidence[:, None])
        gradient = np.array([
            (posterior[self.tried[:, m]] * slope).sum() for m, slope in enumerate(slopes)
        ])  # fmt: skip
        away, level = (log_b - common) / SPREAD_OF_MODELS**2, (common - np.log(DEFAULT_LOADING)) / SPREAD_OF_COMMON**2
        penalty = 0.5 * ((log_b - common) @ away + (common - np.log(DEFAULT_LOADING)) * level)
        return -float(evidence.sum()) + float(penalty), np.append(away - gradient, level - away.sum())


def _inverse_mills(x: NDArray[np.float64], log_cdf: NDArray[np.float64]) -> NDArray[np.float64]:
    """phi(x) / Phi(x)."""
    out: NDArray[np.float64] = np.exp(-0.5 * x * x - 0.5 * np.log(2.0 * np.pi) - log_cdf)
    return out
