"""The ledger: caps hold under threads, processes and a million settlements; the day is the UTC day."""

from __future__ import annotations

import math
import multiprocessing
import threading
from collections.abc import Iterator
from fractions import Fraction

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule
from redis_server import RedisServer, redis_server

from router_ml.errors import BudgetExceededError, RequestError
from router_ml.ledger import HOLD_S, Ledger, Reservation
from router_ml.pool import Budgets
from router_ml.shared_state import INTERVAL_S, SharedState

MIDNIGHT = 1_700_006_400.0  # 2023-11-15T00:00:00Z
BY_HAND = 3_600.0  # an interval so long that only sync() exchanges


class Clock:
    def __init__(self, now: float = MIDNIGHT) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def ledger(day: float | None = 1.0, clock: Clock | None = None, **tags: float) -> Ledger:
    return Ledger(Budgets(per_day_usd=day, per_tag_day_usd=tags), clock=clock or Clock())


def spent(book: Ledger, *tags: str) -> float:
    cap = book.tightest(tags)
    assert cap is not None
    return cap.spent_usd


def test_without_caps_nothing_is_refused_and_nothing_is_tight() -> None:
    book = ledger(None)
    held = book.reserve(("a",), 1e6)
    book.settle(held, 1e6)
    assert book.tightest(("a",)) is None


def test_a_reservation_is_replaced_by_what_was_spent() -> None:
    book = ledger()
    held = book.reserve((), 0.25)
    assert spent(book) == 0.25
    book.settle(held, 0.1)
    assert spent(book) == 0.1
    cap = book.tightest(())
    assert cap is not None and (cap.name, cap.limit_usd, cap.left_usd) == ("the budget of the day", 1.0, 0.9)


def test_a_released_reservation_leaves_nothing() -> None:
    book = ledger()
    book.release(book.reserve((), 0.25))
    assert spent(book) == 0.0


def test_what_would_pass_a_cap_is_refused_by_its_name_and_holds_nothing() -> None:
    book = ledger(1.0, acme=0.5)
    held = book.reserve(("acme",), 0.4)
    with pytest.raises(
        BudgetExceededError, match=r"the budget of the day for tag 'acme', 0.5 USD, 0.4 USD is"
    ) as refused:
        book.reserve(("acme",), 0.2)
    assert (refused.value.limit_usd, refused.value.spent_usd, refused.value.wanted_usd) == (0.5, 0.4, 0.2)
    assert spent(book) == 0.4, "the cap of the day was not touched"
    with pytest.raises(BudgetExceededError, match="the budget of the day, 1 USD"):
        book.reserve((), 0.7)
    book.settle(held, 0.0)
    book.reserve(("acme",), 0.5)


@pytest.mark.parametrize(("cap", "part", "times"), [(0.7, 0.07, 10), (0.3, 0.1, 3), (1.0, 0.001, 1_000), (0.0, 0.0, 5)])
def test_a_cap_can_be_used_up_to_its_last_cent(cap: float, part: float, times: int) -> None:
    book = ledger(cap)
    for _ in range(times):
        book.settle(book.reserve((), part), part)
    with pytest.raises(BudgetExceededError):
        book.reserve((), 1e-9)


def test_the_tightest_cap_is_the_one_with_least_left() -> None:
    book = ledger(1.0, acme=0.5, beta=5.0)
    book.settle(book.reserve((), 0.8), 0.8)
    names = [book.tightest(tags).name for tags in ((), ("acme",), ("beta", "acme"), ("unknown",))]  # type: ignore[union-attr]
    assert names == ["the budget of the day"] * 4
    book = ledger(1.0, acme=0.5, beta=5.0)
    found = book.tightest(("beta", "acme", "acme"))
    assert found is not None and found.name == "the budget of the day for tag 'acme'"


def test_a_tag_given_twice_counts_once() -> None:
    book = ledger(None, acme=1.0)
    book.reserve(("acme", "acme"), 0.4)
    assert spent(book, "acme") == 0.4


def test_settling_twice_counts_once() -> None:
    book = ledger()
    held = book.reserve((), 0.25)
    book.settle(held, 0.1)
    book.settle(held, 0.1)
    book.release(held)
    assert spent(book) == 0.1


