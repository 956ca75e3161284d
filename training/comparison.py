"""A router beside its baselines on one cost-quality grid: operating points, figures, paired intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from training.baselines import oracle, out_of_fold, standard_baselines
from training.cost_quality import (
    CostQualityCurve,
    PairedDifference,
    bootstrap_samples,
    cheapest_likely,
    complete_grid,
    cost_at_quality,
    hull_area,
    likeliest,
    paired_difference,
    upper_hull,
)
from training.metrics import FloatArray, IntArray
from training.prediction import Prediction, Requests

TARGETS = (0.95, 0.99, 1.0)
BOOTSTRAP_TARGET = 0.95
REFUSED = -1  # in place of a model: the router's guards excluded every model


@dataclass(frozen=True)
class DefaultRule:
    """The rule that is compared at one point: the cheapest model with P(success) >= threshold, else escalation.

    :param escalation: name of the model to escalate to; one that is not on the grid is replaced by the likeliest.
    """

    threshold: float
    escalation: str | None = None

    def choose(self, prediction: Prediction, models: Sequence[str]) -> IntArray:
        """:return: (n,) model indices. A baseline with operating points of its own is taken at its first."""
        if prediction.choices is not None:
            published: IntArray = prediction.choices[0]
            return published
        p, c = prediction.p, prediction.c
        if self.escalation is not None and self.escalation in models:
            otherwise = np.full(len(p), list(models).index(self.escalation), dtype=np.intp)
        else:
            otherwise = likeliest(p, c)
        return cheapest_likely(p, c, self.threshold, otherwise)


@dataclass(frozen=True, eq=False)
class Contestant:
    """One router or baseline: its curve, and the (mean cost in USD, mean quality) of its default rule.

    :param picks: (n,) model that the default rule calls on each row of the curve, ``REFUSED`` where none.
    """

    curve: CostQualityCurve
    default_point: tuple[float, float]
    picks: IntArray

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready figures; a quality that is not reached has cost None."""
        return {
            "quality": self.default_point[1],
            "cost_usd": self.default_point[0],
            "area": self.curve.value(hull_area),
            "cost_at_quality": {str(t): finite(self.curve.value(_cost_at(t))) for t in TARGETS},
            "hull": upper_hull(self.curve.points()).tolist(),
        }


@dataclass(frozen=True, eq=False)
class Comparison:
    """Router and baselines on the same rows.

    ``differences`` maps each baseline to router minus baseline: of the area, and of the cost to keep 95 % of the best
    single model's quality. The oracle has none: nobody hopes to beat it.
    """

    models: tuple[str, ...]
    n_left_out: int
    router: Contestant
    n_refused: int
    baselines: Mapping[str, Contestant]
    differences: Mapping[str, Mapping[str, PairedDifference]]

    @property
    def n(self) -> int:
        """Number of requests behind each figure."""
        return self.router.curve.n

    def baselines_dict(self) -> dict[str, dict[str, Any]]:
        """JSON-ready figures of the baselines, each with the router's lead over it."""
        out = {name: contestant.to_dict() for name, contestant in self.baselines.items()}
        for name, found in self.differences.items():
            area, cost = interval_dict(found["area"]), interval_dict(found["cost_at_quality"])
            out[name]["difference"] = {"area": area, "cost_at_quality": {str(BOOTSTRAP_TARGET): cost}}
        return out


def compare(
    score: FloatArray,
    cost: FloatArray,
    prediction: Prediction,
    models: Sequence[str],
    requests: Requests,
    *,
    fold: IntArray,
    group: IntArray,
    rule: DefaultRule,
    chosen: IntArray | None = None,
    n_boot: int = 1000,
    seed: int = 0,
) -> Comparison | None:
    """Compare on the rows where every priced model has score and cost.

    :param score: (n, m), NaN where not tried. :param cost: (n, m) USD, NaN where unknown.
    :param prediction: of the router, (n, m), for rows that it was not fitted on.
    :param models: names of the m columns.
    :param fold: (n,) folds in which the baselines are cross-validated. :param group: (n,) resampled together.
    :param chosen: (n,) column that the router's own decision calls, ``REFUSED`` where it calls none; None: by ``rule``.
    :return: None where no row is complete, so that no choice can be priced.
    """
    rows, priced = complete_grid(score, cost)
    if not rows.any():
        return None
    names = tuple(name for name, kept in zip(models, priced, strict=True) if kept)
    score, cost = score[:, priced], cost[:, priced]
    own = Prediction(prediction.p[:, priced], prediction.c[:, priced])
    if chosen is None:
        picks = rule.choose(own, names)
    else:
        column = np.append(np.where(priced, np.cumsum(priced) - 1, REFUSED), REFUSED)  # REFUSED, -1, reads the last
        picks = column[chosen]
    contestants = {}
    for name, make in standard_baselines(names).items():
        predicted = out_of_fold(make, requests, score, cost, fold)
        contestants[name] = _contestant(predicted, rule.choose(predicted, names), score, cost, group, rows)
    best = oracle(score, cost)
    contestants["oracle"] = _contestant(best, likeliest(best.p, best.c), score, cost, group, rows)
    router = _contestant(own, picks, score, cost, group, rows)
    differences = _differences(router.curve, contestants, n_boot, seed)
    refused = int((picks[rows] == REFUSED).sum())
    return Comparison(names, int((~rows).sum()), router, refused, contestants, differences)


def finite(value: float) -> float | None:
    """JSON has no infinity and no NaN: both become None."""
    return float(value) if math.isfinite(value) else None


def interval_dict(found: PairedDifference) -> dict[str, Any]:
    """JSON-ready: router minus baseline with its 95 % interval; an end is None where a quality was not reached."""
    return {
        "router_minus_baseline": finite(found.difference),
        "low": finite(found.low),
        "high": finite(found.high),
        "share_of_resamples_at_most_zero": found.p_a_le_b,
        "n": found.n,
        "n_boot": found.n_boot,
    }


def _cost_at(target: float) -> Any:
    return partial(cost_at_quality, target_fraction=target)


def _contestant(
    prediction: Prediction, picks: IntArray, score: FloatArray, cost: FloatArray, group: IntArray, rows: Any
) -> Contestant:
    index = np.flatnonzero(rows)
    called = picks[index] != REFUSED
    # a refused request costs nothing and earns nothing
    spent = np.where(called, cost[index, picks[index]], 0.0)
    earned = np.where(called, score[index, picks[index]], 0.0)
    return Contestant(prediction.curve(score, cost, group), (float(spent.mean()), float(earned.mean())), picks[index])


def _differences(
    router: CostQualityCurve, contestants: Mapping[str, Contestant], n_boot: int, seed: int
) -> dict[str, dict[str, PairedDifference]]:
    statistics = {"area": hull_area, "cost_at_quality": _cost_at(BOOTSTRAP_TARGET)}

    def resampled(curve: CostQualityCurve) -> FloatArray:
        return bootstrap_samples(curve, list(statistics.values()), n_boot, seed)

    own = resampled(router)
    out: dict[str, dict[str, PairedDifference]] = {}
    for name, contestant in contestants.items():
        if name == "oracle":
            continue
        other = resampled(contestant.curve)
        out[name] = {
            label: paired_difference(router.value(of), contestant.curve.value(of), a, b, router.n)
            for (label, of), a, b in zip(statistics.items(), own, other, strict=True)
        }
    return out
