"""Which policy an artifact ships: the router, or a simpler one that it does not beat on rows it has not seen.

One policy *beats* another if its probabilities are better (Brier score, a proper score) and its choices are not worse
(area under the cost-quality hull, where enough of them can be priced), each with ``CONFIDENCE``. Shipped is the
simplest policy that no other beats; in place of a per-task table that routes worse than the base rates, the router if
it beats those, else they. The Brier score carries the burden of proof because it sees every outcome: a lead in area
that is real takes several times as many requests to show (docs/LOG.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from training.comparison import interval_dict
from training.cost_quality import CostQualityCurve, PairedDifference, complete_grid, hull_area, paired_bootstrap
from training.judging import Judged
from training.metrics import clustered_mean
from training.prediction import Prediction
from training.simpler import BASE_RATES, NAMES, PER_TASK_TABLE, POLICIES, ROUTER, SuccessRates

CONFIDENCE = 0.9
FEWEST_GROUPS = 20  # tried on every model, below which resampling them says nothing of an area
NORMAL_90, NORMAL_95 = 1.2816, 1.96  # a normal variable stays below / within so many deviations: 90 %, 95 %


class Difference(NamedTuple):
    """One policy less another on the same rows.

    ``brier`` (below 0: better) has its two-sided 95 % interval and the standard error, requests of a group counted
    together; ``n`` requests. ``area`` is of the requests on which every model was tried and has a price, None where
    these are of fewer than ``FEWEST_GROUPS`` groups.
    """

    brier: float
    error: float
    n: int
    area: PairedDifference | None

    @property
    def beats(self) -> bool:
        """Whether the first policy beats the second."""
        # two policies that choose alike have one area, and a <= b in every resample
        worse = self.area is not None and self.area.difference < 0.0 and self.area.p_a_le_b > CONFIDENCE
        return self.brier < -NORMAL_90 * self.error and not worse

    @property
    def interval(self) -> tuple[float, float]:
        """The two-sided 95 % interval of ``brier``."""
        return self.brier - NORMAL_95 * self.error, self.brier + NORMAL_95 * self.error

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        low, high = self.interval
        out: dict[str, Any] = {"brier": {"difference": self.brier, "low": low, "high": high, "n": self.n}}
        if self.area is not None:
            found = interval_dict(self.area)
            out["area"] = {"difference": found["router_minus_baseline"], **{k: found[k] for k in ("low", "high", "n")}}
        return out

    def __str__(self) -> str:
        low, high = self.interval
        text = f"Brier score {self.brier:+.4f} [{low:+.4f}, {high:+.4f}]"
        if self.area is not None:
            text += f", area {self.area.difference:+.4f} [{self.area.low:+.4f}, {self.area.high:+.4f}]"
            text += f" of {self.area.n:,}" if self.area.n != self.n else ""
        return f"{text}, n = {self.n:,}"


@dataclass(frozen=True)
class Shipped:
    """What is shipped, why, and (policy, simpler policy) -> the difference between them."""

    policy: str
    why: str
    differences: Mapping[tuple[str, str], Difference]

    def to_dict(self) -> dict[str, Any]:
        """The manifest's entry ``shipped``."""
        pairs = {f"{a}_minus_{b}": found.to_dict() for (a, b), found in self.differences.items()}
        return {"policy": self.policy, "why": self.why, "differences": pairs}


def choose_policy(judged: Mapping[str, Judged], *, n_boot: int = 200, seed: int = 0) -> Shipped:
    """Choose what to ship.

    :param judged: policy -> its predictions for the same requests, which it was not fitted on.
    """
    there = [policy for policy in POLICIES if policy in judged]
    pairs = {
        (a, b): compare_policies(judged[a], judged[b], n_boot=n_boot, seed=seed)
        for i, b in enumerate(there)
        for a in there[i + 1 :]
    }
    unbeaten = [b for b in there if not any(found.beats for (_, other), found in pairs.items() if other == b)]
    policy, why = unbeaten[0], ""
    if policy == PER_TASK_TABLE and _loses_area(found := pairs[PER_TASK_TABLE, BASE_RATES]):
        policy = ROUTER if pairs[ROUTER, BASE_RATES].beats else BASE_RATES
        why = f"the per-task table, which it does not beat, routes worse than the base rates ({found})"
    return Shipped(policy, "; ".join(part for part in (_why(policy, pairs), why) if part), pairs)


def compare_policies(a: Judged, b: Judged, *, n_boot: int = 200, seed: int = 0) -> Difference:
    """Paired difference between two policies on the same rows.

    Choices weigh predicted costs, so the area leaves out requests whose cost is not what was predicted.
    """
    brier, error = _brier_difference(a, b)
    rows, priced = complete_grid(a.score, a.cost_as_predicted)
    area = None
    if len(np.unique(a.group[rows])) >= FEWEST_GROUPS and priced.sum() > 1:
        curves = [_curve(judged, priced) for judged in (a, b)]
        area = paired_bootstrap(curves[0], curves[1], hull_area, n_boot, seed)
    return Difference(brier, error, len(a.group), area)


def simpler_policies(judged: Judged) -> dict[str, Judged]:
    """The simpler policies beside the out-of-fold predictions of a router, fitted on the same folds.

    Without any task there is no table.

    :param judged: with folds.
    """
    assert judged.fold is not None
    tasks = judged.requests.tasks
    names = POLICIES if any(task is not None for task in tasks) else (BASE_RATES, ROUTER)
    p = {name: judged.p.copy() for name in names}
    for held_out in np.unique(judged.fold):
        rest, rows = np.flatnonzero(judged.fold != held_out), np.flatnonzero(judged.fold == held_out)
        rates = SuccessRates.fit(judged.success[rest], [tasks[i] for i in rest.tolist()])
        for name in names[:-1]:
            p[name][rows] = rates.predict(name, [tasks[i] for i in rows.tolist()])
    return {name: replace(judged, p=values) for name, values in p.items()}


def _curve(judged: Judged, priced: Any) -> CostQualityCurve:
    prediction = Prediction(judged.p[:, priced], judged.c[:, priced])
    return prediction.curve(judged.score[:, priced], judged.cost_as_predicted[:, priced], judged.group)


def _brier_difference(a: Judged, b: Judged) -> tuple[float, float]:
    """Mean over outcomes and its standard error: a ratio of sums over groups, which are the independent units."""
    known = ~np.isnan(a.success)
    gain = np.where(known, (a.p - a.success) ** 2 - (b.p - b.success) ** 2, 0.0).sum(axis=1)
    return clustered_mean(gain, known.sum(axis=1), a.group)


def _loses_area(found: Difference) -> bool:
    return found.area is not None and found.area.difference < 0


def _why(policy: str, pairs: Mapping[tuple[str, str], Difference]) -> str:
    """A sentence with the figures that decided."""
    beaten = [f"{NAMES[b]} ({found})" for (a, b), found in pairs.items() if a == policy and found.beats]
    unable = [f"{NAMES[a]} ({found})" for (a, b), found in pairs.items() if b == policy and not found.beats]
    parts = [f"{NAMES[policy]} beats {' and '.join(beaten)}"] if beaten else []
    parts += [f"{NAMES[policy]} is not beaten by {' or '.join(unable)}"] if unable else []
    return "; ".join(parts)
