"""How good a router is on an outcome table: calibration, cost and quality, baselines, by task and by model.

``judge_router`` lets a saved router predict a table. ``evaluate`` turns predictions, from there or from
cross-validation, into an ``Evaluation``: the report that ``router-ml evaluate`` writes and the figures draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from router_ml.errors import NoEligibleModelError, TableError
from router_ml.request import RouteRequest, read_trace
from router_ml.router import Router
from training.calibration import base_rates, calibration_report
from training.comparison import REFUSED, Comparison, DefaultRule, compare, finite
from training.cost_quality import complete_grid
from training.metrics import BoolArray, FloatArray, IntArray, auc, auc_within_task, brier, expected_calibration_error
from training.outcome_table import OutcomeTable, group_folds
from training.prediction import Prediction, Requests

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
    "difference": "paired bootstrap over requests (groups drawn whole), two-sided 95 % percentile interval",
}


@dataclass(frozen=True, eq=False)
class Judged:
    """Predictions for n requests beside what happened; all matrices (n, m), columns in the order of ``models``.

    :param success: 1.0, 0.0, NaN where not tried. :param score: in [0, 1], NaN where not tried.
    :param cost: USD, NaN where unknown.
    :param p: predicted P(success). :param c: predicted cost, USD.
    :param group: (n,) codes of requests that belong together.
    :param fold: (n,) where predictions are out-of-fold; None: one router predicted them all.
    :param chosen: (n,) column that the router's own decision calls, ``REFUSED`` where it calls none; None: no router
        decided, and the default rule is applied to ``p`` and ``c``.
    """

    models: tuple[str, ...]
    success: FloatArray
    score: FloatArray
    cost: FloatArray
    p: FloatArray
    c: FloatArray
    requests: Requests
    group: IntArray
    fold: IntArray | None = None
    chosen: IntArray | None = None

    @classmethod
    def concat(cls, parts: Sequence[Judged]) -> Judged:
        """Parts judged by different routers, such as those of cross-validation, as one; each part is a fold."""
        requests = [part.requests for part in parts]
        matrices = ("success", "score", "cost", "p", "c")
        return cls(
            models=parts[0].models,
            **{name: np.vstack([getattr(part, name) for part in parts]) for name in matrices},
            requests=Requests(
                [text for r in requests for text in r.texts],
                [task for r in requests for task in r.tasks],
                np.vstack([r.embedding for r in requests]),
            ),
            group=np.concatenate([part.group for part in parts]),
            fold=np.repeat(np.arange(len(parts)), [len(part.group) for part in parts]),
            chosen=_concat_chosen(parts),
        )


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What was found. ``comparison`` is None where the table has no request with score and cost of every model.

    :param calibration: see ``calibration.calibration_report``.
    :param by_task: a row per task. :param by_model: a row per model.
    :param facts: what else a reader must know: models left out, whether the router was trained on this table.
    """

    judged: Judged
    rule: DefaultRule
    calibration: dict[str, Any]
    comparison: Comparison | None
    by_task: list[dict[str, Any]]
    by_model: list[dict[str, Any]]
    facts: dict[str, Any]

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
            "notes": NOTES,
        }

    def metrics(self) -> dict[str, dict[str, Any]]:
        """The headline figures for a manifest, each with the number of outcomes or requests behind it."""
        names = ("ece", "brier", "brier_skill", "auc", "auc_within_task")
        out = {name: {"value": self.calibration[name], "n": self.calibration["n"][name]} for name in names}
        if self.comparison is not None:
            found, n = self.comparison.router.to_dict(), self.comparison.n
            out |= {name: {"value": found[name], "n": n} for name in ("quality", "cost_usd", "area")}
            out |= {f"cost_at_quality_{t}": {"value": v, "n": n} for t, v in found["cost_at_quality"].items()}
        return out


