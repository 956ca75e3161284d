"""How good a router is on an outcome table: calibration, cost and quality, baselines, by task and by model.

``evaluate`` turns predictions, of a saved router or of cross-validation, into an ``Evaluation``: the report that
``router-ml evaluate`` writes and the figures draw.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from router_ml.router import Router
from training.calibration import base_rates, calibration_report
from training.comparison import REFUSED, Comparison, DefaultRule, compare, finite
from training.cost_error import cost_error
from training.cost_quality import complete_grid
from training.judging import Judged, judge_router
from training.metrics import BoolArray, IntArray, auc, auc_within_task, brier, expected_calibration_error
from training.outcome_table import OutcomeTable, group_folds
from training.prediction import Prediction
from training.routing_errors import NOTES as ROUTING_NOTES
from training.routing_errors import routing_errors

N_FOLDS = 5
NOTES = {
    "router.quality, router.cost_usd": "realised by the router's own default decision on every request",
    "baselines.quality, baselines.cost_usd": (
        "realised by the same rule and threshold on the baseline's predictions; a rule with operating points of its "
        "own is taken as published; the oracle takes the cheapest of the models that do best"
    ),
    "area, cost_at_quality": (
        "from the upper hull of the points that choosing the model of highest p - lambda * cost traces as lambda runs "
        "from 0 to infinity (lambda is 1 / failure_cost_usd); area is the hull's mean height between the cheapest and "
        "the dearest single model; cost_at_quality is a fraction of the best single model's cost, null if not reached"
    ),
    "baselines": f"fitted by cross-validation on the judged table itself ({N_FOLDS} folds, groups kept together)",
    "cost_error": (
        "median of |predicted - paid| / paid, what was predicted in all over what was paid, and the root mean squared "
        "error over the model's mean cost; expected cost is a mean, so it is made for the latter two"
    ),
    "difference": "paired bootstrap over requests (groups drawn whole), two-sided 95 % percentile interval",
    **ROUTING_NOTES,
}


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What was found. ``comparison`` is None where the table has no request with score and cost of every model.

    :param calibration: see ``calibration.calibration_report``.
    :param by_task: a row per task. :param by_model: a row per model.
    :param facts: what else a reader must know: models left out, whether the router was trained on this table.
    :param routing_errors: see ``routing_errors.routing_errors``; None where there is no comparison.
    :param cost_error: see ``cost_error.cost_error``; None where no cost is known.
    """

    judged: Judged
    rule: DefaultRule
    calibration: dict[str, Any]
    comparison: Comparison | None
    by_task: list[dict[str, Any]]
    by_model: list[dict[str, Any]]
    facts: dict[str, Any]
    routing_errors: dict[str, Any] | None = None
    cost_error: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The report of ``router-ml evaluate --json``; None stands where a figure does not exist."""
        found = self.comparison
        nothing = {"quality": None, "cost_usd": None, "area": None, "cost_at_quality": None}
        router = nothing if found is None else found.router.to_dict()
        return {
            "n_requests": len(self.judged.group),
            "n_outcomes": int((~np.isnan(self.judged.success)).sum()),
            "models": list(self.judged.models),
            **self.facts,
            "default_rule": {"threshold": self.rule.threshold, "escalation_model": self.rule.escalation},
            "n_priced_requests": 0 if found is None else found.n,
            "priced_models": [] if found is None else list(found.models),
            "router": {**router, "n_refused": 0 if found is None else found.n_refused},
            "baselines": {} if found is None else found.baselines_dict(),
            "calibration": self.calibration,
            "by_task": self.by_task,
            "by_model": self.by_model,
            "routing_errors": self.routing_errors,
            "cost_error": self.cost_error,
            "notes": NOTES,
        }

    def metrics(self) -> dict[str, dict[str, Any]]:
        """The headline figures for a manifest, each with the number of outcomes or requests behind it."""
        names = ("ece", "brier", "brier_skill", "auc", "auc_within_task")
        out = {name: {"value": self.calibration[name], "n": self.calibration["n"][name]} for name in names}
        if self.cost_error is not None:
            overall = self.cost_error["overall"]
            error = overall["router"]["median_relative_error"]
            if error is not None:
                out["cost_median_relative_error"] = {"value": error, "n": overall["n"] - overall["n_free"]}
        if self.comparison is not None:
            found, n = self.comparison.router.to_dict(), self.comparison.n
            out |= {name: {"value": found[name], "n": n} for name in ("quality", "cost_usd", "area")}
            out |= {f"cost_at_quality_{t}": {"value": v, "n": n} for t, v in found["cost_at_quality"].items()}
        if self.routing_errors is not None:
            errors, n = self.routing_errors["router"], self.routing_errors["n"]
            kinds = ("under_routed", "over_routed", "unavoidable")
            out |= {f"{kind}_share": {"value": errors[kind]["share"], "n": n} for kind in kinds}
            excess = errors["over_routed"]["excess_usd_per_request"]
            out["over_routed_excess_usd_per_request"] = {"value": excess, "n": n}
        return out


def evaluate_router(
    router: Router, table: OutcomeTable, *, failure_cost_usd: float | None = None, n_boot: int = 1000, seed: int = 0
) -> Evaluation:
    """Judge a saved router on a table and report, with what the two do not share.

    :param failure_cost_usd: price of a failure, for the report of routing errors.
    :raises TableError: if they share no model.
    """
    judged = judge_router(router, table)
    training, promise = router.manifest.get("training", {}), router.manifest.get("promise", {})
    # with a promise, the router was fitted on one part of a table and its threshold chosen on the other
    trained_on = training.get("data_fingerprint"), promise.get("table_fingerprint")
    facts = {
        "router_version": router.manifest["router_version"],
        "models_only_in_router": [name for name in router.models if name not in judged.models],
        "models_only_in_table": [name for name in table.models if name not in judged.models],
        "trained_on_this_table": table.fingerprint() in trained_on,
    }
    rule = default_rule(router)
    return evaluate(judged, rule, facts=facts, failure_cost_usd=failure_cost_usd, n_boot=n_boot, seed=seed)


def default_rule(router: Router) -> DefaultRule:
    """The rule of the router's pool, without its guards."""
    return DefaultRule(router.pool.confidence_threshold, router.pool.escalation_model)


