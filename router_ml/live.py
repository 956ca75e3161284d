"""A router in service: it decides by the state of the world, and tells the world what came of it.

``LiveRouter`` joins a trained router, which knows requests, with what changes by the minute: which models are healthy,
what may still be spent, which model holds a conversation. ``cascade`` and ``gateway`` both act through it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from router_ml.attempt import Attempt, Usage
from router_ml.completion import cost_of
from router_ml.errors import (
    BudgetExceededError,
    ContextTooLongError,
    NoEligibleModelError,
    OutcomeLogError,
    PoolError,
    ProviderError,
    ProviderTimeoutError,
    VerifierError,
)
from router_ml.health import Health
from router_ml.ledger import Ledger, Reservation
from router_ml.policy import Live
from router_ml.pool import ModelPool, ModelSpec
from router_ml.request import BYTES_PER_TOKEN, ReasonCode, RouteDecision, RouteRequest
from router_ml.session import Sessions
from router_ml.telemetry import OFF, Telemetry

if TYPE_CHECKING:
    from router_ml.answer import Verifier
    from router_ml.outcomes import OutcomeLog, Receipt
    from router_ml.router import Reading, RequestLike, Router

T = TypeVar("T")

DAY_S = 86_400
BACKOFF_S, LONGEST_BACKOFF_S = 0.25, 8.0
REJECTED = "its answer was rejected"  # why a model is not called again, unless the plan says so
LONGEST_WAIT_S = 2.0  # a provider that asks for a longer pause is left for another model, if there is one

logger = logging.getLogger("router_ml")


@dataclass(slots=True)
class Course:
    """A request on its way: what is known of it, what was decided, what was tried.

    :param failed: model -> why it is not called again. :param busy: model -> why others are called before it.
    """

    reading: Reading
    decision: RouteDecision
    attempts: list[Attempt] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    busy: dict[str, str] = field(default_factory=dict)

    @property
    def verifier(self) -> Verifier | None:
        """What checks the answer; the reliability of a check that the caller makes himself checks nothing here."""
        verifier = self.reading.request.verifier
        return verifier if hasattr(verifier, "verify") else None  # type: ignore[return-value]


class LiveRouter:
    """A router with its surroundings.

    :param log: where decisions, attempts and feedback go; None: nowhere.
    :param health: None: kept in this process.
    :param ledger: None: kept in this process, beginning with what ``log`` says was spent today.
    :param telemetry: metrics and traces.
    :param clock: seconds since 1970. :param seed: of the jitter between attempts.
    """

    def __init__(
        self, router: Router, *, log: OutcomeLog | None = None, health: Health | None = None,
        ledger: Ledger | None = None, telemetry: Telemetry = OFF, clock: Callable[[], float] = time.time,
        seed: int | None = None,
    ) -> None:  # fmt: skip
        pool = router.pool
        self.router, self.log, self.telemetry, self.clock = router, log, telemetry, clock
        self.health = health or Health(pool, clock=clock)
        self.ledger = ledger or Ledger(pool.budgets, clock=clock)
        if ledger is None and log is not None:
            self.ledger.seed(log.spent(since=clock() // DAY_S * DAY_S))
        self.sessions = Sessions(clock)
        self.rng = random.Random(seed)
        self.telemetry.watch(self.health)
        self.specs: dict[str, ModelSpec] = {spec.name: spec for spec in pool.models}
        rules = json.dumps(pool.to_dict(), sort_keys=True, default=sorted)
        self.policy = hashlib.sha256(rules.encode()).hexdigest()[:12]
        self._index = {name: i for i, name in enumerate(router.models)}
        self._verifiers = rule_verifiers(pool)
        self._encoder: str | None = None

    def read(self, request: RequestLike) -> Reading:
        """Read a request, with what is known besides it: the model that holds its session, the verifier of its task.

        :raises RequestError: if it cannot be read.
        """
        read = RouteRequest.of(request)
        known: dict[str, object] = {}
        if read.session_id is not None and read.current_model is None:
            held = self.sessions.recall(read.session_id)
            if held is not None and held.model in self._index:
                known |= {"current_model": held.model, "cached_tokens": held.cached_tokens}
        if read.verifier is None and self._verifiers:
            verifier = self._verifiers.get(("segments", read.segment)) or self._verifiers.get(("tasks", read.task))
            if verifier is not None:
                known["verifier"] = verifier
        return self.router.read(dataclasses.replace(read, **known) if known else read)  # type: ignore[arg-type]

    def decide(self, reading: Reading) -> RouteDecision:
        """Decide by the state of the models and budgets.

        A low rate limit or a full share only makes a model less welcome: where it leaves no model that is likely
        enough, it is overlooked. So is an open breaker where it leaves no model at all: calling a model that may be
        down is better than refusing for certain (the panic threshold of Envoy's outlier detection).

        :raises NoEligibleModelError: if guards exclude every model. :raises BudgetExceededError: if a cap does.
        """
        started = time.perf_counter()
        decision = self.router.decide(reading, self._tier(reading))
        self.telemetry.decided(decision, time.perf_counter() - started)
        return decision

    def _tier(self, reading: Reading) -> Live:
        """The exclusions to decide under. They are found without exploration, which is drawn once, or its propensity
        would be that of the last draw alone."""
        found = self.health.exclusions()
        if not found.soft and not found.hard:
            return self._live({}, reading.request.tags)

        def choose(live: Live) -> tuple[Live, RouteDecision]:
            return live, self.router.decide(reading, live, explore=False)

        return self._by_tier(choose, {}, reading.request.tags, lambda chosen: self._makeshift(chosen[1]))[0]

    def _live(self, unavailable: Mapping[str, str], tags: Sequence[str]) -> Live:
        return Live(unavailable, self.health.measured_latency(), self.ledger.tightest(tags))

    def alternative(self, reading: Reading, failed: Mapping[str, str], *, healthy: bool = False) -> str | None:
        """The model to call in place of those that failed, or None.

        :param failed: model -> why it is not called again.
        :param healthy: whether its breaker must be closed.
        """
        try:
            if healthy:
                failed = {**self.health.exclusions().hard, **failed}
            return self._by_tier(lambda live: self.router.alternative(reading, live), failed, reading.request.tags)
        except (NoEligibleModelError, BudgetExceededError):
            return None

    def _by_tier(
        self, choose: Callable[[Live], T], failed: Mapping[str, str], tags: Sequence[str],
        makeshift: Callable[[T], bool] | None = None,
    ) -> T:  # fmt: skip
        """Choose under all exclusions, then with fewer, until the choice is good, or possible at all."""
        found = self.health.exclusions()
        if found.soft:
            try:
                choice = choose(self._live({**found.soft, **found.hard, **failed}, tags))
                if makeshift is None or not makeshift(choice):
                    return choice
            except (NoEligibleModelError, BudgetExceededError):
                pass  # what is left may be too dear, where a model that is better spared is not
        if found.soft or found.hard:
            with contextlib.suppress(NoEligibleModelError, BudgetExceededError):
                return choose(self._live({**found.hard, **failed}, tags))
        return choose(self._live(failed, tags))

    def _makeshift(self, decision: RouteDecision) -> bool:
        """Whether the request was to be escalated and not even the escalation model could be taken, at any stage."""
        escalated = decision.reason.code in (ReasonCode.LOW_CONFIDENCE, ReasonCode.UNLIKE)
        return escalated and self.router.pool.escalation_model not in decision.plan

    def expected_cost(self, reading: Reading, model: str) -> float:
        """Expected US dollars of one call, less what the prompt cache of the conversation's model saves."""
        return self.router.expected_cost(reading)[self._index[model]]

    def give_up(self, failed: dict[str, str], model: str, error: ProviderError) -> None:
        """Note in ``failed`` every model that this error speaks against, not only the one that was called.

        A prompt too long for one window is too long for every smaller one; a bad key fails for every model behind it.
        """
        why = f"failed: {type(error).__name__}"
        spec = self.specs[model]
        failed[model] = why
        for other in self.specs.values():
            smaller = _window(other) <= _window(spec)
            if (isinstance(error, ContextTooLongError) and smaller) or (error.same_key and _key(other) == _key(spec)):
                failed.setdefault(other.name, f"{why} of {model}")

    def is_busy(self, course: Course, model: str) -> bool:
        """Claim the right to call a model; whether somebody else probes it now, and a healthy one can do it instead."""
        if self.health.admit(model) or not self._other(course, model, healthy=True):
            return False
        course.busy[model] = "its breaker is open"
        return True

    def next_model(self, course: Course) -> str | None:
        """The model to call now that those in ``failed`` have failed, or None."""
        other = self.alternative(course.reading, {**course.busy, **course.failed})
        if other is None and course.busy:
            course.busy.clear()
            other = self.alternative(course.reading, course.failed)
        return other

    def _other(self, course: Course, model: str, *, healthy: bool = False) -> bool:
        failed = {**course.busy, **course.failed, model: "failed"}
        return self.alternative(course.reading, failed, healthy=healthy) is not None

    def pause_before_retry(
        self, course: Course, model: str, error: ProviderError, tries: int, timeout_s: float, *, alone: bool = False
    ) -> float | None:
        """Seconds until the same call is made again, None if it is not.

        Exponential back-off with full jitter (Brooker, "Exponential Backoff And Jitter", AWS 2015). A timeout has
        taken its time already, and nobody waits long for a provider that asks for it, while another model is left.

        :param tries: of this model so far. :param alone: whether no other model may take its place.
        """
        if not error.transient or tries > self.router.pool.fallback.max_retries:
            return None
        patient = error.retry_after_s or 0.0
        if not alone:
            if model in self.health.exclusions().hard and self._other(course, model, healthy=True):
                return None  # this very failure has opened its breaker
            slow = isinstance(error, ProviderTimeoutError) or patient > LONGEST_WAIT_S
            if slow and self._other(course, model):
                return None
        if patient > timeout_s:
            return None
        return max(patient, self.rng.uniform(0.0, min(LONGEST_BACKOFF_S, BACKOFF_S * 2.0 ** (tries - 1))))

    def next_stage(self, course: Course, stage: int) -> int | None:
        """The stage to go on to now that the answer of this one was rejected; None if none is left.

        A model that answered already, as the fallback of an earlier stage, is passed over, unless the plan calls it a
        second time. So is what the budget does not afford any more.
        """
        plan = course.decision.plan
        for following in range(stage + 1, len(plan)):
            model = plan[following]
            answered = course.failed.get(model) == REJECTED
            if (not answered or model in plan[:following]) and self.affords(course, model):
                if answered:
                    del course.failed[model]
                return following
        return None

    def affords(self, course: Course, model: str) -> bool:
        """Whether the request's own budget, less what was spent on it so far, allows one more stage of the plan."""
        budget = self.router.budget(course.reading)
        spent = sum(attempt.total_cost_usd for attempt in course.attempts)
        return budget is None or spent + self.expected_cost(course.reading, model) <= budget

    def book(
        self, course: Course, attempt: Attempt, reservation: Reservation | None, headers: Mapping[str, str]
    ) -> None:
        """Take an attempt that has ended into the course, the health record, the ledger and the session.

        :param headers: of the provider's response, names in lower case.
        """
        model, request = attempt.model, course.reading.request
        if reservation is not None:
            if attempt.error is None or attempt.cost_usd:
                self.ledger.settle(reservation, attempt.cost_usd)
            else:
                self.ledger.release(reservation)
        if attempt.error is not None:
            self.health.failed(model, attempt.error, attempt.latency_s, headers)
        elif attempt.cache_hit:
            self.health.released(model)  # nobody was called, so nothing is known of the model's health
        else:
            self.health.succeeded(model, attempt.latency_s, headers)
            if request.session_id is not None:
                self.sessions.remember(request.session_id, model, self.specs[model].call_name, attempt.usage)
        course.attempts.append(attempt)

    def spend(self, tags: Sequence[str], usd: float) -> None:
        """Book what a check or a compression has cost."""
        with contextlib.suppress(BudgetExceededError):  # a cap that is full already is not made fuller
            self.ledger.settle(self.ledger.reserve(tags, 0.0), usd)

    def baseline_cost(self, model: str, usage: Usage) -> float:
        """What the escalation model would have cost, by the tokens that ``model`` really used."""
        used, other = self.specs[model], self.specs[self.router.pool.escalation_model]
        read = other.token_factor / used.token_factor
        written = other.output_factor / used.output_factor
        tokens = (usage.input_tokens * read, usage.output_tokens * written, usage.cached_tokens * read)
        return cost_of(other, Usage(*map(round, tokens)))

    def estimated_usage(self, reading: Reading, model: str, text: str) -> Usage:
        """Tokens of an answer of which the provider does not tell them: an answer is not free for that."""
        read = reading.trace.input_tokens * self.specs[model].token_factor
        return Usage(round(read), -(-len(text.encode("utf-8", "replace")) // BYTES_PER_TOKEN))

    def record(
        self, reading: Reading, decision: RouteDecision, attempts: Sequence[Attempt], source: str,
        baseline_cost_usd: float | None = None,
    ) -> Receipt | None:  # fmt: skip
        """Hand a decision and its attempts to the outcome log.

        :return: a receipt that says when they are safe; None without a log.
        """
        if self.log is None:
            return None
        from router_ml.outcomes import Entry

        if self._encoder is None:
            self._encoder = self.router.encoder.fingerprint
        entry = Entry(
            decision=decision, request=reading.request, features=reading.features, embedding=reading.embedding,
            attempts=tuple(attempts), policy=self.policy, encoder=self._encoder,
            input_tokens=reading.trace.input_tokens, baseline_cost_usd=baseline_cost_usd, source=source,
        )  # fmt: skip
        try:
            return self.log.record(entry)
        except OutcomeLogError as exc:  # closed: the answer is paid for, and is worth more than its record
            logger.error("decision %s is not in the outcome log: %s", decision.decision_id, exc)
            return None


def _window(spec: ModelSpec) -> float:
    return spec.max_input_tokens or float("inf")


def _key(spec: ModelSpec) -> tuple[str, str | None, str | None]:
    return spec.call_name.partition("/")[0], spec.api_base, spec.api_key_env


def rule_verifiers(pool: ModelPool) -> dict[tuple[str, str | None], object]:
    """Verifiers that the pool's rules ask for, by section and name.

    :raises PoolError: if one cannot be made; the message names the rule.
    """
    from router_ml.verifiers import verifier_of

    found: dict[tuple[str, str | None], object] = {}
    for section in ("tasks", "segments"):
        for name, rule in getattr(pool, section).items():
            if rule.verifier:
                try:
                    found[section, name] = verifier_of(rule.verifier, trusted=True)
                except VerifierError as exc:
                    raise PoolError(f"{section}.{name}.verifier: {exc}") from exc
    return found
