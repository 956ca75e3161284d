"""Streams of a routed answer: chunks in OpenAI's form, ``model`` naming the candidate that writes them.

An error before the first chunk is met by retries and fallbacks like any other. After it, the caller has part of an
answer, so the stream ends with the error. An answer that a verifier checks is streamed once it is accepted.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from router_ml.attempt import NO_TOKENS
from router_ml.completion import Chunk, Reply
from router_ml.errors import ProviderError

if TYPE_CHECKING:
    from router_ml.attempt import Completion
    from router_ml.cascade import Cascade, Given, Run
    from router_ml.request import RouteDecision


def joined(chunks: Iterable[Chunk]) -> Reply:
    """The reply that a stream amounts to; its usage is all zeros where the stream tells none."""
    read = list(chunks)
    text = "".join([chunk.text for chunk in read])
    usage = next((chunk.usage for chunk in reversed(read) if chunk.usage is not None), NO_TOKENS)
    reason = next((chunk.finish_reason for chunk in reversed(read) if chunk.finish_reason), None)
    headers = next((chunk.headers for chunk in read if chunk.headers), {})
    return Reply(text, usage, reason, any(chunk.cache_hit for chunk in read), headers)


class _Streamed:
    """What both kinds of stream share: what is known from the start, and the bookkeeping at the end."""

    def __init__(self, cascade: Cascade, run: Run, given: Given) -> None:
        self.decision: RouteDecision = run.decision
        self.model: str = given.model
        self.completion: Completion | None = None
        self._cascade, self._run, self._given = cascade, run, given
        self._seen: list[Chunk] = []
        self._waited_s = given.waited_s  # for the provider; what the reader does between chunks is his own time

    def _saw(self, chunk: Chunk) -> Chunk:
        self._seen.append(chunk._replace(raw=None))
        return chunk

    def _end(self, error: ProviderError | None = None) -> None:
        if self.completion is None:
            reply = joined(self._seen)
            if not any(reply.usage):
                reply = replace(
                    reply, usage=self._cascade.live.estimated_usage(self._run.reading, self.model, reply.text)
                )
            self.completion = self._cascade.end_stream(self._run, self._given, reply, self._waited_s, error)


class CompletionStream(_Streamed):
    """Iterate to read the answer. ``model`` and ``decision`` are known at once, ``completion`` after the last chunk.

    Closing it, or leaving its ``with`` block, before the end books what came so far. A stream that is neither read nor
    closed is never booked.
    """

    def __iter__(self) -> Iterator[Any]:
        try:
            for chunk in self._chunks():
                if self._saw(chunk).raw is not None:
                    yield chunk.raw
        except ProviderError as error:
            self._end(error)
            raise
        finally:
            self.close()

    def _chunks(self) -> Iterator[Chunk]:
        if not self._seen:  # whoever iterates a second time is not given the beginning again without the rest
            yield from self._given.chunks
        while True:
            asked = time.perf_counter()
            chunk = next(self._given.rest, None)
            self._waited_s += time.perf_counter() - asked
            if chunk is None:
                return
            yield chunk

    def close(self) -> None:
        """End the stream."""
        try:
            self._given.rest.close()
        finally:
            self._end()

    def __enter__(self) -> CompletionStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncCompletionStream(_Streamed):
    """``CompletionStream`` for asyncio."""

    async def __aiter__(self) -> AsyncIterator[Any]:
        try:
            async for chunk in self._chunks():
                if self._saw(chunk).raw is not None:
                    yield chunk.raw
        except ProviderError as error:
            self._end(error)
            raise
        finally:
            await self.aclose()

    async def _chunks(self) -> AsyncIterator[Chunk]:
        if not self._seen:
            for chunk in self._given.chunks:
                yield chunk
        while True:
            asked = time.perf_counter()
            following = await anext(self._given.rest, None)
            self._waited_s += time.perf_counter() - asked
            if following is None:
                return
            yield following

    async def aclose(self) -> None:
        """End the stream."""
        try:
            await self._given.rest.aclose()
        finally:
            self._end()

    async def __aenter__(self) -> AsyncCompletionStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


class CheckedStream:
    """An answer that was read whole and checked before its first chunk is given on; works in both worlds."""

    def __init__(self, completion: Completion, chunks: Iterable[Chunk]) -> None:
        self.completion, self.decision, self.model = completion, completion.decision, completion.model
        self._chunks = [chunk.raw for chunk in chunks if chunk.raw is not None]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._chunks)

    async def __aiter__(self) -> AsyncIterator[Any]:
        for chunk in self._chunks:
            yield chunk

    def close(self) -> None:
        """Nothing is open."""

    async def aclose(self) -> None:
        """Nothing is open."""

    def __enter__(self) -> CheckedStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> CheckedStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
