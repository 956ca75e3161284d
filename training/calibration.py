"""The calibration section of an evaluation: every figure with the amount of data behind it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import ndtri  # type: ignore[import-untyped]

from training.comparison import finite
from training.metrics import (
    FloatArray,
    IntArray,
    auc,
    auc_within_task,
    brier,
    brier_skill,
    expected_calibration_error,
    mean_auc,
)

_FLOOR_DRAWS = 20


class BaseRates(NamedTuple):
    """What a predictor without any request would say: ``per_model`` (n, m) and ``overall`` (n, 1) success rates."""

    per_model: FloatArray
    overall: FloatArray


def base_rates(success: FloatArray, fold: IntArray) -> BaseRates:
    """Success rates outside the fold of each row, so that no row is judged against a rate it is part of.

    :param success: (n, m) in {0, 1}, NaN where not tried.
    :param fold: (n,).
    :return: rates; a model without outcomes outside the fold has the overall rate.
    """
    per_model, overall = np.zeros(success.shape), np.zeros((len(success), 1))
    for held_out in np.unique(fold):
        rest, rows = success[fold != held_out], fold == held_out
        count = (~np.isnan(rest)).sum(axis=0)
        total = np.nansum(rest, axis=0)
        mean = total.sum() / count.sum() if count.sum() else 0.5
        per_model[rows] = np.where(count > 0, total / np.maximum(count, 1), mean)
        overall[rows] = mean
    return BaseRates(per_model, overall)


def calibration_report(
    success: FloatArray,
    p: FloatArray,
    tasks: Sequence[str | None],
    base: BaseRates,
    *,
    fold: IntArray | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Calibration and discrimination of P(success).

    ``auc`` is the mean over models of each model's own AUC and ``brier_skill`` is against each model's base rate: what
    is known beyond which model this is. ``auc_pooled`` and ``brier_skill_pooled`` judge all cells as one list, the
    skill against one rate for all: they also credit telling good models from bad ones.

    :param success: (n, m) in {0, 1}, NaN where not tried.
    :param p: (n, m) predicted P(success).
    :param tasks: n task names, None where unknown.
    :param base: rates to beat.
    :param fold: (n,) where ``p`` is out-of-fold: pairs are then compared inside a fold only (Forman, Scholz 2010,
        "Apples-to-apples in cross-validation studies").
    :return: JSON-ready; None where a figure does not exist, and ``n`` with the outcomes behind each.
    """
    cells = int((~np.isnan(success)).sum())
    by_model = mean_auc(success, p, fold=fold)
    within = auc_within_task(success, p, tasks, fold=fold)
    strata = None if fold is None else np.broadcast_to(fold[:, None], success.shape)
    values = {
        "ece": expected_calibration_error(success, p),
        "brier": brier(success, p),
        "brier_skill": brier_skill(success, p, base.per_model),
        "auc": by_model.value,
        "auc_within_task": within.value,
        "ece_equal_mass": expected_calibration_error(success, p, equal_mass=True),
        "ece_noise_floor": ece_noise_floor(success, p, seed=seed),
        "auc_pooled": auc(success, p, strata),
        "brier_skill_pooled": brier_skill(success, p, base.overall),
    }
    n = dict.fromkeys(values, cells) | {"auc": by_model.n_rows, "auc_within_task": within.n_rows}
    out: dict[str, Any] = {name: finite(value) for name, value in values.items()}
    return {**out, "n": n, "n_models_in_auc": by_model.n_cells, "n_cells_in_auc_within_task": within.n_cells}


def ece_noise_floor(success: FloatArray, p: FloatArray, seed: int = 0) -> float:
    """ECE that a perfectly calibrated predictor with the same p would show on as many outcomes.

    Outcomes of one request hang together (what one model fails, others tend to fail), so they count for fewer than
    they are. They are drawn from a Gaussian copula with one factor per request, whose correlation is estimated from
    the residuals.

    :param success: (n, m) in {0, 1}, NaN where not tried: which cells there are, and how they hang together.
    :param p: (n, m).
    :return: mean ECE of simulated outcomes; NaN without a tried cell.
    """
    tried = ~np.isnan(success)
    if not tried.any():
        return math.nan
    rho = _latent_correlation(success, p)
    quantile = ndtri(np.clip(p, 1e-12, 1 - 1e-12))
    rng = np.random.default_rng(seed)
    floors = []
    for _ in range(_FLOOR_DRAWS):
        latent = math.sqrt(rho) * rng.standard_normal((len(p), 1)) + math.sqrt(1 - rho) * rng.standard_normal(p.shape)
        simulated = np.where(tried, (latent < quantile).astype(np.float64), np.nan)
        floors.append(expected_calibration_error(simulated, p))
    return float(np.mean(floors))


def _latent_correlation(success: FloatArray, p: FloatArray) -> float:
    tried = ~np.isnan(success)
    spread = np.sqrt(np.maximum(p * (1 - p), 1e-12))
    residual = np.where(tried, (success - p) / spread, 0.0)
    count = tried.sum(axis=1)
    pairs = float((count * (count - 1)).sum())
    if pairs == 0:
        return 0.0
    phi = float((residual.sum(axis=1) ** 2 - (residual**2).sum(axis=1)).sum()) / pairs
    # Sheppard 1899: two normals cut at their medians; close enough elsewhere for a floor
    return float(np.clip(math.sin(math.pi / 2 * float(np.clip(phi, 0.0, 1.0))), 0.0, 0.99))


class Reliability(NamedTuple):
    """The non-empty equal-width bins of predicted probability, ascending, with 95 % intervals of the success rate."""

    edge: FloatArray  # lower edge of the bin
    mean_p: FloatArray
    success_rate: FloatArray
    low: FloatArray
    high: FloatArray
    counts: IntArray


def reliability(success: FloatArray, p: FloatArray, group: IntArray, n_bins: int = 15) -> Reliability:
    """What a reliability diagram shows, in the bins of the calibration error.

    :param success: (n, m) in {0, 1}, NaN where not tried.
    :param p: (n, m).
    :param group: (n,) codes; outcomes of one group count for as few as their residuals say they are worth.
    """
    tried = ~np.isnan(success)
    y, predicted = success[tried], p[tried]
    code = np.broadcast_to(group[:, None], success.shape)[tried]
    index = np.clip(np.ceil(predicted * n_bins).astype(np.intp) - 1, 0, n_bins - 1)
    found = []
    for place in np.unique(index):
        inside = index == place
        rate, n = float(y[inside].mean()), int(inside.sum())
        clustered = np.bincount(code[inside], weights=y[inside] - rate)
        # design effect (Kish 1965): variance of the rate over that of as many independent outcomes
        effect = float((clustered**2).sum()) / (n * rate * (1 - rate)) if 0 < rate < 1 else 1.0
        low, high = wilson_interval(rate, n / max(1.0, effect))
        found.append((place / n_bins, predicted[inside].mean(), rate, low, high, n))
    columns = np.array(found).reshape(-1, 6).T
    edge, mean_p, rate_of, low_of, high_of, counts = columns
    return Reliability(edge, mean_p, rate_of, low_of, high_of, counts.astype(np.intp))


def wilson_interval(rate: float, n: float) -> tuple[float, float]:
    """95 % score interval of a success rate (Wilson 1927): stays inside [0, 1] and works for few outcomes.

    :param rate: observed rate.
    :param n: outcomes behind it; a fraction where they are not independent.
    """
    z = float(ndtri(0.975))
    centre = (rate + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * math.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    return min(rate, centre - half), max(rate, centre + half)  # at 0 and 1 rounding would leave the rate outside
