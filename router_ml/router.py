"""The router: request -> features and embedding -> classifier -> policy -> decision."""

from __future__ import annotations

import dataclasses
import math
import os
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from itertools import zip_longest
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from router_ml import artifact
from router_ml.artifact import Artifact
from router_ml.classifier import NOVELTY_QUANTILES, SuccessClassifier
from router_ml.cost import CostModel, TurnsToCome
from router_ml.dependence import DEFAULT_HOPELESS, DEFAULT_LOADING, Dependence
from router_ml.embedding import Encoder
from router_ml.errors import PoolError
from router_ml.features import extract, extract_many
from router_ml.plan import Plan
from router_ml.policy import Choice, Live, Policy
from router_ml.pool import ModelPool
from router_ml.request import (
    Candidate,
    Evidence,
    PlanOption,
    RouteDecision,
    RouteRequest,
    Stage,
    Trace,
    read_trace,
)

if TYPE_CHECKING:
    from router_ml.cascade import Cascade

Array = NDArray[np.float64]
RequestLike = RouteRequest | str | Sequence[Mapping[str, Any]] | Mapping[str, Any]

# Candidate._make without its Python frame, which a decision would pay once a model
_candidate: Callable[[tuple[Any, ...]], Candidate] = partial(tuple.__new__, Candidate)

BATCH = 512  # requests worked on at once: bounds memory, loses no speed


class Reading(NamedTuple):
    """All that is known of a request before a model is chosen; deciding again from it costs no prediction.

    ``features`` is (F,), ``embedding`` (E,). ``p`` is P(success), ``cost`` expected USD of a call without any prompt
    cache, ``tokens`` the expected output where the classifier predicts it; each per model, in pool order.
    """

    request: RouteRequest
    trace: Trace
    features: Array
    embedding: NDArray[np.float32]
    p: list[float]
    cost: list[float]
    tokens: list[float] | None
    novelty: float


