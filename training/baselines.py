"""What a router must beat: constants, tables, neighbours, prompt length, keyword rules, and the oracle above it.

Each baseline is fitted on training rows and predicts P(success) and cost (USD) for other rows, both (n, m). Rules that
do not come from ``p - lambda * c`` add their own operating points, ``choices`` (L, n). ``Prediction.curve`` then treats
all alike. For a curve, fit on the models of ``cost_quality.complete_grid``: on the others no choice can be priced.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Self

import numpy as np
from sklearn.linear_model import LogisticRegression

from router_ml.errors import TableError
from training.heuristics import ComplexityHeuristic, TaskTypeTable
from training.metrics import FloatArray, IntArray, brier, successes
from training.prediction import (
    Baseline,
    GroupTable,
    Prediction,
    Requests,
    check_fitted,
    column_means,
    cost_means,
    success_means,
)

_NEIGHBOUR_BUDGET = 8_000_000  # numbers held at once while the outcomes of neighbours are averaged


class RandomMixture:
    """Every request the same: p and c are the models' training means.

    Its sweep visits the single models on the training rows' hull, and mixing those at random is the hull on the judged
    rows. A router below it is worse than no router.
    """

    def fit(self, requests: Requests, score: FloatArray, cost: FloatArray) -> Self:
        """Learn the models' mean success and cost."""
        self.p_, self.c_ = success_means(score), cost_means(cost)
        return self

    def predict(self, requests: Requests) -> Prediction:
        """Predict the means for every request."""
        check_fitted(self, "p_")
        n = len(requests.texts)
        return Prediction(np.tile(self.p_, (n, 1)), np.tile(self.c_, (n, 1)))


class SingleModel(RandomMixture):
    """One model for everything.

    :param model: a column, or which to pick on training rows: the cheapest by mean cost, the best by mean score.
    """

    def __init__(self, model: int | Literal["cheapest", "best"]) -> None:
        self.model = model

    def fit(self, requests: Requests, score: FloatArray, cost: FloatArray) -> Self:
        """Learn the means and pick the model."""
        super().fit(requests, score, cost)
        if self.model == "cheapest":
            self.model_ = int(np.argmin(self.c_))
        elif self.model == "best":
            self.model_ = int(np.argmax(column_means(score, -np.inf)))
        else:
            self.model_ = self.model
        return self

    def predict(self, requests: Requests) -> Prediction:
        """Predict the means, with one operating point: the model."""
        means = super().predict(requests)
        return Prediction(means.p, means.c, np.full((1, len(requests.texts)), self.model_, dtype=np.intp))


class PerTaskTable:
    """Success and cost per (task, model): knows which task this is and nothing else.

    :param pseudo_counts: see :class:`GroupTable`.
    """

    def __init__(self, pseudo_counts: float = 5.0) -> None:
        self.pseudo_counts = pseudo_counts

    def fit(self, requests: Requests, score: FloatArray, cost: FloatArray) -> Self:
        """Learn the table."""
        self.table_ = GroupTable(self.pseudo_counts).fit(requests.tasks, score, cost)
        return self

    def predict(self, requests: Requests) -> Prediction:
        """Look the tasks up."""
        check_fitted(self, "table_")
        return self.table_.predict(requests.tasks)


