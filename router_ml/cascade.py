"""Carry a decision out: call, check the answer, escalate along the plan, survive errors, log what happened.

The rules are one generator, ``Cascade._steps``. It yields what is to be done (a call, a check, a pause) and is sent
what came of it; two small drivers do it, one blocking, one for asyncio. So there is one cascade, not two.

An attempt that fails is retried where the same call may succeed a moment later, else the policy decides again without
the model that failed. An answer that a verifier rejects goes to the next stage of the plan. Every attempt is logged,
whatever the end.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import random
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from router_ml.attempt import Attempt, AttemptKind, Verdict
from router_ml.completion import TIMEOUT_S, Call, Chunk, Client, LitellmClient, Reply, cost_of
from router_ml.errors import (
    AttemptsFailedError,
    BudgetExceededError,
    ProviderError,
    ProviderTimeoutError,
    ProviderUnavailableError,
    VerifierError,
)
from router_ml.live import LiveRouter
from router_ml.request import RouteDecision, RouteRequest
from router_ml.stream import AsyncCompletionStream, CheckedStream, CompletionStream, joined

if TYPE_CHECKING:
    from router_ml.answer import Answer, Verifier
    from router_ml.context import Compressor
    from router_ml.ledger import Reservation
    from router_ml.outcomes import Receipt
    from router_ml.router import Reading, RequestLike, Router

T = TypeVar("T")

BACKOFF_S, LONGEST_BACKOFF_S = 0.25, 8.0
LONGEST_WAIT_S = 2.0  # a provider that asks for a longer pause is left for another model, if there is one

log = logging.getLogger("router_ml")


@dataclass(frozen=True, slots=True)
class Completion:
    """An answer, with the decision and the attempts that led to it.

    :param model: the candidate that answered; not that of the decision after a fallback or an escalation.
    :param accepted: what the verifier said of this answer; None: nobody checked it. False: the plan has no further
        stage, so the best answer there is comes back all the same.
    :param baseline_cost_usd: what the escalation model would have cost on this request, by the tokens really used;
        0 for an answer from the response cache, which would have saved that call too.
    :param receipt: of the outcome log; None without a log.
    """

    text: str
    model: str
    decision: RouteDecision
    attempts: tuple[Attempt, ...]
    reply: Reply
    accepted: bool | None
    baseline_cost_usd: float
    receipt: Receipt | None = None

    @property
    def response(self) -> Any:
        """The answer in OpenAI's form, ``model`` naming the candidate that answered."""
        return self.reply.response

    @property
    def cost_usd(self) -> float:
        """Cost of all attempts and of their checks."""
        return sum(attempt.total_cost_usd for attempt in self.attempts)

    @property
    def saving_usd(self) -> float:
        """Saved against the escalation model, net of failed attempts, checks and compression; negative if lost."""
        return self.baseline_cost_usd - self.cost_usd


class _Ask(NamedTuple):
    call: Call  # -> Reply


class _Collect(NamedTuple):
    call: Call  # -> (Reply, chunks): a stream read to its end, because its answer is to be checked


class _Open(NamedTuple):
    call: Call  # -> (first chunk, the iterator of the rest)


class _Pause(NamedTuple):
    seconds: float


class _Do(NamedTuple):
    work: Callable[[], Any]  # may block: a check, a compression


Step = _Ask | _Collect | _Open | _Pause | _Do
Steps = Generator[Step, Any, T]


@dataclass(slots=True)
class Run:
    """A request on its way."""

    reading: Reading
    decision: RouteDecision
    params: Mapping[str, Any]
    timeout_s: float
    step: type[_Ask] | type[_Collect] | type[_Open]
    attempts: list[Attempt] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)  # model -> why it is not called again
    busy: dict[str, str] = field(default_factory=dict)  # model -> why others are called before it

    @property
    def verifier(self) -> Verifier | None:
        """What checks the answer; the reliability of a check that the caller makes himself checks nothing here."""
        verifier = self.reading.request.verifier
        return verifier if hasattr(verifier, "verify") else None  # type: ignore[return-value]


