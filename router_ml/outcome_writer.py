"""The thread that writes the outcome log: a bounded queue, drained in batches, a transaction each.

Nothing is dropped: a full queue makes its callers wait, a database that is away or full is tried again until it is
back, and a row that the database refuses takes no other row with it. Every insert may be repeated, because a commit
whose answer was lost may have happened: a row whose key is there already is left as it is.
"""

from __future__ import annotations

import atexit
import logging
import random
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from router_ml.errors import OutcomeLogError
from router_ml.forks import between_forks, survive_forks
from router_ml.outcome_rows import Rows
from router_ml.outcome_schema import cause, shown, tables, writing

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

logger = logging.getLogger(__name__)

BATCH = 500  # entries of one transaction
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 5.0
CLOSING_PAUSE_S = 0.1  # between tries once somebody waits for the end
EXIT_S = 10.0  # how long the end of the process waits for a log that nobody closed

# Classes of SQLSTATE that say nothing about the row: connection, transaction rolled back, resources (disk full, too
# many connections), lock not available, a server that stops or starts, a read-only server, system error.
_OUTAGES = frozenset({"08", "25", "40", "53", "55", "57", "58"})


class Receipt:
    """Whether an entry is in the log yet."""

    __slots__ = ("_changed", "_error", "done")

    def __init__(self, changed: threading.Condition) -> None:
        self._changed = changed
        self._error: str | None = None
        self.done = False  # committed, or given up

    def wait(self, timeout: float | None = None) -> None:
        """Return once the entry is committed.

        :param timeout: seconds; None: as long as it takes.
        :raises OutcomeLogError: if it cannot be written, or is not within the time.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self.done, timeout):
                raise OutcomeLogError(
                    f"not written after {timeout:g} s; it is still queued, and wait() may be repeated"
                )
        if self._error is not None:
            raise OutcomeLogError(self._error)

    def settle(self, error: str | None = None) -> None:
        """Say what became of it; the writer's lock is held."""
        self.done, self._error = True, error


class _Item(NamedTuple):
    make: Callable[[], Rows]
    receipt: Receipt


