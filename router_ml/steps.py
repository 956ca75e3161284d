"""What carrying a decision out consists of, and who does it: calls, checks and pauses, blocking or in asyncio.

A generator of steps yields one of them, and is sent what came of it or thrown what it raised. So rules are written once
and run in both worlds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator
from typing import Any, NamedTuple, TypeVar

from router_ml.completion import Call, Chunk, Client
from router_ml.errors import ProviderUnavailableError
from router_ml.stream import joined

T = TypeVar("T")


class Ask(NamedTuple):
    call: Call  # -> Reply


class Collect(NamedTuple):
    call: Call  # -> (Reply, chunks): a stream read to its end, because its answer is to be checked


class Open(NamedTuple):
    call: Call  # -> (first chunk, the iterator of the rest)


class Pause(NamedTuple):
    seconds: float


class Do(NamedTuple):
    work: Callable[[], Any]  # may block: a check, a compression


Step = Ask | Collect | Open | Pause | Do
Steps = Generator[Step, Any, T]


class Driver:
    """Does steps.

    :param client: gives what calls the models, asked for at each call. :param sleep: pauses of ``drive``.
    """

    def __init__(self, client: Callable[[], Client], sleep: Callable[[float], None] = time.sleep) -> None:
        self._client, self._sleep = client, sleep

    def drive(self, steps: Steps[T]) -> T:
        try:
            step = next(steps)
            while True:
                try:
                    result = self._perform(step)
                except BaseException as exc:
                    step = steps.throw(exc)
                else:
                    step = steps.send(result)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]

    def _perform(self, step: Step) -> Any:
        match step:
            case Ask(call):
                return self._client().complete(call)
            case Collect(call):
                chunks = tuple(self._client().stream(call))
                _begun(next(iter(chunks), None), call)
                return joined(chunks), chunks
            case Open(call):
                rest = self._client().stream(call)
                first = next(rest, None)
                return _begun(first, call), rest
            case Pause(seconds):
                return self._sleep(seconds)
            case Do(work):
                return work()

    async def adrive(self, steps: Steps[T]) -> T:
        try:
            step = next(steps)
            while True:
                try:
                    result = await self._aperform(step)
                except BaseException as exc:
                    step = steps.throw(exc)
                else:
                    step = steps.send(result)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]

    async def _aperform(self, step: Step) -> Any:
        match step:
            case Ask(call):
                return await self._client().acomplete(call)
            case Collect(call):
                chunks = tuple([chunk async for chunk in self._client().astream(call)])
                _begun(next(iter(chunks), None), call)
                return joined(chunks), chunks
            case Open(call):
                rest = self._client().astream(call)
                first = await anext(rest, None)
                return _begun(first, call), rest
            case Pause(seconds):
                return await asyncio.sleep(seconds)
            case Do(work):
                return await asyncio.to_thread(work)


def _begun(first: Chunk | None, call: Call) -> Chunk:
    if first is None:
        raise ProviderUnavailableError(f"{call.spec.name} sent an empty stream", model=call.spec.name, status=200)
    return first
