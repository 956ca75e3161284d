"""Health: when a breaker opens and closes, what makes a model unwelcome, and that it costs a decision next to nothing.

The simulations run on an injected clock, so that five minutes pass in a moment.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_ml.breaker import BUCKETS, Window
from router_ml.errors import (
    ContentRefusedError,
    PoolError,
    ProviderError,
    ProviderTimeoutError,
    ProviderUnavailableError,
    RateLimitedError,
)
from router_ml.health import BreakerState, Health, ModelHealth
from router_ml.pool import Breaker, ModelPool, ModelSpec

DOWN = ProviderUnavailableError("503", status=503)


class Clock:
    """Time that passes only when told to."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def tick(self, seconds: float) -> None:
        self.now += seconds


def pool(*max_shares: float, **breaker: float) -> ModelPool:
    """Models a, b, ...: two without limits, unless shares are given."""
    specs = tuple(
        ModelSpec(name, max_share=share) for name, share in zip("abcdef", max_shares or (1.0, 1.0), strict=False)
    )
    return ModelPool(specs, specs[-1].name, breaker=Breaker(**breaker))  # type: ignore[arg-type]


def call(health: Health, name: str, error: ProviderError | None = None, latency_s: float = 0.2) -> bool:
    """One call, if it is admitted."""
    if not health.admit(name):
        return False
    if error is None:
        health.succeeded(name, latency_s)
    else:
        health.failed(name, error, latency_s)
    return True


def opened(clock: Clock, health: Health | None = None) -> Health:
    """A pool whose model a is taken out."""
    health = health or Health(pool(), clock=clock)
    for _ in range(20):
        call(health, "a", DOWN)
    assert state(health) is BreakerState.OPEN
    return health


def state(health: Health, name: str = "a") -> BreakerState:
    return health.status()[name].state


# --- the breaker -----------------------------------------------------------------------------------------------------


def test_nothing_is_excluded_while_all_is_well() -> None:
    health = Health(pool(), clock=Clock())
    for _ in range(100):
        assert call(health, "a") and call(health, "b")
    assert health.exclusions() == ({}, {})
    assert health.status()["a"] == ModelHealth(BreakerState.CLOSED, 0.0, 100, None, 0.2, 0.2, 0.5)


def test_a_breaker_waits_for_its_minimum_of_calls() -> None:
    health = Health(pool(), clock=Clock())
    for _ in range(19):
        call(health, "a", DOWN)
    assert health.exclusions() == ({}, {})
    call(health, "a", DOWN)
    hard, soft = health.exclusions()
    assert hard == {"a": "its breaker is open: 20 of 20 calls within 60 s failed"} and soft == {}
    assert not health.admit("a") and health.admit("b")


@pytest.mark.parametrize(("errors", "opens"), [(2, False), (3, True)])
def test_a_breaker_opens_at_its_error_rate(errors: int, opens: bool) -> None:
    health = Health(pool(), clock=Clock())
    for i in range(20):
        call(health, "a", DOWN if i < errors else None)
    assert (state(health) is BreakerState.OPEN) is opens


def test_failures_older_than_the_window_are_forgotten() -> None:
    clock = Clock()
    health = Health(pool(), clock=clock)
    for i in range(15):
        call(health, "a", DOWN if i < 5 else None)
    clock.tick(61)
    for i in range(20):
        call(health, "a", DOWN if i < 2 else None)
    assert state(health) is BreakerState.CLOSED, "7 of 35 would be too many, 2 of 20 are not"
    assert health.status()["a"].n == 20


def test_half_of_the_last_calls_failing_opens_whatever_the_window_holds() -> None:
    health = Health(pool(), clock=Clock())
    for _ in range(1_000):
        call(health, "a")
    for i in range(10):
        assert state(health) is BreakerState.CLOSED, i
        call(health, "a", DOWN)
    assert health.exclusions().hard == {"a": "its breaker is open: 10 of its last 20 calls failed"}


def test_an_error_that_is_not_the_models_fault_counts_neither_way() -> None:
    health = Health(pool(), clock=Clock())
    for _ in range(100):
        call(health, "a", ContentRefusedError("no"))
    assert state(health) is BreakerState.CLOSED and health.status()["a"].n == 0


