"""Policies simpler than a router, in the arrays of a router: success rates by model, or by model and task.

Expected cost stays as fitted, request by request: what a call costs is read off a request far better than whether it
will succeed, and budgets need it. Only P(success) no longer looks at the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from router_ml.classifier import RATE_FLOOR, SuccessClassifier, logit
from training.metrics import FloatArray
from training.prediction import GroupTable

BASE_RATES, PER_TASK_TABLE, ROUTER = POLICIES = ("base_rates", "per_task_table", "router")  # simplest first
NAMES = {BASE_RATES: "the table of base rates", PER_TASK_TABLE: "the per-task table", ROUTER: "the router"}


@dataclass(frozen=True, eq=False)
class SuccessRates:
    """``base`` (M,), each model's rate; ``by_task`` (T, M), the same by task, shrunk to it. Names in ``tasks``."""

    base: FloatArray
    by_task: FloatArray
    tasks: tuple[str, ...]

    @classmethod
    def fit(cls, success: FloatArray, tasks: Sequence[str | None]) -> SuccessRates:
        """Learn both.

        :param success: (n, M) 1.0, 0.0, NaN where not tried. :param tasks: n names, None where unknown.
        """
        table = GroupTable().fit(tasks, success, np.full_like(success, np.nan))
        names = tuple(sorted(table.cells_))
        by_task = np.array([table.cells_[name][0] for name in names]).reshape(len(names), success.shape[1])
        # serving keeps rates off 0 and 1, so what is judged here must too
        base, by_task = (np.clip(rates, RATE_FLOOR, 1.0 - RATE_FLOOR) for rates in (table.p_, by_task))
        return cls(base, by_task, names)

    def predict(self, policy: str, tasks: Sequence[str | None]) -> FloatArray:
        """:return: (n, M) P(success); a task that was not seen gets the base rates."""
        known: dict[str | None, FloatArray] = dict(zip(self._used(policy), self.by_task, strict=False))
        return np.array([known.get(task, self.base) for task in tasks]).reshape(len(tasks), len(self.base))

    def replace_in(self, classifier: SuccessClassifier, policy: str) -> SuccessClassifier:
        """The classifier with these rates for P(success); its costs and its novelty stay."""
        tasks, m = self._used(policy), classifier.n_models
        no_text = np.zeros((len(classifier.landmarks), m))
        base = logit(self.base)
        return replace(
            classifier,
            success_weights=no_text,
            success_offset=np.vstack([logit(self.by_task[: len(tasks)]), base]),
            task_weights=np.hstack([no_text, no_text]) if tasks else np.zeros((0, 0)),
            task_offset=np.zeros(2 * m),
            task_slopes=np.zeros((2, m)),
            base_rate=self.base,
            base_log_odds=base,
            tasks=tasks,
        )

    def _used(self, policy: str) -> tuple[str, ...]:
        return self.tasks if policy == PER_TASK_TABLE else ()
