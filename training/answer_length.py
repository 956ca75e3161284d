"""How long answers get: output tokens of a reference model, from what requests look like.

Tables with output tokens hold short answers only, so the lengths that ``written_requests.yaml`` states by kind carry
the rest: a stated prior, not a measurement.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.transfer import weighted_ridge

Array = NDArray[np.float64]

PENALTY = 0.3
LOWEST, HIGHEST = 8.0, 4_000.0  # tokens; no prediction for the reference model leaves this range
WITHIN_KIND_VARIANCE = 0.36  # of log tokens among answers of one kind: a factor of 1.8 either way


@dataclass(frozen=True, eq=False)
class AnswerLength:
    """log tokens = base + (phi - center) @ weights, kept within low and high; ``variance`` around that."""

    base: float
    weights: Array
    center: Array
    low: float
    high: float
    variance: float


def fit_answer_length(phi: Sequence[Array], tokens: Sequence[Array], weights: Sequence[Array]) -> AnswerLength:
    """Weighted ridge regression of log tokens.

    :param phi: per group of requests, (n, L). :param tokens: (n,) output tokens of the reference model, NaN unknown.
    :param weights: (n,) weight of each request.
    """
    known = [~np.isnan(t) for t in tokens]
    P = np.vstack([p[k] for p, k in zip(phi, known, strict=True)])
    y = np.log(np.maximum(np.concatenate([t[k] for t, k in zip(tokens, known, strict=True)]), 1.0))
    w = np.concatenate([v[k] for v, k in zip(weights, known, strict=True)])
    center, base = w @ P / w.sum(), float(w @ y / w.sum())
    coefficients = weighted_ridge(P - center, (y - base)[:, None], w, PENALTY)[:, 0]
    return AnswerLength(
        base, coefficients, center, float(np.log(LOWEST)), float(np.log(HIGHEST)), WITHIN_KIND_VARIANCE
    )  # fmt: skip