def judge_router(router: Router, table: OutcomeTable) -> Judged:
    """Let a router predict and decide the requests of a table.

    It may choose among the models that the comparison can price, or among all that it shares with the table where none
    can be priced.

    :raises TableError: if router and table share no model.
    """
    models = tuple(name for name in router.models if name in table.models)
    if not models:
        problem = f"the table holds {list(table.models)[:5]}, the router knows {list(router.models)[:5]}"
        raise TableError(
            "evaluate", [f"router and table share no model: {problem}; train a router on this table first"]
        )
    columns, own = [table.models.index(name) for name in models], [router.models.index(name) for name in models]
    score, cost = table.dense("score")[:, columns], table.dense("cost_usd")[:, columns]
    rows, priced = complete_grid(score, cost)
    allowed = [name for name, kept in zip(models, priced, strict=True) if kept or not rows.any()]
    requests = [
        RouteRequest(prompt, task=task, segment=segment, allow=allowed)
        for prompt, task, segment in zip(table.prompts, table.task, table.segment, strict=True)
    ]
    texts = [read_trace(request).user_text for request in requests]
    p, c, called = _decide(router, requests)
    column = {own[place]: place for place in range(len(models))} | {REFUSED: REFUSED}
    return Judged(
        models=models,
        success=np.where(np.isnan(score), np.nan, (score >= router.pool.success_score).astype(np.float64)),
        score=score,
        cost=cost,
        p=p[:, own],
        c=c[:, own],
        requests=Requests(texts, table.task, router.encoder.encode(texts).astype(np.float64)),
        group=table.group_codes,
        chosen=np.array([column[model] for model in called], dtype=np.intp),
    )


def evaluate_router(router: Router, table: OutcomeTable, *, n_boot: int = 1000, seed: int = 0) -> Evaluation:
    """Judge a saved router on a table and report, with what the two do not share.

    :raises TableError: if they share no model.
    """
    judged = judge_router(router, table)
    training = router.manifest.get("training", {})
    facts = {
        "router_version": router.manifest["router_version"],
        "models_only_in_router": [name for name in router.models if name not in judged.models],
        "models_only_in_table": [name for name in table.models if name not in judged.models],
        "trained_on_this_table": training.get("data_fingerprint") == table.fingerprint(),
    }
    return evaluate(judged, default_rule(router), facts=facts, n_boot=n_boot, seed=seed)


def default_rule(router: Router) -> DefaultRule:
    """The rule of the router's pool, without its guards."""
    return DefaultRule(router.pool.confidence_threshold, router.pool.escalation_model)


def evaluate(
    judged: Judged,
    rule: DefaultRule,
    *,
    facts: dict[str, Any] | None = None,
    n_boot: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """Report on predictions.

    :param rule: applied to the baselines, and to the predictions where no router decided.
    :param facts: put into the report as they are.
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
    return Evaluation(judged, rule, calibration, found, _by_task(judged, rule), _by_model(judged), dict(facts or {}))


def _folds(group: IntArray, seed: int) -> IntArray:
    n_folds = min(N_FOLDS, int(np.unique(group).size))
    return group_folds(group, n_folds, seed) if n_folds > 1 else np.zeros(len(group), dtype=np.intp)


def _decide(router: Router, requests: Sequence[RouteRequest]) -> tuple[FloatArray, FloatArray, list[int]]:
    """P(success) and expected cost of every model of the router, and the one it calls, ``REFUSED`` where none."""
    shape = (len(requests), len(router.models))
    p, c = np.zeros(shape), np.zeros(shape)
    called = []
    for row, request in enumerate(requests):
        try:
            decision = router.predict(request)
        except NoEligibleModelError:
            p[row], c[row] = router.predict_proba([request])[0], router.predict_cost([request])[0]
            called.append(REFUSED)
        else:
            p[row] = [candidate.p_success for candidate in decision.candidates]
            c[row] = [candidate.expected_cost_usd for candidate in decision.candidates]
            called.append(router.models.index(decision.model))
    return p, c, called


def _concat_chosen(parts: Sequence[Judged]) -> IntArray | None:
    chosen = [part.chosen for part in parts if part.chosen is not None]
    return np.concatenate(chosen) if len(chosen) == len(parts) else None


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
