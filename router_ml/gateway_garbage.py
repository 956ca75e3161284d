"""Collect garbage between two steps of the event loop, and only there.

Before 3.12, Python collects it in the midst of any allocation, also of one by which a ContextVar is set. Where a
finalizer then sets a ContextVar of its own, as those of litellm's streams do, the interpreter crashes (CPython issue
148891): the gateway did after some ten thousand streams. From 3.12 on the interpreter itself waits for a safe point.
"""

from __future__ import annotations

import asyncio
import gc
import sys

NEEDED = sys.version_info < (3, 12)
EVERY_S = 0.05
YOUNG, OLDER = 2_000, 10  # of objects; of collections of the generation before. Python's own numbers are 700 and 10


def collect_between_steps(loop: asyncio.AbstractEventLoop) -> None:
    """Take garbage collection over for this process, for as long as the loop runs.

    What is there by now is left out of it for good: in a server that has started, that is what stays until it ends,
    and going through it all would hold up requests for a fifth of a second.
    """
    gc.collect()
    gc.freeze()
    gc.disable()
    _collect(loop)


def _collect(loop: asyncio.AbstractEventLoop) -> None:
    young, middle, old = gc.get_count()
    if old > OLDER:
        gc.collect(2)
    elif middle > OLDER:
        gc.collect(1)
    elif young > YOUNG:
        gc.collect(0)
    loop.call_later(EVERY_S, _collect, loop)
