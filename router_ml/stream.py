"""Streams of a routed answer: chunks in OpenAI's form, ``model`` naming the candidate that writes them.

An error before the first chunk is met by retries and fallbacks like any other. After it, the caller has part of an
answer, so the stream ends with the error. An answer that a verifier checks is streamed once it is accepted.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from router_ml.attempt import Usage
from router_ml.completion import Chunk, Reply
from router_ml.errors import ProviderError
from router_ml.request import BYTES_PER_TOKEN

if TYPE_CHECKING:
    from router_ml.attempt import Completion
    from router_ml.cascade import Cascade, Given, Run
    from router_ml.request import RouteDecision


def joined(chunks: Iterable[Chunk], input_tokens: int = 0) -> Reply:
    """The reply that a stream amounts to.

    :param input_tokens: estimate for a stream that tells no usage; its output is then estimated too.
    """
    read = list(chunks)
    text = "".join([chunk.text for chunk in read])
    usage = next((chunk.usage for chunk in reversed(read) if chunk.usage is not None), None)
    if usage is None:
        usage = Usage(input_tokens, -(-len(text.encode("utf-8", "replace")) // BYTES_PER_TOKEN))
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

    def _end(self, error: ProviderError | None = None) -> None:
        if self.completion is None:
            tokens = round(self._run.reading.trace.input_tokens * self._cascade.live.specs[self.model].token_factor)
            reply = joined(self._seen, tokens)
            self.completion = self._cascade.end_stream(self._run, self._given, reply, error)


class CompletionStream(_Streamed):
    """Iterate to read the answer. ``model`` and ``decision`` are known at once, ``completion`` after the last chunk.

    Closing it, or leaving its ``with`` block, before the end books what came so far.
    """

    def __iter__(self) -> Iterator[Any]:
        try:
            for chunk in self._chunks():
                self._seen.append(chunk._replace(raw=None))
                if chunk.raw is not None:
                    yield chunk.raw
        except ProviderError as error:
            self._end(error)
            raise
        finally:
            self.close()

    def _chunks(self) -> Iterator[Chunk]:
        if not self._seen:  # whoever iterates a second time is not given the beginning again without the rest
            yield from self._given.chunks
        yield from self._given.rest

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
            for chunk in () if self._seen else self._given.chunks:
                self._seen.append(chunk._replace(raw=None))
                if chunk.raw is not None:
                    yield chunk.raw
            async for chunk in self._given.rest:
                self._seen.append(chunk._replace(raw=None))
                if chunk.raw is not None:
                    yield chunk.raw
        except ProviderError as error:
            self._end(error)
            raise
        finally:
            await self.aclose()

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
