"""What the gateway does with a request: decide, follow its attempts, check the answer, log what happened.

The proxy makes the calls; ``gateway_proxy`` tells this module what it does, from the hooks that the proxy has for that.
Nothing here imports the proxy, so a test can play it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from router_ml import gateway_wire as wire
from router_ml.answer import Answer, brief
from router_ml.attempt import Attempt, AttemptKind, Usage, Verdict
from router_ml.live import BACKOFF_S, LONGEST_BACKOFF_S, LONGEST_WAIT_S
from router_ml.completion import TIMEOUT_S, Call, LitellmClient, cost_of, read_headers, translate
from router_ml.errors import OutcomeLogError, ProviderError, ProviderTimeoutError, RequestError, VerifierError
from router_ml.live import LiveRouter
from router_ml.request import RouteDecision

if TYPE_CHECKING:
    from router_ml.answer import Verifier
    from router_ml.ledger import Reservation
    from router_ml.router import Reading

ALIASES = ("auto", "router_ml/auto")  # what a client asks for to be routed
GRACE_S = 5.0  # how long the proxy may take to report the end of a stream whose client is gone
FULL_QUEUE = 5_000  # entries of the outcome log that wait; from then on nobody waits for it on the event loop
# What a client may not say, because it would decide in the router's place, or make up an outcome.
_OURS = (
    wire.KNOBS, "fallbacks", "context_window_fallbacks", "content_policy_fallbacks", "disable_fallbacks", "num_retries",
    "specific_deployment", "user_config", "router_settings_override", "mock_response",
)  # fmt: skip
_FEEDBACK = frozenset({"decision_id", "score", "verdict", "text", "source", "model"})

log = logging.getLogger("router_ml.gateway")


class UnknownModelError(RequestError):
    """The client asks for a model that the pool does not have."""


@dataclass(slots=True)
class Holder:
    """Place for the exchange of one HTTP request, made before anybody knows whether there will be one."""

    exchange: Exchange | None = None


current: ContextVar[Holder] = ContextVar("router_ml_exchange")


@dataclass(slots=True, eq=False)
class Exchange:
    """One client request on its way.

    :param call: which format it came in, see ``gateway_wire``.
    :param calling: the candidate that is called now, or was last.
    :param fallbacks: what the proxy goes on to, in order; it reads this very list when an attempt has failed. A name
        is another model, a mapping the same one again.
    """

    call: str
    reading: Reading
    decision: RouteDecision
    calling: str
    pinned: bool
    stage: int = 0
    attempts: list[Attempt] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)  # model -> why it is not called again
    fallbacks: list[Any] = field(default_factory=list)
    reservation: Reservation | None = None
    admitted: bool = False
    started_at: float = 0.0
    clock: float = 0.0
    closed: bool = False

    @property
    def confidence(self) -> float:
        """P(success) of the model that is called now."""
        return next(c.p_success for c in self.decision.candidates if c.model == self.calling)

    @property
    def verifier(self) -> Verifier | None:
        verifier = self.reading.request.verifier
        return verifier if hasattr(verifier, "verify") else None  # type: ignore[return-value]


class Gateway:
    """Follows the exchanges of one process.

    :param live: a router in service. :param client: calls a judge's model; None: litellm.
    """

    def __init__(self, live: LiveRouter, client: LitellmClient | None = None) -> None:
        self.live, self._client = live, client
        self._open: set[Exchange] = set()
        self._rng = random.Random()

    def decide(self, call: str, body: Mapping[str, Any], session_id: str | None) -> tuple[Reading, RouteDecision]:
        """Decide for a body without calling anybody.

        :raises UnknownModelError: if it names a model that is neither an alias nor a candidate.
        :raises RequestError: if it cannot be read. :raises NoEligibleModelError: if guards exclude every model.
        :raises BudgetExceededError: if a cap does.
        """
        name = body.get("model", ALIASES[0])
        if name not in ALIASES and name not in self.live.specs:
            known = list(self.live.specs)
            raise UnknownModelError(f"there is no model {brief(name)}; expected {ALIASES[0]!r} or one of {known}")
        pin = None if name in ALIASES else name
        request = wire.read_request(call, body, body.get(wire.KNOBS), pin=pin, session_id=session_id)
        reading = self.live.read(request)
        return reading, self.live.decide(reading)

    def route(self, call: str, body: Mapping[str, Any], session_id: str | None) -> dict[str, Any]:
        """The decision for a body, logged, so that feedback may come; nobody is called.

        :raises RequestError, NoEligibleModelError, BudgetExceededError: as ``decide``.
        """
        reading, decision = self.decide(call, body, session_id)
        self._log(reading, decision, (), "route", None)
        return decision.to_dict()

    def feedback(self, body: Mapping[str, Any]) -> None:
        """Take what is known of a decision's outcome: ``decision_id`` and any of score, verdict, text, model, source.

        :raises RequestError: if it cannot be read. :raises OutcomeLogError: if there is no log that could take it.
        """
        if self.live.log is None:
            raise OutcomeLogError("this gateway keeps no outcome log; start it with --log")
        unknown = sorted(set(body) - _FEEDBACK)
        if unknown or "decision_id" not in body:
            found = brief(sorted(body))
            raise RequestError(f"feedback has the keys {found}; expected decision_id and any of {sorted(_FEEDBACK)}")
        self.live.log.feedback(**body)

    def begin(self, call: str, body: MutableMapping[str, Any], session_id: str | None) -> Exchange:
        """Decide for a request that is to be answered; the body is changed to ask for the model that was chosen.

        A client that names a candidate gets that candidate or an error: to go on to another is for ``auto`` alone.

        :raises RequestError, NoEligibleModelError, BudgetExceededError: as ``decide``.
        """
        reading, decision = self.decide(call, body, session_id)
        pinned = body["model"] not in ALIASES
        exchange = Exchange(call, reading, decision, decision.model, pinned)
        if not pinned:
            exchange.calling = self._admitted(exchange, decision.model)
        for name in _OURS:
            body.pop(name, None)
        for name in self.live.specs[exchange.calling].params:
            body.pop(name, None)  # it is what makes the candidate this one
        body["model"] = exchange.calling
        body["fallbacks"] = [{"*": exchange.fallbacks}]
        self._open.add(exchange)
        return exchange

    def _admitted(self, exchange: Exchange, model: str) -> str:
        """The model itself, or another if somebody else probes it at this moment."""
        if not self.live.health.admit(model):
            other = self.live.alternative(exchange.reading, {model: "its breaker is open"})
            if other is not None and other != model:
                return other
        else:
            exchange.admitted = True
        return model

    def started(self, exchange: Exchange, model: str) -> None:
        """The proxy calls a model.

        :raises BudgetExceededError: if a cap forbids it by now.
        """
        live = self.live
        if not exchange.admitted or model != exchange.calling:
            live.health.admit(model)
        exchange.admitted = False
        exchange.calling, exchange.started_at, exchange.clock = model, live.clock(), time.perf_counter()
        self._release(exchange)
        tags = exchange.reading.request.tags
        exchange.reservation = live.ledger.reserve(tags, live.expected_cost(exchange.reading, model))

    def failed(self, exchange: Exchange, exc: Exception) -> float:
        """The call failed; what the proxy is to do next is in ``fallbacks`` afterwards.

        :return: seconds that it should wait before.
        """
        model, live = exchange.calling, self.live
        error = translate(exc, live.specs[model])
        seconds = time.perf_counter() - exchange.clock
        self._release(exchange)
        live.health.failed(model, error, seconds, error.headers)
        self._attempted(exchange, Attempt(
            model, AttemptKind.ANSWER, exchange.stage, exchange.started_at, seconds, error=error,
        ))  # fmt: skip
        tries = sum(a.model == model and a.stage == exchange.stage for a in exchange.attempts)
        pause = self._pause(exchange, error, tries)
        if pause is not None:
            # the proxy never does the same twice; the depth tells one try from another, and is the proxy's to set
            exchange.fallbacks.append({"model": model, "fallback_depth": tries})
            return pause
        live.give_up(exchange.failed, model, error)
        other = self._alternative(exchange, exchange.failed)
        if other is not None:
            live.telemetry.fell_back(model, error)
            exchange.fallbacks.append(other)
        return 0.0

    def _pause(self, exchange: Exchange, error: ProviderError, tries: int) -> float | None:
        """Seconds until the same call is made again, None if it is not. The rule is that of ``cascade``."""
        if not error.transient or tries > self.live.router.pool.fallback.max_retries:
            return None
        patient = error.retry_after_s or 0.0
        if isinstance(error, ProviderTimeoutError) or patient > LONGEST_WAIT_S:
            if self._alternative(exchange, {**exchange.failed, exchange.calling: "failed"}) is not None:
                return None
            if patient > TIMEOUT_S:
                return None
        return max(patient, self._rng.uniform(0.0, min(LONGEST_BACKOFF_S, BACKOFF_S * 2.0 ** (tries - 1))))

    def _alternative(self, exchange: Exchange, failed: Mapping[str, str]) -> str | None:
        return None if exchange.pinned else self.live.alternative(exchange.reading, failed)

    def answered(self, exchange: Exchange, response: Any, hidden: Mapping[str, Any]) -> None:
        """The call gave a whole answer. :param hidden: what the proxy knows of it besides."""
        model, live = exchange.calling, self.live
        spec, seconds = live.specs[model], time.perf_counter() - exchange.clock
        usage, cache_hit = wire.read_usage(response), bool(hidden.get("cache_hit"))
        cost = 0.0 if cache_hit else cost_of(spec, usage)
        if exchange.reservation is not None:
            live.ledger.settle(exchange.reservation, cost)
            exchange.reservation = None
        if cache_hit:
            live.health.released(model)
        else:
            live.health.succeeded(model, seconds, read_headers(hidden.get("additional_headers")))
        session = exchange.reading.request.session_id
        if session is not None:
            live.sessions.remember(session, model, spec.call_name, usage)
        self._attempted(exchange, Attempt(
            model, AttemptKind.ANSWER, exchange.stage, exchange.started_at, seconds, cost, usage, cache_hit=cache_hit,
        ))  # fmt: skip

    async def checked(self, exchange: Exchange, response: Any, call: Callable[[str], Awaitable[Any]]) -> Any:
        """The answer after its checks: the first that is accepted along the plan, or the last there is.

        :param call: calls a model of the pool with the client's request; its attempts are reported like all others.
        """
        verifier = exchange.verifier
        while verifier is not None:
            verdict = await self._verdict(exchange, verifier, response)
            exchange.attempts[-1] = dataclasses.replace(exchange.attempts[-1], verdict=verdict)
            if verdict is None or verdict.accepted:
                break
            exchange.failed[exchange.calling] = "its answer was rejected"
            following = [model for model in exchange.decision.plan if model not in exchange.failed]
            if not following or exchange.pinned:
                break
            exchange.stage = exchange.decision.plan.index(following[0])
            exchange.fallbacks.clear()
            try:
                response = await call(following[0])
            except Exception:  # its attempts are on record; the answer that was rejected is better than none
                break
        self.close(exchange)
        return response

    async def _verdict(self, exchange: Exchange, verifier: Verifier, response: Any) -> Verdict | None:
        text, finish_reason = wire.read_answer(response)
        answer = Answer(text, exchange.reading.request, finish_reason, self._ask)
        try:
            return await asyncio.to_thread(verifier.verify, answer)
        except VerifierError as exc:
            log.warning("an answer was not checked: %s", exc)
            return None

    def _ask(self, model: str, messages: list[dict[str, Any]]) -> tuple[str, float]:
        """Call a model for a judge. Runs in a thread."""
        if self._client is None:
            self._client = LitellmClient()
        spec = self.live.router.pool.spec(model)
        reply = self._client.complete(Call(spec, messages, {}, TIMEOUT_S))
        return reply.text, 0.0 if reply.cache_hit else cost_of(spec, reply.usage)

    def close(self, exchange: Exchange) -> None:
        """Log the exchange, once; what is reported later is too late."""
        if exchange.closed:
            return
        exchange.closed = True
        self._open.discard(exchange)
        if exchange.reservation is not None:  # a call of which nothing is known
            self._release(exchange)
            self.live.health.released(exchange.calling)
        last = exchange.attempts[-1] if exchange.attempts else None
        baseline = None
        if last is not None and last.error is None:
            baseline = 0.0 if last.cache_hit else self.live.baseline_cost(last.model, last.usage)
            cost = sum(attempt.total_cost_usd for attempt in exchange.attempts)
            self.live.telemetry.finished(cost, baseline - cost)
        self._log(exchange.reading, exchange.decision, exchange.attempts, "gateway", baseline)

    def _log(
        self, reading: Reading, decision: RouteDecision, attempts: Sequence[Attempt], source: str,
        baseline: float | None,
    ) -> None:  # fmt: skip
        arguments = (reading, decision, attempts, source, baseline)
        if self.live.log is not None and self.live.log.pending > FULL_QUEUE:
            # the log's database is away: record() may wait, which must not hold up everybody else
            asyncio.get_running_loop().run_in_executor(None, self.live.record, *arguments)
        else:
            self.live.record(*arguments)

    def left(self, exchange: Exchange) -> None:
        """The client's request has ended for it. What the proxy still reports is waited for a moment."""
        if not exchange.closed:
            asyncio.get_running_loop().call_later(GRACE_S, self.abandon, exchange)

    def abandon(self, exchange: Exchange) -> None:
        """Close an exchange whose end nobody reported: the client hung up. The attempt stands without an outcome."""
        if exchange.closed:
            return
        if exchange.reservation is not None:
            seconds = time.perf_counter() - exchange.clock
            error = ProviderError(f"{exchange.calling} was left by its client", model=exchange.calling)
            self._attempted(exchange, Attempt(
                exchange.calling, AttemptKind.ANSWER, exchange.stage, exchange.started_at, seconds, 0.0, Usage(),
                error=error,
            ))  # fmt: skip
        self.close(exchange)

    def shut_down(self) -> None:
        """Close what is open, and the log. :raises OutcomeLogError: if something could not be written."""
        for exchange in list(self._open):
            self.abandon(exchange)
        if self.live.log is not None:
            self.live.log.close()

    def _attempted(self, exchange: Exchange, attempt: Attempt) -> None:
        exchange.attempts.append(attempt)
        self.live.telemetry.attempted(attempt, exchange.decision.model)

    def _release(self, exchange: Exchange) -> None:
        if exchange.reservation is not None:
            self.live.ledger.release(exchange.reservation)
            exchange.reservation = None


