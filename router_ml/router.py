"""The router: request -> features and embedding -> classifier -> policy -> decision."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from router_ml import artifact
from router_ml.artifact import Artifact
from router_ml.embedding import Encoder
from router_ml.features import extract, extract_many
from router_ml.policy import Choice, Policy
from router_ml.pool import ModelPool
from router_ml.request import Candidate, Evidence, RouteDecision, RouteRequest, Trace, read_trace

Array = NDArray[np.float64]
RequestLike = RouteRequest | str | Sequence[Mapping[str, Any]] | Mapping[str, Any]

# Candidate._make without its Python frame, which a decision would pay once a model
_candidate: Callable[[tuple[Any, ...]], Candidate] = partial(tuple.__new__, Candidate)

BATCH = 512  # requests worked on at once: bounds memory, loses no speed


class Router:
    """A trained router over a pool of models.

    :param parts: what ``artifact.load`` read.
    :param seed: seed of exploration, used only if the pool asks for any.
    """

    def __init__(self, parts: Artifact, *, seed: int | None = None) -> None:
        self.pool: ModelPool = parts.pool
        self.models: tuple[str, ...] = parts.pool.names
        self.manifest: dict[str, Any] = parts.manifest
        self.encoder: Encoder = parts.encoder
        self.classifier = parts.classifier
        self._policy = Policy(parts.pool)
        self._rng = random.Random(seed)
        self._version = str(parts.manifest["router_version"])
        self._by_tokens = parts.manifest["cost_unit"] == "output_tokens"
        evidence = parts.manifest.get("evidence", {})
        self._kind, self._note = str(evidence.get("kind", "measured")), str(evidence.get("note", ""))
        self._n_outcomes = [int(n) for n in parts.classifier.n_outcomes]
        self._escalation = self.models.index(parts.pool.escalation_model)
        self._prices = [_prices(spec) for spec in parts.pool.models]
        self._params = [spec.params for spec in parts.pool.models]

    @classmethod
    def load(cls, path: str | Path | None = None, *, encoder: Encoder | None = None, seed: int | None = None) -> Router:
        """Read a saved router.

        :param path: the artifact's folder; None: the bundled router.
        :param encoder: needed only if the router was trained with an encoder that the artifact cannot name.
        :raises ArtifactError: if the folder cannot be trusted or read.
        """
        return cls(artifact.load(path if path is not None else bundled_router_path(), encoder=encoder), seed=seed)

    def predict(self, request: RequestLike) -> RouteDecision:
        """Decide where one request goes.

        :raises RequestError: if the request cannot be read.
        :raises NoEligibleModelError: if guards exclude every model.
        """
        read = RouteRequest.of(request)
        trace = read_trace(read)
        p, cost, novelty = self.classifier.predict_one(
            extract(read, trace), self.encoder.encode((trace.user_text,))[0], read.task
        )
        return self._decide(read, trace, p, cost, novelty)

    def predict_batch(self, requests: Iterable[RequestLike]) -> list[RouteDecision]:
        """Decide for many requests; equal to ``predict`` on each."""
        decisions: list[RouteDecision] = []
        for read, traces, p, cost, novelty in self._batches(requests):
            decisions += [
                self._decide(*row)
                for row in zip(read, traces, p.tolist(), cost.tolist(), novelty.tolist(), strict=True)
            ]
        return decisions

    def predict_proba(self, requests: Iterable[RequestLike]) -> Array:
        """:return: (n_requests, n_models) calibrated P(success), columns in the order of ``models``."""
        parts = [p for _, _, p, _, _ in self._batches(requests)]
        return np.vstack(parts) if parts else np.zeros((0, len(self.models)))

    def predict_cost(self, requests: Iterable[RequestLike]) -> Array:
        """:return: (n_requests, n_models) expected cost of one call in USD."""
        rows = [
            self._cost(trace, row)[0]
            for _, traces, _, cost, _ in self._batches(requests)
            for trace, row in zip(traces, cost.tolist(), strict=True)
        ]
        return np.array(rows) if rows else np.zeros((0, len(self.models)))

    def _batches(
        self, requests: Iterable[RequestLike]
    ) -> Iterable[tuple[list[RouteRequest], list[Trace], Array, Array, Array]]:
        read = [RouteRequest.of(request) for request in requests]
        chunks = [read[start : start + BATCH] for start in range(0, len(read), BATCH)]
        # Tokenizing runs outside the interpreter's lock: the next chunk is embedded while this one is decided.
        with ThreadPoolExecutor(max_workers=1) as ahead:
            pending = [ahead.submit(self._embed, chunk) for chunk in chunks[:1]]
            for chunk, following in zip_longest(chunks, chunks[1:]):
                traces, embedding = pending.pop().result()
                if following is not None:
                    pending.append(ahead.submit(self._embed, following))
                tasks = [request.task for request in chunk]
                p, cost, novelty = self.classifier.predict(extract_many(chunk, traces), embedding, tasks)
                yield chunk, traces, p, cost, novelty

    def _embed(self, chunk: list[RouteRequest]) -> tuple[list[Trace], NDArray[np.float32]]:
        traces = [read_trace(request) for request in chunk]
        return traces, self.encoder.encode([trace.user_text for trace in traces])

    def _cost(self, trace: Trace, predicted: list[float]) -> tuple[list[float], list[float] | None]:
        """Expected USD per model, and expected output tokens per model where the classifier predicts those."""
        if not self._by_tokens:
            return predicted, None
        tokens = [n * factor for n, (_, _, factor) in zip(predicted, self._prices, strict=True)]
        costs = [
            trace.input_tokens * per_input + n * per_output
            for n, (per_input, per_output, _) in zip(tokens, self._prices, strict=True)
        ]
        return costs, tokens

    def _decide(
        self, request: RouteRequest, trace: Trace, p: list[float], predicted: list[float], novelty: float
    ) -> RouteDecision:
        cost, tokens = self._cost(trace, predicted)
        choice = self._policy.decide(request, trace, p, cost, tokens, rng=self._rng)
        return self._decision(choice, p, novelty)

    def _decision(self, choice: Choice, p: list[float], novelty: float) -> RouteDecision:
        index = choice.model
        model = self.models[index]
        costs = choice.expected_cost_usd
        rows = zip(self.models, p, costs, choice.latency_s, choice.excluded, strict=True)
        return RouteDecision(
            decision_id=os.urandom(16).hex(),
            model=model,
            confidence=p[index],
            plan_confidence=p[index],
            escalated=choice.escalated,
            degraded=choice.degraded,
            reason=choice.reason,
            candidates=tuple(map(_candidate, rows)),
            plan=(model,),
            params=self._params[index],
            expected_cost_usd=costs[index],
            baseline_cost_usd=costs[self._escalation],
            propensity=choice.propensity,
            evidence=Evidence(
                self._kind if self._n_outcomes[index] else "prior", self._n_outcomes[index], novelty, self._note
            ),
            router_version=self._version,
        )


def predict_route(request: RequestLike, *, router: Router | None = None) -> RouteDecision:
    """Decide where a request goes.

    :param request: a string, OpenAI-style messages, a RouteRequest, or a mapping of its fields.
    :param router: a loaded router; None: the bundled one, loaded at the first call.
    :raises RequestError: if the request cannot be read.
    :raises NoEligibleModelError: if guards exclude every model.
    """
    return (router if router is not None else _bundled()).predict(request)


@cache
def _bundled() -> Router:
    return Router.load()


def bundled_router_path() -> Path:
    """Where the bundled router lies: inside the installed package, or in ``models/default`` of a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "models" / "default"
    return installed if installed.is_dir() else package.parent / "models" / "default"


def _prices(spec: Any) -> tuple[float, float, float]:
    """USD per input token and per output token, tokens written against a typical model."""
    return (
        spec.input_usd_per_mtok * spec.token_factor / 1e6,
        spec.output_usd_per_mtok / 1e6,
        spec.output_factor,
    )
