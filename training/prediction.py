"""What a router or a baseline looks at and says: the requests, and P(success) and cost for each model.

Tables may be sparse: a NaN score or cost is left out of every mean. A model without any outcome gets the mean of all
outcomes, one without any known cost the cost of the dearest model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np

from router_ml.errors import NotFittedError, TableError
from training.cost_quality import CostQualityCurve, realised_curve, sweep_choices
from training.metrics import FloatArray, IntArray, successes


@dataclass(frozen=True, eq=False)
class Requests:
    """What a baseline may look at: n prompts, their task names (None where unknown), their embeddings (n, d).

    A text is "" where it was not logged; ``lengths`` (n,), characters, knows it all the same. None: as the texts are.
    Keyword rules see nothing in such a text.
    """

    texts: Sequence[str]
    tasks: Sequence[str | None]
    embedding: FloatArray
    lengths: FloatArray | None = None

    def __post_init__(self) -> None:
        if not len(self.texts) == len(self.tasks) == len(self.embedding):
            sizes = f"{len(self.texts)} texts, {len(self.tasks)} tasks, {len(self.embedding)} embeddings"
            raise TableError("requests", [f"got {sizes}; expected one of each per request"])

    def take(self, rows: IntArray) -> Requests:
        """:return: the given rows, in that order."""
        return Requests(
            [self.texts[i] for i in rows], [self.tasks[i] for i in rows], self.embedding[rows],
            None if self.lengths is None else self.lengths[rows],
        )  # fmt: skip

    @property
    def characters(self) -> FloatArray:
        """(n,) length of each text."""
        return self.lengths if self.lengths is not None else np.array([len(text) for text in self.texts], np.float64)


@dataclass(frozen=True, eq=False)
class Prediction:
    """``p`` and ``c`` (n, m), and ``choices`` (L, n) of a rule that has its own; else those of the lambda sweep."""

    p: FloatArray
    c: FloatArray
    choices: IntArray | None = None

    def curve(self, score: FloatArray, cost: FloatArray, group: IntArray | None = None) -> CostQualityCurve:
        """:return: the operating points realised on outcomes (n, m), over complete rows."""
        choices = sweep_choices(self.p, self.c) if self.choices is None else self.choices
        return realised_curve(choices, score, cost, group)


class Baseline(Protocol):
    """One method to learn, one to predict."""

    def fit(self, requests: Requests, score: FloatArray, cost: FloatArray) -> Self:
        """Learn from n requests with outcomes (n, m), NaN where not tried or unknown."""
        ...

    def predict(self, requests: Requests) -> Prediction:
        """Predict for other requests."""
        ...


class GroupTable:
    """Mean success and cost per label and model, shrunk to the model's mean.

    :param pseudo_counts: outcomes at the model's mean added to each cell; few, as in common practice.
    """

    def __init__(self, pseudo_counts: float = 5.0) -> None:
        self.pseudo_counts = pseudo_counts

    def fit(self, labels: Sequence[str | None], score: FloatArray, cost: FloatArray) -> Self:
        """Learn the table from n labels and outcomes (n, m)."""
        self.p_, self.c_ = success_means(score), cost_means(cost)
        rows: dict[str, list[int]] = {}
        for row, label in enumerate(labels):
            if label is not None:
                rows.setdefault(label, []).append(row)
        success = successes(score)
        self.cells_ = {
            label: (self._shrunk(success[members], self.p_), self._shrunk(cost[members], self.c_))
            for label, members in rows.items()
        }
        return self

    def predict(self, labels: Sequence[str | None]) -> Prediction:
        """Look n labels up; one that was not seen, or None, gets the model means."""
        check_fitted(self, "cells_")
        unseen = (self.p_, self.c_)
        cells = [unseen if label is None else self.cells_.get(label, unseen) for label in labels]
        shape = (len(cells), self.p_.size)
        return Prediction(
            np.array([p for p, _ in cells]).reshape(shape), np.array([c for _, c in cells]).reshape(shape)
        )

    def _shrunk(self, values: FloatArray, mean: FloatArray) -> FloatArray:
        count = (~np.isnan(values)).sum(axis=0)
        shrunk: FloatArray = (np.nansum(values, axis=0) + self.pseudo_counts * mean) / (count + self.pseudo_counts)
        return shrunk


def column_means(values: FloatArray, unknown: float) -> FloatArray:
    """Column means (m,) over known rows; ``unknown`` where a column has none."""
    count = (~np.isnan(values)).sum(axis=0)
    return np.where(count > 0, np.nansum(values, axis=0) / np.maximum(count, 1), unknown)


def success_means(score: FloatArray) -> FloatArray:
    """:return: (m,) success rate per model; the rate of all outcomes for a model without one, .5 without any."""
    success = successes(score)
    tried = ~np.isnan(success)
    return column_means(success, float(success[tried].mean()) if tried.any() else 0.5)


def cost_means(cost: FloatArray) -> FloatArray:
    """:return: (m,) mean cost per model, USD; the dearest model's for a model without one, 0 without any."""
    means = column_means(cost, np.nan)
    known = ~np.isnan(means)
    return np.where(known, means, means[known].max() if known.any() else 0.0)


def check_fitted(estimator: object, learned: str) -> None:
    """:raises NotFittedError: if the attribute that ``fit`` sets is not there."""
    if not hasattr(estimator, learned):
        raise NotFittedError(f"{type(estimator).__name__} has not been fitted; call fit() with training outcomes first")
