"""What a router must beat: constants, tables, neighbours, prompt length, keyword rules, and the oracle above it.

Each baseline is fitted on training rows and predicts P(success) and cost (USD) for other rows, both (n, m). Rules that
do not come from ``p - lambda * c`` add their own operating points, ``choices`` (L, n); the number of points of a rule
is fixed, so that folds can be put side by side. ``Prediction.curve`` then treats all alike.

Tables may be sparse: a NaN score or cost is left out of every mean. A model without any outcome gets the mean of all
outcomes, one without any known cost the cost of the dearest model. For a curve, fit on the models of
``metrics.complete_grid``: on the others no choice can be priced.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, Self

import numpy as np
from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]

from router_ml.errors import NotFittedError, TableError
from training.metrics import CostQualityCurve, FloatArray, IntArray, brier, realised_curve, successes, sweep_choices

_NEIGHBOUR_BUDGET = 8_000_000  # numbers held at once while the outcomes of neighbours are averaged
_SCANNED = 10_000  # characters at each end of a text that keyword rules look at


@dataclass(frozen=True, eq=False)
class Requests:
    """What a baseline may look at: n prompts, their task names (None where unknown), their embeddings (n, d)."""

    texts: Sequence[str]
    tasks: Sequence[str | None]
    embedding: FloatArray

    def __post_init__(self) -> None:
        if not len(self.texts) == len(self.tasks) == len(self.embedding):
            sizes = f"{len(self.texts)} texts, {len(self.tasks)} tasks, {len(self.embedding)} embeddings"
            raise TableError("requests", [f"got {sizes}; expected one of each per request"])

    def take(self, rows: IntArray) -> Requests:
        """:return: the given rows, in that order."""
        return Requests([self.texts[i] for i in rows], [self.tasks[i] for i in rows], self.embedding[rows])


@dataclass(frozen=True, eq=False)
class Prediction:
    """``p`` and ``c`` (n, m), and ``choices`` (L, n) of a rule that has its own; else those of the lambda sweep."""

    p: FloatArray
    c: FloatArray
    choices: IntArray | None = None

    def curve(self, score: FloatArray, cost: FloatArray) -> CostQualityCurve:
        """:return: the operating points realised on outcomes (n, m), over complete rows."""
        choices = sweep_choices(self.p, self.c) if self.choices is None else self.choices
        return realised_curve(choices, score, cost)


class Baseline(Protocol):
    """One method to learn, one to predict."""

    def fit(self, requests: Requests, score: FloatArray, cost: FloatArray) -> Self:
        """Learn from n requests with outcomes (n, m), NaN where not tried or unknown."""
        ...

    def predict(self, requests: Requests) -> Prediction:
        """Predict for other requests."""
        ...


class RandomMixture:
    """Every request the same: p and c are the models' training means.

    Its sweep visits the single models on the training rows' hull, and mixing those at random is the hull on the judged
    rows. A router below it is worse than no router.
    """

    def fit(self, requests: Requests, score: FloatArray, cost: FloatArray) -> Self:
        """Learn the models' mean success and cost."""
        self.p_, self.c_ = _success_means(score), _cost_means(cost)
        return self

    def predict(self, requests: Requests) -> Prediction:
        """Predict the means for every request."""
        _check_fitted(self, "p_")
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
            self.model_ = int(np.argmax(_means(score, -np.inf)))
        else:
            self.model_ = self.model
        return self

    def predict(self, requests: Requests) -> Prediction:
        """Predict the means, with one operating point: the model."""
        means = super().predict(requests)
        return Prediction(means.p, means.c, np.full((1, len(requests.texts)), self.model_, dtype=np.intp))


