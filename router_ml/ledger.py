"""What may still be spent: caps per day, and per tag and day. Days are UTC.

A call reserves what it is expected to cost before it is made, and settles what it did cost, so that calls at the same
time do not pass a cap together. With a ``SharedState`` the caps hold over all processes: a reservation then asks Redis
(well under a millisecond nearby), since a cap that a second process can pass is none; settling is sent with the next
exchange. Requests under no cap never ask. While Redis cannot be reached each process goes on with what was spent
everywhere when it last could, so together they may pass a cap by what the others spend meanwhile.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import Any, NamedTuple

from router_ml.errors import BudgetExceededError, RequestError
from router_ml.forks import survive_forks
from router_ml.policy import Cap
from router_ml.pool import Budgets
from router_ml.shared_state import KEPT_S, SharedState

DAY_S = 86_400
HOLD_S = 600.0  # a reservation that nobody settles, because its process died, is void after ten minutes
# Amounts are integers of 1e-18 US dollars, since a million sums of floats drift. Redis counts in 64 bits, and so in
# 1e-12 US dollars: nine million dollars a day. What is below that stays in this process until it adds up.
UNITS_PER_USD = 10**18
COARSE = 10**6  # units in what Redis counts
MOST_COARSE = 2**53  # that Lua's numbers hold exactly: 9,007 US dollars
MOST_USD = 1e9  # no call costs more; what claims to is bounded so that it stays a number


class Reservation(NamedTuple):
    """Money held for one call.

    :param day: days since 1970 UTC; the call counts on the day on which it was reserved.
    :param caps: names of the caps that it counts against; none, if no cap concerns it.
    :param amount: 1e-18 US dollars. :param expires_at: seconds since 1970.
    :param shared: other processes know of it.
    """

    id: str
    day: int
    caps: tuple[str, ...]
    amount: int
    expires_at: float
    shared: bool

    @property
    def record(self) -> str:
        """As Redis keeps it. The amount is text, since Lua would round it."""
        return json.dumps([self.id, str(self.amount // COARSE), self.caps])


class _Batch(NamedTuple):
    """What is sent to Redis at once, and applied there once. :param spent: cap -> 1e-12 US dollars."""

    number: int
    day: int
    closed: list[str]
    spent: dict[str, int]


class Ledger:
    """The caps of one pool, and what is spent and reserved. Thread-safe.

    :param clock: seconds since 1970. :param state: what several processes share; None: this process stands alone.
    """

    def __init__(
        self, budgets: Budgets, *, clock: Callable[[], float] = time.time, state: SharedState | None = None
    ) -> None:
        self._clock, self._state = clock, state
        tags = {tag: (f"the budget of the day for tag {tag!r}", usd) for tag, usd in budgets.per_tag_day_usd.items()}
        day = {} if budgets.per_day_usd is None else {None: ("the budget of the day", budgets.per_day_usd)}
        self._limits_usd: dict[str, float] = dict([*tags.values(), *day.values()])
        self._limits = {cap: _units(usd) for cap, usd in self._limits_usd.items()}
        self._of_tag: dict[str | None, str] = {tag: cap for tag, (cap, _) in [*tags.items(), *day.items()]}
        self._lock = threading.Lock()
        self._batch: _Batch | None = None
        self._begin(int(clock() // DAY_S))
        self._become()
        survive_forks(self)
        if state is not None and self._limits:
            state.join(self)

    def tightest(self, tags: Iterable[str]) -> Cap | None:
        """The cap that has least left for a request with these tags, or None if no cap concerns it."""
        caps = self._caps(tags)
        if not caps:
            return None
        with self._lock:
            self._renew()
            cap = min(caps, key=lambda cap: self._limits[cap] - self._used(cap))
            return Cap(cap, self._limits_usd[cap], self._used(cap) / UNITS_PER_USD)

    def reserve(self, tags: Iterable[str], expected_usd: float) -> Reservation:
        """Hold what a call is expected to cost, until it is settled or released, or ten minutes have passed.

        :param tags: of the request; those without a cap are passed over.
        :raises BudgetExceededError: if it would pass a cap; nothing is held then.
        :raises RequestError: if the amount is no number >= 0.
        """
        if not expected_usd >= 0.0:
            raise RequestError(f"the expected cost is {expected_usd!r}; expected a number of US dollars >= 0")
        caps = self._caps(tags)
        if not caps:
            return Reservation("", 0, (), 0, math.inf, False)
        if self._state is not None and not self._state.attended:
            self._state.attend()
        with self._lock:
            now = self._renew()
            name = f"{self._me}:{next(self._ids)}"
            # rounded up to what Redis counts in, so that both hold the same
            amount = -(-_units(min(expected_usd, MOST_USD)) // COARSE) * COARSE
            hopeless = any(amount > self._limits[cap] for cap in caps)  # and perhaps too large a number for Redis
            state = None if hopeless else self._state
            if state is None or not state.up:
                return self._hold(Reservation(name, self._day, caps, amount, now + HOLD_S, False))
            held = Reservation(name, self._day, caps, amount, now + HOLD_S, True)
            known = [(cap, self._known[cap] // COARSE, self._limits[cap] // COARSE) for cap in caps]
        terms: list[Any] = [now, KEPT_S, held.record, held.expires_at, amount // COARSE, *itertools.chain(*known)]
        reply = state.evaluate(_RESERVE, self._keys(state, held.day), terms)
        with self._lock:
            return self._hold(self._unshared(held)) if reply is None else self._held_by_redis(held, reply)

    def settle(self, reservation: Reservation, actual_usd: float) -> None:
        """Put what was really spent in place of the reservation. A second settling of it does nothing.

        :param actual_usd: the reserved amount counts if this is no possible cost; a call of unknown cost is not free.
        """
        known = 0.0 <= actual_usd <= MOST_USD
        self._end(reservation, _units(actual_usd) if known else reservation.amount)

    def release(self, reservation: Reservation) -> None:
        """The call was not made, or cost nothing."""
        self._end(reservation, 0)

    def seed(self, spent: Mapping[str | None, float]) -> None:
        """Begin with what was spent today, as an outcome log tells it. Less than what is known already changes nothing.

        :param spent: tag -> US dollars; None -> of all requests.
        """
        with self._lock:
            self._renew()
            for tag, usd in spent.items():
                if (cap := self._of_tag.get(tag)) is not None:
                    self._known[cap] = max(self._known[cap], _units(usd) - self._spent[cap])

    def exchange(self, redis: Any) -> None:
        """For ``SharedState``: send what was settled here, learn what is spent and held everywhere."""
        with self._lock:
            now = self._renew()
            batch = self._batch or self._next_batch()
            self._batch = batch
            known = [(cap, self._known[cap] // COARSE, batch.spent[cap]) for cap in self._limits]
        arguments = [now, KEPT_S, self._me, batch.number, len(batch.closed), *batch.closed, *itertools.chain(*known)]
        assert self._state is not None
        keys = self._keys(self._state, batch.day)
        totals = redis.eval(_EXCHANGE, len(keys), *keys, *arguments)
        with self._lock:
            self._batch = None
            if batch.day == self._day:
                for cap, sent in batch.spent.items():
                    self._spent[cap] -= sent * COARSE
                self._take_over(self._limits, totals)

    def after_fork(self) -> None:
        """For ``SharedState``: the parent's calls are settled by the parent."""
        self._lock = threading.Lock()
        self._become()
        if self._state is not None:
            self._begin_own()

    def _caps(self, tags: Iterable[str]) -> tuple[str, ...]:
        """Names of the caps on a request with these tags. A tag that is there twice counts once."""
        of_tag = self._of_tag
        if not of_tag:
            return ()
        return tuple(of_tag[tag] for tag in dict.fromkeys((None, *tags)) if tag in of_tag)

    def _become(self) -> None:
        self._me, self._ids, self._numbers = os.urandom(8).hex(), itertools.count(), itertools.count(1)

    def _keys(self, state: SharedState, day: int) -> list[str]:
        return [state.key(f"ledger:{day}:{name}") for name in ("spent", "held", "open", "sent")]

    # What follows is called with the lock held.

    def _begin(self, day: int) -> None:
        """Begin a day: nothing is spent."""
        self._day = day
        self._known = dict.fromkeys(self._limits, 0)  # spent by all, as Redis or the log last said
        self._known_held = dict.fromkeys(self._limits, 0)  # held by all, as Redis last said
        self._begin_own()

    def _begin_own(self) -> None:
        self._spent = dict.fromkeys(self._limits, 0)  # spent here, and not yet in what is known of all
        self._held = dict.fromkeys(self._limits, 0)  # held here only
        self._open: dict[str, Reservation] = {}  # in the order in which they expire
        self._void: set[str] = set()  # expired today, and perhaps settled yet
        self._closed: list[str] = []  # what Redis holds and has to be told of
        self._batch = None

    def _renew(self) -> float:
        """Begin the day if it is a new one, void what has expired. :return: now, in seconds since 1970."""
        now = self._clock()
        # a clock set back over midnight must not make the day's spending vanish
        if (day := int(now // DAY_S)) > self._day:
            self._begin(day)
        while self._open and (first := next(iter(self._open.values()))).expires_at <= now:
            self._drop(first)
            self._void.add(first.id)
        return now

    def _used(self, cap: str) -> int:
        return self._known[cap] + self._known_held[cap] + self._spent[cap] + self._held[cap]

    def _exceeded(self, held: Reservation) -> str | None:
        return next((cap for cap in held.caps if self._used(cap) + held.amount > self._limits[cap]), None)

    def _refusal(self, cap: str, held: Reservation) -> BudgetExceededError:
        used = self._used(cap) / UNITS_PER_USD
        return BudgetExceededError(cap, self._limits_usd[cap], used, held.amount / UNITS_PER_USD)

    def _held_by_redis(self, held: Reservation, reply: Any) -> Reservation:
        refused, *totals = reply
        if held.day == self._day:  # else the day ended while Redis was asked
            self._take_over(held.caps, totals)
            if not refused:
                self._open[held.id] = held
        if refused:
            raise self._refusal(held.caps[int(refused) - 1], held)
        return held

    def _unshared(self, held: Reservation) -> Reservation:
        """Hold it here only. Redis may have heard of it, though its reply was lost."""
        self._closed.append(held.record)
        return held._replace(shared=False)

    def _hold(self, held: Reservation) -> Reservation:
        """Hold by what is known here."""
        if held.day != self._day:  # the day ended while Redis was asked
            return held
        if (cap := self._exceeded(held)) is not None:
            raise self._refusal(cap, held)
        self._open[held.id] = held
        for cap in held.caps:
            self._held[cap] += held.amount
        return held

    def _drop(self, held: Reservation) -> bool:
        """Hold it no longer. :return: whether it was held."""
        if self._open.pop(held.id, None) is None:
            return False
        holds = self._known_held if held.shared else self._held
        for cap in held.caps:
            # a Redis that was started anew knows of no reservation
            holds[cap] = max(0, holds[cap] - held.amount)
        if held.shared:
            self._closed.append(held.record)
        return True

    def _end(self, held: Reservation, amount: int) -> None:
        if not held.caps:
            return
        with self._lock:
            self._renew()
            if held.day != self._day or not (self._drop(held) or held.id in self._void):
                return  # another day's cap, or settled before
            self._void.discard(held.id)
            for cap in held.caps:
                self._spent[cap] += amount

    def _next_batch(self) -> _Batch:
        spent = {cap: min(units // COARSE, MOST_COARSE) for cap, units in self._spent.items()}
        batch = _Batch(next(self._numbers), self._day, self._closed, spent)
        self._closed = []
        return batch

    def _take_over(self, caps: Iterable[str], totals: Any) -> None:
        """Know what Redis says: for each cap what is spent, and what is held."""
        for cap, spent, held in zip(caps, totals[::2], totals[1::2], strict=True):
            # what is spent only grows; a log may have told more meanwhile, and a Redis started anew knows nothing
            self._known[cap] = max(self._known[cap], int(spent) * COARSE)
            self._known_held[cap] = int(held) * COARSE


def _units(usd: float) -> int:
    # by the digits that a person would write: 0.07 * 1e18 is 70000000000000008, ten of which pass a cap of 0.7
    return int(Decimal(repr(float(usd))).scaleb(18).to_integral_value())


# Each script runs atomically. KEYS: what is spent and what is held by cap, the open reservations by the time at which
# they expire, the last batch of each process. Amounts stay text where they can, since Lua's numbers are floats.
_COMMON = """
local function close(record)
  if redis.call('ZREM', KEYS[3], record) == 0 then return end
  local _, amount, caps = unpack(cjson.decode(record))
  if amount == '0' then return end
  for _, cap in ipairs(caps) do redis.call('HINCRBY', KEYS[2], cap, '-' .. amount) end
end
local function raise(cap, known)
  if tonumber(known) > tonumber(redis.call('HGET', KEYS[1], cap) or '0') then
    redis.call('HSET', KEYS[1], cap, known)
  end
end
local function totals(cap)
  return redis.call('HGET', KEYS[1], cap) or '0', redis.call('HGET', KEYS[2], cap) or '0'
end
local function finish(first, reply)
  for i = first, #ARGV, 3 do
    local spent, held = totals(ARGV[i])
    reply[#reply + 1] = spent
    reply[#reply + 1] = held
  end
  for _, key in ipairs(KEYS) do redis.call('EXPIRE', key, ARGV[2]) end
  return reply
end
for _, record in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', ARGV[1], 'LIMIT', 0, 1000)) do close(record) end
"""

# ARGV: now, seconds to keep the keys, record, when it expires, amount, then for each cap: name, spent as known, limit
_RESERVE = f"""{_COMMON}
local again, refused = redis.call('ZSCORE', KEYS[3], ARGV[3]), 0
for i = 6, #ARGV, 3 do
  raise(ARGV[i], ARGV[i + 1])
  local spent, held = totals(ARGV[i])
  if refused == 0 and tonumber(spent) + tonumber(held) + tonumber(ARGV[5]) > tonumber(ARGV[i + 2]) then
    refused = i / 3 - 1
  end
end
if again then refused = 0 end
if refused == 0 and not again then
  redis.call('ZADD', KEYS[3], ARGV[4], ARGV[3])
  for i = 6, #ARGV, 3 do redis.call('HINCRBY', KEYS[2], ARGV[i], ARGV[5]) end
end
return finish(6, {{refused}})
"""

# ARGV: now, seconds to keep the keys, process, number of the batch, number of records, records to close, then for
# each cap: name, spent as known, spent since
_EXCHANGE = f"""{_COMMON}
local first = 6 + tonumber(ARGV[5])
local new = tonumber(ARGV[4]) > tonumber(redis.call('HGET', KEYS[4], ARGV[3]) or '0')
if new then
  redis.call('HSET', KEYS[4], ARGV[3], ARGV[4])
  for i = 6, first - 1 do close(ARGV[i]) end
end
for i = first, #ARGV, 3 do
  raise(ARGV[i], ARGV[i + 1])
  if new then redis.call('HINCRBY', KEYS[1], ARGV[i], ARGV[i + 2]) end
end
return finish(first, {{}})
"""
