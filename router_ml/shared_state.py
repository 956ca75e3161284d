"""State that several processes share, through Redis.

No decision waits for the network. Each part (``Health``, ``Ledger``) works on what this process knows; one daemon
thread exchanges with Redis every quarter of a second, so that all processes know the same within that time. Only what
must not happen twice asks Redis at once: the claim of a probe, and the reservation of money.

While Redis cannot be reached a process goes on with what it knows. That is said once, and the exchange resumes by
itself.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol
from urllib.parse import urlsplit

from router_ml.errors import MissingExtraError, RouterError
from router_ml.forks import Forkable, survive_forks

logger = logging.getLogger(__name__)

INTERVAL_S = 0.25
TIMEOUT_S = 0.5  # the most that a call waits for a Redis that hangs; afterwards nobody asks it until it is back
KEPT_S = 2 * 86_400  # a key nobody touches is gone after two days: the longest that is counted is a UTC day
MOST_MESSAGES = 20_000  # of a stream: minutes of ten processes

# only its owner may free a claim: it may have expired, and be another's by now
_FREE = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end"


class Part(Forkable, Protocol):
    """What shares its state."""

    def exchange(self, redis: Any) -> None:
        """Send what is new here, take what is new elsewhere. May raise what the Redis client raises."""


class SharedState:
    """The connection to Redis, the thread that exchanges, and the parts that share. Made by ``of``.

    :param connect: makes a Redis client. :param address: where it goes, without user or password, for messages.
    :param interval_s: seconds between two exchanges.
    :param namespace: starts every key, so that two routers can use one Redis.
    """

    def __init__(self, connect: Callable[[], Any], address: str, interval_s: float, namespace: str) -> None:
        self.up = True  # until the first failure says otherwise
        self._connect, self._address = connect, address
        self._interval_s, self._namespace = interval_s, namespace
        self._parts: list[Part] = []
        self._closed = False
        self._thread: threading.Thread | None = None
        self.after_fork()
        atexit.register(self.close)
        survive_forks(self)

    @classmethod
    def of(cls, url: str | None, *, interval_s: float = INTERVAL_S, namespace: str = "router_ml") -> SharedState | None:
        """The state at a URL; None, state in memory, if there is none. Nothing is connected yet.

        :param url: ``redis://user:password@host:port/database``, ``rediss://`` for TLS, or ``unix://``.
        :raises MissingExtraError: if the Redis client is not installed.
        :raises RouterError: if the URL cannot be read; the message does not repeat it.
        """
        if url is None:
            return None
        try:
            import redis
            from redis.backoff import NoBackoff
            from redis.retry import Retry
        except ImportError as exc:
            raise MissingExtraError("redis", "redis") from exc

        def connect() -> Any:
            # one more try at once, for a connection that the server closed meanwhile; no command minds running twice
            again = Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,))
            return redis.Redis.from_url(
                url, protocol=2, decode_responses=True, retry=again,
                socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S,
            )  # fmt: skip

        try:
            connect().close()
            address = _without_password(url)
        except ValueError:
            raise RouterError(
                "the URL of the shared state cannot be read; expected redis://user:password@host:port/database, "
                "with special characters of the password percent-encoded"
            ) from None  # the cause shows parts of the URL, the password among them
        return cls(connect, address, interval_s, namespace)

    def __repr__(self) -> str:
        return f"SharedState({self._address!r}, up={self.up})"

    def __enter__(self) -> SharedState:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def key(self, name: str) -> str:
        """The key of that name in Redis; the braces keep all of them on one node of a cluster."""
        return f"{{{self._namespace}}}:{name}"

    def join(self, part: Part) -> None:
        """Take part in the exchange from now on."""
        self._parts.append(part)
        self.attend()

    def attend(self) -> None:
        """Start the thread, if it does not run: before the first exchange, and in the child of a fork."""
        with self._starting:
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._run, name="router_ml shared state", daemon=True)
                self._thread.start()

    @property
    def attended(self) -> bool:
        """Whether the thread runs. A part asks before it relies on the exchange: a fork leaves the thread behind."""
        return self._thread is not None

    def nudge(self) -> None:
        """Exchange now rather than at the next interval; returns at once."""
        self._wake.set()

    def sync(self) -> bool:
        """Exchange once, and return when it is done. :return: whether Redis was reached."""
        with self._exchanging:
            try:
                for part in self._parts:
                    part.exchange(self._client)
                while self._freed:
                    name, after_s = self._freed[0]
                    self._client.eval(_FREE, 1, self.key(name), self._me, max(0, int(after_s * 1e3)))
                    self._freed.popleft()
            except Exception as exc:  # whatever fails here, requests go on with what this process knows
                self._lost(exc)
            else:
                self._found()
        return self.up

    def claim(self, name: str, seconds: float) -> bool:
        """Claim what only one process may have at a time; asks Redis now.

        :param seconds: after which the claim expires by itself.
        :return: True also if Redis cannot be reached: a few probes too many are better than none.
        """
        if not self.up:
            return True
        try:
            return bool(self._client.set(self.key(name), self._me, nx=True, px=max(1, int(seconds * 1e3))))
        except Exception as exc:
            self._lost(exc)
            return True

    def free(self, name: str, after_s: float = 0.0) -> None:
        """Give a claim back with the next exchange. :param after_s: keep it for so long, for others to learn why."""
        self._freed.append((name, after_s))

    def evaluate(self, script: str, keys: Sequence[str], arguments: Sequence[str | int | float]) -> Any:
        """Run a Lua script now, which Redis does atomically. :return: its reply, or None if Redis was not reached."""
        if not self.up:
            return None
        try:
            return self._client.eval(script, len(keys), *keys, *arguments)
        except Exception as exc:
            self._lost(exc)
            return None

    def close(self) -> None:
        """Exchange a last time, and end the thread. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout=10 * TIMEOUT_S)
        if self.up:
            self.sync()
        self._client.close()

    def after_fork(self) -> None:
        """Begin anew: the parent keeps its thread, its connections, its claims and the locks it may hold."""
        self._me = os.urandom(8).hex()
        self._client = self._connect()
        self._starting, self._exchanging = threading.Lock(), threading.Lock()
        self._wake = threading.Event()
        self._thread = None
        self._freed: deque[tuple[str, float]] = deque(maxlen=1_000)

    def _run(self) -> None:
        while not self._closed:
            self._wake.wait(self._interval_s)
            self._wake.clear()
            if not self._closed:
                self.sync()

    def _lost(self, exc: Exception) -> None:
        if self.up:
            self.up = False
            # its name only: what the client says may hold what was sent
            name = type(exc).__name__
            logger.warning("%s cannot be reached (%s); going on with what this process knows", self._address, name)

    def _found(self) -> None:
        if not self.up:
            self.up = True
            logger.info("%s is reached again", self._address)