class Router:
    """A trained router over a pool of models.

    :param parts: what ``artifact.load`` read.
    :param pool: used in place of the artifact's own, for other prices, limits, rules or fewer models.
    :param seed: seed of exploration, used only if the pool asks for any.
    :raises PoolError: if ``pool`` has a model that the router was not trained for.
    """

    def __init__(self, parts: Artifact, *, pool: ModelPool | None = None, seed: int | None = None) -> None:
        self._parts = parts
        self._cascade: Cascade | None = None
        self._lock = Lock()
        self.pool: ModelPool = parts.pool if pool is None else pool
        self.models: tuple[str, ...] = self.pool.names
        self.manifest: dict[str, Any] = parts.manifest
        self.encoder: Encoder = parts.encoder
        self.classifier = parts.classifier
        if self.models != parts.pool.names:
            self.classifier = parts.classifier.select(_columns(parts.pool.names, self.models))
        # whether expected costs are those of one call, and not of whatever a table held as one request
        self.prices_calls = parts.manifest["cost_unit"] == "output_tokens"
        self._costs = CostModel(
            self.pool, by_tokens=self.prices_calls,
            turns=TurnsToCome.from_manifest(parts.manifest.get("turns_to_come")),
        )  # fmt: skip
        self._policy = Policy(self.pool, _dependence(parts.manifest, self.models), self._costs)
        self._rng = random.Random(seed)
        self._version = str(parts.manifest["router_version"])
        evidence = parts.manifest.get("evidence", {})
        self._kind, self._note = str(evidence.get("kind", "measured")), str(evidence.get("note", ""))
        self._unlike_from = _unlike_from(parts.manifest.get("unlike"))
        self._n_outcomes = [int(n) for n in self.classifier.n_outcomes]
        self._escalation = self.models.index(self.pool.escalation_model)
        self._params = [spec.params for spec in self.pool.models]
        self.shortest_reliable = min(self.pool.reliable_tokens(s) / s.token_factor for s in self.pool.models)

    @classmethod
    def load(
        cls, path: str | Path | None = None, *, pool: ModelPool | None = None, encoder: Encoder | None = None,
        seed: int | None = None,
    ) -> Router:  # fmt: skip
        """Read a saved router.

        :param path: the artifact's folder; None: the bundled router.
        :param pool: used in place of the artifact's own: other prices, limits and rules, or fewer models.
        :param encoder: needed only if the router was trained with an encoder that the artifact cannot name.
        :raises ArtifactError: if the folder cannot be trusted or read.
        :raises PoolError: if ``pool`` has a model that the router was not trained for.
        """
        parts = artifact.load(path if path is not None else bundled_router_path(), encoder=encoder)
        return cls(parts, pool=pool, seed=seed)

    def with_pool(self, pool: ModelPool) -> Router:
        """The same trained router over another pool.

        :raises PoolError: if ``pool`` has a model that the router was not trained for.
        """
        return Router(self._parts, pool=pool)

    def with_classifier(self, classifier: SuccessClassifier) -> Router:
        """The same router with other predictions for the same models."""
        return Router(dataclasses.replace(self._parts, classifier=classifier), pool=self.pool)

    def predict(self, request: RequestLike) -> RouteDecision:
        """Decide where one request goes.

        :raises RequestError: if the request cannot be read.
        :raises NoEligibleModelError: if guards exclude every model.
        """
        return self.decide(self.read(request))

    def read(self, request: RequestLike) -> Reading:
        """Represent one request and predict; the choice is left to ``decide``.

        :raises RequestError: if the request cannot be read.
        """
        read = RouteRequest.of(request)
        trace = read_trace(read)
        return self.reading(read, trace, extract(read, trace), self.encoder.encode((trace.user_text,))[0])

    def reading(self, request: RouteRequest, trace: Trace, features: Array, embedding: NDArray[np.float32]) -> Reading:
        """Predict from what a request was represented as, now or when it was logged.

        :param features: (F,). :param embedding: (E,).
        """
        p, predicted, novelty = self.classifier.predict_one(features, embedding, request.task)
        return Reading(
            request, trace, features, embedding, p, *self._costs.expected(request, trace, predicted), novelty
        )

    def decide(self, reading: Reading, live: Live | None = None, *, explore: bool = True) -> RouteDecision:
        """Choose a model for a request that was read.

        :param live: what is known of the models at this moment; None: nothing.
        :param explore: whether to draw the exploration that the pool asks for.
        :raises NoEligibleModelError: if guards exclude every model. :raises BudgetExceededError: if a cap does.
        """
        choice = self._choose(reading, live, self._rng if explore else None)
        return self._decision(choice, reading.request, reading.p, reading.novelty)

    def alternative(self, reading: Reading, live: Live) -> str:
        """The model to call in place of those that failed, which ``live.unavailable`` names. Nothing is explored.

        :raises NoEligibleModelError: if none is left. :raises BudgetExceededError: if a cap forbids all that are.
        """
        return self.models[self._choose(reading, live, None).model]

    def _choose(self, reading: Reading, live: Live | None, rng: random.Random | None) -> Choice:
        return self._policy.decide(
            reading.request, reading.trace, reading.p, reading.cost, reading.tokens, rng=rng, live=live,
            unlike=reading.novelty >= self._unlike_from,
        )  # fmt: skip

    def expected_cost(self, reading: Reading) -> tuple[float, ...]:
        """Expected USD of a call of each model, as ``decide`` weighs it: less what a prompt cache saves."""
        return self._costs.less_cache(reading.request, reading.trace, reading.cost)

    def budget(self, reading: Reading) -> float | None:
        """Most USD that a request may cost, by itself and by the pool's rules; None: no limit."""
        return self._policy.terms(reading.request, reading.trace).budget_usd

    @property
    def cascade(self) -> Cascade:
        """What ``complete`` acts through. Set it to one of your own for a log, telemetry or shared state.

        Without that, it logs to the URL in the environment variable ``ROUTER_ML_LOG``, if there is one.
        """
        with self._lock:  # two first calls at once would make two, each with a ledger and a health record of its own
            if self._cascade is None:
                self._cascade = _new_cascade(self)
            return self._cascade

    @cascade.setter
    def cascade(self, cascade: Cascade) -> None:
        self._cascade = cascade

    def complete(self, request: RequestLike, **arguments: Any) -> Any:
        """Decide, call, check, escalate; see ``router_ml.complete``, which takes the same arguments."""
        return self.cascade.complete(request, **arguments)

    async def acomplete(self, request: RequestLike, **arguments: Any) -> Any:
        """``complete`` for asyncio."""
        return await self.cascade.acomplete(request, **arguments)

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
            self._costs.expected(request, trace, row)[0]
            for read, traces, _, cost, _ in self._batches(requests)
            for request, trace, row in zip(read, traces, cost.tolist(), strict=True)
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

    def _decide(
        self, request: RouteRequest, trace: Trace, p: list[float], predicted: list[float], novelty: float
    ) -> RouteDecision:
        cost, tokens = self._costs.expected(request, trace, predicted)
        unlike = novelty >= self._unlike_from
        choice = self._policy.decide(request, trace, p, cost, tokens, rng=self._rng, unlike=unlike)
        return self._decision(choice, request, p, novelty)

    def _decision(self, choice: Choice, request: RouteRequest, p: list[float], novelty: float) -> RouteDecision:
        index = choice.model
        model = self.models[index]
        costs = choice.expected_cost_usd
        plan = choice.plan
        rows = zip(self.models, p, costs, choice.latency_s, choice.excluded, strict=True)
        return RouteDecision(
            decision_id=os.urandom(16).hex(),
            model=model,
            confidence=p[index],
            plan_confidence=plan.p_success,
            escalated=choice.escalated,
            degraded=choice.degraded,
            reason=choice.reason,
            candidates=tuple(map(_candidate, rows)),
            plan=tuple([self.models[stage] for stage in plan.models]),
            params=self._params[index],
            expected_cost_usd=plan.expected_cost_usd,
            baseline_cost_usd=costs[self._escalation],
            propensity=choice.propensity,
            evidence=Evidence(
                self._kind if self._n_outcomes[index] else "prior",
                self._n_outcomes[index],
                novelty,
                self._note,
                novelty >= self._unlike_from,
            ),
            router_version=self._version,
            stages=tuple([
                Stage(self.models[i], *row) for i, *row in zip(plan.models, plan.reach, plan.p_stage, strict=True)
            ]),
            second_plan=None if choice.second is None else self._option(choice.second),
            objective=choice.objective,
        )  # fmt: skip

    def _option(self, plan: Plan) -> PlanOption:
        return PlanOption(tuple([self.models[i] for i in plan.models]), plan.p_success, plan.expected_cost_usd)


