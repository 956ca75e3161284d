"""Carry a decision out: call, check the answer, escalate along the plan, survive errors, log what happened.

The rules are one generator, ``Cascade._steps``. It yields what is to be done (a call, a check, a pause) and is sent
what came of it; two small drivers do it, one blocking, one for asyncio. So there is one cascade, not two.

An attempt that fails is retried where the same call may succeed a moment later, else the policy decides again without
the model that failed. An answer that a verifier rejects goes to the next stage of the plan. Every attempt is logged,
whatever the end.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from router_ml.attempt import Attempt, AttemptKind, Completion, Verdict
from router_ml.completion import TIMEOUT_S, Call, Chunk, Client, LitellmClient, Reply, cost_of
from router_ml.errors import (
    AttemptsFailedError,
    BudgetExceededError,
    ProviderError,
)
from router_ml.live import REJECTED, Course, LiveRouter
from router_ml.parameters import call_params, messages_of, with_limits_of
from router_ml.request import RouteRequest
from router_ml.steps import Ask, Collect, Do, Driver, Open, Pause, Steps
from router_ml.stream import AsyncCompletionStream, CheckedStream, CompletionStream
from router_ml.verification import asker, check

if TYPE_CHECKING:
    from router_ml.context import Compressor
    from router_ml.ledger import Reservation
    from router_ml.outcomes import OutcomeLog, Receipt
    from router_ml.router import Reading, RequestLike, Router


@dataclass(slots=True, kw_only=True)
class Run(Course):
    """A course with how its calls are made."""

    params: Mapping[str, Any]
    timeout_s: float
    step: type[Ask] | type[Collect] | type[Open]


class Given(NamedTuple):
    """What a model gave: a whole reply, or a stream that has begun."""

    model: str
    started_at: float
    reply: Reply | None = None
    chunks: tuple[Chunk, ...] = ()
    rest: Any = None
    reservation: Reservation | None = None
    waited_s: float = 0.0  # for the first chunk


class Cascade:
    """Carries requests out.

    :param live: a router in service, or a router that this puts into service.
    :param log: where decisions and attempts go; a ``LiveRouter`` has its own already.
    :param client: None: litellm, imported at the first call.
    :param compress: shortens a prompt that is longer than the wanted model is reliable for; None: the guards move it
        to a model that is.
    :param sleep: pauses of the blocking driver.
    """

    def __init__(
        self, live: LiveRouter | Router, *, log: OutcomeLog | None = None, client: Client | None = None,
        compress: Compressor | None = None, sleep: Callable[[float], None] = time.sleep,
    ) -> None:  # fmt: skip
        self.live = live if isinstance(live, LiveRouter) else LiveRouter(live, log=log)
        self.compress = compress
        self._client = client
        self._driver = Driver(lambda: self.client, sleep)

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
        given, run = self._driver.drive(self._steps(request, params, timeout_s, stream))
        return given if run is None else CompletionStream(self, run, given)

    async def acomplete(
        self, request: RequestLike, *, stream: bool = False, timeout_s: float = TIMEOUT_S, **params: Any
    ) -> Any:
        """``complete`` for asyncio."""
        given, run = await self._driver.adrive(self._steps(request, params, timeout_s, stream))
        return given if run is None else AsyncCompletionStream(self, run, given)

    # -- the rules

    def _steps(self, asked: RequestLike, params: Mapping[str, Any], timeout_s: float, stream: bool) -> Steps[Any]:
        """:return: (completion, None), or (a stream that has begun, its run)."""
        request = with_limits_of(RouteRequest.of(asked), params)
        reading = self.live.read(request)
        attempts: list[Attempt] = []
        if self.compress is not None:
            reading = yield from self._compressed(reading, attempts)
        decision = self.live.decide(reading)
        for attempt in attempts:
            self.live.telemetry.attempted(attempt, decision)
        sent = call_params(reading.request, params)
        run = Run(reading, decision, attempts, params=sent, timeout_s=timeout_s, step=Ask)
        if stream:
            run.step = Open if run.verifier is None else Collect
        given: Given | None = None
        try:
            given, accepted = yield from self._staged(run)
        finally:
            if given is None:
                self._record(run, None)  # failed, refused or cancelled: what was tried is logged all the same
        if given.reply is None:
            return given, run
        completion = self._completion(run, given.model, given.reply, accepted)
        if run.step is Collect:
            return CheckedStream(completion, given.chunks), None
        return completion, None

    def _staged(self, run: Run) -> Steps[tuple[Given, bool | None]]:
        """Go through the plan until an answer is accepted or no stage is left; then the last answer is the answer."""
        answered: Given | None = None
        stage: int | None = 0
        while stage is not None:
            try:
                given = yield from self._answered(run, run.decision.plan[stage], stage)
            except (AttemptsFailedError, BudgetExceededError):
                if answered is None:
                    raise
                break  # the answer that was rejected is better than none
            if given.reply is None:
                return given, None
            verdict = None if run.verifier is None else (yield Do(partial(self._check, run, given.reply)))
            run.attempts[-1] = dataclasses.replace(run.attempts[-1], verdict=verdict)
            self.live.telemetry.attempted(run.attempts[-1], run.decision)
            answered = given
            run.failed[given.model] = REJECTED
            if verdict is None or verdict.accepted:
                return given, None if verdict is None else True
            stage = self.live.next_stage(run, stage)
        assert answered is not None
        return answered, False

    def _answered(self, run: Run, model: str, stage: int) -> Steps[Given]:
        """An answer of this model, or of the next one that is left if it fails."""
        while True:
            if model not in run.failed and not self.live.is_busy(run, model):
                try:
                    outcome = yield from self._tried(run, model, stage)
                except BudgetExceededError:  # other calls have taken since the decision what was left then
                    run.failed[model] = "over budget"
                    other = self.live.next_model(run)
                    if other is None or stage > 0 or self.live.router.pool.budgets.on_exceeded == "refuse":
                        raise
                    model = other
                    continue
                if isinstance(outcome, Given):
                    return outcome
                self.live.give_up(run.failed, model, outcome)
                self.live.telemetry.fell_back(model, outcome)
            other = self.live.next_model(run)
            if other is None:
                raise AttemptsFailedError(run.decision, run.attempts)
            model = other

    def _tried(self, run: Run, model: str, stage: int) -> Steps[Given | ProviderError]:
        """Call one model, again where the same call may succeed a moment later."""
        tries = 0
        while True:
            outcome = yield from self._called(run, model, stage)
            if isinstance(outcome, Given):
                return outcome
            tries += 1
            pause = self.live.pause_before_retry(run, model, outcome, tries, run.timeout_s)
            if pause is None:
                return outcome
            yield Pause(pause)
            self.live.health.admit(model)

    def _called(self, run: Run, model: str, stage: int) -> Steps[Given | ProviderError]:
        """One call, with its reservation, its place in the health record and in the list of attempts."""
        live, spec = self.live, self.live.specs[model]
        try:
            reservation = live.ledger.reserve(run.reading.request.tags, live.expected_cost(run.reading, model))
        except BudgetExceededError:
            live.health.released(model)
            raise
        started, clock = live.clock(), time.perf_counter()
        call = Call(spec, messages_of(run.reading.request), run.params, run.timeout_s)
        try:
            found = yield run.step(call)
        except ProviderError as error:
            seconds = time.perf_counter() - clock
            attempt = Attempt(model, AttemptKind.ANSWER, stage, started, seconds, error=error)
            live.book(run, attempt, reservation, error.headers)
            live.telemetry.attempted(attempt, run.decision)
            return error
        except BaseException:  # cancelled: nothing is known of the call
            live.ledger.release(reservation)
            live.health.released(model)
            raise
        if run.step is Open:
            return Given(model, started, None, (found[0],), found[1], reservation, time.perf_counter() - clock)
        reply, chunks = found if run.step is Collect else (found, ())
        if not any(reply.usage):
            reply = dataclasses.replace(reply, usage=live.estimated_usage(run.reading, model, reply.text))
        given = Given(model, started, reply, chunks)
        self._book(run, given, stage, reply, time.perf_counter() - clock, reservation)
        return given

    def _check(self, run: Run, reply: Reply) -> Verdict | None:
        return check(self.live, lambda: self.client, run, reply.text, reply.finish_reason, run.timeout_s)

    def _compressed(self, reading: Reading, attempts: list[Attempt]) -> Steps[Reading]:
        """The reading of a shortened request, if the model that it is meant for is not reliable at its length."""
        from router_ml.context import length_limit

        compress, limit = self.compress, length_limit(self.live.router, reading)
        if compress is None or limit is None:
            return reading
        spent: list[float] = []
        request, ask = reading.request, asker(self.live, lambda: self.client, reading.request, spent, TIMEOUT_S)
        started, clock = self.live.clock(), time.perf_counter()
        shorter, error = reading, None
        try:
            messages = yield Do(lambda: compress(messages_of(request), limit, ask))
            if not spent and messages == messages_of(request):
                return reading  # nothing to leave out, and nobody was called
            shorter = self.live.read(dataclasses.replace(request, messages=messages))
        except Exception as exc:  # the whole prompt is sent then, to a model that holds it
            broke = f"compression failed: {type(exc).__name__}"
            error = exc if isinstance(exc, ProviderError) else ProviderError(broke, model=compress.model)
        seconds = time.perf_counter() - clock
        attempts.append(Attempt(compress.model, AttemptKind.COMPRESSION, 0, started, seconds, sum(spent), error=error))
        return shorter

    # -- what is told to the world

    def _book(
        self, run: Run, given: Given, stage: int, reply: Reply, seconds: float, reservation: Reservation,
        error: ProviderError | None = None,
    ) -> None:  # fmt: skip
        cost = 0.0 if reply.cache_hit else cost_of(self.live.specs[given.model], reply.usage)
        attempt = Attempt(
            given.model, AttemptKind.ANSWER, stage, given.started_at, seconds, cost, reply.usage, error=error,
            cache_hit=reply.cache_hit,
        )  # fmt: skip
        self.live.book(run, attempt, reservation, reply.headers if error is None else error.headers)

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

    def end_stream(
        self, run: Run, given: Given, reply: Reply, seconds: float, error: ProviderError | None
    ) -> Completion:
        """Book a stream that has ended, was broken off by an error, or was left by its reader.

        :param reply: what came of it. :param seconds: that were spent waiting for it.
        """
        assert given.reservation is not None
        self._book(run, given, 0, reply, seconds, given.reservation, error)
        self.live.telemetry.attempted(run.attempts[-1], run.decision)
        return self._completion(run, given.model, reply, None)
