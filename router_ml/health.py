"""Which models can be called now: error-rate breaker, rate-limit headroom, share of calls, latency.

A decision only asks (``exclusions``, ``measured_latency``); whoever makes the calls asks ``admit`` before each one and
tells afterwards how it went. With a ``SharedState`` all processes count together and know of each other's breakers and
limits; latency is each process's own.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from router_ml.breaker import BUCKETS, BreakerState
from router_ml.errors import PoolError, ProviderError, RateLimitedError
from router_ml.forks import survive_forks
from router_ml.model_record import PROBE_S, ModelHealth, ModelRecord, bounded
from router_ml.pool import ModelPool
from router_ml.rate_limits import UNTIL_TOLD_S, Headroom, read_headroom, retry_after_s
from router_ml.shared_state import SharedState, Stream

__all__ = ["BreakerState", "Exclusions", "Health", "ModelHealth", "retry_after_s"]

logger = logging.getLogger(__name__)

ASK_AGAIN_S = 1.0  # while another process probes
SPREAD_S = 1.0  # a failed probe's claim is kept so long: the others learn of the failure before they may probe too


class Exclusions(NamedTuple):
    """Models not to call now, each with a sentence that says why.

    :param hard: the breaker is open. :param soft: the model is better spared, while another can take the request.
    """

    hard: Mapping[str, str]
    soft: Mapping[str, str]


NONE_EXCLUDED = Exclusions({}, {})


class Health:
    """The health of a pool's models. Thread-safe.

    :param clock: seconds since 1970. :param state: what several processes share; None: this process stands alone.
    """

    def __init__(
        self, pool: ModelPool, *, clock: Callable[[], float] = time.time, state: SharedState | None = None
    ) -> None:
        self._rule, self._headroom_min = pool.breaker, pool.headroom_min
        self._clock, self._state = clock, state
        self._lock = threading.Lock()
        self._models = {spec.name: ModelRecord(spec, pool.breaker) for spec in pool.models}
        self._shares = any(spec.max_share < 1.0 for spec in pool.models)
        # the models that an exclusion is possible for; while it is empty, a decision pays for one look at it
        self._suspects = {spec.name for spec in pool.models if spec.max_share < 1.0}
        self._latency: dict[str, tuple[float, float]] = {}  # replaced, never changed: readers take no lock
        self._news = _News()
        survive_forks(self)
        if state is not None:
            lookback_s = pool.breaker.window_s + 2 * pool.breaker.half_open_after_s + UNTIL_TOLD_S
            self._stream = Stream(state.key("health"), lookback_s)
            state.join(self)

    def exclusions(self) -> Exclusions:
        """Which models not to call now."""
        if self._state is not None and not self._state.attended:
            self._state.attend()
        if not self._suspects:
            return NONE_EXCLUDED
        hard: dict[str, str] = {}
        soft: dict[str, str] = {}
        with self._lock:
            now = self._clock()
            admitted = self._admitted(now) if self._shares else 0
            for name, model in self._models.items():
                if name not in self._suspects:
                    continue
                if model.breaker.opened_at is not None:
                    if not model.may_probe(now):
                        hard[name] = model.breaker.why
                elif why := self._spared(model, now, admitted):
                    soft[name] = why
                elif model.max_share >= 1.0:
                    self._suspects.discard(name)
        return Exclusions(hard, soft) if hard or soft else NONE_EXCLUDED

    def admit(self, name: str) -> bool:
        """Whether the model may be called now. Ask right before each call, and tell how it went.

        A half-open breaker admits one call at a time, whose result decides; its claim expires after 30 s.

        :raises PoolError: if the pool has no such model.
        """
        model = self._model(name)
        if self._state is not None and not self._state.attended:
            self._state.attend()
        with self._lock:
            now = self._clock()
            if model.breaker.opened_at is None:
                self._count(model, now, admitted=1)
                return True
            if not model.may_probe(now):
                return False
            model.probe_until = now + PROBE_S
        # asks the network, hence outside the lock: rare, and the one thing here that two processes must not both do
        mine = self._state is None or self._state.claim(f"probe:{name}", PROBE_S)
        with self._lock:
            if not mine:
                model.probe_until = now + ASK_AGAIN_S
                return False
            model.probes = True
            self._count(model, now, admitted=1)
        return True

    def succeeded(self, name: str, latency_s: float, headers: Mapping[str, str] | None = None) -> None:
        """The model answered.

        :param latency_s: seconds until the whole answer was there. :param headers: of the response.
        :raises PoolError: if the pool has no such model.
        """
        model, now = self._model(name), self._clock()
        limits = read_headroom(headers, now) if headers else {}
        with self._lock:
            self._limited(model, now, limits, told=True)
            if model.timed(latency_s):
                self._latency = {**self._latency, name: model.percentiles()}
            self._outcome(model, now, latency_s, failed=False)

    def failed(
        self, name: str, error: ProviderError, latency_s: float, headers: Mapping[str, str] | None = None
    ) -> None:
        """The call failed. An error that is not the model's fault counts neither way.

        :raises PoolError: if the pool has no such model.
        """
        model, now = self._model(name), self._clock()
        limits = read_headroom(headers, now) if headers else {}
        with self._lock:
            self._limited(model, now, limits, told=True)
            if isinstance(error, RateLimitedError) and error.retry_after_s is not None:
                self._wait_until(model, now + error.retry_after_s)
                self._news.waits[name] = model.limited_until
            if error.is_fault:
                self._outcome(model, now, latency_s, failed=True)
            else:
                self._free_probe(model)

    def released(self, name: str) -> None:
        """An admitted call was not made, or nothing is known of it: another may probe.

        :raises PoolError: if the pool has no such model.
        """
        model = self._model(name)
        with self._lock:
            self._free_probe(model)

    def latency(self, name: str) -> tuple[float, float] | None:
        """Median and 95th percentile in seconds over the last 200 answers, None below 20; at most 8 answers old."""
        return self._latency.get(name)

    def measured_latency(self) -> Mapping[str, tuple[float, float]]:
        """``latency`` of every model that has one."""
        return self._latency

    def status(self) -> dict[str, ModelHealth]:
        """Every model, in pool order."""
        with self._lock:
            now = self._clock()
            admitted = self._admitted(now)
            return {name: model.health(now, admitted, self._latency.get(name)) for name, model in self._models.items()}

    def exchange(self, redis: Any) -> None:
        """For ``SharedState``: tell the other processes what happened here, and learn what happened there."""
        self._stream.exchange(redis, self._collect, self._apply)

    def after_fork(self) -> None:
        """For ``SharedState``: the parent tells what it saw; the child begins with what both know."""
        self._lock = threading.Lock()
        self._news = _News()
        for model in self._models.values():
            model.probes = False
        if self._state is not None:
            self._stream.after_fork()

    def _model(self, name: str) -> ModelRecord:
        try:
            return self._models[name]
        except KeyError:
            raise PoolError(f"model {name!r} is not in the pool; expected one of {list(self._models)}") from None

    # What follows is called with the lock held, but for the two at the end.

    def _spared(self, model: ModelRecord, now: float, admitted: int) -> str | None:
        """Why another model is to be preferred, or None. :param admitted: recent calls of all models."""
        if now < model.limited_until:
            return f"its rate limit is reached, it asks to wait {model.limited_until - now:.3g} s"
        left = model.headroom(now)
        if left is not None and left < self._headroom_min:
            return f"{left:.0%} of its rate limit is left, {self._headroom_min:.0%} is kept free"
        # a share of fewer calls than a breaker needs says nothing: the first call would be 100 %
        if model.max_share < 1.0 and admitted >= self._rule.min_requests:
            share = model.breaker.window.admitted / admitted
            if share >= model.max_share:
                return f"it got {share:.0%} of recent calls, its max_share is {model.max_share:.0%}"
        return None

    def _admitted(self, now: float) -> int:
        """Recent calls of all models. A call counts from its admission on: a slow one would be seen too late."""
        total = 0
        for model in self._models.values():
            model.breaker.window.expire(now)
            total += model.breaker.window.admitted
        return total

    def _count(self, model: ModelRecord, now: float, admitted: int = 0, calls: int = 0, errors: int = 0) -> None:
        window = model.breaker.window
        window.add(now, admitted, calls, errors)
        if self._state is not None:
            self._news.count(model.name, window.start(now), admitted, calls, errors)

    def _outcome(self, model: ModelRecord, now: float, latency_s: float, *, failed: bool) -> None:
        breaker = model.breaker
        if breaker.opened_at is None:
            self._count(model, now, calls=1, errors=int(failed))
            breaker.remember(failed)
            self._judge(model, now)
        # a call that began before the breaker opened is no probe
        elif breaker.state(now) is BreakerState.HALF_OPEN and now - latency_s >= breaker.opened_at:
            if failed:
                self._turn(model, now, now, "its breaker is open again: its probe failed")
            else:
                self._turn(model, now, None, "its breaker is closed: its probe succeeded")
            self._free_probe(model, after_s=SPREAD_S if failed else 0.0)

    def _judge(self, model: ModelRecord, now: float) -> None:
        why = model.breaker.verdict()
        if why is not None:
            self._turn(model, now, now, f"its breaker is open: {why}")

    def _turn(self, model: ModelRecord, now: float, opened_at: float | None, why: str) -> None:
        """Open or close a breaker, and have the other processes told at once."""
        model.turn(now, opened_at, why)
        if opened_at is not None:
            self._suspects.add(model.name)
        logger.log(logging.INFO if opened_at is None else logging.WARNING, "%s: %s", model.name, why)
        if self._state is not None:
            self._news.turned.add(model.name)
            self._state.nudge()

    def _free_probe(self, model: ModelRecord, after_s: float = 0.0) -> None:
        if model.probes:
            model.probes, model.probe_until = False, 0.0
            if self._state is not None:
                self._state.free(f"probe:{model.name}", after_s)

    def _limited(self, model: ModelRecord, now: float, limits: Mapping[str, Headroom], *, told: bool = False) -> None:
        """Take note of limits. :param told: by the provider to this process, so the others are told as well."""
        if not limits:
            return
        model.note(limits)
        if told and self._state is not None:
            self._news.limits[model.name] = bounded(self._news.limits.get(model.name, {}), limits)
        left = model.headroom(now)
        if left is not None and left < self._headroom_min:
            self._suspects.add(model.name)

    def _wait_until(self, model: ModelRecord, moment: float) -> None:
        model.limited_until = max(model.limited_until, moment)
        self._suspects.add(model.name)

    def _learn(self, model: ModelRecord, now: float, start: float, admitted: int, calls: int, errors: int) -> None:
        breaker, window = model.breaker, model.breaker.window
        if now - start >= self._rule.window_s or start + window.width <= breaker.turned_at:
            return  # too old, or from before the window was forgotten
        window.expire(now)
        window.add(min(start + window.width / 2, now), admitted, calls, errors)
        if breaker.opened_at is None and calls > 0:
            breaker.remember_all(calls, errors)
            self._judge(model, now)

    def _collect(self) -> dict[str, Any] | None:
        """What the other processes have to be told."""
        with self._lock:
            news, self._news = self._news, _News()
            turned = {name: self._models[name].turned() for name in news.turned}
        message = {"turned": turned, "limits": news.limits, "waits": news.waits, "calls": list(news.calls.items())}
        return message if any(message.values()) else None

    def _apply(self, message: Any) -> None:
        """Learn what another process saw. May raise KeyError, TypeError or ValueError on what it cannot read."""
        models = self._models  # another process may have another pool
        with self._lock:
            now = self._clock()
            for name, (at, opened_at, why) in message["turned"].items():
                if name in models and at > models[name].breaker.turned_at:
                    # its clock may be ahead of ours
                    models[name].turn(min(at, now), None if opened_at is None else min(opened_at, now), str(why))
                    self._suspects.add(name)
            for name, limits in message["limits"].items():
                if name in models:
                    self._limited(models[name], now, {key: Headroom(*map(float, one)) for key, one in limits.items()})
            for name, until in message["waits"].items():
                if name in models:
                    self._wait_until(models[name], float(until))
            for start, counts in message["calls"]:
                for name, (admitted, calls, errors) in counts.items():
                    if name in models:
                        self._learn(models[name], now, float(start), int(admitted), int(calls), int(errors))


class _News:
    """What other processes have not been told yet. Bounded, however long nobody can be told."""

    __slots__ = ("calls", "limits", "turned", "waits")

    def __init__(self) -> None:
        self.calls: dict[float, dict[str, list[int]]] = {}  # start of bucket -> model -> admitted, calls, errors
        self.turned: set[str] = set()
        self.limits: dict[str, dict[str, Headroom]] = {}
        self.waits: dict[str, float] = {}

    def count(self, name: str, start: float, admitted: int, calls: int, errors: int) -> None:
        if (models := self.calls.get(start)) is None:
            models = self.calls[start] = {}
            if len(self.calls) > BUCKETS:
                del self.calls[next(iter(self.calls))]
        if (counts := models.get(name)) is None:
            counts = models[name] = [0, 0, 0]
        counts[0] += admitted
        counts[1] += calls
        counts[2] += errors
