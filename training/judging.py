"""Predictions for the requests of a table beside what happened, and a saved router's own predictions for them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from router_ml.errors import BudgetExceededError, NoEligibleModelError, TableError
from router_ml.features import FEATURE_NAMES
from router_ml.request import RouteRequest, read_trace
from router_ml.router import Reading, Router
from training.comparison import REFUSED
from training.cost_quality import complete_grid
from training.fitting import Representation, represent_table
from training.metrics import BoolArray, FloatArray, IntArray
from training.outcome_table import OutcomeTable
from training.prediction import Requests

NOT_LOGGED = "(the text was not logged)"


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
    :param eligible: (n, m) whether the router's guards let the model have the request; None: no router decided.
    :param several_calls: (n, m) whether ``cost`` is that of several calls where ``c`` is that of one; None: never.
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
    eligible: BoolArray | None = None
    several_calls: BoolArray | None = None

    @property
    def cost_as_predicted(self) -> FloatArray:
        """``cost`` where it is of what ``c`` predicts, NaN where it is of several calls and ``c`` of one."""
        return self.cost if self.several_calls is None else np.where(self.several_calls, np.nan, self.cost)

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
                np.concatenate([r.characters for r in requests]),
            ),
            group=np.concatenate([part.group for part in parts]),
            fold=np.repeat(np.arange(len(parts)), [len(part.group) for part in parts]),
            chosen=_concat_of(parts, "chosen"),
            eligible=_concat_of(parts, "eligible"),
            several_calls=_concat_of(parts, "several_calls"),
        )


def judge_router(router: Router, table: OutcomeTable, among: Sequence[str] | None = None) -> Judged:
    """Let a router predict and decide the requests of a table.

    :param among: models that it may choose among; None: those that the comparison can price, or all that it shares
        with the table where none can be priced.
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
    if among is None:
        among = [name for name, kept in zip(models, priced, strict=True) if kept or not rows.any()]
    representation = represent_table(table, router.encoder)
    p, c, eligible, called = _decide(router, _readings(router, table, representation, among))
    column = {own[place]: place for place in range(len(models))} | {REFUSED: REFUSED}
    return Judged(
        models=models,
        success=np.where(np.isnan(score), np.nan, (score >= router.pool.success_score).astype(np.float64)),
        score=score,
        cost=cost,
        p=p[:, own],
        c=c[:, own],
        requests=requests_of(table, representation),
        group=table.group_codes,
        chosen=np.array([column[model] for model in called], dtype=np.intp),
        eligible=eligible[:, own],
        several_calls=table.dense("turns")[:, columns] > 1 if router.prices_calls else None,
    )


def requests_of(table: OutcomeTable, representation: Representation) -> Requests:
    """What baselines may look at. The length of a text that was not logged is read off its features."""
    texts = [read_trace(RouteRequest(prompt)).user_text if prompt else "" for prompt in table.prompts]
    lengths = np.array([len(text) for text in texts], dtype=np.float64)
    if table.stored is not None:
        held = table.stored.row >= 0
        lengths[held] = np.expm1(representation.features[held, FEATURE_NAMES.index("n_chars")].astype(np.float64))
    return Requests(texts, table.task, representation.embedding.astype(np.float64), lengths)


def _readings(
    router: Router, table: OutcomeTable, representation: Representation, allowed: Sequence[str]
) -> Iterator[Reading]:
    """What the router reads of each request; of one whose text was not logged, what it read then."""
    tokens = table.dense("input_tokens")
    known = ~np.isnan(tokens)
    mean_tokens = np.where(known, tokens, 0.0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    for i, (prompt, task, segment) in enumerate(zip(table.prompts, table.task, table.segment, strict=True)):
        request = RouteRequest(prompt or NOT_LOGGED, task=task, segment=segment, allow=allowed)
        if prompt:
            yield router.read(request)
            continue
        trace = read_trace(request)._replace(user_text="", last_user_text="", input_tokens=round(mean_tokens[i]))
        features, embedding = representation.features[i].astype(np.float64), representation.embedding[i]
        yield router.reading(request, trace, features, embedding)


def _decide(router: Router, readings: Iterable[Reading]) -> tuple[FloatArray, FloatArray, BoolArray, list[int]]:
    """P(success) and expected cost of every model of the router, who is eligible, and the one it calls, or REFUSED."""
    p: list[list[float]] = []
    c: list[list[float]] = []
    eligible: list[list[bool]] = []
    called = []
    for reading in readings:
        try:
            decision = router.decide(reading)
        except (NoEligibleModelError, BudgetExceededError):
            p.append(reading.p)
            c.append(reading.cost)
            eligible.append([False] * len(router.models))
            called.append(REFUSED)
        else:
            p.append([candidate.p_success for candidate in decision.candidates])
            c.append([candidate.expected_cost_usd for candidate in decision.candidates])
            eligible.append([candidate.excluded_by is None for candidate in decision.candidates])
            called.append(router.models.index(decision.model))
    shape = (len(called), len(router.models))
    return np.array(p).reshape(shape), np.array(c).reshape(shape), np.array(eligible, bool).reshape(shape), called


def _concat_of(parts: Sequence[Judged], name: str) -> Any:
    found = [getattr(part, name) for part in parts if getattr(part, name) is not None]
    return np.concatenate(found) if len(found) == len(parts) else None