class GroupTable:
    """Mean success and cost per label and model, shrunk to the model's mean.

    :param pseudo_counts: outcomes at the model's mean added to each cell; few, as in common practice.
    """

    def __init__(self, pseudo_counts: float = 5.0) -> None:
        self.pseudo_counts = pseudo_counts

    def fit(self, labels: Sequence[str | None], score: FloatArray, cost: FloatArray) -> Self:
        """Learn the table from n labels and outcomes (n, m)."""
        self.p_, self.c_ = _success_means(score), _cost_means(cost)
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
        _check_fitted(self, "cells_")
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
        _check_fitted(self, "table_")
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
        self.p_, self.c_ = _success_means(score), _cost_means(cost)
        self.k_ = self._validated() if self.k is None else self.k
        return self

    def predict(self, requests: Requests) -> Prediction:
        """Average the neighbours' outcomes; where none of them tried a model, its training mean."""
        _check_fitted(self, "k_")
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
        length = _lengths(requests)
        log_length = np.log1p(length)
        self.centre_, self.scale_ = float(log_length.mean()), float(log_length.std()) or 1.0
        self.p_, self.c_ = _success_means(score), _cost_means(cost)
        self.success_lines_ = self._success_lines((log_length - self.centre_) / self.scale_, successes(score))
        self.cost_lines_ = [_rising_line(length, cost[:, m], self.c_[m]) for m in range(cost.shape[1])]
        self.longest_ = float(length.max())
        return self

    def predict(self, requests: Requests) -> Prediction:
        """Predict from length alone; beyond the longest training prompt the cost stays level."""
        _check_fitted(self, "cost_lines_")
        length = _lengths(requests)
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


def _words(*words: str) -> re.Pattern[str]:
    return re.compile(r"\b(?:" + "|".join(words) + r")\b", re.IGNORECASE)


_CODE_WORDS = _words(
    "function", "class", "def", "const", "import", "return", "async", "await", "exception", "error", "debug", "api",
    "endpoint", "database", "sql", "query", "schema", "algorithm", "implement", "refactor", "optimi[sz]e", "python",
    "javascript", "typescript", "java", "rust", "golang", "react", "docker", "kubernetes", "git", "commit", "branch",
)  # fmt: skip
_REASONING_WORDS = _words(
    "step by step", "think through", "reason through", "break down", "explain your reasoning", "show your work",
    "think carefully", "consider all", "evaluate", "pros and cons", "compare and contrast", "weigh the options",
    "logical", "deduce", "infer", "conclude", "prove",
)  # fmt: skip
_TECHNICAL_WORDS = _words(
    "architecture", "distributed", "scalable", "microservices?", "machine learning", "neural network", "encryption",
    "authentication", "authori[sz]ation", "performance", "latency", "throughput", "benchmark", "concurrency", "memory",
    "parallel", "threading", "cpu", "gpu", "optimi[sz]ation", "protocol", "tcp", "http", "container", "orchestration",
)  # fmt: skip
_SIMPLE_WORDS = _words(
    "what is", "what's", "define", "definition of", "who is", "who was", "when did", "when was", "where is",
    "where was", "how many", "how much", "yes or no", "true or false", "simple", "brief", "short", "quick", "hello",
    "hi", "hey", "thanks", "thank you", "bye",
)  # fmt: skip
_STEPS = re.compile(r"\bfirst\b.{0,200}\bthen\b|\bstep \d|^\s*\d+[.)]\s", re.IGNORECASE | re.MULTILINE)


