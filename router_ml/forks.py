"""What must not break at a fork: objects that a child has to begin anew, and SQLite, which has to be closed meanwhile.

SQLite keeps in the process's memory which locks it holds on a file. A child inherits that, but not the locks: it waits
for ever for one that only its parent holds, or writes without one, and what it writes is lost when its parent closes
the file (sqlite.org/howtocorrupt.html, section 2.6). So a fork waits for transactions, and closes what is idle.
"""

from __future__ import annotations

import logging  # noqa: F401  # its own hook takes a lock that transactions may want; hooks run the last registered first
import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from sqlalchemy import Engine


class Forkable(Protocol):
    """What a child begins anew."""

    def after_fork(self) -> None:
        """Called in every child, before anything else runs there."""


WAIT_S = 60.0  # the most that a fork waits: twice as long as SQLite waits for another process

_forkable: weakref.WeakSet[Any] = weakref.WeakSet()
_files: weakref.WeakSet[Engine] = weakref.WeakSet()
_changed = threading.Condition()
_busy = _forking = 0  # transactions on files, threads that fork


def survive_forks(one: Forkable) -> None:
    """Call its ``after_fork`` in every child, for as long as it lives.

    A lock that another thread holds at the moment of the fork stays locked in the child for ever.
    """
    _forkable.add(one)


@contextmanager
def between_forks(engine: Engine) -> Iterator[None]:
    """While a SQLite file is used: a fork waits for the end of it, and it for the end of a fork. Not to be nested."""
    global _busy
    if engine.dialect.name != "sqlite":
        yield
        return
    _files.add(engine)
    with _changed:
        _changed.wait_for(lambda: not _forking)
        _busy += 1
    try:
        yield
    finally:
        with _changed:
            _busy -= 1
            _changed.notify_all()


def _before() -> None:
    global _forking
    with _changed:
        _forking += 1
        _changed.wait_for(lambda: not _busy, WAIT_S)
    for engine in list(_files):
        engine.dispose()


def _after_in_parent() -> None:
    global _forking
    with _changed:
        _forking -= 1
        _changed.notify_all()


def _after_in_child() -> None:
    global _changed, _busy, _forking
    _changed, _busy, _forking = threading.Condition(), 0, 0
    for one in list(_forkable):
        one.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