def test_a_call_may_cost_more_than_it_reserved() -> None:
    book = ledger()
    book.settle(book.reserve((), 0.9), 1.5)
    cap = book.tightest(())
    assert cap is not None and cap.spent_usd == 1.5 and cap.left_usd == 0.0


@pytest.mark.parametrize("actual", [math.nan, math.inf, -1.0, 1e300])
def test_an_impossible_cost_counts_as_what_was_reserved(actual: float) -> None:
    book = ledger()
    book.settle(book.reserve((), 0.25), actual)
    assert spent(book) == 0.25


@pytest.mark.parametrize("expected", [math.nan, -0.1])
def test_an_impossible_expectation_is_refused(expected: float) -> None:
    with pytest.raises(RequestError, match="expected a number of US dollars"):
        ledger().reserve((), expected)


@pytest.mark.parametrize("expected", [math.inf, 1e300])
def test_an_endless_expectation_passes_every_cap(expected: float) -> None:
    with pytest.raises(BudgetExceededError):
        ledger().reserve((), expected)


def test_a_reservation_nobody_settles_is_void_after_ten_minutes() -> None:
    clock = Clock()
    book = ledger(1.0, clock)
    held = book.reserve((), 0.75)
    clock.now += HOLD_S - 1
    assert spent(book) == 0.75
    clock.now += 1
    assert spent(book) == 0.0
    book.settle(held, 0.5)
    assert spent(book) == 0.5, "a very slow call is paid for all the same"


def test_a_new_day_begins_at_midnight_utc_with_nothing_spent() -> None:
    clock = Clock(MIDNIGHT - 1)
    book = ledger(1.0, clock, acme=1.0)
    held = book.reserve(("acme",), 0.5)
    book.settle(book.reserve(("acme",), 0.5), 0.5)
    clock.now = MIDNIGHT
    assert spent(book) == spent(book, "acme") == 0.0
    book.settle(held, 0.5)
    assert spent(book) == 0.0, "a call counts on the day on which it was reserved"


def test_a_clock_set_back_over_midnight_keeps_what_is_spent() -> None:
    clock = Clock(MIDNIGHT)
    book = ledger(1.0, clock)
    book.settle(book.reserve((), 0.5), 0.5)
    clock.now -= 10
    assert spent(book) == 0.5


def test_the_outcome_log_seeds_what_was_spent_today() -> None:
    book = ledger(1.0, acme=0.5)
    book.seed({None: 0.6, "acme": 0.25, "unknown": 9.0})
    assert spent(book) == 0.6 and book.tightest(("acme",)).spent_usd == 0.25  # type: ignore[union-attr]
    book.settle(book.reserve(("acme",), 0.1), 0.1)
    book.seed({None: 0.65, "acme": 0.25})
    assert spent(book) == pytest.approx(0.7), "less than is known changes nothing"
    book.seed({None: 0.9})
    assert spent(book) == 0.9


@pytest.mark.slow
def test_a_million_settlements_sum_up_to_the_cent() -> None:
    book = ledger(1e6)
    costs = [1.23456789e-5 * (1 + i % 7) / 3 for i in range(1_000)]
    for _ in range(1_000):
        for cost in costs:
            book.settle(book.reserve((), cost), cost)
    assert abs(spent(book) - float(sum(map(Fraction, costs)) * 1_000)) <= 1e-9