def test_a_half_open_breaker_admits_one_probe_at_a_time() -> None:
    clock = Clock()
    health = opened(clock)
    clock.tick(29.9)
    assert health.exclusions().hard and not health.admit("a")
    clock.tick(0.2)
    assert state(health) is BreakerState.HALF_OPEN and health.exclusions().hard == {}
    assert health.admit("a") and not health.admit("a")
    assert health.exclusions().hard, "while the probe is under way the others go elsewhere"


def test_a_probes_success_closes_the_breaker_and_forgets_the_window() -> None:
    clock = Clock()
    health = opened(clock)
    clock.tick(30)
    assert call(health, "a")
    assert state(health) is BreakerState.CLOSED and health.exclusions() == ({}, {})
    for _ in range(19):  # the failures of before must not count
        call(health, "a", DOWN)
    assert state(health) is BreakerState.CLOSED


def test_a_probes_failure_opens_the_breaker_again() -> None:
    clock = Clock()
    health = opened(clock)
    clock.tick(30)
    assert call(health, "a", DOWN)
    assert health.exclusions().hard == {"a": "its breaker is open again: its probe failed"}
    clock.tick(29)
    assert not health.admit("a")
    clock.tick(1)
    assert health.admit("a")


@pytest.mark.parametrize(
    "give_back",
    [
        lambda health: health.released("a"),
        lambda health: health.failed("a", ContentRefusedError("no"), 0.1),
    ],
    ids=["released", "not its fault"],
)
def test_a_probe_that_says_nothing_leaves_room_for_the_next(give_back: Callable[[Health], None]) -> None:
    clock = Clock()
    health = opened(clock)
    clock.tick(30)
    assert health.admit("a")
    give_back(health)
    assert state(health) is BreakerState.HALF_OPEN
    assert health.admit("a")


def test_a_probe_whose_caller_died_blocks_for_half_a_minute_only() -> None:
    clock = Clock()
    health = opened(clock)
    clock.tick(30)
    assert health.admit("a")
    clock.tick(29)
    assert not health.admit("a")
    clock.tick(1)
    assert health.admit("a")


@pytest.mark.parametrize("error", [None, DOWN], ids=["success", "failure"])
def test_a_call_from_before_the_breaker_opened_is_no_probe(error: ProviderError | None) -> None:
    clock = Clock()
    health = opened(clock)
    clock.tick(31)
    if error is None:
        health.succeeded("a", 40.0)
    else:
        health.failed("a", error, 40.0)
    assert state(health) is BreakerState.HALF_OPEN
    assert health.admit("a"), "it must not open the breaker again either"


def test_calls_that_end_while_it_is_open_change_nothing() -> None:
    clock = Clock()
    health = opened(clock)
    health.succeeded("a", 0.1)
    assert state(health) is BreakerState.OPEN
    clock.tick(20)
    health.failed("a", DOWN, 0.1)
    clock.tick(10)
    assert state(health) is BreakerState.HALF_OPEN


def test_a_clock_set_back_neither_keeps_it_open_nor_keeps_old_counts() -> None:
    clock = Clock()
    health = opened(clock)
    clock.tick(-3_600)
    assert health.admit("a")
    clock.tick(-3_600)
    assert health.admit("a"), "nor a probe's claim"
    health = Health(pool(), clock=clock)
    for _ in range(19):
        call(health, "b", DOWN)
    clock.tick(-3_600)
    call(health, "b")
    assert health.status()["b"].n == 1


def test_an_unknown_model_is_refused_by_name() -> None:
    health = Health(pool(), clock=Clock())
    with pytest.raises(PoolError, match=r"'x' is not in the pool; expected one of \['a', 'b'\]"):
        health.admit("x")


