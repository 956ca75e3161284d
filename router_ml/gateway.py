"""What the gateway does with a request: decide, follow its attempts, check the answer, log what happened.

The proxy makes the calls; ``gateway_proxy`` tells this module what it does, from the hooks that the proxy has for that.
Nothing here imports the proxy, so a test can play it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from router_ml import gateway_wire as wire
from router_ml.attempt import Attempt, AttemptKind, Verdict
from router_ml.completion import TIMEOUT_S, LitellmClient, cost_of, read_headers, translate
from router_ml.errors import (
    BudgetExceededError,
    OutcomeLogError,
    ProviderError,
    ProviderUnavailableError,
    RequestError,
    brief,
)
from router_ml.live import REJECTED, Course, LiveRouter
from router_ml.request import RouteDecision
from router_ml.verification import check

if TYPE_CHECKING:
    from router_ml.ledger import Reservation
    from router_ml.router import Reading

ALIASES = ("auto", "router_ml/auto")  # what a client asks for to be routed
GRACE_S = 5.0  # how long the proxy may take to report the end of a stream whose client is gone
BURST_S = 0.2  # how long entries of the outcome log gather
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


@dataclass(slots=True)
class Exchange(Course):
    """One client request on its way.

    :param call: which format it came in, see ``gateway_wire``. :param pinned: the client named the candidate.
    :param calling: the candidate that is called now, or was last. :param running: whether that call has not ended.
    :param following: what the proxy goes on to, in order; it reads this very list when an attempt has failed. A name is
        another model, a mapping the same one again.
    """

    call: str = "acompletion"
    pinned: bool = False
    calling: str = ""
    stage: int = 0
    following: list[Any] = field(default_factory=list)
    reservation: Reservation | None = None
    running: bool = False
    started_at: float = 0.0
    clock: float = 0.0
    closed: bool = False

    @property
    def confidence(self) -> float:
        """P(success) of the model that is called now."""
        return next(c.p_success for c in self.decision.candidates if c.model == self.calling)


class Gateway:
    """Follows the exchanges of one process. What it does on the event loop waits for nobody.

    :param live: a router in service.
    :param waits: whether ``begin`` and ``failed`` ask the network, because workers share caps.
    :param alone: whether there is one key, and no database of keys.
    """

    def __init__(self, live: LiveRouter, *, waits: bool = False, alone: bool = True) -> None:
        self.live, self.waits, self.alone = live, waits, alone
        self._open: dict[str, Exchange] = {}  # by the id of their decision
        self._unlogged: list[Any] = []

    def decide(self, call: str, body: Mapping[str, Any], session_id: str | None) -> tuple[Reading, RouteDecision]:
        """Decide for a body without calling anybody.

        :raises UnknownModelError: if it names a model that is neither an alias nor a candidate.
        :raises RequestError: if it cannot be read. :raises NoEligibleModelError: if guards exclude every model.
        :raises BudgetExceededError: if a cap does.
        """
        name, known = body.get("model"), list(self.live.specs)
        if not isinstance(name, str):
            raise RequestError(f"model is {brief(name)}; expected {ALIASES[0]!r} or one of {known}")
        if name not in ALIASES and name not in known:
            raise UnknownModelError(f"there is no model {brief(name)}; expected {ALIASES[0]!r} or one of {known}")
        pin = None if name in ALIASES else name
        request = wire.read_request(call, body, body.get(wire.KNOBS), pin=pin, session_id=session_id)
        reading = self.live.read(request)
        return reading, self.live.decide(reading)

    def route(self, call: str, body: Mapping[str, Any], session_id: str | None) -> dict[str, Any]:
        """The decision for a body, logged, so that feedback may come; nobody is called.

        :raises RequestError, NoEligibleModelError, BudgetExceededError: as ``decide``.
        """
        reading, decision = self.decide(call, {"model": ALIASES[0], **body}, session_id)
        self._log(reading, decision, (), "route", None)
        return decision.to_dict()

    def feedback(self, body: Mapping[str, Any]) -> None:
        """Take what is known of a decision's outcome: ``decision_id`` and any of score, verdict, text, model, source.

        :raises RequestError: if it cannot be read. :raises OutcomeLogError: if there is no log that could take it.
        """
        if self.live.log is None:
            raise OutcomeLogError("this gateway keeps no outcome log; start it with --log")
        unknown = sorted(set(body) - _FEEDBACK)
        if (model := body.get("model")) is not None and model not in self.live.specs:
            raise RequestError(f"feedback is about model {brief(model)}; expected one of {list(self.live.specs)}")
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
        exchange = Exchange(reading, decision, call=call, pinned=body.get("model") in self.live.specs)
        exchange.calling = self._admitted(exchange, decision.model)
        self._reserve(exchange, exchange.calling)
        for name in (*_OURS, *self.live.specs[exchange.calling].params):
            body.pop(name, None)  # parameters of the pool entry are what makes the candidate this one
        body.update(model=exchange.calling, fallbacks=[{"*": exchange.following}])
        self._open[decision.decision_id] = exchange
        return exchange

    def started(self, exchange: Exchange, model: str) -> None:
        """The proxy calls a model."""
        if exchange.running:  # a stream that broke off, which the proxy goes on from by itself
            self.broke(exchange, ProviderUnavailableError(f"{exchange.calling} broke off", model=exchange.calling))
        exchange.calling, exchange.running = model, True
        exchange.started_at, exchange.clock = self.live.clock(), time.perf_counter()

    def failed(self, exchange: Exchange, exc: Exception) -> float:
        """The call failed; what the proxy is to do next is in ``following`` afterwards.

        :return: seconds that it should wait before.
        """
        model, live = exchange.calling, self.live
        error = translate(exc, live.specs[model])
        self.broke(exchange, error)
        tries = sum(a.model == model and a.stage == exchange.stage for a in exchange.attempts)
        pause = live.pause_before_retry(exchange, model, error, tries, TIMEOUT_S, alone=exchange.pinned)
        with contextlib.suppress(BudgetExceededError):  # then nothing follows
            if pause is not None:
                self._reserve(exchange, model)
                # the proxy never does the same twice; the depth tells one try from another, and is the proxy's to set
                exchange.following.append({"model": model, "fallback_depth": tries})
                return pause
            live.give_up(exchange.failed, model, error)
            live.telemetry.fell_back(model, error)
            other = None if exchange.pinned else live.next_model(exchange)
            if other is not None:
                other = self._admitted(exchange, other)
                self._reserve(exchange, other)
                exchange.following.append(other)
        return 0.0

    def broke(self, exchange: Exchange, error: ProviderError) -> None:
        """Book a call that failed."""
        self._ended(exchange, Attempt(
            exchange.calling, AttemptKind.ANSWER, exchange.stage, exchange.started_at,
            time.perf_counter() - exchange.clock, error=error,
        ), error.headers)  # fmt: skip
        self.live.telemetry.attempted(exchange.attempts[-1], exchange.decision)

    def _book(self, exchange: Exchange, response: Any, hidden: Mapping[str, Any]) -> None:
        """Book a call that gave a whole answer."""
        usage, cache_hit = wire.read_usage(response), bool(hidden.get("cache_hit"))
        if not any(usage):  # an answer is not free because its provider does not tell its tokens
            usage = self.live.estimated_usage(exchange.reading, exchange.calling, wire.read_answer(response)[0])
        cost = 0.0 if cache_hit else cost_of(self.live.specs[exchange.calling], usage)
        self._ended(exchange, Attempt(
            exchange.calling, AttemptKind.ANSWER, exchange.stage, exchange.started_at,
            time.perf_counter() - exchange.clock, cost, usage, cache_hit=cache_hit,
        ), read_headers(hidden.get("additional_headers")))  # fmt: skip

    def _ended(self, exchange: Exchange, attempt: Attempt, headers: Mapping[str, str]) -> None:
        exchange.running = False
        reservation, exchange.reservation = exchange.reservation, None
        self.live.book(exchange, attempt, reservation, headers)

    def _admitted(self, exchange: Exchange, model: str) -> str:
        """The model, or another if somebody else probes it at this moment."""
        if exchange.pinned:
            self.live.health.admit(model)
            return model
        while self.live.is_busy(exchange, model):
            model = self.live.next_model(exchange) or model
        return model

    def _reserve(self, exchange: Exchange, model: str) -> None:
        """:raises BudgetExceededError: if a cap forbids the call by now."""
        live, tags = self.live, exchange.reading.request.tags
        try:
            exchange.reservation = live.ledger.reserve(tags, live.expected_cost(exchange.reading, model))
        except BudgetExceededError:
            live.health.released(model)
            raise

    async def answered(
        self, exchange: Exchange, response: Any, hidden: Mapping[str, Any], call: Callable[[str], Awaitable[Any]] | None
    ) -> Any:
        """A call gave an answer. :return: the first that is accepted along the plan, or the last there is.

        :param hidden: what the proxy knows of the answer besides.
        :param call: calls a model of the pool with the client's request, and gives its answer and what is hidden; its
            attempts are reported like all others. None: the client has the answer already, as that of a stream.
        """
        self._book(exchange, response, hidden)
        while True:
            verdict = await self._verdict(exchange, response)
            attempt = exchange.attempts[-1] = dataclasses.replace(exchange.attempts[-1], verdict=verdict)
            self.live.telemetry.attempted(attempt, exchange.decision)
            if verdict is None or verdict.accepted or exchange.pinned or call is None:
                break
            exchange.failed[attempt.model] = REJECTED
            plan = exchange.decision.plan
            stage = self.live.next_stage(exchange, exchange.stage)
            while stage is not None and plan[stage] in exchange.failed:
                stage = self.live.next_stage(exchange, stage)
            if stage is None:
                break
            try:
                other = self._admitted(exchange, plan[stage])
                self._reserve(exchange, other)
                exchange.stage = stage
                exchange.following.clear()
                response, hidden = await call(other)
                self._book(exchange, response, hidden)
            except Exception:  # its attempts are on record; the answer that was rejected is better than none
                break
        self.close(exchange)
        return response

    async def _verdict(self, exchange: Exchange, response: Any) -> Verdict | None:
        if exchange.verifier is None:
            return None
        text, reason = wire.read_answer(response)
        return await asyncio.to_thread(check, self.live, lambda: self._litellm, exchange, text, reason, TIMEOUT_S)

    @cached_property
    def _litellm(self) -> LitellmClient:
        return LitellmClient()

    def close(self, exchange: Exchange) -> None:
        """Log the exchange, once; what is reported later is too late."""
        if exchange.closed:
            return
        exchange.closed = True
        self._open.pop(exchange.decision.decision_id, None)
        if exchange.reservation is not None:  # for a call that was never made
            self.live.ledger.release(exchange.reservation)
            self.live.health.released(exchange.calling)
        last = exchange.attempts[-1] if exchange.attempts else None
        baseline = None
        if last is not None and last.error is None:
            baseline = 0.0 if last.cache_hit else self.live.baseline_cost(last.model, last.usage)
            cost = sum(attempt.total_cost_usd for attempt in exchange.attempts)
            self.live.telemetry.finished(cost, baseline - cost)
        self._log(exchange.reading, exchange.decision, exchange.attempts, "gateway", baseline)

    def left(self, exchange: Exchange) -> None:
        """The client's request has ended for it. What the proxy still reports is waited for a moment."""
        if not exchange.closed:
            asyncio.get_running_loop().call_later(GRACE_S, self.abandon, exchange)

    def abandon(self, exchange: Exchange) -> None:
        """Close an exchange whose end nobody reported: the client hung up. Nothing is known of the call."""
        if exchange.closed:
            return
        if exchange.running:
            error = ProviderError(f"the client hung up on {exchange.calling}", model=exchange.calling)
            exchange.attempts.append(Attempt(
                exchange.calling, AttemptKind.ANSWER, exchange.stage, exchange.started_at,
                time.perf_counter() - exchange.clock, error=error,
            ))  # fmt: skip
        self.close(exchange)

    def shut_down(self) -> None:
        """Close what is open, and the log. :raises OutcomeLogError: if something could not be written."""
        for exchange in list(self._open.values()):
            self.abandon(exchange)
        self._hand_over()
        if self.live.log is not None:
            self.live.log.close()

    # -- the outcome log. An entry a transaction would cost more than everything else here together, so they are
    # handed over in bursts.

    def _log(
        self, reading: Reading, decision: RouteDecision, attempts: Sequence[Attempt], source: str,
        baseline: float | None,
    ) -> None:  # fmt: skip
        if self.live.log is None:
            return
        if not self._unlogged:
            with contextlib.suppress(RuntimeError):  # no loop runs when the server shuts down
                asyncio.get_running_loop().call_later(BURST_S, self._hand_over)
        self._unlogged.append((reading, decision, attempts, source, baseline))

    def _hand_over(self) -> None:
        """Give the log what has gathered. It waits where the log is full, which must not hold up everybody else."""
        entries, self._unlogged = self._unlogged, []
        if entries and self.live.log is not None and self.live.log.pending > FULL_QUEUE:
            asyncio.get_running_loop().run_in_executor(None, self._record, entries)
        else:
            self._record(entries)

    def _record(self, entries: Sequence[Any]) -> None:
        for entry in entries:
            self.live.record(*entry)