class Stream:
    """Messages from each process to all others. Each is applied exactly once, in the order of its sender.

    :param key: in Redis. :param lookback_s: a process that joins reads the messages of so many seconds.
    """

    def __init__(self, key: str, lookback_s: float) -> None:
        self._key, self._lookback_s = key, lookback_s
        self._last_id = ""
        self.after_fork()

    def after_fork(self) -> None:
        """Become a sender of its own; what the parent had not sent yet, the parent sends."""
        self._me, self._number = os.urandom(8).hex(), 0
        self._unsent: str | None = None
        self._seen: dict[str, int] = {}

    def exchange(
        self, redis: Any, collect: Callable[[], Mapping[str, Any] | None], apply: Callable[[Any], None]
    ) -> None:
        """Send what ``collect`` gives, apply what others sent.

        :param collect: called if nothing waits to be sent; gives what JSON can hold, or None for nothing new.
        :param apply: takes one message; what it cannot read (KeyError, TypeError, ValueError) is passed over.
        """
        if not self._last_id:  # by the server's clock, which makes the ids
            self._last_id = f"{max(0, int((redis.time()[0] - self._lookback_s) * 1e3))}-0"
        if self._unsent is None and (message := collect()) is not None:
            self._unsent = json.dumps(message)
            self._number += 1
        if self._unsent is not None:
            fields = {"from": self._me, "number": self._number, "message": self._unsent}
            redis.xadd(self._key, fields, maxlen=MOST_MESSAGES, approximate=True)
            self._unsent = None
            redis.expire(self._key, KEPT_S)
        while replies := redis.xread({self._key: self._last_id}, count=1_000):
            for self._last_id, fields in replies[0][1]:
                self._receive(fields, apply)

    def _receive(self, fields: Mapping[str, str], apply: Callable[[Any], None]) -> None:
        try:
            sender, number = fields["from"], int(fields["number"])
            # sent twice if the reply to the first was lost
            if sender != self._me and number > self._seen.get(sender, 0):
                self._seen[sender] = number
                if len(self._seen) > 10_000:  # processes come and go
                    del self._seen[next(iter(self._seen))]
                apply(json.loads(fields["message"]))
        except (KeyError, TypeError, ValueError):
            logger.debug("a message of another version was passed over")


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}{port}{parts.path}"
