"""The gateway's front door, before anything of the proxy's: what is served, to whom, and how long a body may be."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from router_ml import gateway_garbage
from router_ml.gateway import Gateway, Holder, current

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MAX_BODY_BYTES = 20 * 1024 * 1024
DRAIN_S = 5.0  # how long the rest of a refused body is thrown away before the connection is closed
KEY_HEADERS = (b"authorization", b"x-api-key", b"api-key")
NO_KEY = "the key is missing or wrong; expected Authorization: Bearer KEY, or x-api-key: KEY"
HEALTH = frozenset({"/health/liveliness", "/health/liveness", "/health/readiness"})
SERVED = frozenset({
    "/v1/chat/completions", "/chat/completions", "/v1/messages", "/v1/messages/count_tokens", "/v1/responses",
    "/responses", "/v1/models", "/models", "/v1/route", "/v1/feedback", "/metrics",
})  # fmt: skip


_KINDS = {
    400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error", 413: "request_too_large",
}  # fmt: skip


class _TooLongError(Exception):
    """The body passed the limit while it was read."""


class Door:
    """Lets through what the gateway serves.

    The proxy has hundreds of other routes, some of which ask for no key. Whatever is not named here is not found.

    :param app: what serves the rest, and checks the key again.
    :param key: the one key there is; None: the proxy has a database of keys, and only its absence is refused here.
        Without such a database the proxy answers a wrong key with a 400, and no key with a 500 (litellm issue 35457).
    :param max_body_bytes: a longer body gets a 413, and is never held in memory.
    """

    def __init__(self, gateway: Gateway, app: App, key: str | None, max_body_bytes: int = MAX_BODY_BYTES) -> None:
        self._gateway, self._app, self._limit = gateway, app, max_body_bytes
        self._key = None if key is None else key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
            return
        path = scope["path"]
        if scope["type"] != "http" or (path not in SERVED and path not in HEALTH):
            await _refuse(scope, receive, send, 404, "not found")
            return
        if path not in HEALTH and not self._knows(scope["headers"]):
            await _refuse(scope, receive, send, 401, NO_KEY)
            return
        # a client must not choose the id by which a request's log lines and outcomes are told apart
        scope["headers"] = [item for item in scope["headers"] if item[0] != b"x-litellm-call-id"]
        holder = Holder()
        token = current.set(holder)
        try:
            await self._limited(scope, receive, send)
        finally:
            current.reset(token)
            if holder.exchange is not None:
                self._gateway.left(holder.exchange)

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        """From the start of the server to its end."""

        async def watching(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete" and gateway_garbage.NEEDED:
                gateway_garbage.collect_between_steps(asyncio.get_running_loop())
            await send(message)

        try:
            await self._app(scope, receive, watching)
        finally:
            self._gateway.shut_down()

    def _knows(self, headers: Sequence[tuple[bytes, bytes]]) -> bool:
        keys = [value.removeprefix(b"Bearer ").strip() for name, value in headers if name in KEY_HEADERS]
        if self._key is None:
            return any(keys)
        return any(hmac.compare_digest(key, self._key) for key in keys)

    async def _limited(self, scope: Scope, receive: Receive, send: Send) -> None:
        length = next((value for name, value in scope["headers"] if name == b"content-length"), None)
        if length is not None and length.isdigit() and int(length) > self._limit:
            await self._refuse_length(scope, receive, send)
            return
        first: Message | None = None
        if scope["method"] == "POST":
            first = await receive()
            begin = first.get("body", b"").lstrip()[:1]
            # whatever else JSON may be, the proxy breaks on it
            if begin != b"{" and not (begin == b"" and first.get("more_body")):
                await _refuse(scope, _after(first, receive), send, 400, "the body is no JSON object")
                return
        await self._counted(scope, receive, send, first)

    async def _counted(self, scope: Scope, receive: Receive, send: Send, first: Message | None) -> None:
        """Serve a body up to the limit, whatever it says its length is. :param first: what was received already."""
        left, started = self._limit, False

        async def counting() -> Message:
            nonlocal left, first
            message, first = (await receive() if first is None else first), None
            if message["type"] == "http.request":
                left -= len(message.get("body", b""))
                if left < 0:
                    raise _TooLongError
            return message

        async def guarded(message: Message) -> None:
            nonlocal started
            if left >= 0 or started:  # else the proxy took what was raised for a broken body, and answers that
                started = True
                await send(message)

        with contextlib.suppress(_TooLongError):
            await self._app(scope, counting, guarded)
        if left < 0 and not started:
            await self._refuse_length(scope, receive, send)

    async def _refuse_length(self, scope: Scope, receive: Receive, send: Send) -> None:
        limit = f"{self._limit / 1024 / 1024:g} MB"
        await _refuse(scope, receive, send, 413, f"the request's body is longer than {limit}, the most that is read")


def _after(first: Message, receive: Receive) -> Receive:
    """What is left to receive, where the first message was received already."""

    async def rest() -> Message:
        return await receive() if first.get("more_body") else first

    return rest


async def _refuse(scope: Scope, receive: Receive, send: Send, status: int, message: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    kind = _KINDS[status]
    if scope["path"].startswith("/v1/messages"):
        content: dict[str, Any] = {"type": "error", "error": {"type": kind, "message": message}}
    else:
        content = {"error": {"message": message, "type": kind, "param": None, "code": str(status)}}
    body = json.dumps(content).encode()
    headers = {b"content-type": b"application/json", b"content-length": b"%d" % len(body), b"connection": b"close"}
    await send({"type": "http.response.start", "status": status, "headers": list(headers.items())})
    await send({"type": "http.response.body", "body": body, "more_body": True})
    # a client that is cut off while it sends may never look at the answer
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_S):
            while (more := await receive())["type"] == "http.request" and more.get("more_body"):
                pass
    await send({"type": "http.response.body", "body": b""})
