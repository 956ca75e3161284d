"""From an outcome table to a router: represent, fit, fold into arrays, save."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import router_ml
from router_ml import artifact
from router_ml.classifier import UNLIKE_RATE, SuccessClassifier
from router_ml.embedding import Encoder, StaticEncoder
from router_ml.errors import EncoderMismatchError, TableError
from router_ml.features import FEATURE_NAMES, extract_many
from router_ml.pool import ModelPool, ModelSpec
from router_ml.request import ABILITIES, RouteRequest, read_trace
from router_ml.router import Router, bundled_router_path
from training.cost_parts import cost_parts, in_pool_order
from training.dependence import FittedDependence, fit_dependence
from training.estimator import CostEstimator, RequestMap, SuccessEstimator
from training.novelty import NoveltyScale, novelty_scale
from training.outcome_columns import Prompt
from training.outcome_stored import Stored
from training.outcome_table import OutcomeTable
from training.simpler import NAMES, ROUTER, SuccessRates

Array = NDArray[np.float64]

CHUNK = 4_096  # requests represented at once
MAP_SAMPLE = 20_000  # requests that scales, components and landmarks are learned from


class Representation(NamedTuple):
    """What the classifier sees of requests: hand-built features (n, F) and embedding (n, E), float32."""

    features: NDArray[np.float32]
    embedding: NDArray[np.float32]

    @property
    def joined(self) -> NDArray[np.float32]:
        """(n, F + E), as ``RequestMap`` takes it."""
        return np.hstack([self.features, self.embedding])

    def select(self, rows: NDArray[Any]) -> Representation:
        """The given requests."""
        return Representation(self.features[rows], self.embedding[rows])


@dataclass(frozen=True)
class Fitted:
    """The three fitted estimators, the training representation's sample that they were scaled on, and how the successes
    of the models hang together.

    :param groups: of the requests of the sample, which belong together; None: each is alone.
    """

    request_map: RequestMap
    success: SuccessEstimator
    cost: CostEstimator
    sample: NDArray[np.float32]
    dependence: FittedDependence | None = None
    groups: Sequence[str] | None = None

    def predict(self, representation: Representation, tasks: Sequence[str | None]) -> tuple[Array, Array]:
        """:return: P(success) and expected cost, each (n_requests, n_models)."""
        phi = self.request_map.transform(representation.joined)
        return self.success.predict_proba(phi, tasks), self.cost.predict(phi)

    @cached_property
    def novelty(self) -> NoveltyScale:
        """How near requests like those trained on lie to them."""
        return novelty_scale(self.request_map, self.sample, self.groups, self.request_map.random_state)

    def classifier(self) -> SuccessClassifier:
        """The arrays that serve."""
        return SuccessClassifier.from_estimators(
            self.request_map, self.success, self.cost,
            nearness=self.novelty.quantiles, residual_weight=self.novelty.residual_weight,
        )  # fmt: skip


def represent(prompts: Sequence[Prompt], encoder: Encoder) -> Representation:
    """Represent requests as serving will.

    :param prompts: strings or OpenAI-style messages.
    """
    features: list[NDArray[np.float32]] = [np.zeros((0, len(FEATURE_NAMES)), np.float32)]
    vectors: list[NDArray[np.float32]] = [np.zeros((0, encoder.dim), np.float32)]
    for start in range(0, len(prompts), CHUNK):
        requests = [RouteRequest(prompt) for prompt in prompts[start : start + CHUNK]]
        traces = [read_trace(request) for request in requests]
        features.append(extract_many(requests, traces).astype(np.float32))
        vectors.append(encoder.encode([trace.user_text for trace in traces]))
    return Representation(np.concatenate(features), np.concatenate(vectors))


def represent_table(table: OutcomeTable, encoder: Encoder, rows: NDArray[Any] | None = None) -> Representation:
    """Represent requests of a table: those without a prompt as they were when they were logged.

    :param rows: indices of requests; None: all.
    :raises EncoderMismatchError: if another encoder made the stored embeddings.
    :raises TableError: if the stored features are not those of this version.
    """
    indices = np.arange(table.n_requests) if rows is None else rows
    if table.stored is None:
        return represent([table.prompts[i] for i in indices], encoder)
    _check_stored(table.stored, encoder)
    row = table.stored.row[indices]
    held = row >= 0
    written = represent([table.prompts[i] for i in indices[~held]], encoder)
    out = Representation(
        np.empty((len(indices), len(FEATURE_NAMES)), np.float32), np.empty((len(indices), encoder.dim), np.float32)
    )
    for target, stored, fresh in zip(out, table.stored[:2], written, strict=True):
        target[held], target[~held] = stored[row[held]], fresh
    return out


def _check_stored(stored: Stored, encoder: Encoder) -> None:
    if stored.encoder != encoder.fingerprint:
        raise EncoderMismatchError(
            f"the outcome table holds embeddings of encoder {stored.encoder[:12]} in place of prompts, and this is "
            f"encoder {encoder.fingerprint[:12]}; expected the encoder of the router that logged them"
        )
    widths = {"features": (stored.features, len(FEATURE_NAMES)), "embedding": (stored.embedding, encoder.dim)}
    wrong = [
        f"column {name} has {found.shape[1]} numbers; expected {width}: another version logged them"
        for name, (found, width) in widths.items()
        if found.shape[1] != width
    ]
    if wrong:
        raise TableError("outcome table", wrong)


def fit(
    representation: Representation, score: Array, cost: Array, tasks: Sequence[str | None] | None = None,
    groups: Sequence[str] | None = None, seed: int = 0, success_score: float = 0.5,
) -> Fitted:  # fmt: skip
    """Fit on requests that are already represented.

    :param score: (n_requests, n_models) in [0, 1], NaN where not tried. :param cost: same shape, NaN where unknown.
    """
    joined = representation.joined
    request_map = _fit_map(joined, seed)
    phi = request_map.transform(joined).astype(np.float32)
    fitted = _fit_estimators(request_map, phi, joined, score, cost, tasks, groups, seed, success_score)
    return replace(fitted, groups=groups)


def fit_table(
    table: OutcomeTable, score: Array, cost: Array, encoder: Encoder, seed: int = 0, success_score: float = 0.5
) -> Fitted:
    """Fit on a table of any size: requests pass through in chunks and only their compact representation is kept."""
    rng = np.random.default_rng(seed)
    n = table.n_requests
    rows = np.sort(rng.choice(n, min(n, MAP_SAMPLE), replace=False))
    sample = represent_table(table, encoder, rows).joined
    request_map = _fit_map(sample, seed)
    phi = np.empty((n, len(request_map.kernel_.components_)), dtype=np.float32)
    for start in range(0, n, CHUNK):
        chunk = represent_table(table, encoder, np.arange(start, min(start + CHUNK, n))).joined
        phi[start : start + CHUNK] = request_map.transform(chunk)
    fitted = _fit_estimators(request_map, phi, sample, score, cost, table.task, table.group, seed, success_score)
    return replace(fitted, groups=[table.group[i] for i in rows])


def _fit_map(joined: NDArray[np.float32], seed: int) -> RequestMap:
    return RequestMap(random_state=seed).fit(joined, n_features=len(FEATURE_NAMES))


def _fit_estimators(
    request_map: RequestMap, phi: NDArray[np.float32], sample: NDArray[np.float32], score: Array, cost: Array,
    tasks: Sequence[str | None] | None, groups: Sequence[str] | None, seed: int, success_score: float,
) -> Fitted:  # fmt: skip
    success = np.where(np.isnan(score), np.nan, (score >= success_score).astype(float))
    estimator = SuccessEstimator(random_state=seed).fit(phi, success, task=tasks, groups=groups)
    # as large as the table, so it is not kept with the estimator
    unseen = estimator.__dict__.pop("out_of_fold_")
    return Fitted(
        request_map, estimator, CostEstimator(random_state=seed).fit(phi, cost, groups=groups), sample,
        fit_dependence(success, unseen, seed),
    )  # fmt: skip


def pool_from_table(table: OutcomeTable) -> ModelPool:
    """A pool of the table's own models: mean cost per request as price, the best model as escalation model.

    What the models can take is not in a table, so no request is refused for want of an ability. A model whose cost is
    nowhere recorded is priced like the dearest one that has a cost: it must never win by an unknown price.
    """
    score, cost = table.dense("score"), table.dense("cost_usd")
    quality = np.nanmean(score, axis=0)
    counts = (~np.isnan(cost)).sum(axis=0)
    mean_cost = np.where(counts > 0, np.nansum(cost, axis=0) / np.maximum(counts, 1), np.nan)
    dearest = float(np.nanmax(mean_cost)) if (counts > 0).any() else 0.0
    mean_cost = np.where(np.isnan(mean_cost), dearest, mean_cost)
    # the best; among equals the cheapest
    best = min(range(len(table.models)), key=lambda j: (-quality[j], mean_cost[j]))
    specs = tuple(
        ModelSpec(name=name, cost_per_request_usd=float(price), abilities=ABILITIES)
        for name, price in zip(table.models, mean_cost, strict=True)
    )
    return ModelPool(models=specs, escalation_model=table.models[best])


def _check_models(table: OutcomeTable, pool: ModelPool) -> list[str]:
    """Notes on models that only one of the two has.

    :raises TableError: if they share none.
    """
    if not set(pool.names) & set(table.models):
        raise TableError(
            "the outcome table and the pool share no model",
            [f"table: {list(table.models)[:10]}", f"pool: {list(pool.names)}"],
        )
    notes = [f"{name}: no outcomes; its probability is a prior" for name in pool.names if name not in table.models]
    return notes + [
        f"{name}: in the table, not in the pool; left out" for name in table.models if name not in pool.names
    ]


def train_router(
    table: OutcomeTable, out_dir: str | Path, *, pool: ModelPool | None = None, encoder: Encoder | None = None,
    seed: int = 0, metrics: dict[str, Any] | None = None, promise: dict[str, Any] | None = None,
    shipped: dict[str, Any] | None = None,
) -> Router:  # fmt: skip
    """Train a router on a table and save it.

    :param pool: None: made from the table (``pool_from_table``).
    :param encoder: None: the static encoder of the bundled router.
    :param metrics: figures measured on other rows, for the manifest; each with its n.
    :param promise: what is promised of the pool's threshold, for the manifest; see ``training.promises``.
    :param shipped: ``policy``, of ``simpler.POLICIES``, and ``why``, for the manifest; None: the router.
    :raises TableError: if table and pool share no model.
    """
    pool = pool if pool is not None else pool_from_table(table)
    encoder = encoder if encoder is not None else default_encoder()
    notes = _check_models(table, pool)
    costs = cost_parts(table, pool)
    score = in_pool_order(table, "score", pool)
    fitted = fit_table(table, score, costs.target, encoder, seed, pool.success_score)
    classifier, dependence = fitted.classifier(), fitted.dependence
    note = f"{table.n_rows} outcomes of {table.n_requests} requests"
    if shipped is not None and shipped["policy"] != ROUTER:
        policy, rates, success = shipped["policy"], success_rates(table, pool), _success(score, pool)
        classifier = rates.replace_in(classifier, policy)
        # of a request of which less is known, the failures hang together more
        dependence = fit_dependence(success, rates.predict(policy, table.task), seed)
        note += f"; P(success) is that of {NAMES[policy]}, not read off the text: {shipped['why']}"
    save_router(
        out_dir, fitted, costs.pool, encoder, costs.unit,
        {
            "evidence": {"kind": "measured", "note": note},
            "training": {
                "data_fingerprint": table.fingerprint(), "n_requests": table.n_requests, "n_rows": table.n_rows,
                "seed": seed, "notes": [*notes, *costs.notes], "tasks_used": list(fitted.success.tasks_),
            },
            "dependence": dependence.to_dict(pool.names) if dependence is not None else {},
            "unlike": {"rate": UNLIKE_RATE, "n": fitted.novelty.n},
            "metrics": metrics or {},
            **({} if promise is None else {"promise": promise}),
            **({} if shipped is None else {"shipped": shipped}),
            **({} if costs.turns is None else {"turns_to_come": costs.turns}),
        },
        classifier,
    )  # fmt: skip
    return Router.load(out_dir)


def success_rates(table: OutcomeTable, pool: ModelPool) -> SuccessRates:
    """Success rates of the pool's models in a table."""
    return SuccessRates.fit(_success(in_pool_order(table, "score", pool), pool), table.task)


