"""State shared through a real Redis: all processes soon know the same, no decision waits, an outage is survived."""

from __future__ import annotations

import builtins
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from redis_server import RedisServer, redis_server

from router_ml.errors import (
    ContentRefusedError,
    MissingExtraError,
    ProviderUnavailableError,
    RateLimitedError,
    RouterError,
)
from router_ml.health import BreakerState, Health
from router_ml.pool import ModelPool, ModelSpec
from router_ml.shared_state import SharedState, Stream

DOWN = ProviderUnavailableError("503", status=503)
BY_HAND = 3_600.0  # an interval so long that only sync() exchanges
NOW = 1_700_000_000.0
POOL = ModelPool((ModelSpec("a"), ModelSpec("b", max_share=0.5)), "b")


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def join(server: RedisServer, clock: Clock, request: pytest.FixtureRequest) -> Iterator[Callable[[], Member]]:
    """Makes members of one group, each like a process of its own."""
    members: list[Member] = []

    def make(interval_s: float = BY_HAND) -> Member:
        members.append(Member(server.url, clock, request.node.name, interval_s))
        return members[-1]

    yield make
    for one in members:
        one.state.close()


class Member:
    def __init__(self, url: str, clock: Clock, namespace: str, interval_s: float = BY_HAND) -> None:
        state = SharedState.of(url, interval_s=interval_s, namespace=namespace)
        assert state is not None
        self.state, self.health = state, Health(POOL, clock=clock, state=state)

    def call(self, name: str = "a", *, fails: bool = False, times: int = 1) -> None:
        for _ in range(times):
            assert self.health.admit(name)
            if fails:
                self.health.failed(name, DOWN, 0.1)
            else:
                self.health.succeeded(name, 0.1)

    def breaker(self) -> BreakerState:
        return self.health.status()["a"].state


def sync(*members: Member) -> None:
    """Everybody sends, then everybody has received."""
    for one in (*members, *members):
        assert one.state.sync()