def predict_route(request: RequestLike, *, router: Router | None = None) -> RouteDecision:
    """Decide where a request goes.

    :param request: a string, OpenAI-style messages, a RouteRequest, or a mapping of its fields.
    :param router: a loaded router; None: the bundled one, loaded at the first call.
    :raises RequestError: if the request cannot be read.
    :raises NoEligibleModelError: if guards exclude every model.
    """
    return (router if router is not None else _bundled()).predict(request)


def complete(
    request: RequestLike, *, router: Router | None = None, stream: bool = False, timeout_s: float = 30.0, **params: Any
) -> Any:
    """Decide where a request goes, call that model through litellm, check the answer, escalate, survive errors.

    :param request: as for ``predict_route``. A ``verifier`` in it checks the answer: rejected, the next stage of the
        plan answers.
    :param router: None: the bundled one. What it acts with besides, such as the outcome log, is ``router.cascade``.
    :param stream: whether to stream; then a ``CompletionStream`` comes back, which is iterated for chunks.
    :param timeout_s: most seconds that a provider may be silent. In asyncio a whole answer, if it is not streamed, must
        be there in that time; a blocking call cannot be broken off while bytes keep coming.
    :param params: go through to the provider, in OpenAI's names: ``temperature``, ``max_tokens``, ``tools``,
        ``response_format`` and so on. What a provider does not take is translated or dropped, with one warning.
    :return: a ``Completion``: the answer with its decision, attempts and cost. A stream has one once it was read to its
        end or closed, and is in the log only then.
    :raises RequestError: if the request cannot be read.
    :raises NoEligibleModelError: if guards exclude every model. :raises BudgetExceededError: if a cap forbids the call.
    :raises AttemptsFailedError: if every model that was tried failed.
    """
    chosen = router if router is not None else _bundled()
    return chosen.complete(request, stream=stream, timeout_s=timeout_s, **params)


async def acomplete(
    request: RequestLike, *, router: Router | None = None, stream: bool = False, timeout_s: float = 30.0, **params: Any
) -> Any:
    """``complete`` for asyncio; a stream is an ``AsyncCompletionStream``."""
    chosen = router if router is not None else _bundled()
    return await chosen.acomplete(request, stream=stream, timeout_s=timeout_s, **params)


_loading = Lock()  # two first calls at once would load two routers, each with a ledger and a health record of its own


def _bundled() -> Router:
    with _loading:
        return _load_bundled()


@cache
def _load_bundled() -> Router:
    return Router.load()


def bundled_router_path() -> Path:
    """Where the bundled router lies: inside the installed package, or in ``models/default`` of a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "models" / "default"
    return installed if installed.is_dir() else package.parent / "models" / "default"


def _new_cascade(router: Router) -> Cascade:
    from router_ml.cascade import Cascade

    log = None
    if url := os.environ.get("ROUTER_ML_LOG"):
        from router_ml.outcomes import OutcomeLog

        log = OutcomeLog(url)
    return Cascade(router, log=log)


def _dependence(manifest: Mapping[str, Any], models: Sequence[str]) -> Dependence:
    learned = manifest.get("dependence", {})
    loadings = learned.get("loadings", {})
    return Dependence(
        [loadings.get(name, DEFAULT_LOADING) for name in models], learned.get("hopeless", DEFAULT_HOPELESS)
    )


def _columns(trained: tuple[str, ...], wanted: tuple[str, ...]) -> list[int]:
    unknown = [name for name in wanted if name not in trained]
    if unknown:
        raise PoolError(
            f"the router was not trained for {unknown}, only for {list(trained)}; train it, or change the pool"
        )
    return [trained.index(name) for name in wanted]


def _unlike_from(calibrated: Mapping[str, Any] | None) -> float:
    """The novelty from which a request is unlike the training data; infinite where that was not calibrated."""
    if calibrated is None:
        return math.inf
    # written as the classifier writes it, so that equal ranks are equal floats
    flagged = int(calibrated["rate"] * (NOVELTY_QUANTILES - 1) + 1e-9)
    return 1.0 - flagged / NOVELTY_QUANTILES