def _success(score: Array, pool: ModelPool) -> Array:
    return np.where(np.isnan(score), np.nan, (score >= pool.success_score).astype(float))


def save_router(
    out_dir: str | Path, fitted: Fitted, pool: ModelPool, encoder: Encoder, cost_unit: str, extra: dict[str, Any],
    classifier: SuccessClassifier | None = None,
) -> None:  # fmt: skip
    """Write an artifact. Its version names code, data, shipped policy and promise: the same of all, the same version.

    :param classifier: what serves; the fitted estimators are kept in full beside it. None: made from them.
    """
    import skops.io

    estimators = {"request_map": fitted.request_map, "success": fitted.success, "cost": fitted.cost}
    fingerprint = str(extra.get("training", {}).get("data_fingerprint", ""))
    policy = extra.get("shipped", {}).get("policy", ROUTER)
    suffix = "" if policy == ROUTER else f".{policy.replace('_', '-')}"
    if (promise := extra.get("promise")) is not None:  # a log must tell decisions of one promise from another's
        suffix += f".promise-{hashlib.sha256(json.dumps(promise, sort_keys=True).encode()).hexdigest()[:8]}"
    artifact.save(
        out_dir, pool=pool, classifier=classifier or fitted.classifier(), encoder=encoder, cost_unit=cost_unit,
        router_version=f"{router_ml.__version__}+{fingerprint[:12] or 'unnamed'}{suffix}",
        estimator=skops.io.dumps(estimators), extra=extra,
    )  # fmt: skip


def default_encoder() -> Encoder:
    """The static encoder that ships inside the bundled router."""
    return StaticEncoder.load(bundled_router_path() / artifact.ENCODER)