class Model(RuleBasedStateMachine):
    """The ledger against exact sums kept in two dictionaries."""

    held = Bundle("held")

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.limits = {None: Fraction(1), "x": Fraction(1, 2)}
        self.book = ledger(1.0, self.clock, x=0.5)
        self.begin()

    def begin(self) -> None:
        self.day = self.clock.now // 86_400
        self.spent = {None: Fraction(0), "x": Fraction(0)}
        self.open: dict[str, tuple[list[str | None], Fraction, float]] = {}

    def used(self, cap: str | None) -> Fraction:
        live = [amount for caps, amount, until in self.open.values() if cap in caps and until > self.clock.now]
        return self.spent[cap] + sum(live)

    @rule(target=held, tags=st.sampled_from([(), ("x",), ("x", "y")]), cents=st.integers(0, 60))
    def reserve(self, tags: tuple[str, ...], cents: int) -> Reservation | None:
        caps: list[str | None] = [None, *(["x"] if "x" in tags else [])]
        amount = Fraction(cents, 100)
        fits = all(self.used(cap) + amount <= self.limits[cap] for cap in caps)
        try:
            reservation = self.book.reserve(tags, cents / 100)
        except BudgetExceededError:
            assert not fits
            return None
        assert fits
        self.open[reservation.id] = (caps, amount, self.clock.now + HOLD_S)
        return reservation

    @rule(held=consumes(held), cents=st.integers(0, 60))
    def settle(self, held: Reservation | None, cents: int) -> None:
        if held is not None:
            self.book.settle(held, cents / 100)
            if held.id in self.open:
                for cap in self.open.pop(held.id)[0]:
                    self.spent[cap] += Fraction(cents, 100)

    @rule(held=held)
    def release(self, held: Reservation | None) -> None:
        if held is not None:
            self.book.release(held)
            self.open.pop(held.id, None)

    @rule(seconds=st.sampled_from([1.0, 300.0, 700.0, 30_000.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds
        if self.clock.now // 86_400 > self.day:
            self.begin()

    @rule(tag=st.sampled_from([None, "x"]), cents=st.integers(0, 50))
    def seed(self, tag: str | None, cents: int) -> None:
        self.book.seed({tag: cents / 100})
        self.spent[tag] = max(self.spent[tag], Fraction(cents, 100))

    @invariant()
    def both_agree(self) -> None:
        assert spent(self.book) == pytest.approx(float(self.used(None)), abs=1e-12)
        left = min(limit - self.used(cap) for cap, limit in self.limits.items())
        assert self.book.tightest(("x",)).left_usd == pytest.approx(max(0.0, float(left)), abs=1e-12)  # type: ignore[union-attr]


Model.TestCase.settings = settings(max_examples=100, stateful_step_count=30)
test_the_ledger_agrees_with_exact_sums = Model.TestCase


def take(book: Ledger, tries: int, cost: float) -> int:
    """How many of the tries were allowed; each is settled for what it reserved."""
    taken = 0
    for _ in range(tries):
        try:
            held = book.reserve(("acme",), cost)
        except BudgetExceededError:
            continue
        taken += 1
        book.settle(held, cost)
    return taken


def test_threads_that_reserve_at_once_never_pass_the_cap() -> None:
    book = ledger(1.0, acme=0.5)
    taken: list[int] = []
    threads = [threading.Thread(target=lambda: taken.append(take(book, 1_000, 0.001))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(taken) == 500 and spent(book, "acme") == 0.5


# --- several processes -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


@pytest.fixture
def own(server: RedisServer) -> RedisServer:
    """The server, empty."""
    import redis

    with redis.Redis.from_url(server.url) as client:
        client.flushall()
    return server


def member(url: str, clock: Clock | None = None, interval_s: float = BY_HAND) -> tuple[Ledger, SharedState]:
    """A ledger as another process would have it."""
    state = SharedState.of(url, interval_s=interval_s)
    assert state is not None
    return Ledger(Budgets(per_day_usd=1.0, per_tag_day_usd={"acme": 0.5}), clock=clock or Clock(), state=state), state


def _process(url: str, tries: int, cost: float, results: multiprocessing.Queue[int]) -> None:
    book, state = member(url, interval_s=INTERVAL_S)
    with state:
        taken = take(book, tries, cost)
    results.put(taken)


def test_processes_that_reserve_at_once_never_pass_the_cap(own: RedisServer) -> None:
    context = multiprocessing.get_context("spawn")
    results: multiprocessing.Queue[int] = context.Queue()
    processes = [context.Process(target=_process, args=(own.url, 300, 0.001, results)) for _ in range(4)]
    for process in processes:
        process.start()
    taken = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    results.close()
    results.join_thread()
    # what a process settles is held until it is sent, so nothing is refused that was free
    assert sum(taken) == 500
    book, state = member(own.url)
    with state:
        assert state.sync()
        assert spent(book, "acme") == pytest.approx(0.5, abs=1e-12)


def test_a_reservation_of_one_process_counts_in_all(own: RedisServer) -> None:
    a, a_state = member(own.url)
    b, b_state = member(own.url)
    with a_state, b_state:
        held = a.reserve(("acme",), 0.4)
        with pytest.raises(BudgetExceededError, match=r"'acme'.*0.4 USD is spent or reserved"):
            b.reserve(("acme",), 0.2)
        a.settle(held, 0.1)
        assert spent(a, "acme") == pytest.approx(0.1)
        assert a_state.sync() and b_state.sync()
        assert spent(b, "acme") == pytest.approx(0.1) and spent(b) == pytest.approx(0.1)
        b.settle(b.reserve(("acme",), 0.4), 0.4)
        assert b_state.sync() and a_state.sync()
        assert spent(a, "acme") == pytest.approx(0.5)


def test_what_is_sent_again_after_a_lost_reply_counts_once(own: RedisServer) -> None:
    book, state = member(own.url)

    class LosesReplies:
        def __init__(self, client: object) -> None:
            self.client = client

        def eval(self, *args: object) -> None:
            self.client.eval(*args)  # type: ignore[attr-defined]
            raise OSError("the reply is lost")

    with state:
        book.settle(book.reserve((), 0.25), 0.25)
        real, state._client = state._client, LosesReplies(state._client)
        assert not state.sync() and not state.sync()
        state._client = real
        assert state.sync() and state.sync()
        assert spent(book) == 0.25


def test_a_reservation_whose_process_died_is_void_after_ten_minutes(own: RedisServer) -> None:
    clock = Clock()
    a, a_state = member(own.url, clock)
    b, b_state = member(own.url, clock)
    with b_state:
        with a_state:
            a.reserve((), 0.75)
        assert b_state.sync() and spent(b) == 0.75
        clock.now += HOLD_S + 1
        assert b_state.sync() and spent(b) == 0.0


def test_fractions_too_small_for_redis_are_not_lost(own: RedisServer) -> None:
    book, state = member(own.url)
    with state:
        for i in range(1_000):
            book.settle(book.reserve((), 1e-3), 1.00000000000049e-05)
            if i % 100 == 0:
                assert state.sync()
        assert state.sync()
        assert spent(book) == pytest.approx(1.00000000000049e-02, abs=1e-15)


def test_a_seed_is_known_to_all_and_counted_once(own: RedisServer) -> None:
    a, a_state = member(own.url)
    b, b_state = member(own.url)
    with a_state, b_state:
        a.seed({None: 0.6})
        b.seed({None: 0.6})
        assert a_state.sync() and b_state.sync() and a_state.sync()
        assert spent(a) == spent(b) == 0.6


def test_a_new_day_begins_in_redis_too(own: RedisServer) -> None:
    clock = Clock(MIDNIGHT - 10)
    book, state = member(own.url, clock)
    with state:
        book.settle(book.reserve((), 0.9), 0.9)
        assert state.sync()
        clock.now = MIDNIGHT
        book.settle(book.reserve((), 0.8), 0.8)
        assert state.sync() and spent(book) == 0.8


def test_keys_expire(own: RedisServer) -> None:
    import redis

    book, state = member(own.url)
    with state, redis.Redis.from_url(own.url) as client:
        book.reserve((), 0.1)
        book.settle(book.reserve((), 0.1), 0.1)
        state.sync()
        keys = list(client.scan_iter())
        assert len(keys) == 4 and all(0 < client.ttl(key) <= 2 * 86_400 for key in keys)


def test_without_redis_the_caps_hold_by_what_is_known_and_all_is_told_later() -> None:
    with redis_server() as server:
        a, a_state = member(server.url)
        b, b_state = member(server.url)
        with a_state, b_state:
            before = a.reserve((), 0.2)
            b.settle(b.reserve((), 0.3), 0.3)
            assert b_state.sync() and a_state.sync()
            server.stop()
            during = a.reserve((), 0.4)  # the first to find out
            assert not a_state.up and spent(a) == pytest.approx(0.9)
            with pytest.raises(BudgetExceededError):
                a.reserve((), 0.2)
            a.settle(before, 0.1)
            a.settle(during, 0.4)
            assert spent(a) == pytest.approx(0.8)
            server.start()  # and it has forgotten everything
            assert a_state.sync() and b_state.sync()
            assert spent(a) == pytest.approx(0.8) and spent(b) == pytest.approx(0.8)
            with pytest.raises(BudgetExceededError):
                b.reserve((), 0.3)
