"""Calibrated P(success | request, model) and expected cost, in the numpy form that serving uses.

``training.estimator`` fits; ``SuccessClassifier.from_estimators`` folds what was fitted into a handful of arrays:
everything after the kernel is linear, so difficulty, corrections and cost of all models are one matrix product. The
results equal the scikit-learn estimators' to 1e-9 (``tests/test_classifier.py``).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from router_ml.errors import ArtifactError

Array = NDArray[np.float64]
Floats = NDArray[np.floating[Any]]  # float32 or float64

CLIP = 4.0  # standardised features beyond this many deviations say "far", not how far
FEATURE_FLOOR = 0.02  # least scale of a feature; see RequestMap.fit
RATE_FLOOR = 0.01  # no rate read off text leaves [RATE_FLOOR, 1 - RATE_FLOOR]
P_FLOOR = 1e-4  # no finite table proves a probability of 0 or 1
NOVELTY_QUANTILES = 101
UNLIKE_RATE = 0.05  # share of requests like the training data that may be flagged as unlike it
MAX_LOG_COST = 100.0  # no price is beyond; exp overflows past 709
SAME = 1e-9  # a landmark met again has a kernel value of 1 only up to rounding


def sigmoid(z: Array) -> Array:
    """Logistic function."""
    # exp overflows past 709; both ends are 0 or 1 to double precision long before
    return 1.0 / (1.0 + np.exp(-np.clip(z, -500.0, 500.0)))


def logit(p: Array) -> Array:
    """Log odds of rates, which are kept off 0 and 1."""
    p = np.clip(p, RATE_FLOOR, 1.0 - RATE_FLOOR)
    return np.log(p / (1.0 - p))


# arrays whose last axis is the models
_PER_MODEL = (
    "success_weights", "success_offset", "base_rate", "base_log_odds", "cost_weights", "cost_offset", "cost_low",
    "cost_high", "cost_smearing", "n_outcomes",
)  # fmt: skip
_OPTIONAL = {"center", "residual_weight"}


@dataclass(frozen=True, eq=False)
class SuccessClassifier:
    """Plain arrays: L landmarks, F features, C components, E embedding width, T tasks, M models."""

    feature_mean: Array  # (F,)
    feature_scale: Array  # (F,)
    projection: Array  # (E, C) principal components, scaled
    projection_offset: Array  # (C,)
    landmarks: Array  # (L, F + C)
    gamma: Array  # () RBF width
    success_weights: Array  # (L, M) kernel -> log odds
    success_offset: Array  # (T + 1, M) log odds of each task; the last row: no task
    task_weights: Array  # (L, 2 M) kernel -> rate shift, task-by-model deviation; empty if no task was seen
    task_offset: Array  # (2 M,)
    task_slopes: Array  # (2, M) slopes of both in log odds
    base_rate: Array  # (M,)
    base_log_odds: Array  # (M,) success_offset without any task term
    cost_weights: Array  # (L, M) kernel -> log cost
    cost_offset: Array  # (M,)
    cost_low: Array  # (M,)
    cost_high: Array  # (M,)
    cost_smearing: Array  # (M,)
    n_outcomes: NDArray[np.int64]  # (M,)
    nearness: Array  # (NOVELTY_QUANTILES,) ascending quantiles over requests that were held out; see _residual
    tasks: tuple[str, ...] = ()
    center: Array | None = None  # (E,) mean embedding of the training requests
    residual_weight: Array | None = None  # () of the squared distance from the plane of the components

    def __post_init__(self) -> None:
        object.__setattr__(self, "_codes", {name: i for i, name in enumerate(self.tasks)})
        gamma = float(self.gamma)
        object.__setattr__(self, "_gamma", gamma)
        object.__setattr__(self, "_squares", gamma * (self.landmarks**2).sum(axis=1))
        object.__setattr__(self, "_scaled", np.ascontiguousarray(self.landmarks * (2.0 * gamma)))
        object.__setattr__(self, "_weights", np.ascontiguousarray(np.hstack([self.success_weights, self.cost_weights])))
        rows = [np.concatenate([row, self.cost_offset]) for row in self.success_offset]
        object.__setattr__(self, "_offsets", np.array(rows))
        ranges = zip(self.cost_low.tolist(), self.cost_high.tolist(), self.cost_smearing.tolist(), strict=True)
        object.__setattr__(self, "_cost_range", list(ranges))
        object.__setattr__(self, "_nearness", self.nearness.tolist())
        if self.center is not None:
            # the components are orthonormal and share one scale, so any column's length undoes it
            unscale = 1.0 / max(float((self.projection**2).sum(axis=0).max()), 1e-300)
            plane = (self.center.astype(np.float32), float(self.center @ self.center), unscale)
            object.__setattr__(self, "_plane", (*plane, float(self.residual_weight)))  # type: ignore[arg-type]

    @classmethod
    def from_estimators(
        cls, request_map: Any, success: Any, cost: Any, *, nearness: Array, residual_weight: float
    ) -> SuccessClassifier:
        """Fold fitted estimators of ``training.estimator`` into arrays.

        :param nearness: (NOVELTY_QUANTILES,) as ``training.novelty`` finds it, with the weight of the residual.
        """
        normalization = request_map.kernel_.normalization_.T  # (L, d)
        scale = request_map.embedding_scale_
        components = request_map.pca_.components_.T * scale
        slopes = success.coef_.T  # (6, M), in the order of training.estimator.TERMS
        weights = (
            np.outer(success.difficulty_, slopes[4] / success.difficulty_scale_)
            + success.correction_ * (slopes[5] / success.correction_scale_)
        )  # fmt: skip
        base = logit(success.base_)
        shift, rate = logit(success.shift_), logit(success.rate_)
        base_log_odds = slopes[0] + slopes[1] * base - success.center_ @ weights
        kernel = request_map.kernel_
        return cls(
            feature_mean=request_map.mean_,
            feature_scale=request_map.scale_,
            projection=components,
            projection_offset=-request_map.pca_.mean_ @ components,
            landmarks=kernel.components_,
            gamma=np.array(float(kernel.gamma)),
            success_weights=normalization @ weights,
            success_offset=base_log_odds + slopes[2] * (shift - base) + slopes[3] * (rate - shift),
            task_weights=normalization @ success.task_from_text_ if success.tasks_ else np.zeros((0, 0)),
            task_offset=-success.center_ @ success.task_from_text_,
            task_slopes=slopes[2:4],
            base_rate=success.base_,
            base_log_odds=base_log_odds,
            cost_weights=normalization @ cost.coef_,
            cost_offset=cost.base_ - cost.center_ @ cost.coef_,
            cost_low=cost.low_,
            cost_high=cost.high_,
            cost_smearing=cost.smearing_,
            n_outcomes=np.asarray(success.n_outcomes_, dtype=np.int64),
            nearness=nearness,
            tasks=tuple(success.tasks_),
            center=request_map.pca_.mean_,
            residual_weight=np.array(residual_weight),
        )

    @property
    def n_models(self) -> int:
        return len(self.base_rate)

    def predict(
        self, features: Array, embedding: NDArray[np.float32], tasks: Sequence[str | None]
    ) -> tuple[Array, Array, Array]:
        """Predict for a batch.

        :param features: (n, F). :param embedding: (n, E). :param tasks: n names; None or unknown: read off the text.
        :return: P(success) (n, M) in (0, 1); expected cost (n, M) in the unit trained on; novelty (n,) in [0, 1].
        """
        inputs = self._inputs(features, embedding)
        kernel = self._kernel(inputs)
        codes = [self._codes.get(task, -1) for task in tasks]  # type: ignore[attr-defined]
        m = self.n_models
        out = kernel @ self._weights  # type: ignore[attr-defined]
        log_odds = self.success_offset[codes] + out[:, :m]
        if self.tasks and -1 in codes:
            unknown = np.array(codes) < 0
            log_odds[unknown] += self._task_log_odds(kernel[unknown])
        log_cost = np.clip(self.cost_offset + out[:, m:], self.cost_low, self.cost_high)
        p = np.clip(sigmoid(log_odds), P_FLOOR, 1.0 - P_FLOOR)
        near = kernel.max(axis=1)
        if self.center is not None:
            near *= np.exp([-self._residual(e, u) for e, u in zip(embedding, inputs, strict=True)])
        # rank among requests held out: a quantile table keeps it independent of their number
        rank = np.searchsorted(self.nearness, near + SAME, side="left")
        return p, np.exp(log_cost) * self.cost_smearing, 1.0 - rank / NOVELTY_QUANTILES

    def predict_one(
        self, features: Array, embedding: NDArray[np.float32], task: str | None
    ) -> tuple[list[float], list[float], float]:
        """``predict`` for one request, without the overhead of arrays of one row.

        :param features: (F,). :param embedding: (E,).
        :return: P(success) per model, expected cost per model, novelty.
        """
        n_features = len(self.feature_mean)
        inputs = np.empty(n_features + len(self.projection_offset))
        standard = inputs[:n_features]
        np.subtract(features, self.feature_mean, out=standard)
        standard /= self.feature_scale
        # two ufuncs: np.clip costs several times as much on an array this small
        np.minimum(standard, CLIP, out=standard)
        np.maximum(standard, -CLIP, out=standard)
        # ndarray.dot: the operator @ takes longer to find the same BLAS call
        np.add(embedding.dot(self.projection), self.projection_offset, out=inputs[n_features:])
        kernel = self._scaled.dot(inputs)  # type: ignore[attr-defined]
        kernel -= self._squares  # type: ignore[attr-defined]
        kernel -= self._gamma * float(inputs.dot(inputs))  # type: ignore[attr-defined]
        np.minimum(kernel, 0.0, out=kernel)
        np.exp(kernel, out=kernel)
        code = self._codes.get(task, -1) if task is not None else -1  # type: ignore[attr-defined]
        out = kernel.dot(self._weights)  # type: ignore[attr-defined]
        out += self._offsets[code]  # type: ignore[attr-defined]
        m = len(self.base_rate)
        if code < 0 and self.tasks:
            out[:m] += self._task_log_odds(kernel[None])[0]
        values = out.tolist()
        exp, ceiling = math.exp, 1.0 - P_FLOOR
        odds = [1.0 / (1.0 + exp(-z)) if z > -500.0 else 0.0 for z in values[:m]]
        p = [P_FLOOR if q < P_FLOOR else ceiling if q > ceiling else q for q in odds]
        cost = [
            exp(low if z < low else high if z > high else z) * smearing
            for z, (low, high, smearing) in zip(values[m:], self._cost_range, strict=True)  # type: ignore[attr-defined]
        ]
        near = float(np.maximum.reduce(kernel))
        if self.center is not None:
            near *= exp(-self._residual(embedding, inputs))
        rank = bisect_left(self._nearness, near + SAME)  # type: ignore[attr-defined]
        return p, cost, 1.0 - rank / NOVELTY_QUANTILES

    def _residual(self, embedding: NDArray[np.float32], inputs: Array) -> float:
        """Weighted squared distance of an embedding (E,) from the plane of the components.

        The kernel measures distance within that plane and misses what the training data never varied in. Nearness is
        the largest kernel value times exp(-residual).

        :param inputs: (F + C,) standardised features and components of the same request.
        """
        center, center_square, unscale, weight = self._plane  # type: ignore[attr-defined]
        components = inputs[len(self.feature_mean) :]
        square = float(embedding.dot(embedding)) - 2.0 * float(embedding.dot(center)) + center_square
        residual: float = weight * max(0.0, square - float(components.dot(components)) * unscale)
        return residual

    def _task_log_odds(self, kernel: Array) -> Array:
        """What the task would add, with its rates read off the text."""
        m = self.n_models
        read = kernel @ self.task_weights + self.task_offset
        shift = self.base_rate + read[:, :m]
        base, shifted, rate = logit(self.base_rate), logit(shift), logit(shift + read[:, m:])
        log_odds: Array = self.task_slopes[0] * (shifted - base) + self.task_slopes[1] * (rate - shifted)
        return log_odds

    def _inputs(self, features: Floats, embedding: NDArray[np.float32]) -> Array:
        n_features = len(self.feature_mean)
        out: Array = np.empty((len(features), n_features + len(self.projection_offset)))
        standard = out[:, :n_features]
        np.subtract(features, self.feature_mean, out=standard)
        standard /= self.feature_scale
        np.clip(standard, -CLIP, CLIP, out=standard)
        out[:, n_features:] = embedding @ self.projection + self.projection_offset
        return out

    def _kernel(self, inputs: Array) -> Array:
        """exp(-gamma |u - landmark|^2), (n, L)."""
        exponent = inputs @ self._scaled.T  # type: ignore[attr-defined]
        exponent -= self._squares  # type: ignore[attr-defined]
        exponent -= self._gamma * np.einsum("ij,ij->i", inputs, inputs)[:, None]  # type: ignore[attr-defined]
        np.minimum(exponent, 0.0, out=exponent)
        kernel: Array = np.exp(exponent, out=exponent)
        return kernel

    def select(self, models: Sequence[int]) -> SuccessClassifier:
        """The classifier of some of the models, in the order given.

        :param models: distinct indices of models.
        """
        kept = list(models)
        both = kept + [self.n_models + i for i in kept]  # task arrays hold the models twice
        changed: dict[str, Any] = {name: getattr(self, name)[..., kept] for name in _PER_MODEL}
        changed |= {"task_offset": self.task_offset[both], "task_slopes": self.task_slopes[:, kept]}
        if self.tasks:
            changed["task_weights"] = self.task_weights[:, both]
        return replace(self, **changed)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays by name, without pickled objects."""
        held = ((f.name, getattr(self, f.name)) for f in fields(self) if f.name != "tasks")
        out = {name: np.asarray(array) for name, array in held if array is not None}
        # an empty tuple would become a float array
        out["tasks"] = np.array(self.tasks, dtype=np.str_)
        return out

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> SuccessClassifier:
        """:raises ArtifactError: if an array is missing, not finite, or of a shape the others do not allow."""
        # an artifact from before they existed has none of the optional ones; half of them is a broken file
        wanted = {f.name for f in fields(cls)} - (set() if _OPTIONAL & set(arrays) else _OPTIONAL)
        missing = sorted(wanted - set(arrays))
        if missing:
            raise ArtifactError(f"the classifier lacks the arrays {missing}")
        values: dict[str, Any] = {name: arrays[name] for name in wanted}
        values["tasks"] = tuple(str(t) for t in np.atleast_1d(values["tasks"]))
        cls._check(values)
        return cls(**values)

    @staticmethod
    def _check(values: dict[str, Any]) -> None:
        # at least one landmark: a request must lie near or far from something
        m, t, n_landmarks = values["base_rate"].size, len(values["tasks"]), max(1, *values["landmarks"].shape[:1], 0)
        n_features, n_components = values["feature_mean"].size, values["projection_offset"].size
        per_cost = ("cost_offset", "cost_low", "cost_high", "cost_smearing")
        per_model = ("base_rate", "base_log_odds", "n_outcomes", *per_cost)
        expected = {
            "feature_mean": (n_features,), "feature_scale": (n_features,), "gamma": (),
            "projection": (*values["projection"].shape[:1], n_components), "projection_offset": (n_components,),
            "landmarks": (n_landmarks, n_features + n_components), "nearness": (NOVELTY_QUANTILES,),
            "success_weights": (n_landmarks, m), "success_offset": (t + 1, m), "cost_weights": (n_landmarks, m),
            "task_weights": (n_landmarks, 2 * m) if t else (0, 0), "task_offset": (2 * m,), "task_slopes": (2, m),
            **dict.fromkeys(per_model, (m,)),
        }  # fmt: skip
        if "center" in values:
            expected |= {"center": values["projection"].shape[:1], "residual_weight": ()}
        for name, shape in expected.items():
            array = values[name]
            if array.shape != shape or array.dtype.kind not in "fi":
                raise ArtifactError(
                    f"classifier array {name} has shape {array.shape} of {array.dtype}; expected {shape} of numbers"
                )
            if not np.isfinite(array).all():
                raise ArtifactError(f"classifier array {name} holds NaN or infinity")
        if (values["feature_scale"] <= 0.0).any() or (values["cost_smearing"] < 0.0).any():
            raise ArtifactError("classifier array feature_scale must be positive and cost_smearing not negative")
        if max(abs(values["cost_low"]).max(), abs(values["cost_high"]).max()) > MAX_LOG_COST:
            raise ArtifactError(f"classifier arrays cost_low and cost_high leave [-{MAX_LOG_COST}, {MAX_LOG_COST}]")