def eventually(true: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


# --- health ----------------------------------------------------------------------------------------------------------


def test_all_see_the_calls_of_all(join: Callable[[], Member]) -> None:
    a, b, c = join(), join(), join()
    a.call(times=10)
    a.call("b", times=5)
    b.call(times=7)
    b.call(fails=True)
    sync(a, b, c)
    for one in (a, b, c):
        found = one.health.status()
        assert (found["a"].n, found["b"].n) == (18, 5)
        assert found["a"].error_rate == 1 / 18 and found["b"].share == 5 / 23
    sync(a, b, c)
    assert c.health.status()["a"].n == 18, "nothing is counted twice"


def test_failures_spread_over_processes_open_the_breaker(join: Callable[[], Member]) -> None:
    members = [join() for _ in range(4)]
    for one in members:
        one.call(fails=True, times=5)
        assert one.breaker() is BreakerState.CLOSED
    sync(*members)
    assert [one.breaker() for one in members] == [BreakerState.OPEN] * 4
    assert "a" in members[0].health.exclusions().hard


def test_a_breaker_opened_by_one_is_open_in_all_and_its_probe_is_one_and_closes_all(
    join: Callable[[], Member], clock: Clock
) -> None:
    a, b, late = join(), join(), join()
    a.call(times=1_000)
    a.call(fails=True, times=10)
    sync(a, b)
    assert b.breaker() is BreakerState.OPEN and b.health.exclusions().hard == a.health.exclusions().hard
    clock.now += 30
    sync(late)
    assert [one.health.admit("a") for one in (a, b, late)] == [True, False, False]
    assert "a" in b.health.exclusions().hard, "it leaves the model alone while another probes"
    a.health.succeeded("a", 0.1)
    sync(a, b, late)
    for one in (a, b, late):
        assert one.breaker() is BreakerState.CLOSED and one.health.status()["a"].n == 0
        assert one.health.admit("a")


def test_a_failed_probe_opens_all_again(
    join: Callable[[], Member], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router_ml.health.SPREAD_S", 60.0)  # the machine that runs the tests may be slow
    a, b = join(), join()
    a.call(fails=True, times=20)
    sync(a, b)
    clock.now += 30
    a.call(fails=True)
    assert not b.health.admit("a"), "before it knows of the failure, the claim stops it"
    sync(a, b)
    assert b.breaker() is BreakerState.OPEN
    clock.now += 29
    assert not b.health.admit("a")


def test_a_probe_that_says_nothing_is_free_for_another_process(join: Callable[[], Member], clock: Clock) -> None:
    a, b = join(), join()
    a.call(fails=True, times=20)
    sync(a, b)
    clock.now += 30
    assert a.health.admit("a")
    a.health.failed("a", ContentRefusedError("no"), 0.1)
    sync(a)
    assert b.health.admit("a")


def test_rate_limits_are_known_to_all(join: Callable[[], Member]) -> None:
    a, b = join(), join()
    a.health.succeeded("b", 0.1, {"x-ratelimit-limit-tokens": "100", "x-ratelimit-remaining-tokens": "5"})
    a.health.failed("a", RateLimitedError("429", retry_after_s=9.0), 0.1)
    sync(a, b)
    assert b.health.exclusions().soft == a.health.exclusions().soft and len(b.health.exclusions().soft) == 2


def test_who_joins_later_learns_what_is_recent(join: Callable[[], Member]) -> None:
    a = join()
    a.call(fails=True, times=20)
    sync(a)
    late = join()
    sync(late)
    assert late.breaker() is BreakerState.OPEN


def test_old_news_are_not_learnt(join: Callable[[], Member], clock: Clock) -> None:
    a, b = join(), join()
    a.call(fails=True, times=15)
    clock.now += 61
    sync(a, b)
    assert b.health.status()["a"].n == 0


def test_news_as_old_as_the_window_leave_what_is_newer(join: Callable[[], Member], clock: Clock) -> None:
    a, b = join(), join()
    clock.now = NOW // 3 * 3  # where a bucket of the window begins
    a.call()
    clock.now += 60
    b.call(times=5)
    sync(a, b)
    assert b.health.status()["a"].n == 5


def test_the_thread_exchanges_by_itself(join: Callable[..., Member]) -> None:
    a, b = join(0.02), join(0.02)
    a.call(times=3)
    eventually(lambda: b.health.status()["a"].n == 3)


def test_opening_a_breaker_is_told_at_once(join: Callable[..., Member]) -> None:
    a, b = join(BY_HAND), join(0.02)
    a.call(fails=True, times=20)
    eventually(lambda: b.breaker() is BreakerState.OPEN)


@pytest.mark.parametrize(
    "message", ["{}", "[]", "no json", '{"turned": {"a": 1}}', '{"turned":{},"limits":{},"waits":{},"calls":[[1]]}']
)
def test_a_message_nobody_understands_is_passed_over(
    join: Callable[[], Member], server: RedisServer, message: str
) -> None:
    import redis

    a, b = join(), join()
    with redis.Redis.from_url(server.url) as client:
        client.xadd(a.state.key("health"), {"from": "x", "number": 1, "message": message})
        client.xadd(a.state.key("health"), {"surprise": "!"})
    b.call(times=2)
    sync(a, b)
    assert a.health.status()["a"].n == 2


def test_models_of_another_pool_are_passed_over(server: RedisServer, clock: Clock, join: Callable[[], Member]) -> None:
    a = join()
    state = SharedState.of(server.url, interval_s=BY_HAND, namespace=a.state._namespace)
    assert state is not None
    with state:
        other = Health(ModelPool((ModelSpec("other"),), "other"), clock=clock, state=state)
        for _ in range(20):
            other.admit("other")
            other.failed("other", DOWN, 0.1)
        assert state.sync()
    sync(a)
    assert set(a.health.status()) == {"a", "b"} and a.health.exclusions().hard == {}


# --- the connection --------------------------------------------------------------------------------------------------


def test_an_outage_is_survived_and_said_once(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    with redis_server() as server:
        a, b = Member(server.url, clock, "outage"), Member(server.url, clock, "outage")
        with a.state, b.state, caplog.at_level(logging.INFO):
            sync(a, b)
            server.stop()
            a.call(times=5)
            assert not a.state.sync() and not a.state.sync() and not a.state.up
            b.call(fails=True, times=20)  # its thread is nudged, and finds out
            eventually(lambda: not b.state.up)
            clock.now += 30
            assert b.health.admit("a"), "without Redis everybody may probe"
            b.health.failed("a", DOWN, 0.1)
            server.start()
            eventually(lambda: b.state.sync())
            sync(a, b)
            assert a.breaker() is BreakerState.OPEN, "what happened meanwhile is told"
            said = [record.getMessage() for record in caplog.records if "reached" in record.getMessage()]
            assert sorted(said) == sorted(
                2 * [f"redis://127.0.0.1:{server.port}/0 is reached again"]
                + 2 * [
                    f"redis://127.0.0.1:{server.port}/0 cannot be reached (ConnectionError); "
                    "going on with what this process knows"
                ]
            )  # fmt: skip


def test_what_waits_to_be_told_does_not_grow_during_an_outage(clock: Clock) -> None:
    with redis_server() as server:
        a = Member(server.url, clock, "outage")
        with a.state:
            server.stop()
            for i in range(1_000):
                a.call(times=2)
                invented = {f"x-ratelimit-limit-{i}": "10", f"x-ratelimit-remaining-{i}": "9"}
                a.health.succeeded("a", 0.1, invented)
                clock.now += 3
            assert not a.state.sync()
            assert len(a.health._news.calls) <= 20 and len(a.health._news.limits["a"]) <= 20
            server.start()
            assert a.state.sync()


def test_a_server_that_hangs_is_asked_once(clock: Clock) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        a = Member(f"redis://127.0.0.1:{silent.getsockname()[1]}", clock, "silent")
        with a.state:
            assert a.state.claim("x", 1.0) and not a.state.up
            started = time.monotonic()
            assert a.state.claim("x", 1.0) and a.state.evaluate("return 1", [], []) is None
            assert time.monotonic() - started < 0.4


def test_the_password_is_in_no_log_line_and_no_message(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    with redis_server("s3cret-word") as server, caplog.at_level(logging.DEBUG):
        good = Member(server.url, clock, "password")
        with good.state:
            assert good.state.sync()
            wrong = Member(server.url.replace("s3cret-word", "wr0ng-word"), clock, "password")
            with wrong.state:
                assert not wrong.state.sync()
                assert "cannot be reached (AuthenticationError)" in caplog.text
            server.stop()
            assert not good.state.sync()
            shown = f"{caplog.text}{good.state!r}{wrong.state!r}{vars(good.state)!r}"
    assert "s3cret" not in shown and "wr0ng" not in shown


@pytest.mark.parametrize(
    "url", ["http://u:s3cret@host", "redis://:s3cret/x@host:1", "redis://u:s3cret@host:port", "s3cret", ""]
)
def test_a_url_that_cannot_be_read_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(RouterError, match="expected redis://user:password@host:port/database") as refused:
        SharedState.of(url)
    assert "s3cret" not in str(refused.value) and refused.value.__cause__ is None


def test_no_url_is_no_shared_state() -> None:
    assert SharedState.of(None) is None


def test_a_missing_client_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_redis(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "redis":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_redis)
    with pytest.raises(MissingExtraError, match=r"pip install 'router-ml\[redis\]'"):
        SharedState.of("redis://localhost")


def test_keys_are_in_the_namespace_and_expire(join: Callable[[], Member], server: RedisServer, clock: Clock) -> None:
    import redis

    a = join()
    a.call(fails=True, times=20)
    clock.now += 30
    assert a.health.admit("a")
    sync(a)
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        keys = list(client.scan_iter(f"{{{a.state._namespace}}}:*"))
        assert sorted(key.partition(":")[2] for key in keys) == ["health", "probe:a"]
        assert all(0 < client.ttl(key) <= 2 * 86_400 for key in keys)


def test_a_claim_is_freed_by_its_owner_only(join: Callable[[], Member]) -> None:
    a, b = join(), join()
    assert a.state.claim("x", 30.0) and not b.state.claim("x", 30.0)
    b.state.free("x")
    sync(b)
    assert not b.state.claim("x", 30.0)
    a.state.free("x")
    sync(a)
    assert b.state.claim("x", 30.0)


def test_a_claim_expires(join: Callable[[], Member]) -> None:
    a, b = join(), join()
    assert a.state.claim("x", 0.05)
    eventually(lambda: b.state.claim("x", 1.0))


def test_closing_tells_the_rest_and_ends_the_thread(join: Callable[[], Member]) -> None:
    a, b = join(), join()
    a.call(times=3)
    thread = a.state._thread
    assert thread is not None and thread.daemon
    a.state.close()
    a.state.close()
    assert not thread.is_alive()
    sync(b)
    assert b.health.status()["a"].n == 3


def test_a_message_sent_twice_is_applied_once(server: RedisServer) -> None:
    import redis

    heard: list[Any] = []
    with redis.Redis.from_url(server.url, decode_responses=True) as client:

        class LosesReplies:
            def __init__(self) -> None:
                self.losing = True

            def __getattr__(self, name: str) -> Any:
                return getattr(client, name)

            def xadd(self, *args: Any, **kwargs: Any) -> None:
                client.xadd(*args, **kwargs)
                if self.losing:
                    raise OSError("the reply is lost")

        sender, receiver = Stream("twice", 10.0), Stream("twice", 10.0)
        waiting: list[Mapping[str, Any]] = [{"n": 1}, {"n": 2}]
        link = LosesReplies()
        for link.losing in (True, True, False, False):
            try:
                sender.exchange(link, lambda: waiting.pop(0) if waiting else None, heard.append)
            except OSError:
                assert link.losing
        receiver.exchange(client, lambda: None, heard.append)
    assert heard == [{"n": 1}, {"n": 2}]


# --- forks -----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # from 3.12 on: threads and fork
def test_the_child_of_a_fork_shares_as_a_process_of_its_own(join: Callable[..., Member]) -> None:
    a, watcher = join(0.02), join(BY_HAND)
    a.call(times=2)
    assert a.state.sync()
    with a.health._lock, a.state._exchanging:  # as another thread may hold them at that moment
        child = os.fork()
    if child == 0:
        status = 1
        try:
            assert not a.state.attended
            a.call(times=3)
            assert a.state.attended
            a.state.close()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    sync(watcher)
    assert watcher.health.status()["a"].n == 5
    eventually(lambda: a.health.status()["a"].n == 5)