class NearestNeighbours:
    """Quality *and* cost averaged over the k most similar training requests (CARROT, arXiv 2502.03261, section 4).

    :param k: neighbours; None chooses among ``grid`` by the Brier score of an inner split of the training rows.
    :param grid: values of k to choose from.
    :param seed: seed of the inner split.
    """

    def __init__(self, k: int | None = 40, *, grid: Sequence[int] = (10, 20, 40, 80, 160), seed: int = 0) -> None:
        self.k = k
        self.grid = grid
        self.seed = seed

    def fit(self, requests: Requests, score: FloatArray, cost: FloatArray) -> Self:
        """Keep the training rows; choose k where it was not given."""
        self.embedding_ = _unit(requests.embedding)
        self.success_, self.cost_ = successes(score), cost
        self.p_, self.c_ = success_means(score), cost_means(cost)
        self.k_ = self._validated() if self.k is None else self.k
        return self

    def predict(self, requests: Requests) -> Prediction:
        """Average the neighbours' outcomes; where none of them tried a model, its training mean."""
        check_fitted(self, "k_")
        near = _nearest(requests.embedding, self.embedding_, self.k_)
        return Prediction(_neighbour_means(self.success_, near, self.p_), _neighbour_means(self.cost_, near, self.c_))

    def _validated(self, n_folds: int = 5) -> int:
        n = len(self.embedding_)
        fold = np.random.default_rng(self.seed).permutation(n) % min(n_folds, n)
        predicted = np.zeros((len(self.grid), *self.success_.shape))
        for held_out in range(int(fold.max()) + 1):
            rest, inner = np.flatnonzero(fold != held_out), np.flatnonzero(fold == held_out)
            near = _nearest(self.embedding_[inner], self.embedding_[rest], max(self.grid))
            for choice, k in enumerate(self.grid):
                predicted[choice, inner] = _neighbour_means(self.success_[rest], near[:, :k], self.p_)
        return self.grid[int(np.argmin([brier(self.success_, p) for p in predicted]))]


class PromptLength:
    """A logistic curve in log length per model for success; cost a line in length.

    What any claim of "complexity" has to beat. A model with fewer than ``min_rows`` outcomes, or with one class only,
    keeps its mean.

    :param min_rows: fewest tried rows for a curve of its own.
    """

    def __init__(self, min_rows: int = 20) -> None:
        self.min_rows = min_rows

    def fit(self, requests: Requests, score: FloatArray, cost: FloatArray) -> Self:
        """Learn slope and intercept per model."""
        length = requests.characters
        log_length = np.log1p(length)
        self.centre_, self.scale_ = float(log_length.mean()), float(log_length.std()) or 1.0
        self.p_, self.c_ = success_means(score), cost_means(cost)
        self.success_lines_ = self._success_lines((log_length - self.centre_) / self.scale_, successes(score))
        self.cost_lines_ = [_rising_line(length, cost[:, m], self.c_[m]) for m in range(cost.shape[1])]
        self.longest_ = float(length.max())
        return self

    def predict(self, requests: Requests) -> Prediction:
        """Predict from length alone; beyond the longest training prompt the cost stays level."""
        check_fitted(self, "cost_lines_")
        length = requests.characters
        x = (np.log1p(length) - self.centre_) / self.scale_
        p = np.tile(self.p_, (length.size, 1))
        for model, (slope, intercept) in self.success_lines_.items():
            p[:, model] = 1.0 / (1.0 + np.exp(-(slope * x + intercept)))
        slope_c, intercept_c = np.array(self.cost_lines_).T
        c = np.maximum(slope_c * np.minimum(length, self.longest_)[:, None] + intercept_c, 0.0)
        return Prediction(p, c)

    def _success_lines(self, x: FloatArray, success: FloatArray) -> dict[int, tuple[float, float]]:
        lines = {}
        for model in range(success.shape[1]):
            tried = ~np.isnan(success[:, model])
            y = success[tried, model]
            if y.size >= self.min_rows and 0 < y.mean() < 1:
                curve = LogisticRegression().fit(x[tried, None], y)
                lines[model] = (float(curve.coef_[0, 0]), float(curve.intercept_[0]))
        return lines


def oracle(score: FloatArray, cost: FloatArray) -> Prediction:
    """Knows the outcomes of the judged rows: at lambda 0 the cheapest of the models that do best on each request.

    The upper bound of choosing one model per request. Not a :class:`Baseline`, since nothing is learned.

    :param score: (n, m) judged scores.
    :param cost: (n, m) judged costs.
    :return: the outcomes as predictions; a cell that was not tried is taken as failed, an unknown cost as the largest.
    """
    known = cost[~np.isnan(cost)]
    return Prediction(np.nan_to_num(score, nan=0.0), np.where(np.isnan(cost), known.max() if known.size else 0.0, cost))


