"""What makes a request hard, and for whom, learned from several outcome tables so that it holds on another.

One logistic model over all cells of all sources (Rasch 1960, with the item's difficulty read off its text)::

    logit P = level(phi) + slope(phi) * (ability - REFERENCE)

``level`` and ``slope`` are linear in ``phi``, penalised, and without any term for the source: what tells sources apart
must be said by the requests. Every source counts equally, and within it every task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from router_ml.classifier import sigmoid
from training.estimator import RequestMap

Array = NDArray[np.float64]

FIELDS = ("general", "code", "math", "tools", "knowledge")
REFERENCE = 1.5  # ability in the middle of the tables' models
# Settings chosen by the mean over left-out sources, which makes that mean optimistic (docs/LOG.md).
SOURCE_WEIGHT = 1000.0  # requests: what each source counts for against the penalty
PENALTY = 0.5
EMBEDDING_WEIGHT = 3.0
GAMMA = 1.0  # narrower than for one source: an unlike request should get the base rate
FIELD_PENALTY = 3.0
INTERCEPT_PENALTY = 1e-3
MAP_SAMPLE = 4_000
LEAST_SLOPE = 0.2  # of the mean slope: on no training request does ability count for less


@dataclass(frozen=True, eq=False)
class Source:
    """One outcome table, ready to learn from.

    :param inputs: (n, F + E) features and embedding. :param success: (n, m) in [0, 1], NaN where not tried.
    :param models: (m,) canonical names of the facts. :param tasks: (n,) tasks that count equally.
    :param fields: (n,) which field of ability counts, of ``FIELDS``.
    :param weight: of the whole source, against another.
    """

    name: str
    inputs: NDArray[np.float32]
    success: Array
    models: Sequence[str]
    tasks: NDArray[np.str_]
    fields: NDArray[np.str_]
    weight: float = 1.0

    def take(self, rows: NDArray[np.bool_]) -> Source:
        """The given requests."""
        return replace(
            self, inputs=self.inputs[rows], success=self.success[rows], tasks=self.tasks[rows], fields=self.fields[rows]
        )  # fmt: skip

    def weights(self) -> Array:
        """(n,) adding up to ``SOURCE_WEIGHT`` times the source's weight, the same sum for every task."""
        names, codes, counts = np.unique(self.tasks, return_inverse=True, return_counts=True)
        return self.weight * SOURCE_WEIGHT / (len(names) * counts[codes])


@dataclass(frozen=True, eq=False)
class TransferModel:
    """The fitted model. ``L`` landmarks.

    :param center: (L,) weighted mean of ``phi``. :param level: (1 + L,) intercept first; ``slope`` likewise.
    :param field_weights: (L, len(FIELDS)) share of each field, read off the text. :param field_shares: their means.
    """

    request_map: RequestMap
    center: Array
    level: Array
    slope: Array
    field_weights: Array
    field_shares: Array

    def log_odds(self, inputs: NDArray[np.float32], ability: Array) -> Array:
        """:return: (n, m) for requests (n, F + E) and models of the given abilities (m,)."""
        phi = self.request_map.transform(inputs) - self.center
        level = self.level[0] + phi @ self.level[1:]
        slope = self.slope[0] + phi @ self.slope[1:]
        log_odds: Array = level[:, None] + slope[:, None] * (ability - REFERENCE)
        return log_odds


def fit_transfer(
    sources: Sequence[Source], abilities: Sequence[Array], *, n_features: int, seed: int = 0
) -> TransferModel:  # fmt: skip
    """Fit.

    :param abilities: for each source, (m,) ability of its models.
    :param n_features: how many leading columns of the inputs are hand-built features.
    """
    weights = [source.weights() for source in sources]
    request_map = _balanced_map(sources, weights, n_features, seed)
    phi = [request_map.transform(source.inputs) for source in sources]
    center = np.mean([w @ p / w.sum() for w, p in zip(weights, phi, strict=True)], axis=0)
    phi = [p - center for p in phi]
    level, slope = _fit_cells(sources, abilities, weights, phi)
    slope = _bounded_slope(slope, phi)
    field_weights, field_shares = _fit_fields(sources, weights, phi)
    return TransferModel(request_map, center, level, slope, field_weights, field_shares)