def evaluate(
    judged: Judged,
    rule: DefaultRule,
    *,
    facts: dict[str, Any] | None = None,
    failure_cost_usd: float | None = None,
    n_boot: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """Report on predictions.

    :param rule: applied to the baselines, and to the predictions where no router decided.
    :param facts: put into the report as they are.
    :param failure_cost_usd: price of a failure, for the report of routing errors.
    :param n_boot: resamples of the paired bootstrap.
    """
    fold = judged.fold if judged.fold is not None else _folds(judged.group, seed)
    base = base_rates(judged.success, fold)
    calibration = calibration_report(
        judged.success, judged.p, judged.requests.tasks, base, fold=judged.fold, seed=seed
    )  # fmt: skip
    found = None
    if len(np.unique(fold)) > 1:
        found = compare(
            judged.score, judged.cost, Prediction(judged.p, judged.c), judged.models, judged.requests,
            fold=fold, group=judged.group, rule=rule, chosen=judged.chosen, n_boot=n_boot, seed=seed,
        )  # fmt: skip
    errors = None
    if found is not None:
        rows, priced = complete_grid(judged.score, judged.cost)
        on_grid = np.ix_(rows, priced)
        tasks = [task for task, kept in zip(judged.requests.tasks, rows, strict=True) if kept]
        errors = routing_errors(
            found, judged.success[on_grid], Prediction(judged.p[on_grid], judged.c[on_grid]), tasks,
            failure_cost_usd=failure_cost_usd, n_boot=n_boot, seed=seed,
        )  # fmt: skip
    by_task, by_model = _by_task(judged, rule), _by_model(judged)
    cost = cost_error(judged, fold, n_boot=n_boot, seed=seed)
    return Evaluation(judged, rule, calibration, found, by_task, by_model, dict(facts or {}), errors, cost)


def _folds(group: IntArray, seed: int) -> IntArray:
    n_folds = min(N_FOLDS, int(np.unique(group).size))
    return group_folds(group, n_folds, seed) if n_folds > 1 else np.zeros(len(group), dtype=np.intp)


def _by_task(judged: Judged, rule: DefaultRule) -> list[dict[str, Any]]:
    """A row per task, requests without one last under None: how well calibrated, and what routing gained."""
    rows, priced = complete_grid(judged.score, judged.cost)
    names = [name for name, kept in zip(judged.models, priced, strict=True) if kept]
    chosen = judged.chosen
    if chosen is None:
        picks = rule.choose(Prediction(judged.p[:, priced], judged.c[:, priced]), names) if names else None
        chosen = np.flatnonzero(priced)[picks] if picks is not None else np.full(len(rows), REFUSED)
    best = int(np.argmax(np.where(priced, np.nan_to_num(judged.score[rows]).mean(axis=0), -1))) if rows.any() else 0
    out = []
    tasks = judged.requests.tasks
    for task in [*sorted({name for name in tasks if name is not None}), None]:
        members = np.array([name == task for name in tasks], dtype=bool)
        if not members.any():
            continue
        out.append({"task": task, **_task_figures(judged, members, rows & members, chosen, best)})
    return out


def _task_figures(
    judged: Judged, members: BoolArray, on_grid: BoolArray, chosen: IntArray, best: int
) -> dict[str, Any]:
    success, p = judged.success[members], judged.p[members]
    fold = None if judged.fold is None else judged.fold[members]
    tried = ~np.isnan(success)
    index = np.flatnonzero(on_grid & (chosen != REFUSED))
    n = int(on_grid.sum())
    earned, spent = judged.score[index, chosen[index]].sum(), judged.cost[index, chosen[index]].sum()
    return {
        "n_requests": int(members.sum()),
        "n_outcomes": int(tried.sum()),
        "success_rate": finite(float(np.mean(success[tried]))) if tried.any() else None,
        "mean_p": finite(float(np.mean(p[tried]))) if tried.any() else None,
        "ece": finite(expected_calibration_error(success, p)),
        "auc_within": finite(auc_within_task(success, p, [""] * len(p), fold=fold).value),
        "n_priced_requests": n,
        "router_quality": float(earned / n) if n else None,
        "router_cost_usd": float(spent / n) if n else None,
        "best_single_quality": float(judged.score[on_grid, best].mean()) if n else None,
        "best_single_cost_usd": float(judged.cost[on_grid, best].mean()) if n else None,
    }


def _by_model(judged: Judged) -> list[dict[str, Any]]:
    out = []
    for column, name in enumerate(judged.models):
        success, p, cost = judged.success[:, column], judged.p[:, column], judged.cost[:, column]
        tried = ~np.isnan(success)
        n = int(tried.sum())
        out.append({
            "model": name,
            "n_outcomes": n,
            "success_rate": float(success[tried].mean()) if n else None,
            "mean_p": float(p[tried].mean()) if n else None,
            "ece": finite(expected_calibration_error(success, p)),
            "brier": finite(brier(success, p)),
            "auc": finite(auc(success, p, judged.fold)),
            "mean_cost_usd": finite(float(np.nanmean(cost))) if (~np.isnan(cost)).any() else None,
            "share_of_requests": None if judged.chosen is None else float((judged.chosen == column).mean()),
        })  # fmt: skip
    return out