class Given(NamedTuple):
    """What a model gave: a whole reply, or a stream that has begun."""

    model: str
    started_at: float
    reply: Reply | None = None
    chunks: tuple[Chunk, ...] = ()
    rest: Any = None
    reservation: Reservation | None = None


class Cascade:
    """Carries requests out.

    :param live: a router in service.
    :param client: None: litellm, imported at the first call.
    :param compress: shortens a prompt that is longer than the wanted model is reliable for; None: the guards move it
        to a model that is.
    :param sleep: pauses of the blocking driver. :param seed: of the jitter between attempts.
    """

    def __init__(
        self, live: LiveRouter | Router, *, client: Client | None = None, compress: Compressor | None = None,
        sleep: Callable[[float], None] = time.sleep, seed: int | None = None,
    ) -> None:  # fmt: skip
        self.live = live if isinstance(live, LiveRouter) else LiveRouter(live)
        self.compress = compress
        self._client = client
        self._sleep, self._rng = sleep, random.Random(seed)

    @property
    def client(self) -> Client:
        """What calls the models."""
        if self._client is None:
            self._client = LitellmClient(self.live.router.pool.cache.arguments())
        return self._client

    def complete(
        self, request: RequestLike, *, stream: bool = False, timeout_s: float = TIMEOUT_S, **params: Any
    ) -> Any:
        """Decide, call, check, escalate; see ``router_ml.complete``."""
        given, run = self._drive(self._steps(request, params, timeout_s, stream))
        return given if run is None else CompletionStream(self, run, given)

    async def acomplete(
        self, request: RequestLike, *, stream: bool = False, timeout_s: float = TIMEOUT_S, **params: Any
    ) -> Any:
        """``complete`` for asyncio."""
        given, run = await self._adrive(self._steps(request, params, timeout_s, stream))
        return given if run is None else AsyncCompletionStream(self, run, given)

    # -- the rules

    def _steps(self, asked: RequestLike, params: Mapping[str, Any], timeout_s: float, stream: bool) -> Steps[Any]:
        """:return: (completion, None), or (a stream that has begun, its run)."""
        request = _with_params(RouteRequest.of(asked), params)
        reading = self.live.read(request)
        attempts: list[Attempt] = []
        if self.compress is not None:
            reading = yield from self._compressed(reading, attempts)
        step = _Ask if not stream else _Collect if reading.request.verifier is not None else _Open
        decision = self.live.decide(reading)
        run = Run(reading, decision, _call_params(reading.request, params), timeout_s, step, attempts)
        given: Given | None = None
        try:
            given, accepted = yield from self._staged(run)
        finally:
            if given is None:
                self._record(run, None)  # failed, refused or cancelled: what was tried is logged all the same
        if given.reply is None:
            return given, run
        completion = self._completion(run, given.model, given.reply, accepted)
        if step is _Collect:
            return CheckedStream(completion, given.chunks), None
        return completion, None

    def _staged(self, run: Run) -> Steps[tuple[Given, bool | None]]:
        """Go through the plan until an answer is accepted or no stage is left; then the last answer is the answer."""
        answered: Given | None = None
        plan = list(run.decision.plan)
        done: set[str] = set()
        for stage, wanted in enumerate(plan):
            if wanted in done:
                continue  # a fallback of an earlier stage has answered already
            try:
                given = yield from self._answered(run, wanted, stage)
            except (AttemptsFailedError, BudgetExceededError):
                if answered is None:
                    raise
                break  # the answer that was rejected is better than none
            if given.reply is None:
                return given, None
            verdict = yield from self._checked(run, given.reply)
            run.attempts[-1] = dataclasses.replace(run.attempts[-1], verdict=verdict)
            self.live.telemetry.attempted(run.attempts[-1], run.decision)
            answered = given
            done.add(given.model)
            run.failed[given.model] = "its answer was rejected"
            if verdict is None or verdict.accepted:
                return given, None if verdict is None else True
        assert answered is not None
        return answered, False

    def _answered(self, run: Run, model: str, stage: int) -> Steps[Given]:
        """An answer of this model, or of the next one that is left if it fails."""
        while True:
            if model not in run.failed and not self._is_busy(run, model):
                outcome = yield from self._tried(run, model, stage)
                if isinstance(outcome, Given):
                    return outcome
                self.live.give_up(run.failed, model, outcome)
                self.live.telemetry.fell_back(model, outcome)
            other = self.live.alternative(run.reading, {**run.busy, **run.failed})
            if other is None and run.busy:
                run.busy.clear()
                other = self.live.alternative(run.reading, run.failed)
            if other is None:
                raise AttemptsFailedError(run.decision, run.attempts)
            model = other

    def _is_busy(self, run: Run, model: str) -> bool:
        """Whether a model that failed before is being probed by somebody else, and a healthy one can do it meanwhile."""
        if self.live.health.admit(model) or not self._other(run, model, healthy=True):
            return False
        run.busy[model] = "its breaker is open"
        return True

    def _tried(self, run: Run, model: str, stage: int) -> Steps[Given | ProviderError]:
        """Call one model, again where the same call may succeed a moment later."""
        tries = 0
        while True:
            outcome = yield from self._called(run, model, stage)
            if isinstance(outcome, Given):
                return outcome
            tries += 1
            pause = self._pause(run, model, outcome, tries)
            if pause is None:
                return outcome
            yield _Pause(pause)

    def _called(self, run: Run, model: str, stage: int) -> Steps[Given | ProviderError]:
        """One call, with its reservation, its place in the health record and in the list of attempts."""
        live, spec = self.live, self.live.specs[model]
        try:
            reservation = live.ledger.reserve(run.reading.request.tags, live.expected_cost(run.reading, model))
        except BudgetExceededError:
            live.health.released(model)
            raise
        started, clock = live.clock(), time.perf_counter()
        call = Call(spec, _messages(run.reading.request), run.params, run.timeout_s)
        try:
            found = yield run.step(call)
        except ProviderError as error:
            seconds = time.perf_counter() - clock
            live.ledger.release(reservation)
            live.health.failed(model, error, seconds, error.headers)
            run.attempts.append(Attempt(model, AttemptKind.ANSWER, stage, started, seconds, error=error))
            live.telemetry.attempted(run.attempts[-1], run.decision)
            return error
        except BaseException:  # cancelled: nothing is known of the call
            live.ledger.release(reservation)
            live.health.released(model)
            raise
        if run.step is _Open:
            return Given(model, started, None, (found[0],), found[1], reservation)
        reply, chunks = found if run.step is _Collect else (found, ())
        given = Given(model, started, reply, chunks)
        self._succeeded(run, given, stage, reply, time.perf_counter() - clock, reservation)
        return given

    def _pause(self, run: Run, model: str, error: ProviderError, tries: int) -> float | None:
        """Seconds until the same call is made again, None if it is not.

        Exponential back-off with full jitter (Brooker, "Exponential Backoff And Jitter", AWS 2015). A timeout has
        taken its time already, and nobody waits long for a provider that asks for it, while another model is left.
        """
        if not error.transient or tries > self.live.router.pool.fallback.max_retries:
            return None
        if model in self.live.health.exclusions().hard and self._other(run, model, healthy=True):
            return None  # this very failure has opened its breaker
        patient = error.retry_after_s or 0.0
        if isinstance(error, ProviderTimeoutError) or patient > LONGEST_WAIT_S:
            if self._other(run, model):
                return None
            if patient > run.timeout_s:
                return None
        jitter = self._rng.uniform(0.0, min(LONGEST_BACKOFF_S, BACKOFF_S * 2.0 ** (tries - 1)))
        return max(patient, jitter)

    def _other(self, run: Run, model: str, *, healthy: bool = False) -> bool:
        """Whether there is a model to call in place of this one."""
        failed = {**run.busy, **run.failed, model: "failed"}
        return self.live.alternative(run.reading, failed, healthy=healthy) is not None

    def _checked(self, run: Run, reply: Reply) -> Steps[Verdict | None]:
        """The verifier's verdict; None if there is no verifier or it broke, for a broken check says nothing."""
        verifier = run.verifier
        if verifier is None:
            return None
        from router_ml.answer import Answer

        spent: list[float] = []
        answer = Answer(reply.text, run.reading.request, reply.finish_reason, self._asker(spent))
        try:
            verdict: Verdict = yield _Do(lambda: _verify(verifier, answer))
        except VerifierError as exc:
            log.warning("an answer was not checked: %s", exc)
            attempt = run.attempts[-1]  # a check that broke has cost its calls all the same
            run.attempts[-1] = dataclasses.replace(attempt, cost_usd=attempt.cost_usd + sum(spent))
            return None
        return verdict

    def _asker(self, spent: list[float]) -> Callable[[str, list[dict[str, Any]]], tuple[str, float]]:
        """What a judge or a compressor calls a model with; costs are noted in ``spent``."""

        def ask(model: str, messages: list[dict[str, Any]]) -> tuple[str, float]:
            spec = self.live.router.pool.spec(model)
            reply = self.client.complete(Call(spec, messages, {}, TIMEOUT_S))
            cost = 0.0 if reply.cache_hit else cost_of(spec, reply.usage)
            spent.append(cost)
            return reply.text, cost

        return ask

    def _compressed(self, reading: Reading, attempts: list[Attempt]) -> Steps[Reading]:
        """The reading of a shortened request, if the model that it is meant for is not reliable at its length."""
        from router_ml.context import length_limit

        compress, limit = self.compress, length_limit(self.live.router, reading)
        if compress is None or limit is None:
            return reading
        spent: list[float] = []
        request, ask = reading.request, self._asker(spent)
        started, clock = self.live.clock(), time.perf_counter()
        messages, error = reading.request.messages, None
        try:
            messages = yield _Do(lambda: compress(_messages(request), limit, ask))
        except ProviderError as exc:
            error = exc  # the whole prompt is sent then, to a model that holds it
        seconds = time.perf_counter() - clock
        attempts.append(Attempt(compress.model, AttemptKind.COMPRESSION, 0, started, seconds, sum(spent), error=error))
        return self.live.read(dataclasses.replace(request, messages=messages)) if error is None else reading

    # -- what is told to the world

    def _succeeded(
        self, run: Run, given: Given, stage: int, reply: Reply, seconds: float, reservation: Reservation
    ) -> None:
        live, spec = self.live, self.live.specs[given.model]
        cost = 0.0 if reply.cache_hit else cost_of(spec, reply.usage)
        live.ledger.settle(reservation, cost)
        if reply.cache_hit:
            live.health.released(given.model)  # nobody was called, so nothing is known of the model's health
        else:
            live.health.succeeded(given.model, seconds, reply.headers)
        session = run.reading.request.session_id
        if session is not None:
            live.sessions.remember(session, given.model, spec.call_name, reply.usage)
        run.attempts.append(
            Attempt(
                given.model,
                AttemptKind.ANSWER,
                stage,
                given.started_at,
                seconds,
                cost,
                reply.usage,
                cache_hit=reply.cache_hit,
            )
        )

    def _completion(self, run: Run, model: str, reply: Reply, accepted: bool | None) -> Completion:
        baseline = 0.0 if reply.cache_hit else self.live.baseline_cost(model, reply.usage)
        receipt = self._record(run, baseline)
        completion = Completion(
            reply.text, model, run.decision, tuple(run.attempts), reply, accepted, baseline, receipt
        )
        self.live.telemetry.finished(completion.cost_usd, completion.saving_usd)
        return completion

    def _record(self, run: Run, baseline: float | None) -> Receipt | None:
        return self.live.record(run.reading, run.decision, run.attempts, "complete", baseline)

    def end_stream(self, run: Run, given: Given, reply: Reply, error: ProviderError | None) -> Completion:
        """Book a stream that has ended, was broken off by an error, or was left by its reader.

        :param reply: what came of it.
        """
        assert given.reservation is not None
        seconds = self.live.clock() - given.started_at
        self._succeeded(run, given, 0, reply, seconds, given.reservation)
        if error is not None:
            self.live.health.failed(given.model, error, seconds, error.headers)
            run.attempts[-1] = dataclasses.replace(run.attempts[-1], error=error)
        self.live.telemetry.attempted(run.attempts[-1], run.decision)
        return self._completion(run, given.model, reply, None)

    # -- the drivers

    def _drive(self, steps: Steps[T]) -> T:
        try:
            step = next(steps)
            while True:
                try:
                    result = self._perform(step)
                except BaseException as exc:
                    step = steps.throw(exc)
                else:
                    step = steps.send(result)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]

    def _perform(self, step: Step) -> Any:
        match step:
            case _Ask(call):
                return self.client.complete(call)
            case _Collect(call):
                chunks = tuple(self.client.stream(call))
                return joined(chunks), chunks
            case _Open(call):
                rest = self.client.stream(call)
                first = next(rest, None)
                return _begun(first, call), rest
            case _Pause(seconds):
                return self._sleep(seconds)
            case _Do(work):
                return work()

    async def _adrive(self, steps: Steps[T]) -> T:
        try:
            step = next(steps)
            while True:
                try:
                    result = await self._aperform(step)
                except BaseException as exc:
                    step = steps.throw(exc)
                else:
                    step = steps.send(result)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]

    async def _aperform(self, step: Step) -> Any:
        match step:
            case _Ask(call):
                return await self.client.acomplete(call)
            case _Collect(call):
                chunks = tuple([chunk async for chunk in self.client.astream(call)])
                return joined(chunks), chunks
            case _Open(call):
                rest = self.client.astream(call)
                first = await anext(rest, None)
                return _begun(first, call), rest
            case _Pause(seconds):
                return await asyncio.sleep(seconds)
            case _Do(work):
                return await asyncio.to_thread(work)