def test_opening_and_closing_is_logged_once_each(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    with caplog.at_level(logging.INFO):
        health = opened(clock)
        clock.tick(30)
        call(health, "a")
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


def test_a_model_that_goes_down_is_left_alone_and_taken_back() -> None:
    """1,000 healthy calls at 50 a second, then five minutes of failures, then health again."""
    clock = Clock()
    health = Health(pool(), clock=clock)
    for _ in range(1_000):
        assert call(health, "a")
        clock.tick(0.02)
    until_open = 0
    while state(health) is BreakerState.CLOSED:
        call(health, "a", DOWN)
        until_open += 1
        clock.tick(0.02)
    assert until_open <= 25
    requests = touched = 0
    for _ in range(300 * 50):
        requests += 1
        if "a" not in health.exclusions().hard and call(health, "a", DOWN):
            touched += 1
        clock.tick(0.02)
    assert touched / requests <= 0.02
    assert touched <= 10, "one probe in half a minute"
    back_after = 0.0
    while state(health) is not BreakerState.CLOSED:
        if "a" not in health.exclusions().hard:
            call(health, "a")
        clock.tick(0.02)
        back_after += 0.02
    assert back_after <= 30.1


def openings(error_rate: float, calls_per_s: float, seconds: float, seed: int) -> int:
    """How often a model that fails at random is taken out."""
    rng, clock = random.Random(seed), Clock()
    health = Health(pool(), clock=clock)
    turned = 0
    for _ in range(int(seconds * calls_per_s)):
        if call(health, "a", DOWN if rng.random() < error_rate else None):
            turned += bool(health.exclusions().hard)
        clock.tick(1 / calls_per_s)
    return turned


def test_five_percent_of_random_errors_rarely_open_a_breaker() -> None:
    """Measured over 1,000 runs: .08 openings, all while a fresh window holds few calls.

    3 errors among the first 20 calls, which are the 15 % of the default, have probability .075 at 5 %.
    """
    runs = 200
    measured = sum(openings(0.05, 50, 20, seed) for seed in range(runs)) / runs
    assert measured <= 0.15
    assert sum(openings(0.05, 50, 300, seed) for seed in range(3)) <= 2, "a full window does not open at all"


def test_counts_take_no_more_memory_with_more_traffic() -> None:
    window = Window(60.0)
    for i in range(20_000):
        window.add(1_000 + i * 0.05, 1, 1, 0)
    assert len(window._buckets) <= BUCKETS
    assert window.calls == pytest.approx(1_200, abs=61)


@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.5, 3.0, 61.0, -200.0]), st.booleans()), max_size=60),
)
def test_a_window_always_equals_the_sum_of_its_buckets(events: list[tuple[float, bool]]) -> None:
    window, now = Window(60.0), 1e9
    for step, failed in events:
        now += step
        window.add(now, 1, 1, failed)
        assert window.calls == sum(bucket[2] for bucket in window._buckets) > 0
        assert window.errors == sum(bucket[3] for bucket in window._buckets)
        assert [bucket[0] for bucket in window._buckets] == sorted({bucket[0] for bucket in window._buckets})


# --- rate limits -----------------------------------------------------------------------------------------------------


def limited(remaining: int, reset: str = "10s") -> dict[str, str]:
    return {
        "x-ratelimit-limit-requests": "100", "x-ratelimit-remaining-requests": str(remaining),
        "x-ratelimit-reset-requests": reset,
    }  # fmt: skip


def test_a_model_with_little_headroom_is_spared_until_the_reset() -> None:
    clock = Clock()
    health = Health(pool(), clock=clock)
    health.succeeded("a", 0.1, limited(20))
    assert health.exclusions() == ({}, {}) and health.status()["a"].headroom == 0.2
    health.succeeded("a", 0.1, limited(19))
    assert health.exclusions() == ({}, {"a": "19% of its rate limit is left, 20% is kept free"})
    assert health.admit("a"), "it may still be called where nothing else is likely enough"
    clock.tick(10.1)
    assert health.exclusions() == ({}, {}) and health.status()["a"].headroom is None


def test_headroom_is_that_of_the_scarcest_dimension() -> None:
    health = Health(pool(), clock=Clock())
    tokens = {"x-ratelimit-limit-tokens": "1000", "x-ratelimit-remaining-tokens": "50"}
    health.succeeded("a", 0.1, limited(90) | tokens)
    assert health.status()["a"].headroom == 0.05
    health.succeeded("a", 0.1, limited(80))
    assert health.status()["a"].headroom == 0.05, "the other dimension is not renewed yet"


def test_headers_of_a_failed_call_count_too() -> None:
    health = Health(pool(), clock=Clock())
    health.failed("a", RateLimitedError("429"), 0.1, limited(0))
    assert list(health.exclusions().soft) == ["a"]