def _balanced_map(sources: Sequence[Source], weights: Sequence[Array], n_features: int, seed: int) -> RequestMap:
    """Scales, components and landmarks from a sample in which sources and tasks count equally."""
    everything = np.concatenate(weights)
    rng = np.random.default_rng(seed)
    rows = rng.choice(len(everything), min(MAP_SAMPLE, len(everything)), p=everything / everything.sum())
    inputs = np.vstack([source.inputs for source in sources])[rows]
    request_map = RequestMap(gamma=GAMMA, embedding_weight=EMBEDDING_WEIGHT, random_state=seed)
    return request_map.fit(inputs, n_features=n_features)


def _fit_cells(
    sources: Sequence[Source], abilities: Sequence[Array], weights: Sequence[Array], phi: Sequence[Array]
) -> tuple[Array, Array]:
    """Penalised logistic regression by Newton's method; a request's cells share its weight."""
    k = phi[0].shape[1] + 1
    design = [np.hstack([np.ones((len(p), 1)), p]) for p in phi]
    penalty = np.full(2 * k, PENALTY)
    penalty[[0, k]] = INTERCEPT_PENALTY
    w = np.zeros(2 * k)
    w[k] = 1.0
    for _ in range(15):
        gradient, hessian = -penalty * w, np.diag(penalty)
        for source, ability, weight, A in zip(sources, abilities, weights, design, strict=True):
            x = ability - REFERENCE
            p = sigmoid((A @ w[:k])[:, None] + (A @ w[k:])[:, None] * x)
            share = weight[:, None] * _cell_shares(source.success)
            residual = share * np.where(np.isnan(source.success), 0.0, source.success - p)
            variance = share * p * (1.0 - p)
            gradient[:k] += A.T @ residual.sum(axis=1)
            gradient[k:] += A.T @ (residual @ x)
            cross = (A * (variance @ x)[:, None]).T @ A
            hessian[:k, :k] += (A * variance.sum(axis=1)[:, None]).T @ A
            hessian[:k, k:] += cross
            hessian[k:, :k] += cross
            hessian[k:, k:] += (A * (variance @ x**2)[:, None]).T @ A
        step = np.linalg.solve(hessian, gradient)
        w += step
        if np.abs(step).max() < 1e-4:
            break
    return w[:k], w[k:]


def _cell_shares(success: Array) -> Array:
    known = ~np.isnan(success)
    shares: Array = known / np.maximum(known.sum(axis=1, keepdims=True), 1)
    return shares


def _bounded_slope(slope: Array, phi: Sequence[Array]) -> Array:
    """Shrink what requests change in the slope until more ability never hurts on any of them."""
    deviation = min(float((p @ slope[1:]).min()) for p in phi)
    room = (1.0 - LEAST_SLOPE) * slope[0]
    factor = 1.0 if deviation >= -room else max(room, 0.0) / -deviation
    return np.concatenate([slope[:1], slope[1:] * factor])


def _fit_fields(sources: Sequence[Source], weights: Sequence[Array], phi: Sequence[Array]) -> tuple[Array, Array]:
    """Which field a request belongs to, by weighted ridge regression on the labels of tasks."""
    w = np.concatenate(weights)
    labels = np.concatenate([source.fields for source in sources])
    target = (labels[:, None] == np.array(FIELDS)).astype(float)
    shares = w @ target / w.sum()
    return weighted_ridge(np.vstack(phi), target - shares, w, FIELD_PENALTY), shares


def weighted_ridge(P: Array, Y: Array, weights: Array, penalty: float) -> Array:
    """:return: (d, k) coefficients, for (n, d) inputs and (n, k) targets that are already centred."""
    weighted = P * weights[:, None]
    solution: Array = np.asarray(
        np.linalg.solve(weighted.T @ P + penalty * np.eye(P.shape[1]), weighted.T @ Y), dtype=np.float64
    )
    return solution