def _begun(first: Chunk | None, call: Call) -> Chunk:
    if first is None:
        raise ProviderUnavailableError(f"{call.spec.name} sent an empty stream", model=call.spec.name, status=200)
    return first


def _verify(verifier: Verifier, answer: Answer) -> Verdict:
    try:
        return verifier.verify(answer)
    except VerifierError:
        raise
    except Exception as exc:  # a verifier of the caller's own; its message may quote the answer
        raise VerifierError(f"{type(verifier).__name__} broke: {type(exc).__name__}") from None


def _with_params(request: RouteRequest, params: Mapping[str, Any]) -> RouteRequest:
    """The request with the limits that the call's parameters imply, so that guards see them."""
    known: dict[str, Any] = {}
    most = params.get("max_tokens") or params.get("max_completion_tokens")
    if request.max_output_tokens is None and most is not None:
        known["max_output_tokens"] = most
    if not request.tools and params.get("tools"):
        known["tools"] = params["tools"]
    return dataclasses.replace(request, **known) if known else request


def _call_params(request: RouteRequest, params: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(params)
    if request.tools and "tools" not in out:
        out["tools"] = list(request.tools)
    if request.max_output_tokens is not None and not {"max_tokens", "max_completion_tokens"} & set(out):
        out["max_tokens"] = request.max_output_tokens
    return out


def _messages(request: RouteRequest) -> list[dict[str, Any]]:
    messages = request.messages
    return [{"role": "user", "content": messages}] if isinstance(messages, str) else [dict(m) for m in messages]
