"""What ``Health`` knows of one model. Not thread-safe; ``Health`` holds the lock and the clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

from router_ml.breaker import BreakerState, RateBreaker
from router_ml.pool import Breaker, ModelSpec
from router_ml.rate_limits import Headroom

LATENCIES = 200  # recent answers that the percentiles are of
FEWEST_LATENCIES = 20
FRESH = 8  # answers after which percentiles are made anew
PROBE_S = 30.0  # after which the claim of a probe expires: the time-out of a call, whose caller may have died
MOST_LIMITS = 16  # a server that invents a name for each response must not fill the memory


class ModelHealth(NamedTuple):
    """One model, for metrics.

    :param error_rate: of the ``n`` calls in the window, in [0, 1]. :param headroom: least share of a rate limit that
        is left, None if unknown. :param p50: seconds; None below 20 answers. :param share: of all recent calls.
    """

    state: BreakerState
    error_rate: float
    n: int
    headroom: float | None
    p50: float | None
    p95: float | None
    share: float


def bounded(known: Mapping[str, Headroom], told: Mapping[str, Headroom]) -> dict[str, Headroom]:
    """What is known of limits, once these are told; at most ``MOST_LIMITS`` of them."""
    both = {**known, **told}
    return both if len(both) <= MOST_LIMITS else dict(list(told.items())[:MOST_LIMITS])


class ModelRecord:
    """What is known of one model."""

    __slots__ = (
        "_fresh", "_latencies", "breaker", "limited_until", "limits", "max_share", "name", "probe_until", "probes",
    )  # fmt: skip

    def __init__(self, spec: ModelSpec, rule: Breaker) -> None:
        self.name, self.max_share = spec.name, spec.max_share
        self.breaker = RateBreaker(rule)
        self.probes, self.probe_until = False, 0.0  # whether this process probes; nobody else may until then
        self.limits: dict[str, Headroom] = {}
        self.limited_until = 0.0
        self._latencies: deque[float] = deque(maxlen=LATENCIES)
        self._fresh = 0

    def may_probe(self, now: float) -> bool:
        # a claim for longer than there are claims means that the clock was set back
        claimed = 0.0 < self.probe_until - now <= PROBE_S
        return not claimed and self.breaker.state(now) is BreakerState.HALF_OPEN

    def turn(self, at: float, opened_at: float | None, why: str) -> None:
        self.breaker.turn(at, opened_at, why)
        self.probe_until = 0.0

    def turned(self) -> list[Any]:
        return [self.breaker.turned_at, self.breaker.opened_at, self.breaker.why]

    def note(self, limits: Mapping[str, Headroom]) -> None:
        self.limits = bounded(self.limits, limits)

    def headroom(self, now: float) -> float | None:
        """Least share of a limit that is left, None if unknown."""
        return min((limit.share for limit in self.limits.values() if limit.until > now), default=None)

    def timed(self, latency_s: float) -> bool:
        """Keep a latency. :return: whether the percentiles are due."""
        if latency_s >= 0.0:
            self._latencies.append(latency_s)
            self._fresh += 1
        return self._fresh >= FRESH and len(self._latencies) >= FEWEST_LATENCIES

    def percentiles(self) -> tuple[float, float]:
        self._fresh = 0
        ordered = sorted(self._latencies)
        last = len(ordered) - 1
        return ordered[round(0.50 * last)], ordered[round(0.95 * last)]

    def health(self, now: float, admitted: int, latency: tuple[float, float] | None) -> ModelHealth:
        window = self.breaker.window
        p50, p95 = latency or (None, None)
        rate = window.errors / window.calls if window.calls else 0.0
        share = window.admitted / admitted if admitted else 0.0
        return ModelHealth(self.breaker.state(now), rate, window.calls, self.headroom(now), p50, p95, share)
