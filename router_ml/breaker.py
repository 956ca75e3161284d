"""The breaker of one model, on its error *rate*. Not thread-safe; ``Health`` holds the lock and the clock.

Counts lie in time buckets, so that memory does not grow with traffic.
"""

from __future__ import annotations

import enum
from collections import deque

from router_ml.pool import Breaker

BUCKETS = 20  # of the window: one bucket expires at a time


class BreakerState(enum.StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"  # one call at a time may try whether the model is back


class Window:
    """Counts over the last ``seconds``: of calls admitted, of calls answered or failed, of failures."""

    __slots__ = ("_buckets", "admitted", "calls", "errors", "width")

    def __init__(self, seconds: float) -> None:
        self.width = seconds / BUCKETS
        self._buckets: deque[list[int]] = deque()  # [number since 1970, admitted, calls, errors], oldest first
        self.forget()

    def forget(self) -> None:
        self.admitted = self.calls = self.errors = 0
        self._buckets.clear()

    def start(self, now: float) -> float:
        """When the bucket of this moment began."""
        return now // self.width * self.width

    def add(self, now: float, admitted: int, calls: int, errors: int) -> None:
        index = int(now // self.width)
        buckets = self._buckets
        if not buckets or index != buckets[-1][0]:
            self._advance(index)
        bucket = buckets[-1]
        if bucket[0] != index:  # late counts go into the bucket of their time, or into the one after it
            bucket = next(one for one in buckets if one[0] >= index)
        bucket[1] += admitted
        bucket[2] += calls
        bucket[3] += errors
        self.admitted += admitted
        self.calls += calls
        self.errors += errors

    def expire(self, now: float) -> None:
        """Forget what is older than the window."""
        self._advance(int(now // self.width))

    def _advance(self, index: int) -> None:
        buckets = self._buckets
        if buckets and index <= buckets[-1][0] - BUCKETS:
            self.forget()  # the clock was set back: these buckets would stay until it has caught up
        if not buckets or index > buckets[-1][0]:
            buckets.append([index, 0, 0, 0])
        while buckets[0][0] <= index - BUCKETS:
            _, admitted, calls, errors = buckets.popleft()
            self.admitted -= admitted
            self.calls -= calls
            self.errors -= errors


class RateBreaker:
    """Opens when too many recent calls failed; half-open some time later.

    It opens when, over the last ``window_s`` seconds, at least ``min_requests`` calls failed at ``error_rate`` or
    more; or when half of the last ``min_requests`` calls failed, since a model that dies after a busy, healthy minute
    would need hundreds of failures to bring that minute's rate up. A model that fails 15 % of its calls at random has
    10 failures among 20 with probability 2.5e-4, one that fails 5 % with 1.1e-8.

    ``why`` says why it opened; ``turned_at`` when it last opened or closed.
    """

    __slots__ = ("_recent", "_recent_errors", "_rule", "opened_at", "turned_at", "why", "window")

    def __init__(self, rule: Breaker) -> None:
        self._rule = rule
        self.window = Window(rule.window_s)
        self._recent: deque[bool] = deque(maxlen=rule.min_requests)  # whether each call failed
        self._recent_errors = 0
        self.opened_at: float | None = None  # None: closed
        self.why, self.turned_at = "", 0.0

    def state(self, now: float) -> BreakerState:
        if self.opened_at is None:
            return BreakerState.CLOSED
        # a time in the future means that the clock was set back; waiting for it could take for ever
        waiting = 0.0 <= now - self.opened_at < self._rule.half_open_after_s
        return BreakerState.OPEN if waiting else BreakerState.HALF_OPEN

    def turn(self, at: float, opened_at: float | None, why: str) -> None:
        """Open it, or close it and forget what it counted."""
        self.turned_at, self.opened_at, self.why = at, opened_at, why
        if opened_at is None:
            self.window.forget()
            self._recent.clear()
            self._recent_errors = 0

    def remember(self, failed: bool) -> None:
        """Put a call in order; the window counts it separately."""
        recent = self._recent
        if len(recent) == recent.maxlen:
            self._recent_errors -= recent[0]
        recent.append(failed)
        self._recent_errors += failed

    def remember_all(self, calls: int, errors: int) -> None:
        """Calls whose order is not known, those of another process: failures are spread evenly among them."""
        most = min(calls, self._rule.min_requests)
        errors = round(errors * most / calls) if calls else 0
        for i in range(most):
            self.remember((i + 1) * errors // most > i * errors // most)

    def verdict(self) -> str | None:
        """Why it has to open, or None."""
        rule, window = self._rule, self.window
        if window.calls >= rule.min_requests and window.errors / window.calls >= rule.error_rate:
            return f"{window.errors} of {window.calls} calls within {rule.window_s:g} s failed"
        if len(self._recent) == rule.min_requests and self._recent_errors * 2 >= rule.min_requests:
            return f"{self._recent_errors} of its last {rule.min_requests} calls failed"
        return None