def test_a_model_that_asks_to_wait_is_spared_until_then() -> None:
    clock = Clock()
    health = Health(pool(), clock=clock)
    health.failed("a", RateLimitedError("429", retry_after_s=7.0), 0.1)
    health.failed("a", RateLimitedError("429", retry_after_s=2.0), 0.1)
    assert health.exclusions().soft == {"a": "its rate limit is reached, it asks to wait 7 s"}
    clock.tick(7.1)
    assert health.exclusions() == ({}, {})


def test_a_timeout_with_a_wait_does_not_spare_the_model() -> None:
    health = Health(pool(), clock=Clock())
    health.failed("a", ProviderTimeoutError("slow", retry_after_s=7.0), 0.1)
    assert health.exclusions() == ({}, {})


def test_dimensions_without_end_do_not_fill_the_memory() -> None:
    health = Health(pool(), clock=Clock())
    for i in range(1_000):
        health.succeeded("a", 0.1, {f"x-ratelimit-limit-{i}": "10", f"x-ratelimit-remaining-{i}": "10"})
    assert len(health._models["a"].limits) <= 17


@given(st.dictionaries(st.sampled_from([*limited(1), "retry-after"]), st.text(max_size=20)))
def test_noise_in_headers_never_raises(headers: dict[str, str]) -> None:
    health = Health(pool(), clock=Clock())
    health.succeeded("a", 0.1, headers)
    health.failed("a", DOWN, 0.1, headers)
    assert health.exclusions().hard == {}


# --- share -----------------------------------------------------------------------------------------------------------


def test_a_model_at_its_share_is_spared() -> None:
    clock = Clock()
    health = Health(pool(0.5, 1.0), clock=clock)
    for _ in range(19):
        call(health, "a")
    assert health.exclusions() == ({}, {}), "a share of a few calls says nothing"
    call(health, "a")
    assert health.exclusions().soft == {"a": "it got 100% of recent calls, its max_share is 50%"}
    for _ in range(21):
        call(health, "b")
    assert health.exclusions() == ({}, {})
    assert health.status()["b"].share == pytest.approx(21 / 41)
    clock.tick(61)
    assert health.exclusions() == ({}, {}) and health.status()["a"].share == 0.0


def test_a_share_holds_while_calls_are_still_running() -> None:
    health = Health(pool(0.5, 1.0), clock=Clock())
    taken = {"a": 0, "b": 0}
    for _ in range(200):
        name = "b" if "a" in health.exclusions().soft else "a"
        taken[name] += health.admit(name)
    assert taken["a"] == pytest.approx(100, abs=11)


# --- latency ---------------------------------------------------------------------------------------------------------


def test_latency_is_known_from_twenty_answers_on() -> None:
    health = Health(pool(), clock=Clock())
    for i in range(19):
        health.succeeded("a", float(i))
    assert health.latency("a") is None and health.measured_latency() == {}
    health.succeeded("a", 19.0)
    assert health.latency("a") == (10.0, 18.0) and health.measured_latency() == {"a": (10.0, 18.0)}


def test_latency_forgets_and_skips_what_is_no_latency() -> None:
    health = Health(pool(), clock=Clock())
    for _ in range(1_000):
        health.succeeded("a", 9.0)
    for latency_s in (float("nan"), -1.0):
        health.succeeded("a", latency_s)
    for _ in range(200):
        health.succeeded("a", 1.0)
    for _ in range(50):
        health.failed("b", DOWN, 0.01)  # failing fast is not being fast
    assert health.latency("a") == (1.0, 1.0) and health.latency("b") is None


# --- threads ---------------------------------------------------------------------------------------------------------


def test_threads_lose_no_count() -> None:
    health = Health(pool(error_rate=1.0), clock=Clock())

    def work() -> None:
        for i in range(2_000):
            call(health, "a", DOWN if i % 5 == 0 else None)
            health.exclusions()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = health.status()["a"]
    assert found.n == 16_000 and found.error_rate == 0.2


def test_only_one_of_many_threads_gets_the_probe() -> None:
    clock = Clock()
    health = opened(clock)
    clock.tick(30)
    admitted: list[bool] = []
    start = threading.Barrier(8)

    def ask() -> None:
        start.wait()
        admitted.append(health.admit("a"))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(admitted) == [False] * 7 + [True]
