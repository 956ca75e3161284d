"""The scikit-learn estimators that training fits, and how they turn into the arrays that serving reads.

Three estimators, each fitted on request representations ``phi``:

``RequestMap``         hand-built features and embedding -> ``phi``, a Nyström approximation of an RBF kernel
``SuccessEstimator``   ``phi`` and a (sparse) outcome matrix -> calibrated P(success) per model
``CostEstimator``      ``phi`` and a (sparse) cost matrix -> expected cost per model

The success estimator is a regularised multi-task model (Evgeniou & Pontil, KDD 2004, "Regularized multi-task
learning"): what makes a request hard is learned once from all models, what makes it hard *for one model* is a
correction that has to prove itself on rows it was not fitted on. Every term is multiplied by a slope estimated on
out-of-fold predictions and shrunk by its own standard error, so a term that carries no signal ends at the base rate.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, RegressorMixin, TransformerMixin
from sklearn.decomposition import PCA
from sklearn.kernel_approximation import Nystroem
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.utils.validation import check_is_fitted

from router_ml.classifier import CLIP, FEATURE_FLOOR, logit, sigmoid
from training.outcome_table import group_folds

Array = NDArray[np.float64]
Floats = NDArray[np.floating[Any]]  # representations may be float32

RIDGE_PENALTIES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
N_FOLDS = 5
CHUNK = 50_000  # rows turned to float64 at once
# Prior precision of one model's own coefficients around those shared by all models, in units of observations:
# a model needs hundreds of outcomes before its slopes leave the shared ones.
MODEL_PRECISION = np.array([30.0, 300.0, 300.0, 300.0, 300.0, 300.0])
PRIOR_REQUESTS = 5.0  # weight of the shared slopes' prior (base rate 1, difficulty 0), in requests
TERMS = ("intercept", "base_rate", "task", "task_by_model", "difficulty", "model_correction")


class RequestMap(TransformerMixin, BaseEstimator):
    """Hand-built features and embedding of a request -> kernel representation.

    Far from every landmark the kernel vanishes, so a request unlike the training data gets the base rate.
    Nyström approximation: Williams & Seeger, NIPS 2000.

    :param n_components: principal components kept of the embedding.
    :param n_landmarks: training requests that span the representation.
    :param gamma: RBF width times the number of inputs.
    :param embedding_weight: scale of the leading principal component against one standardised feature.
    """

    def __init__(
        self, n_components: int = 32, n_landmarks: int = 300, gamma: float = 0.5, embedding_weight: float = 2.0,
        random_state: int = 0,
    ) -> None:  # fmt: skip
        self.n_components = n_components
        self.n_landmarks = n_landmarks
        self.gamma = gamma
        self.embedding_weight = embedding_weight
        self.random_state = random_state

    def fit(self, X: Floats, y: None = None, *, n_features: int) -> RequestMap:
        """Learn scales, components and landmarks.

        :param X: (n_requests, n_features + embedding_dim): hand-built features, then the embedding.
        :param n_features: how many leading columns are hand-built features.
        """
        self.n_features_ = n_features
        features, embedding = X[:, :n_features].astype(float), X[:, n_features:].astype(float)
        self.mean_ = features.mean(axis=0)
        # A feature that hardly varies here may jump in service: its scale is floored so that it cannot dominate.
        self.scale_ = np.maximum(features.std(axis=0), FEATURE_FLOOR)
        n_components = min(self.n_components, *embedding.shape)
        self.pca_ = PCA(n_components, random_state=self.random_state, svd_solver="randomized").fit(embedding)
        self.embedding_scale_ = self.embedding_weight / max(float(np.sqrt(self.pca_.explained_variance_[0])), 1e-6)
        inputs = self._inputs(X)
        # half of the requests at most: with as many landmarks as requests the map memorises them
        n_landmarks = max(1, min(self.n_landmarks, len(X) // 2))
        self.kernel_ = Nystroem(
            kernel="rbf", gamma=self.gamma / inputs.shape[1], n_components=n_landmarks, random_state=self.random_state
        ).fit(inputs)
        return self

    def transform(self, X: Floats) -> Array:
        """:return: (n_requests, n_landmarks) float64."""
        check_is_fitted(self, "kernel_")
        phi: Array = self.kernel_.transform(self._inputs(X))
        return phi

    def distances(self, X: Floats) -> tuple[Array, Array]:
        """How far requests lie from the data that was fitted on.

        :return: (n_requests,) each: the kernel's exponent for the nearest landmark, and the squared distance of the
            embedding from the plane of the components, which the kernel does not see.
        """
        check_is_fitted(self, "kernel_")
        inputs, landmarks = self._inputs(X), self.kernel_.components_
        exponent: Array = self.kernel_.gamma * euclidean_distances(inputs, landmarks, squared=True).min(axis=1)
        centred = X[:, self.n_features_ :] - self.pca_.mean_
        inside = (inputs[:, self.n_features_ :] / self.embedding_scale_) ** 2
        residual: Array = np.maximum((centred**2).sum(axis=1) - inside.sum(axis=1), 0.0)
        return exponent, residual

    def _inputs(self, X: Floats) -> Array:
        features, embedding = X[:, : self.n_features_].astype(float), X[:, self.n_features_ :].astype(float)
        standard = np.clip((features - self.mean_) / self.scale_, -CLIP, CLIP)
        return np.hstack([standard, self.pca_.transform(embedding) * self.embedding_scale_])


class SuccessEstimator(BaseEstimator):
    """Calibrated P(success) per model from request representations and a full or sparse outcome matrix.

    ``logit P = c0 + c1 logit(base rate) + c2 task + c3 task-by-model + c4 difficulty(phi) + c5 correction_m(phi)``.
    Difficulty is a ridge regression on the mean residual of a request over the models tried on it; the correction is
    a ridge regression on what is left per model. The coefficients ``c`` are fitted by logistic regression on
    out-of-fold values of the terms (stacking: Wolpert 1992; calibration on unseen rows: Platt 1999), first shared by
    all models, then per model with a Gaussian prior around the shared ones.
    """

    def __init__(self, n_folds: int = N_FOLDS, random_state: int = 0) -> None:
        self.n_folds = n_folds
        self.random_state = random_state

    def fit(
        self, X: Floats, y: Array, *, task: Sequence[str | None] | None = None, groups: Sequence[str] | None = None
    ) -> SuccessEstimator:
        """Fit.

        :param X: (n_requests, n_representation).
        :param y: (n_requests, n_models) in {0, 1} or [0, 1], NaN where a model was not tried.
        :param task: task name per request, None where unknown.
        :param groups: rows of one group never fall on both sides of an inner split.
        """
        n = len(y)
        folds = group_folds(groups if groups is not None else np.arange(n).astype(str), self.n_folds, self.random_state)
        self.n_outcomes_ = (~np.isnan(y)).sum(axis=0)
        self.center_ = X.mean(axis=0, dtype=float)
        labels = list(task) if task is not None else [None] * n
        names = sorted({t for t in labels if t is not None})
        fits: list[tuple[float, tuple[str, ...], NDArray[np.int64], dict[str, Any]]] = []
        # A task label helps only where it says more than the text does (on MMLU-Pro it does not): the fit without
        # it is compared on the same unseen rows, and wins ties.
        for used in ([], names) if names else ([],):
            position: dict[str | None, int] = {name: i for i, name in enumerate(used)}
            codes = np.array([position.get(t, -1) for t in labels], dtype=np.int64)
            loss = self._fit_slopes(X, y, codes, len(used), folds)
            fits.append((loss, tuple(used), codes, self.__dict__.copy()))
        _, self.tasks_, codes, learned = min(fits, key=lambda entry: entry[0])
        self.__dict__.update({**learned, "tasks_": self.tasks_})
        self._fit_terms(X, y, codes)
        return self

    def _fit_slopes(self, X: Floats, y: Array, codes: NDArray[np.int64], n_tasks: int, folds: NDArray[Any]) -> float:
        """Penalties and slopes from out-of-fold terms. :return: their log loss on those rows."""
        oof = _out_of_fold(X, self.center_, y, codes, n_tasks, folds)
        self.difficulty_penalty_ = _best_penalty(oof.mean_residual, oof.difficulty)
        self.correction_penalty_ = _best_penalty(oof.residual, oof.correction)
        terms = _Terms(
            oof.rates, oof.difficulty[RIDGE_PENALTIES.index(self.difficulty_penalty_)],
            oof.correction[RIDGE_PENALTIES.index(self.correction_penalty_)],
        )  # fmt: skip
        known = ~np.isnan(y)
        self.difficulty_scale_ = float(terms.difficulty.std()) + 1e-9
        self.correction_scale_ = float(terms.correction[known].std()) + 1e-9
        design = self._design(terms)
        self.shared_, self.slope_errors_ = _shared_slopes(design, y)
        self.coef_ = np.vstack([_model_slopes(design[:, j], y[:, j], self.shared_) for j in range(y.shape[1])])
        self.out_of_fold_ = np.clip(sigmoid((design * self.shared_).sum(axis=2)), 1e-6, 1 - 1e-6)
        p = self.out_of_fold_[known]
        return float(-(y[known] * np.log(p) + (1 - y[known]) * np.log(1 - p)).mean())

    def _fit_terms(self, X: Floats, y: Array, codes: NDArray[np.int64]) -> None:
        rates = TaskRates.fit(y, codes, len(self.tasks_))
        self.base_, self.shift_, self.rate_ = rates.base, rates.shifted, rates.rate
        residual = y - rates.rate[codes]
        mean_residual = _row_mean(residual)
        seen = ~np.isnan(mean_residual)
        center = self.center_
        self.difficulty_ = ridge_path(X[seen], center, mean_residual[seen, None], (self.difficulty_penalty_,))[0][:, 0]
        own = residual - mean_residual[:, None]
        self.correction_ = _correction_weights(X, center, own, (self.correction_penalty_,))[0]
        # Where a request comes without its task, its row of the rate table is read off its text instead.
        known = codes >= 0
        target = np.hstack([rates.shifted[codes] - rates.base, rates.rate[codes] - rates.shifted[codes]])[known]
        self.task_from_text_ = (
            ridge_path(X[known], center, target, (1.0,))[0] if known.any() else np.zeros((X.shape[1], 2 * y.shape[1]))
        )

    def _design(self, terms: _Terms) -> Array:
        """(n_requests, n_models, n_terms)."""
        base, shift, rate = (logit(r) for r in terms.rates)
        one = np.ones_like(rate)
        return np.stack(
            [
                one, np.broadcast_to(base, rate.shape), shift - base, rate - shift,
                np.broadcast_to((terms.difficulty / self.difficulty_scale_)[:, None], rate.shape),
                terms.correction / self.correction_scale_,
            ],
            axis=2,
        )  # fmt: skip

    def predict_proba(self, X: Floats, task: Sequence[str | None] | None = None) -> Array:
        """:return: (n_requests, n_models) P(success) of each model; a task that training never saw counts as None."""
        check_is_fitted(self, "coef_")
        n, m = len(X), len(self.coef_)
        position: dict[str | None, int] = {name: i for i, name in enumerate(self.tasks_)}
        codes = np.array([position.get(t, -1) for t in task] if task is not None else [-1] * n, dtype=np.int64)
        P = X - self.center_
        from_text = P @ self.task_from_text_
        known = (codes >= 0)[:, None]
        shift = np.where(known, self.shift_[codes], self.base_ + from_text[:, :m])
        rate = np.where(known, self.rate_[codes], self.base_ + from_text[:, :m] + from_text[:, m:])
        design = self._design(_Terms((self.base_, shift, rate), P @ self.difficulty_, P @ self.correction_))
        return sigmoid((design * self.coef_).sum(axis=2))


class CostEstimator(RegressorMixin, BaseEstimator):
    """Expected cost per request and model (or tokens, or seconds: anything positive).

    Ridge regression of log cost, shared by the models plus a correction per model; the mean is restored by Duan's
    smearing factor (Duan 1983). Predictions stay within the range seen for the model.
    """

    def __init__(self, n_folds: int = N_FOLDS, random_state: int = 0) -> None:
        self.n_folds = n_folds
        self.random_state = random_state

    def fit(self, X: Floats, y: Array, *, groups: Sequence[str] | None = None) -> CostEstimator:
        """Fit.

        :param X: (n_requests, n_representation). :param y: (n_requests, n_models) >= 0, NaN where unknown.
        """
        n = len(y)
        with np.errstate(divide="ignore"):
            floor = np.nanmin(np.where(y > 0, y, np.nan)) if (y > 0).any() else 1.0
        logs = np.log(np.maximum(y, floor))
        known = ~np.isnan(logs)
        count = known.sum(axis=0)
        overall = float(logs[known].mean()) if known.any() else 0.0
        self.base_ = np.where(count > 0, np.nansum(logs, axis=0) / np.maximum(count, 1), overall)
        residual = logs - self.base_
        mean_residual = _row_mean(residual)
        self.center_ = X.mean(axis=0, dtype=float)
        folds = group_folds(groups if groups is not None else np.arange(n).astype(str), self.n_folds, self.random_state)
        shared, own = _ridge_out_of_fold(X, self.center_, mean_residual, residual - mean_residual[:, None], folds)
        penalty = _best_penalty(mean_residual, shared)
        own_penalty = _best_penalty(residual - mean_residual[:, None], own)
        seen = ~np.isnan(mean_residual)
        difficulty = ridge_path(X[seen], self.center_, mean_residual[seen, None], (penalty,))[0]
        correction = _correction_weights(X, self.center_, residual - mean_residual[:, None], (own_penalty,))[0]
        slope = _slope(residual - mean_residual[:, None], own[RIDGE_PENALTIES.index(own_penalty)])
        self.coef_ = difficulty + slope * correction
        self.low_ = np.where(count > 0, np.nanmin(np.where(known, logs, np.inf), axis=0), overall)
        self.high_ = np.where(count > 0, np.nanmax(np.where(known, logs, -np.inf), axis=0), overall)
        # out of fold: predictions vary more on rows that were fitted on, so their mean would ask for too small a factor
        unseen = shared[RIDGE_PENALTIES.index(penalty)][:, None] + slope * own[RIDGE_PENALTIES.index(own_penalty)]
        fitted = np.exp(np.clip(self.base_ + unseen, self.low_, self.high_))
        true_sum = np.nansum(np.where(known, y, 0.0), axis=0)
        self.smearing_ = np.where(count > 0, true_sum / np.maximum((fitted * known).sum(axis=0), 1e-300), 0.0)
        self.n_outcomes_ = count
        return self

    def predict(self, X: Floats) -> Array:
        """:return: (n_requests, n_models) expected cost in the unit of ``y``."""
        check_is_fitted(self, "coef_")
        log_cost = np.clip(self.base_ + (X - self.center_) @ self.coef_, self.low_, self.high_)
        cost: Array = np.exp(log_cost) * self.smearing_
        return cost


class TaskRates(NamedTuple):
    """Success rates by task and model, shrunk by empirical Bayes; the last row is for "no task"."""

    base: Array  # (n_models,)
    shifted: Array  # (n_tasks + 1, n_models): base plus the task's own level
    rate: Array  # (n_tasks + 1, n_models): plus what the task means for this model

    @classmethod
    def fit(cls, y: Array, codes: NDArray[np.int64], n_tasks: int) -> TaskRates:
        """Method of moments for both variances (Morris, JASA 1983): what noise explains is taken away.

        :param y: (n_requests, n_models), NaN where unknown. :param codes: (n_requests,) task index, -1 unknown.
        """
        known = ~np.isnan(y)
        total = np.where(known, y, 0.0)
        count = known.sum(axis=0)
        pooled = (total.sum() + 1.0) / (known.sum() + 2.0)
        base = (total.sum(axis=0) + pooled * 5.0) / (count + 5.0)
        if n_tasks == 0:
            row = np.clip(base[None], 0.01, 0.99)
            return cls(np.clip(base, 0.01, 0.99), row, row)
        residual = np.where(known, y - base, 0.0)
        task = codes >= 0
        level, level_weight = cls._task_level(residual, known, codes, task, n_tasks)
        shift = level * level_weight
        counts = np.zeros((n_tasks, y.shape[1]))
        sums = np.zeros((n_tasks, y.shape[1]))
        np.add.at(counts, codes[task], known[task])
        np.add.at(sums, codes[task], residual[task])
        own = np.where(counts > 0, sums / np.maximum(counts, 1) - shift[:, None], 0.0)
        variance = base * (1 - base)
        signal = ((counts * own**2).sum() - ((counts > 0) * variance).sum()) / max(counts.sum(), 1.0)
        weight = signal / (signal + variance / np.maximum(counts, 1e-9)) if signal > 0 else np.zeros_like(counts)
        shifted = np.vstack([base + shift[:, None], base])
        rate = np.vstack([base + shift[:, None] + weight * own, base])
        return cls(*(np.clip(r, 0.01, 0.99) for r in (base, shifted, rate)))

    @staticmethod
    def _task_level(
        residual: Array, known: NDArray[np.bool_], codes: NDArray[np.int64], task: NDArray[np.bool_], n_tasks: int
    ) -> tuple[Array, Array]:
        """Mean residual of each task over requests and models, and its weight."""
        tried = known.sum(axis=1)
        use = task & (tried > 0)
        mean = residual[use].sum(axis=1) / tried[use]
        size = np.bincount(codes[use], minlength=n_tasks).astype(float)
        level = np.bincount(codes[use], mean, minlength=n_tasks) / np.maximum(size, 1)
        noise = float(((mean - level[codes[use]]) ** 2).sum()) / max(1.0, len(mean) - (size > 0).sum())
        present = size > 0
        signal = ((size * level**2).sum() - present.sum() * noise) / max(size.sum(), 1.0)
        if signal <= 0:
            return level, np.zeros(n_tasks)
        return level, np.where(present, signal / (signal + noise / np.maximum(size, 1e-9)), 0.0)


class _Terms(NamedTuple):
    rates: tuple[Array, Array, Array]  # base (n_models,), shifted and rate (n_requests, n_models)
    difficulty: Array  # (n_requests,)
    correction: Array  # (n_requests, n_models)


class _OutOfFold(NamedTuple):
    rates: tuple[Array, Array, Array]
    mean_residual: Array  # (n_requests,)
    residual: Array  # (n_requests, n_models), less the mean residual
    difficulty: Array  # (n_penalties, n_requests)
    correction: Array  # (n_penalties, n_requests, n_models)


def _out_of_fold(
    X: Floats, center: Array, y: Array, codes: NDArray[np.int64], n_tasks: int, folds: NDArray[Any]
) -> _OutOfFold:
    """Each term for each request, from the other folds."""
    n, m = y.shape
    base, shifted, rate = (np.zeros((n, m)) for _ in range(3))
    difficulty = np.zeros((len(RIDGE_PENALTIES), n))
    correction = np.zeros((len(RIDGE_PENALTIES), n, m))
    for train, test in _splits(folds):
        rates = TaskRates.fit(y[train], codes[train], n_tasks)
        base[test], shifted[test], rate[test] = rates.base, rates.shifted[codes[test]], rates.rate[codes[test]]
        residual = y[train] - rates.rate[codes[train]]
        mean = _row_mean(residual)
        first, second = _ridges(X, center, mean, residual - mean[:, None], train, test)
        difficulty[:, test], correction[:, test] = first, second
    residual = y - rate
    mean = _row_mean(residual)
    return _OutOfFold((base, shifted, rate), mean, residual - mean[:, None], difficulty, correction)


def _ridge_out_of_fold(X: Floats, center: Array, shared: Array, own: Array, folds: NDArray[Any]) -> tuple[Array, Array]:
    """Out-of-fold ridge predictions for every penalty: of the shared target and of the one per model."""
    first = np.zeros((len(RIDGE_PENALTIES), len(X)))
    second = np.zeros((len(RIDGE_PENALTIES), *own.shape))
    for train, test in _splits(folds):
        first[:, test], second[:, test] = _ridges(X, center, shared[train], own[train], train, test)
    return first, second


def _ridges(
    X: Floats, center: Array, shared: Array, own: Array, train: NDArray[np.int64], test: NDArray[np.int64]
) -> tuple[Array, Array]:
    """Fit both targets on ``train`` (whose rows they are) and predict ``test``, for every penalty."""
    seen = ~np.isnan(shared)
    P, Q = X[train], X[test] - center
    weights = ridge_path(P[seen], center, shared[seen, None], RIDGE_PENALTIES)
    each = _correction_weights(P, center, own, RIDGE_PENALTIES)
    return np.stack([Q @ w[:, 0] for w in weights]), np.stack([Q @ w for w in each])


def ridge_path(X: Floats, center: Array, Y: Array, penalties: Sequence[float]) -> list[Array]:
    """Ridge coefficients for several penalties from one eigendecomposition.

    :param X: (n, d) inputs, float32 or float64. :param center: (d,) taken off them, without a copy of ``X``.
    :param Y: (n, k) targets. :return: one (d, k) array per penalty.
    """
    d = X.shape[1]
    gram, cross, total = np.zeros((d, d)), np.zeros((d, Y.shape[1])), np.zeros(d)
    for start in range(0, len(X), CHUNK):
        part = X[start : start + CHUNK].astype(float)
        gram += part.T @ part
        cross += part.T @ Y[start : start + CHUNK]
        total += part.sum(axis=0)
    # (X - c)'(X - c) and (X - c)'Y, expanded
    gram += len(X) * np.outer(center, center) - np.outer(total, center) - np.outer(center, total)
    cross -= np.outer(center, Y.sum(axis=0))
    values, vectors = np.linalg.eigh(gram)
    projected = vectors.T @ cross
    return [vectors @ (projected / (np.maximum(values, 0.0) + penalty)[:, None]) for penalty in penalties]


def _correction_weights(X: Floats, center: Array, residual: Array, penalties: Sequence[float]) -> list[Array]:
    """Ridge per model on the rows where it was tried; models tried on every row share one decomposition."""
    known = ~np.isnan(residual)
    out = [np.zeros((X.shape[1], residual.shape[1])) for _ in penalties]
    full = known.all(axis=0)
    if full.any():
        for target, weights in zip(out, ridge_path(X, center, residual[:, full], penalties), strict=True):
            target[:, full] = weights
    for j in np.flatnonzero(~full & known.any(axis=0)):
        rows = known[:, j]
        for target, weights in zip(out, ridge_path(X[rows], center, residual[rows, j : j + 1], penalties), strict=True):
            target[:, j] = weights[:, 0]
    return out


def _best_penalty(target: Array, predictions: Array) -> float:
    """The penalty whose rescaled out-of-fold prediction has the least squared error; the largest wins ties."""
    known = ~np.isnan(target)
    errors = []
    for prediction in predictions:
        slope = _slope(target, prediction)
        errors.append(float(((target[known] - slope * prediction[known]) ** 2).sum()))
    return RIDGE_PENALTIES[len(errors) - 1 - int(np.argmin(errors[::-1]))]


def _slope(target: Array, prediction: Array) -> float:
    known = ~np.isnan(target)
    p = prediction[known]
    return float(np.clip((target[known] @ p) / (p @ p + 1e-12), 0.0, 1.0))


def _shared_slopes(design: Array, y: Array) -> tuple[Array, Array]:
    """Logistic regression over all models, each slope shrunk by its standard error.

    Standard errors are clustered by request (Liang & Zeger 1986): outcomes of one request hang together, and counting
    them as independent would make noise look like signal. Shrinkage is the positive-part James-Stein factor.
    """
    known = ~np.isnan(y)
    flat, target = design[known], y[known]
    start = np.array([0.0, 1.0, 1.0, 1.0, 0.0, 0.0])
    request = np.nonzero(known)[0]
    n_requests = len(np.unique(request))
    # the prior weighs as much as PRIOR_REQUESTS requests would: outcomes of one request are not independent news
    precision = np.full(len(start), PRIOR_REQUESTS * len(target) / max(n_requests, 1))
    w = _newton(flat, target, start, precision)
    p = sigmoid(flat @ w)
    bread = np.linalg.inv((flat * (p * (1 - p))[:, None]).T @ flat + np.diag(precision))
    scores = np.zeros((len(y), len(w)))
    np.add.at(scores, request, flat * (target - p)[:, None])
    # few clusters make the sandwich too narrow; the usual small-sample factor widens it (MacKinnon & White 1985)
    widen = n_requests / max(n_requests - len(w), 1)
    errors = np.sqrt(np.maximum(np.diag(bread @ (scores.T @ scores) @ bread) * widen, 1e-12))
    shrunk = w.copy()
    for k in range(2, len(w)):
        factor = max(0.0, 1.0 - (errors[k] / w[k]) ** 2) if w[k] > 0 else 0.0
        shrunk[k] = w[k] * factor
    # the intercept and the base-rate slope make up for what the shrunk terms no longer say
    fixed = flat[:, 2:] @ shrunk[2:]
    shrunk[:2] = _newton(flat[:, :2], target, shrunk[:2], np.full(2, 1.0), offset=fixed)
    return shrunk, errors


def _model_slopes(design: Array, y: Array, shared: Array) -> Array:
    known = ~np.isnan(y)
    if not known.any():
        return shared
    own = _newton(design[known], y[known], shared, MODEL_PRECISION)
    # a slope that shrinkage put to zero stays there for every model, and none may change sign
    return np.where((np.arange(len(own)) >= 2) & ((shared == 0) | (own < 0)), 0.0, own)


def _newton(F: Array, y: Array, prior: Array, precision: Array, offset: Array | float = 0.0) -> Array:
    """Logistic regression with a Gaussian prior, by Newton's method. ``y`` may be fractional."""
    w = prior.astype(float).copy()
    for _ in range(30):
        p = sigmoid(F @ w + offset)
        gradient = F.T @ (p - y) + precision * (w - prior)
        hessian = (F * (p * (1 - p))[:, None]).T @ F + np.diag(precision)
        step = np.linalg.solve(hessian, gradient)
        w -= step
        if np.abs(step).max() < 1e-8:
            break
    return w


def _splits(folds: NDArray[Any]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    for fold in np.unique(folds):
        yield np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)


def _row_mean(values: Array) -> Array:
    """Mean over known entries of each row; NaN where none is known."""
    known = ~np.isnan(values)
    count = known.sum(axis=1)
    return np.where(count > 0, np.where(known, values, 0.0).sum(axis=1) / np.maximum(count, 1), np.nan)
