"""Predictions for the requests of a table beside what happened, and a saved router's own predictions for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from router_ml.errors import NoEligibleModelError, TableError
from router_ml.request import RouteRequest, read_trace
from router_ml.router import Router
from training.comparison import REFUSED
from training.cost_quality import complete_grid
from training.metrics import FloatArray, IntArray
from training.outcome_table import OutcomeTable
from training.prediction import Requests


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
