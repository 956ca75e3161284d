"""A confidence threshold that keeps a promise: "at least 95 % of the escalation model's quality, 9 times in 10".

    router-ml train --outcomes PATH --out DIR --target-quality 0.95 --confidence 0.9

Rows kept for it, which the router was not fitted on, choose the threshold by risk control (``training.risk_control``).
Thresholds are tried from 1, where everything escalates, downwards, each on what the router itself would decide: its
guards, rules and prices. The lowest before the first that cannot be shown to keep the target is taken.

With probability ``confidence`` over the draw of the kept rows, the expected score of what the router chooses is at
least ``target_quality`` times that of the escalation model on the same requests. This holds at any number of rows, if
groups (sessions) are independent and requests to come are like those kept. A very long session counts as a shorter one
(``group_cap``). It speaks of first choices: not of fallbacks after errors, exploration, or limits of a request.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from router_ml.errors import TableError
from router_ml.pool import ModelPool, Rule
from router_ml.router import Router
from training.comparison import REFUSED
from training.cost_quality import cheapest_likely
from training.judging import Judged, judge_router
from training.metrics import BoolArray, FloatArray, IntArray
from training.outcome_table import OutcomeTable
from training.risk_control import first_failure, gains_shown, rows_needed

THRESHOLDS: FloatArray = np.round(np.linspace(1.0, 0.0, 201), 3)  # fixed before any row is seen; the order of the tests
KEPT_SHARE = 0.3  # of the groups: kept from the fit to choose the threshold
FEWEST_COMPLETE = 0.5  # share of the kept requests on which every model must have a score
COUNTED = 0.95  # share of the requests that groups cut off at ``group_cap`` have left
FEWEST_GROUPS = 10  # kept, below which nothing is worth trying
METHOD = "Learn-then-Test, fixed sequence from safe to cheap, betting test (finite-sample)"


@dataclass(frozen=True)
class Target:
    """What is to be promised.

    :param quality: share of the escalation model's expected score, in (0, 1].
    :param confidence: probability over the draw of the kept rows that the promise holds, in (0, 1).
    :param by_task: a promise and a threshold for each task; all hold together with ``confidence``.
    """

    quality: float
    confidence: float = 0.9
    by_task: bool = False

    def __post_init__(self) -> None:
        if not 0.0 < self.quality <= 1.0 or not 0.0 < self.confidence < 1.0:
            problem = f"target quality {self.quality}, expected in (0, 1]; confidence {self.confidence}, in (0, 1)"
            raise TableError("promise", [problem])


class Settings(NamedTuple):
    """What each of L thresholds, from safe to cheap, does on n requests.

    ``gain`` (n, L) is the score of its choice less the target share of the escalation model's: the promise is kept
    where its expectation is not below 0. ``score`` and ``cost`` (n, L) are of the choice, cost NaN where unknown.
    """

    threshold: FloatArray
    gain: FloatArray
    score: FloatArray
    cost: FloatArray


def settings_of(
    choices: IntArray, threshold: FloatArray, score: FloatArray, cost: FloatArray, escalation: int, target: float
) -> Settings:
    """What thresholds do, each set of choices once; of thresholds that choose alike on all rows the strictest is kept.

    :param choices: (L, n) columns. :param threshold: (L,), falling. :param score: (n, m). :param cost: (n, m).
    """
    fresh = np.concatenate([[True], (choices[1:] != choices[:-1]).any(axis=1)])
    rows, picked = np.arange(len(score)), choices[fresh]
    earned = score[rows, picked].T
    return Settings(threshold[fresh], earned - target * score[:, [escalation]], earned, cost[rows, picked].T)


def calibrate(settings: Settings, group: IntArray, target: Target, level: float, cap: int, seed: int) -> int:
    """Index of the cheapest setting that can be promised; 0 if there is none.

    :param group: (n,) codes of requests that hang together: their sum counts as one row.
    :param level: probability that the promise may be broken. :param cap: requests that a group counts for at most.
    """
    gain = _by_group(settings.gain, group, cap)
    order = np.random.default_rng(seed).permutation(len(gain))  # bets are laid in an order that knows no outcome
    shown = gains_shown(gain[order], target.quality * cap, level)
    shown[0] = True  # everything escalates: not a promise but what is left
    return first_failure(shown) - 1


def group_cap(group: IntArray) -> int:
    """Requests that a group counts for at most, so that nearly all requests count in full.

    A test that is valid for every distribution has to fear the largest group: without a cap one session of 100 requests
    would let it stake a hundredth. Sizes are no outcomes, so this does not disturb the test.
    """
    sizes = np.bincount(group)
    longer = np.array([(sizes >= k).sum() for k in range(1, int(sizes.max()) + 1)])
    return int(np.argmax(np.cumsum(longer) >= COUNTED * sizes.sum())) + 1


def kept_apart(table: OutcomeTable, seed: int) -> tuple[OutcomeTable, OutcomeTable]:
    """Requests to train on, and those kept to choose the threshold; groups stay whole.

    :raises TableError: if there are too few groups.
    """
    codes = table.group_codes
    n_groups = int(codes.max(initial=-1)) + 1
    n_kept = round(KEPT_SHARE * n_groups)
    if n_kept < FEWEST_GROUPS:
        problem = (
            f"{n_groups} independent requests (groups), of which {n_kept} would be kept to choose the threshold; "
            f"expected at least {FEWEST_GROUPS}: train on more, or without --target-quality"
        )
        raise TableError("promise", [problem])
    chosen = np.random.default_rng([seed, n_groups]).permutation(n_groups)[:n_kept]
    kept = np.isin(codes, chosen)
    return table.select_requests(~kept), table.select_requests(kept)


def make_promise(
    router: Router, kept: OutcomeTable, target: Target, *, cap: int, seed: int = 0
) -> tuple[ModelPool, dict[str, Any]]:
    """Choose the threshold of a router on rows that it has not seen.

    :param cap: see :func:`group_cap`.
    :return: the pool with the threshold, and what is promised, JSON-ready for the manifest.
    :raises TableError: if the table cannot say what other models would have done on enough of the requests, or a
        threshold by task would override the pool's ``failure_costs``.
    """
    if target.by_task and router.pool.failure_costs:
        problem = "a threshold of a task overrides failure_costs of the pool, which would price nothing any more"
        raise TableError("promise", [f"{problem}; leave out --promise-by-task, or failure_costs"])
    complete = _complete(router, kept)
    tasks = sorted({task for task in complete.task if task is not None}) if target.by_task else []
    still = dataclasses.replace(router.pool, exploration=0.0)  # what explores is not what is promised
    low, high = (
        judge_router(router.with_pool(_at(still, t, dict.fromkeys(tasks, t))), complete, router.models)
        for t in (0.0, 1.0)
    )
    answered = np.flatnonzero(np.asarray(high.chosen) != REFUSED)
    if not answered.size:
        raise TableError("promise", [f"the router's guards refuse all {complete.n_requests} complete requests"])
    choices, of_task = _choices(low, high)[:, answered], [complete.task[i] for i in answered]
    level = (1.0 - target.confidence) / (len(set(of_task)) if tasks else 1)  # a bound on any of them being broken
    escalation = router.pool.escalation_model

    def promise(task: str | None) -> dict[str, Any]:
        rows = np.flatnonzero([not tasks or name == task for name in of_task])
        at = answered[rows]
        settings = settings_of(
            choices[:, rows], THRESHOLDS, low.score[at], low.cost[at], router.models.index(escalation), target.quality
        )
        group = np.unique(low.group[at], return_inverse=True)[1]
        chosen = calibrate(settings, group, target, level, cap, seed)
        return _facts(settings, chosen, group, target, level, cap, escalation)

    facts: dict[str, Any] = {
        "target_quality": target.quality, "confidence": target.confidence, "escalation_model": escalation,
        "method": METHOD, "group_cap": cap, "n_left_out": kept.n_requests - answered.size,
    }  # fmt: skip
    rest = promise(None) if not tasks or None in of_task else _nothing_known()
    found = {task: promise(task) for task in tasks if task in of_task}
    facts |= rest
    if tasks:
        facts |= {"by_task": found, "promised": any(one["promised"] for one in (rest, *found.values()))}
    return _at(router.pool, rest["threshold"], {task: one["threshold"] for task, one in found.items()}), facts


def promise_lines(promise: Mapping[str, Any] | None) -> list[str]:
    """What is promised, in sentences for people; none where nothing was asked for."""
    if promise is None:
        return []
    head = f"promise of {promise['target_quality']:.0%} of {promise['escalation_model']}'s quality"
    parts = {"": promise, **{f", task {task}": one for task, one in promise.get("by_task", {}).items()}}
    return [f"{head} (confidence {promise['confidence']:g}){name}: {one['reason']}" for name, one in parts.items()]


def _complete(router: Router, kept: OutcomeTable) -> OutcomeTable:
    """The requests on which every model of the router was tried."""
    missing = [name for name in router.models if name not in kept.models]
    columns = [kept.models.index(name) for name in router.models if name not in missing]
    tried: BoolArray = np.asarray((~np.isnan(kept.dense("score")[:, columns])).all(axis=1) & (not missing))
    if tried.mean() < FEWEST_COMPLETE or not tried.any():
        problem = (
            f"{int(tried.sum())} of the {kept.n_requests} requests kept to choose the threshold have a score of every "
            f"model; expected at least {FEWEST_COMPLETE:.0%}: the table cannot say what another model would have done"
        )
        raise TableError("promise", [problem + (f"; it has no outcome of {missing[:5]}" if missing else "")])
    return kept.select_requests(tried)


def _choices(low: Judged, high: Judged) -> IntArray:
    """(L, n) column that the router calls at each threshold, from its decisions at 0 and at 1.

    Where the two agree something else decides: a pin, a price, a rule. Elsewhere it is the cheapest eligible model
    likely enough, else what is called at 1.
    """
    safe, cheap, eligible = np.asarray(high.chosen), np.asarray(low.chosen), np.asarray(high.eligible)
    p = np.where(eligible, high.p, -1.0)
    likely = np.stack([cheapest_likely(p, high.c, t, safe) for t in THRESHOLDS])
    return np.where(safe == cheap, safe, likely)


def _at(pool: ModelPool, threshold: float, by_task: Mapping[str, float]) -> ModelPool:
    """The pool with these thresholds."""
    rules = {
        **pool.tasks,
        **{t: dataclasses.replace(pool.tasks.get(t, Rule()), confidence_threshold=v) for t, v in by_task.items()},
    }
    return dataclasses.replace(pool, confidence_threshold=threshold, tasks=rules)


def _by_group(gain: FloatArray, group: IntArray, cap: int) -> FloatArray:
    """(n_groups, L) sums, those of groups larger than the cap scaled down to it."""
    sizes = np.bincount(group)
    out = np.zeros((len(sizes), gain.shape[1]))
    np.add.at(out, group, gain)
    return np.asarray(out * np.minimum(1.0, cap / sizes)[:, None])


def _nothing_known() -> dict[str, Any]:
    reason = "no request without a task was kept: such requests, and tasks not named here, escalate"
    return {"promised": False, "threshold": 1.0, "n_requests": 0, "n_groups": 0, "reason": reason}


def _facts(
    settings: Settings, chosen: int, group: IntArray, target: Target, level: float, cap: int, escalation: str
) -> dict[str, Any]:
    """What the kept rows say of the threshold that was chosen."""
    n, n_groups = len(group), len(np.unique(group))
    own = settings.score[:, chosen]
    reference = (settings.score[:, 0] - settings.gain[:, 0]) / target.quality
    threshold = float(settings.threshold[chosen])
    on = f"{n:,} requests in {n_groups:,} groups" if n != n_groups else f"{n:,} requests"
    if chosen:
        share = own.sum() / max(reference.sum(), 1e-300)
        reason = f"threshold {threshold:g}, chosen on {on} that were not fitted on, where it kept {share:.1%}"
    else:
        which = "everything" if np.allclose(own, reference) else "everything that no rule of the pool decides"
        reason = f"no threshold could be shown to keep it on {on}: {which} escalates; "
        reason += _wanted(settings, group, target, level, cap)
    return {
        "promised": chosen > 0, "threshold": threshold, "n_requests": n, "n_groups": n_groups, "level": level,
        "quality": float(own.mean()), "escalation_quality": float(reference.mean()),
        "cost_usd": _mean_or_none(settings.cost[:, chosen]), "escalated_cost_usd": _mean_or_none(settings.cost[:, 0]),
        "reason": reason,
    }  # fmt: skip


def _wanted(settings: Settings, group: IntArray, target: Target, level: float, cap: int) -> str:
    """Roughly how many rows would have been enough."""
    gain = _by_group(settings.gain, group, cap)
    bound = target.quality * cap
    needed = [rows_needed(gain[:, k], bound, level) for k in range(1, gain.shape[1])]
    fewest = min(needed, default=math.inf)
    if math.isinf(fewest):
        return "none that saves anything kept it on these rows, so more rows alone would not help"
    at = settings.threshold[1 + needed.index(fewest)]
    return f"about {fewest:,.0f} independent requests would show threshold {at:g}, if they are like these"


def _mean_or_none(cost: FloatArray) -> float | None:
    return None if np.isnan(cost).any() else float(cost.mean())