class Writer:
    """Writes to one database.

    :param engine: of a database that is migrated; the writer disposes of it. :param size: entries that may wait.
    """

    def __init__(self, engine: Engine, size: int) -> None:
        self._engine, self._size = engine, size
        self._closed = self._abandoned = False
        self.refused = 0  # entries that could not be written
        self._reset()
        _OPEN.add(self)
        survive_forks(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._work, self._room = threading.Condition(self._lock), threading.Condition(self._lock)
        self._changed = threading.Condition(self._lock)
        self._queue: deque[_Item] = deque()
        self._put = self._settled = 0
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()

    def after_fork(self) -> None:
        """Start anew in a child process: thread and connections stayed behind, and the parent writes its queue."""
        self._reset()
        self._engine.dispose(close=False)

    @property
    def pending(self) -> int:
        """Entries that are neither written nor given up."""
        with self._lock:
            return self._put - self._settled

    def put(self, make: Callable[[], Rows]) -> Receipt:
        """Queue one entry; waits while the queue is full.

        :param make: gives the entry's rows; called once, in the writer's thread.
        :raises OutcomeLogError: if the log is closed.
        """
        with self._lock:
            while len(self._queue) >= self._size and not self._closed:
                self._room.wait()
            if self._closed:
                raise OutcomeLogError("the outcome log is closed; open another one")
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="router-ml-outcomes", daemon=True)
                self._thread.start()
            receipt = Receipt(self._changed)
            self._queue.append(_Item(make, receipt))
            self._put += 1
            self._work.notify()
        return receipt

    def flush(self, timeout: float | None = None) -> None:
        """Return once everything that was queued before is written or refused.

        :raises OutcomeLogError: if it is not within the time; writing goes on.
        """
        with self._lock:
            target = self._put
            if not self._changed.wait_for(lambda: self._settled >= target, timeout):
                raise OutcomeLogError(f"{target - self._settled} entries of the outcome log are not written yet")

    def close(self, timeout: float | None) -> None:
        """Write what is queued and end.

        :raises OutcomeLogError: if something is not written within the time; it is given up.
        """
        with self._lock:
            self._closed = True
            self._closing.set()
            self._work.notify_all()
            self._room.notify_all()
            self._changed.wait_for(lambda: self._settled >= self._put, timeout)
            left = self._put - self._settled
            self._abandoned = left > 0
        if self._thread is None:
            self._engine.dispose()
        else:
            self._thread.join(1.0 if left else None)
        _OPEN.discard(self)
        if left:
            raise OutcomeLogError(f"{left} entries of the outcome log are not written: {self._name} cannot be written")

    @property
    def _name(self) -> str:
        return shown(self._engine.url)

    def _run(self) -> None:
        try:
            while batch := self._take():
                try:
                    self._write(batch)
                except Exception as exc:  # a mistake of ours must not make callers wait for ever
                    logger.exception("outcome log %s: the writer failed", self._name)
                    self._refuse([item for item in batch if not item.receipt.done], type(exc).__name__)
        finally:
            if self._queue:  # close() gave up
                self._refuse(list(self._queue), "the log was closed before its database was back")
            self._engine.dispose()

    def _take(self) -> list[_Item]:
        with self._lock:
            while not self._queue and not self._closed:
                self._work.wait()
            if self._abandoned:
                return []
            batch = [self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))]
            self._room.notify(len(batch))
            return batch

    def _write(self, batch: list[_Item]) -> None:
        made: list[tuple[_Item, Rows]] = []
        for item in batch:
            try:
                made.append((item, item.make()))
            except Exception as exc:  # a value of the caller's that cannot be read, such as a repr() that raises
                self._refuse([item], f"its rows cannot be made: {type(exc).__name__}")
        if made:
            self._commit(made)

    def _commit(self, made: list[tuple[_Item, Rows]]) -> None:
        tries = 0
        while True:
            try:
                with between_forks(self._engine), writing(self._engine) as connection:
                    insert(connection, [rows for _, rows in made])
            except Exception as exc:
                if is_outage(exc):
                    if not self._pause(exc, tries):
                        self._refuse([item for item, _ in made], "the log was closed before its database was back")
                        return
                    tries += 1
                elif len(made) == 1:
                    self._refuse([made[0][0]], f"the database refuses it: {kind_of(exc)}")
                    return
                else:
                    for one in made:
                        self._commit([one])
                    return
            else:
                if tries:
                    logger.warning("outcome log %s: written again after %d tries", self._name, tries)
                self._settle([item for item, _ in made], None)
                return

    def _pause(self, exc: Exception, tries: int) -> bool:
        """Wait before the next try. :return: whether there is to be one."""
        if tries == 0:
            why = cause(exc, self._engine.url)
            logger.warning("outcome log %s cannot be written (%s); entries wait, trying again", self._name, why)
        pause = min(FIRST_PAUSE_S * 2.0 ** min(tries, 10), LONGEST_PAUSE_S) * random.uniform(0.75, 1.0)
        if self._closing.is_set():
            time.sleep(CLOSING_PAUSE_S)
        else:
            self._closing.wait(pause)
        return not self._abandoned

    def _refuse(self, items: list[_Item], why: str) -> None:
        logger.warning("outcome log %s: %d entries are not written: %s", self._name, len(items), why)
        with self._lock:
            self.refused += len(items)
        self._settle(items, f"the entry is not written: {why}")

    def _settle(self, items: list[_Item], error: str | None) -> None:
        with self._lock:
            for item in items:
                item.receipt.settle(error)
            self._settled += len(items)
            self._changed.notify_all()


def insert(connection: Connection, batch: list[Rows]) -> None:
    """Add the rows; those whose key is there already are left out."""
    import sqlalchemy.dialects.postgresql as postgresql
    import sqlalchemy.dialects.sqlite as sqlite

    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    for name, table in tables()._asdict().items():
        rows = [row for one in batch for row in getattr(one, name)]
        if rows:
            connection.execute(dialect.insert(table).on_conflict_do_nothing(), rows)


def is_outage(exc: Exception) -> bool:
    """Whether the database is at fault, so that the same rows may go in later."""
    import sqlalchemy as sa

    if isinstance(exc, OSError | sa.exc.TimeoutError):
        return True
    if not isinstance(exc, sa.exc.DBAPIError):
        return False
    if exc.connection_invalidated:
        return True
    if not isinstance(exc, sa.exc.OperationalError | sa.exc.InternalError):
        return False
    state = getattr(exc.orig, "sqlstate", None)
    # SQLite's operational errors and PostgreSQL's without a state: locked, full, gone, not reachable
    return state is None or state[:2] in _OUTAGES


def kind_of(exc: Exception) -> str:
    """The error without its words, which may hold the row."""
    original: Any = getattr(exc, "orig", None) or exc
    state = getattr(original, "sqlstate", None)
    return type(original).__name__ + (f" ({state})" if state else "")


_OPEN: weakref.WeakSet[Writer] = weakref.WeakSet()


def _at_exit() -> None:
    for writer in list(_OPEN):
        try:
            writer.close(EXIT_S)
        except OutcomeLogError as exc:
            logger.error("%s", exc)


atexit.register(_at_exit)