def complexity(text: str) -> tuple[float, bool]:
    """How hard a request looks to a keyword rule.

    After the complexity router that LiteLLM ships (1.106), which follows ClawRouter: its weights, thresholds and
    four-character tokens, with shorter word lists. Matches are counted by distinct word.

    :param text: the prompt; of a long one, both ends.
    :return: a weighted sum in [-.15, .925], and whether two or more calls for reasoning force the top tier.
    """
    scanned = _both_ends(text)
    tokens = len(text) / 4
    reasoning = _distinct(_REASONING_WORDS, scanned)
    score = (
        0.10 * (-1.0 if tokens < 15 else 1.0 if tokens > 400 else 0.0)
        + 0.30 * (0.0, 0.5, 1.0)[min(_distinct(_CODE_WORDS, scanned), 2)]
        + 0.25 * (0.0, 0.7, 1.0)[min(reasoning, 2)]
        + 0.25 * (0.0, 0.5, 1.0)[min(_distinct(_TECHNICAL_WORDS, scanned) // 2, 2)]
        - 0.05 * bool(_SIMPLE_WORDS.search(scanned))
        + 0.03 * 0.5 * bool(_STEPS.search(scanned))
        + 0.02 * 0.5 * (scanned.count("?") > 3)
    )
    return score, reasoning >= 2


class ComplexityHeuristic:
    """Keyword complexity -> one of four tiers -> a model by price, as routers in common use do.

    The first operating point has the published cut-offs; the others move all cut-offs together until everything goes
    to the lowest or to the highest tier. ``p`` and ``c`` are the training means of the tier, so that calibration and
    AUC say what the tiers are worth as predictions.
    """

    cutoffs = (0.15, 0.35, 0.60)
    shifts = (0.0, *np.linspace(-1.0, 1.0, 41).tolist())

    def fit(self, requests: Requests, score: FloatArray, cost: FloatArray) -> Self:
        """Learn which model serves a tier, and the means per tier."""
        tiers = self._tiers(requests)[0]
        self.models_ = tier_models(score, cost, len(self.cutoffs) + 1)
        self.table_ = GroupTable().fit([str(tier) for tier in tiers], score, cost)
        return self

    def predict(self, requests: Requests) -> Prediction:
        """Tier each request under all shifts."""
        _check_fitted(self, "table_")
        tiers = self._tiers(requests)
        means = self.table_.predict([str(tier) for tier in tiers[0]])
        return Prediction(means.p, means.c, self.models_[tiers])

    def _tiers(self, requests: Requests) -> IntArray:
        """(L, n) tiers, one row per shift."""
        scored = [complexity(text) for text in requests.texts]
        score = np.array([value for value, _ in scored])
        forced = np.array([force for _, force in scored], dtype=bool)
        shifted = score[None, :] + np.array(self.shifts)[:, None]
        tiers = np.searchsorted(self.cutoffs, shifted, side="right")
        return np.where(forced & (shifted >= self.cutoffs[0]), len(self.cutoffs), tiers).astype(np.intp)


# Task type -> how a keyword rule recognises it, and which price tier (0 cheap, 1 middle, 2 dear) is customary for it.
# First match wins; what matches nothing is chat.
_TASK_TYPES: Mapping[str, tuple[re.Pattern[str], int]] = {
    name: (re.compile(pattern, re.IGNORECASE), tier)
    for name, tier, pattern in (
        ("code", 2, r"```|\bdef \w+\(|\bclass \w+[:({]|\btraceback\b|#include|\b(?:function|python|javascript"
         r"|typescript|java|rust|sql|regex|unit tests?|refactor|debug|compile|stack ?trace)\b"),
        ("math", 2, r"\\frac|\\sqrt|\$[^$\n]{1,200}\$|\b(?:equation|integral|derivative|theorem|prove|proof|solve for"
         r"|probability|polynomial|triangle|algebra|geometry|modulo|calculate|compute)\b"),
        ("extraction", 0, r"\b(?:extract|parse|classify|label|categori[sz]e|convert .{1,40} to (?:json|csv|xml))\b"),
        ("summary", 0, r"\b(?:summari[sz]e|summary|tl;?dr|shorten|key points)\b"),
        ("translation", 1, r"\btranslat(?:e|ion)\b"),
        ("writing", 1, r"\b(?:write|draft|compose|rewrite|proofread|essay|e-?mail|blog|story|poem|letter)\b"),
        ("reasoning", 2, r"\b(?:why|explain|analy[sz]e|compare|trade-?offs?|design|plan|step by step|strategy)\b"),
    )
}  # fmt: skip


def guess_task_type(text: str) -> str:
    """:return: the first task type whose keywords occur in the prompt (both ends of a long one), else ``chat``."""
    scanned = _both_ends(text)
    return next((name for name, (pattern, _) in _TASK_TYPES.items() if pattern.search(scanned)), "chat")


class TaskTypeTable:
    """Task type guessed from keywords -> a fixed price tier: the hand-written routing table of common practice.

    The first operating point is the table as written; the others move every type up or down by one or two tiers.
    """

    shifts = (0, -2, -1, 1, 2)
    n_tiers = 3

    def fit(self, requests: Requests, score: FloatArray, cost: FloatArray) -> Self:
        """Learn which model serves a tier, and the means per guessed type."""
        self.models_ = tier_models(score, cost, self.n_tiers)
        self.table_ = GroupTable().fit([guess_task_type(text) for text in requests.texts], score, cost)
        return self

    def predict(self, requests: Requests) -> Prediction:
        """Guess the type of each request and look its tier up."""
        _check_fitted(self, "table_")
        types = [guess_task_type(text) for text in requests.texts]
        means = self.table_.predict(types)
        tiers = np.array([0 if name == "chat" else _TASK_TYPES[name][1] for name in types], dtype=np.intp)
        shifted = np.clip(tiers[None, :] + np.array(self.shifts)[:, None], 0, self.n_tiers - 1)
        return Prediction(means.p, means.c, self.models_[shifted])


def tier_models(score: FloatArray, cost: FloatArray, n_tiers: int) -> IntArray:
    """The model of each price tier: even quantiles of price among models that no other beats in both cost and score.

    A person who writes such a table leaves out a model that is dearer and worse than another; so does this.

    :param score: (n, m) training scores.
    :param cost: (n, m) training costs.
    :param n_tiers: number of tiers, at least 2.
    :return: (n_tiers,) columns, from the cheapest to the best.
    """
    mean_cost, mean_score = _cost_means(cost), _means(score, -np.inf)
    by_price = np.lexsort((-mean_score, mean_cost))
    frontier: list[int] = []
    for model in by_price.tolist():
        if not frontier or mean_score[model] > mean_score[frontier[-1]]:
            frontier.append(model)
    places = np.rint(np.linspace(0, len(frontier) - 1, n_tiers)).astype(np.intp)
    return np.array(frontier, dtype=np.intp)[places]


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


def _means(values: FloatArray, unknown: float) -> FloatArray:
    """Column means (m,) over known rows; ``unknown`` where a column has none."""
    count = (~np.isnan(values)).sum(axis=0)
    return np.where(count > 0, np.nansum(values, axis=0) / np.maximum(count, 1), unknown)


def _success_means(score: FloatArray) -> FloatArray:
    success = successes(score)
    tried = ~np.isnan(success)
    return _means(success, float(success[tried].mean()) if tried.any() else 0.5)


def _cost_means(cost: FloatArray) -> FloatArray:
    means = _means(cost, np.nan)
    known = ~np.isnan(means)
    return np.where(known, means, means[known].max() if known.any() else 0.0)


def _check_fitted(estimator: object, learned: str) -> None:
    if not hasattr(estimator, learned):
        raise NotFittedError(f"{type(estimator).__name__} has not been fitted; call fit() with training outcomes first")


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


def _lengths(requests: Requests) -> FloatArray:
    return np.array([len(text) for text in requests.texts], dtype=np.float64)


def _rising_line(length: FloatArray, cost: FloatArray, mean: float) -> tuple[float, float]:
    """Least squares with a slope of at least zero: longer prompts are never cheaper to send."""
    known = ~np.isnan(cost)
    x, y = length[known], cost[known]
    spread = float(np.sum((x - x.mean()) ** 2)) if x.size > 1 else 0.0
    if spread == 0.0:
        return 0.0, mean
    slope = max(0.0, float(np.sum((x - x.mean()) * (y - y.mean()))) / spread)
    return slope, float(y.mean() - slope * x.mean())


def _both_ends(text: str) -> str:
    return text if len(text) <= 2 * _SCANNED else text[:_SCANNED] + "\n" + text[-_SCANNED:]


def _distinct(pattern: re.Pattern[str], text: str) -> int:
    return len({match.lower() for match in pattern.findall(text)})