def failure_of(exchange: Exchange) -> tuple[int, str, float | None]:
    """How to tell the client that no attempt was answered: HTTP status, message, seconds to wait.

    The provider's own words are told only where the client's request is at fault, whose prompt they may quote.
    """
    errors = [attempt.error for attempt in exchange.attempts if attempt.error is not None]
    if not errors:
        return 502, "no model could be called", None
    statuses = {_status(error) for error in errors}
    status = statuses.pop() if len(statuses) == 1 else 503
    tried = "; ".join(f"{error.model}: {type(error).__name__}" for error in errors)
    message = f"all {len(errors)} attempt(s) failed ({tried})"
    if status == 400 and errors[-1].detail:
        message += f". {errors[-1].model} says: {errors[-1].detail}"
    waits = [error.retry_after_s for error in errors if error.retry_after_s is not None]
    return status, message, min(waits, default=None)


# A provider's 401 is not the client's: its own key is good.
_STATUSES: Mapping[str, int] = {
    "RateLimitedError": 429, "ProviderTimeoutError": 504, "ContextTooLongError": 400, "ContentRefusedError": 400,
    "CallRefusedError": 400,
}  # fmt: skip


def _status(error: ProviderError) -> int:
    return 503 if error.status == 503 else _STATUSES.get(type(error).__name__, 502)
