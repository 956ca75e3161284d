"""How near requests lie to the training data, measured on requests that were held out.

A training request lies too near to data that it is part of. So the map is fitted fold by fold on the other folds, and
each request is measured by the map that has not seen it. Quantiles of that nearness are the scale of ``novelty``, and
requests beyond all but ``UNLIKE_RATE`` of them are flagged as unlike: a cross-conformal p-value (Vovk, Annals of
Mathematics and Artificial Intelligence 2015), which a new request like the training data falls below at that rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone

from router_ml.classifier import NOVELTY_QUANTILES
from training.estimator import RequestMap
from training.outcome_table import group_folds

Array = NDArray[np.float64]

N_FOLDS = 5
SAMPLE = 5_000  # requests that the scale is measured on; a quantile of more is no sharper where it matters


class NoveltyScale(NamedTuple):
    """``quantiles`` (NOVELTY_QUANTILES,) of nearness, ascending; ``residual_weight`` as the classifier takes it.

    ``n`` requests were held out.
    """

    quantiles: Array
    residual_weight: float
    n: int


def novelty_scale(
    request_map: RequestMap, X: NDArray[np.float32], groups: Sequence[str] | None = None, seed: int = 0
) -> NoveltyScale:
    """Measure the scale.

    :param request_map: its settings are those of the maps fitted here.
    :param X: (n, F + E) training requests.
    :param groups: requests of one group are held out together; None: each alone.
    """
    names = np.asarray(groups if groups is not None else np.arange(len(X)).astype(str))
    if len(X) > SAMPLE:
        rows = np.sort(np.random.default_rng(seed).choice(len(X), SAMPLE, replace=False))
        X, names = X[rows], names[rows]
    n_folds = min(N_FOLDS, len(np.unique(names)))
    exponent, residual = np.zeros(len(X)), np.zeros(len(X))
    if n_folds < 2:  # nothing can be held out, so nothing is ever novel
        return NoveltyScale(np.zeros(NOVELTY_QUANTILES), 0.0, 0)
    fold = group_folds(names.tolist(), n_folds, seed)
    for held_out in range(n_folds):
        fitted = clone(request_map).fit(X[fold != held_out], n_features=request_map.n_features_)
        exponent[fold == held_out], residual[fold == held_out] = fitted.distances(X[fold == held_out])
    # one deviation of the residual counts as much as one of the distance to the nearest landmark
    weight = float(exponent.std() / max(float(residual.std()), 1e-12))
    return NoveltyScale(conformal_quantiles(np.exp(-exponent - weight * residual)), weight, len(X))


def nearness(request_map: RequestMap, X: NDArray[np.float32], residual_weight: float) -> Array:
    """(n,) of requests (n, F + E), in [0, 1], as the classifier computes it."""
    exponent, residual = request_map.distances(X)
    near: Array = np.exp(-exponent - residual_weight * residual)
    return near


def conformal_quantiles(nearness: Array) -> Array:
    """At place i, the nearness that a new request falls below with a probability of at most i / 100.

    The order statistic floor(i (n + 1) / 100) (Vovk, Gammerman & Shafer 2005); 0, which nothing falls below, where
    there are too few requests for one.

    :param nearness: (n,) of exchangeable requests, >= 0. :return: (NOVELTY_QUANTILES,) ascending.
    """
    n = len(nearness)
    place = np.arange(NOVELTY_QUANTILES) * (n + 1) // (NOVELTY_QUANTILES - 1)
    return np.concatenate([[0.0], np.sort(nearness)])[np.minimum(place, n)]