def standard_baselines(models: Sequence[str]) -> dict[str, Callable[[], Baseline]]:
    """The baselines of every comparison, by name, each as a constructor; the oracle is apart.

    :param models: column names; each gets ``single:<name>``.
    :return: constructors of unfitted baselines.
    """

    def single(column: int) -> Callable[[], Baseline]:
        return lambda: SingleModel(column)

    return {
        **{f"single:{name}": single(column) for column, name in enumerate(models)},
        "cheapest": lambda: SingleModel("cheapest"),
        "best_single": lambda: SingleModel("best"),
        "random_mixture": RandomMixture,
        "per_task_table": PerTaskTable,
        "knn": lambda: NearestNeighbours(None),
        "prompt_length": PromptLength,
        "complexity_heuristic": ComplexityHeuristic,
        "task_type_table": TaskTypeTable,
    }


def out_of_fold(
    make: Callable[[], Baseline], requests: Requests, score: FloatArray, cost: FloatArray, fold: IntArray
) -> Prediction:
    """Predict each row by a baseline fitted on the other folds.

    :param make: constructor of an unfitted baseline.
    :param requests: n requests.
    :param score: (n, m), NaN where not tried.
    :param cost: (n, m) USD, NaN where unknown.
    :param fold: (n,) fold of each request; rows that must not be split share one.
    :return: predictions of all rows; choices of a rule are put together by operating point.
    :raises TableError: if there is one fold only.
    """
    folds = np.unique(fold)
    if folds.size < 2:
        raise TableError("out_of_fold", [f"{folds.size} fold; expected at least 2, or nothing is left to fit on"])
    p, c = np.zeros(score.shape), np.zeros(score.shape)
    choices: IntArray | None = None
    for held_out in folds:
        rest, rows = np.flatnonzero(fold != held_out), np.flatnonzero(fold == held_out)
        part = make().fit(requests.take(rest), score[rest], cost[rest]).predict(requests.take(rows))
        p[rows], c[rows] = part.p, part.c
        if part.choices is not None:
            if choices is None:
                choices = np.zeros((part.choices.shape[0], len(fold)), dtype=np.intp)
            choices[:, rows] = part.choices
    return Prediction(p, c, choices)


def _unit(embedding: FloatArray) -> FloatArray:
    norm = np.linalg.norm(embedding, axis=1, keepdims=True)
    unit: FloatArray = embedding / np.where(norm > 0, norm, 1.0)
    return unit


def _nearest(queries: FloatArray, train: FloatArray, k: int) -> IntArray:
    """(q, min(k, n)) rows of ``train``, which has unit length, by falling cosine similarity to each query."""
    k = min(k, len(train))
    block = max(1, _NEIGHBOUR_BUDGET // len(train))
    found = []
    for start in range(0, len(queries), block):
        similarity = queries[start : start + block] @ train.T
        near = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        order = np.argsort(-np.take_along_axis(similarity, near, axis=1), axis=1, kind="stable")
        found.append(np.take_along_axis(near, order, axis=1))
    return np.concatenate(found) if found else np.zeros((0, k), dtype=np.intp)


def _neighbour_means(values: FloatArray, near: IntArray, unknown: FloatArray) -> FloatArray:
    """(q, m) means of ``values`` (n, m) over neighbours (q, k); ``unknown`` (m,) where no neighbour has a value."""
    block = max(1, _NEIGHBOUR_BUDGET // (near.shape[1] * values.shape[1]))
    means = np.empty((len(near), values.shape[1]))
    for start in range(0, len(near), block):
        found = values[near[start : start + block]]
        count = (~np.isnan(found)).sum(axis=1)
        mean = np.nansum(found, axis=1) / np.maximum(count, 1)
        means[start : start + block] = np.where(count > 0, mean, unknown)
    return means


def _rising_line(length: FloatArray, cost: FloatArray, mean: float) -> tuple[float, float]:
    """Least squares with a slope of at least zero: longer prompts are never cheaper to send."""
    known = ~np.isnan(cost)
    x, y = length[known], cost[known]
    spread = float(np.sum((x - x.mean()) ** 2)) if x.size > 1 else 0.0
    if spread == 0.0:
        return 0.0, mean
    slope = max(0.0, float(np.sum((x - x.mean()) * (y - y.mean()))) / spread)
    return slope, float(y.mean() - slope * x.mean())
