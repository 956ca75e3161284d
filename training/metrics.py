"""How good predicted probabilities are: calibration and discrimination of P(success).

Arrays only. Shapes throughout: ``n`` requests, ``m`` models. ``score`` is (n, m) in [0, 1] and NaN where a model was
not tried; a success is ``score >= 0.5``. ``p``, the predicted P(success), is (n, m) without NaN. Prefer rows that the
router was not fitted on: on its own training rows every figure here is too good. What the predictions are worth in
money is in ``training.cost_quality``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from router_ml.errors import TableError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.intp]
BoolArray = NDArray[np.bool_]


class Averaged(NamedTuple):
    """A weighted mean with the amount of data behind it; ``value`` is NaN where no cell qualified."""

    value: float
    n_rows: int
    n_cells: int


class ReliabilityBins(NamedTuple):
    """The non-empty bins of a reliability diagram, ascending; three arrays of one length."""

    mean_p: FloatArray
    success_rate: FloatArray
    counts: IntArray


def successes(score: ArrayLike) -> FloatArray:
    """:return: 1.0 where score >= 0.5, 0.0 below, NaN where it is NaN."""
    values = np.asarray(score, dtype=np.float64)
    return np.where(np.isnan(values), np.nan, (values >= 0.5).astype(np.float64))


def reliability_bins(y: ArrayLike, p: ArrayLike, n_bins: int = 15, *, equal_mass: bool = False) -> ReliabilityBins:
    """Group pooled cells by predicted probability.

    :param y: outcomes or scores, any shape; >= 0.5 counts as success, NaN (not tried) is left out.
    :param p: predicted P(success) in [0, 1], the shape of ``y`` or broadcast to it.
    :param n_bins: number of bins of equal width, right-closed as in Guo et al. 2017 (0 falls in the first).
    :param equal_mass: quantile bins instead; equal predictions stay in one bin, so there may be fewer than ``n_bins``.
    :return: the non-empty bins.
    :raises TableError: if ``p`` is not a finite probability for a cell that was tried.
    """
    outcome, predicted = _tried(y, p)
    if equal_mass and predicted.size:
        quantiles = np.quantile(predicted, np.linspace(0.0, 1.0, n_bins + 1)[1:], method="inverted_cdf")
        edges = np.concatenate([[-1.0], np.unique(quantiles)])
    else:
        edges = np.linspace(0.0, 1.0, n_bins + 1)
    index = np.clip(np.searchsorted(edges, predicted, side="left") - 1, 0, edges.size - 2)
    count = np.bincount(index, minlength=edges.size - 1)
    kept = count > 0
    total_p = np.bincount(index, weights=predicted, minlength=edges.size - 1)
    total_y = np.bincount(index, weights=outcome, minlength=edges.size - 1)
    return ReliabilityBins(total_p[kept] / count[kept], total_y[kept] / count[kept], count[kept].astype(np.intp))


def expected_calibration_error(y: ArrayLike, p: ArrayLike, n_bins: int = 15, *, equal_mass: bool = False) -> float:
    """ECE: count-weighted mean of |success rate - mean prediction| over bins (Naeini et al. 2015; Guo et al. 2017).

    Not zero for a perfect predictor: sampling noise alone gives up to about ``0.4 * sqrt(n_bins / cells)``.

    :param y: as in :func:`reliability_bins`.
    :param p: as in :func:`reliability_bins`.
    :param n_bins: number of bins.
    :param equal_mass: bins of equal count instead of equal width.
    :return: a number in [0, 1]; NaN without a tried cell.
    """
    bins = reliability_bins(y, p, n_bins, equal_mass=equal_mass)
    if not bins.counts.size:
        return math.nan
    return float(np.average(np.abs(bins.success_rate - bins.mean_p), weights=bins.counts))


def brier(y: ArrayLike, p: ArrayLike) -> float:
    """Mean squared error of the predicted probabilities over tried cells, in [0, 1] (Brier 1950); NaN without one."""
    outcome, predicted = _tried(y, p)
    return float(np.mean((outcome - predicted) ** 2)) if outcome.size else math.nan


def brier_skill(y: ArrayLike, p: ArrayLike, reference: ArrayLike) -> float:
    """Brier skill score: 1 is perfect, 0 is no better than the reference, negative is worse.

    :param y: (n, m) outcomes or scores, NaN where not tried.
    :param p: (n, m) predictions.
    :param reference: predictions to beat, broadcast to ``y``: (m,) base rates, or (n, m) when they differ by fold.
        Take them from training rows; base rates of the judged rows themselves are a stronger opponent than exists.
    :return: ``1 - brier(p) / brier(reference)``; NaN where the reference is already perfect.
    """
    against = brier(y, reference)
    return 1.0 - brier(y, p) / against if against > 0 else math.nan


def auc(y: ArrayLike, p: ArrayLike, strata: ArrayLike | None = None) -> float:
    """Area under the ROC curve: the share of (success, failure) pairs in the right order (Hanley, McNeil 1982).

    :param y: outcomes or scores, NaN where not tried.
    :param p: any score that should be higher for successes, the shape of ``y``.
    :param strata: labels in the shape of ``y``: pairs count only inside one label. Out-of-fold predictions need their
        fold here. A fold with more successes leaves fewer to fit on, so that across folds even a constant predictor
        puts pairs in the wrong order and scores below one half.
    :return: a number in [0, 1], ties counted half; NaN without a pair.
    """
    outcome, predicted = _tried(y, p, bounded=False)
    if strata is None:
        parts = [(outcome, predicted)]
    else:
        labels = np.asarray(strata)[~np.isnan(np.asarray(y, dtype=np.float64))]
        parts = [(outcome[labels == label], predicted[labels == label]) for label in np.unique(labels)]
    counted = [_ordered_pairs(*part) for part in parts]
    pairs = sum(total for _, total in counted)
    return sum(won for won, _ in counted) / pairs if pairs else math.nan


def mean_auc(score: FloatArray, p: FloatArray, *, fold: IntArray | None = None, min_rows: int = 20) -> Averaged:
    """Unweighted mean over models of each model's own AUC.

    :param score: (n, m), NaN where not tried.
    :param p: (n, m).
    :param fold: (n,) fold of each request where ``p`` is out-of-fold; see :func:`auc`.
    :param min_rows: models with fewer tried rows, or with one class only, are left out.
    :return: the mean, the rows and the models behind it.
    """
    values, rows = [], 0
    for model in range(score.shape[1]):
        tried = int((~np.isnan(score[:, model])).sum())
        value = auc(score[:, model], p[:, model], fold) if tried >= min_rows else math.nan
        if not math.isnan(value):
            values.append(value)
            rows += tried
    return Averaged(float(np.mean(values)) if values else math.nan, rows, len(values))


def auc_within_task(
    score: FloatArray,
    p: FloatArray,
    task: Sequence[str | None],
    *,
    fold: IntArray | None = None,
    min_per_class: int = 10,
) -> Averaged:
    """Mean AUC inside (model, task) cells: what a router knows beyond which task this is.

    Each cell weighs as many rows as it has, so that the figure is about requests; weighing by pairs would let one large
    task decide it.

    :param score: (n, m), NaN where not tried.
    :param p: (n, m).
    :param task: n task names; rows without one (None) are left out.
    :param fold: (n,) fold of each request where ``p`` is out-of-fold; see :func:`auc`.
    :param min_per_class: a cell needs at least this many successes and as many failures.
    :return: the mean, the rows and the cells behind it.
    :raises TableError: if ``task`` does not have n entries.
    """
    if len(task) != score.shape[0]:
        raise TableError("auc_within_task", [f"{len(task)} task names for {score.shape[0]} requests; give one each"])
    success = successes(score)
    members: dict[str, list[int]] = {}
    for row, name in enumerate(task):
        if name is not None:
            members.setdefault(name, []).append(row)
    values: list[float] = []
    weights: list[int] = []
    for rows in map(np.array, members.values()):
        for model in range(score.shape[1]):
            y = success[rows, model]
            tried, n1 = int((~np.isnan(y)).sum()), int(np.nansum(y))
            value = math.nan
            if min(n1, tried - n1) >= min_per_class:
                value = auc(y, p[rows, model], None if fold is None else fold[rows])
            if not math.isnan(value):
                values.append(value)
                weights.append(tried)
    mean = float(np.average(values, weights=weights)) if values else math.nan
    return Averaged(mean, sum(weights), len(values))


def _tried(y: ArrayLike, p: ArrayLike, *, bounded: bool = True) -> tuple[FloatArray, FloatArray]:
    outcome = successes(y)
    predicted = np.broadcast_to(np.asarray(p, dtype=np.float64), outcome.shape)
    tried = ~np.isnan(outcome)
    kept = predicted[tried]
    wrong = np.isnan(kept) | (((kept < 0) | (kept > 1)) & bounded)
    if wrong.any():
        expected = "a probability in [0, 1]" if bounded else "a number"
        problem = f"{int(wrong.sum())} of {kept.size} are not {expected}, the first is {kept[wrong][0]}"
        raise TableError("predictions", [problem])
    return outcome[tried], kept


def _ordered_pairs(outcome: FloatArray, predicted: FloatArray) -> tuple[float, float]:
    """Mann-Whitney U with midranks, and the number of pairs it is out of."""
    positive = outcome == 1.0
    n1 = int(positive.sum())
    _, inverse, counts = np.unique(predicted, return_inverse=True, return_counts=True)
    midrank = np.cumsum(counts) - (counts - 1) / 2
    return float(midrank[inverse][positive].sum() - n1 * (n1 + 1) / 2), float(n1 * (positive.size - n1))


def clustered_mean(total: FloatArray, count: ArrayLike, group: ArrayLike) -> tuple[float, float]:
    """Mean over outcomes and its standard error: a ratio of sums over groups, which are the independent units.

    :param total: (n,) sum of each request's outcomes. :param count: (n,) how many they are. :param group: (n,).
    """
    codes = np.unique(np.asarray(group), return_inverse=True)[1]
    sums: FloatArray = np.bincount(codes, total).astype(np.float64)
    counts: FloatArray = np.bincount(codes, np.asarray(count)).astype(np.float64)
    outcomes, n = max(counts.sum(), 1.0), len(sums)
    mean = float(sums.sum() / outcomes)
    spread = float(((sums - mean * counts) ** 2).sum()) * n / max(n - 1, 1)
    return mean, float(np.sqrt(spread) / outcomes)
