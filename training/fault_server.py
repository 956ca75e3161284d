"""A provider that misbehaves at will: OpenAI-compatible, on loopback, for tests and benchmarks.

    python -m training.fault_server [--port N] [--seed N] [--record N] [--scenario JSON_OR_FILE]

prints one JSON line with its url when it is ready and serves until it is interrupted. In a test::

    with FaultServer({"a": Behaviour(text="yes", faults={"429": 0.1})}, seed=1) as server:
        litellm.completion(model="openai/a", api_base=server.url + "/v1", api_key="k", messages=...)
        server.behave("a", Behaviour(down=True))

It serves ``POST /v1/chat/completions``, ``POST /v1/messages``, ``GET /v1/models``, ``GET /__counts`` and
``POST /__behave``, whose body, like a scenario, maps each model to the fields of its ``Behaviour``. A model that nobody
described behaves as "*" does. HTTP/1.1 is written by hand: a library would not let it lie about a length.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import click

from training.wire_format import PROBLEMS, Anthropic, Format, Json, OpenAI, Reply, prompt_tokens

OK = "ok"
FAULTS = (
    *PROBLEMS, "timeout", "broken_json", "close", "truncated", "empty", "stream_break", "slow_stream",
)  # fmt: skip
_FORMATS: Mapping[str, Format] = {"/v1/chat/completions": OpenAI(), "/v1/messages": Anthropic()}
_BREAKS = ("truncated", "stream_break")
_PIECES = 8  # of a whole answer that is to break or to be slow


@dataclass(frozen=True)
class Behaviour:
    """What one model does.

    :param text: the answer, or a function of the request's body that gives it, called on the server's thread.
    :param faults: fault -> probability, drawn per request from the server's seed. What is left answers.
    :param script: faults, or "ok", for the next requests, one each; only then ``faults`` are drawn.
    :param down: every request gets a 503.
    :param delay_s: seconds before the answer or the fault.
    :param headers: further headers of every response, such as ``x-ratelimit-remaining-requests``.
    :param retry_after_s: of a 429; None: no such header.
    :param stall_s: seconds after which a "timeout" hangs up, if the client has not.
    :param break_after: events that a "stream_break" sends. :param event_delay_s: before each event of a "slow_stream".
        Without a stream both happen to the pieces of the body.
    :param input_tokens: of the usage; None: estimated from length. :param cached_tokens: those of the input.
    :param tool_calls: each with ``name`` and ``arguments``.
    :raises ValueError: if a fault is unknown or the probabilities pass 1.
    """

    text: str | Callable[[Json], str] = "It works."
    faults: Mapping[str, float] = field(default_factory=dict)
    script: Sequence[str] = ()
    down: bool = False
    delay_s: float = 0.0
    headers: Mapping[str, str] = field(default_factory=dict)
    retry_after_s: float | None = None
    stall_s: float = 60.0
    break_after: int = 2
    event_delay_s: float = 0.05
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int = 0
    finish_reason: str = "stop"
    tool_calls: Sequence[Mapping[str, Any]] = ()

    def __post_init__(self) -> None:
        unknown = sorted({*self.faults, *self.script} - {*FAULTS, OK})
        if unknown:
            raise ValueError(f"unknown fault(s) {unknown}; known: {[OK, *FAULTS]}")
        if any(p < 0.0 for p in self.faults.values()) or sum(self.faults.values()) > 1.0 + 1e-9:
            raise ValueError(f"faults are {dict(self.faults)}; expected probabilities that add up to at most 1")

    def reply(self, request: Json) -> Reply:
        """What it says to a request."""
        text = self.text(request) if callable(self.text) else self.text
        given = self.input_tokens, self.output_tokens
        counted = prompt_tokens(request) if given[0] is None else given[0]
        written = max(1, len(text) // 4) if given[1] is None else given[1]
        return Reply(request["model"], text, self.tool_calls, self.finish_reason, counted, written, self.cached_tokens)


class _Model:
    """A behaviour and where its script and its random draws stand."""

    def __init__(self, behaviour: Behaviour, seed: str) -> None:
        self.behaviour = behaviour
        self._script = iter(behaviour.script)
        self._rng = random.Random(seed)

    def next_fault(self) -> str:
        if self.behaviour.down:
            return "503"
        scripted = next(self._script, None)
        if scripted is not None:
            return scripted
        left = self._rng.random()
        for fault, share in self.behaviour.faults.items():
            left -= share
            if left < 0.0:
                return fault
        return OK


class _Request(NamedTuple):
    method: str
    path: str
    body: bytes
    keep_alive: bool


class _HangUpError(Exception):
    """The connection is to end here."""


class FaultServer:
    """The server, in a thread of its own while the ``with`` block lasts.

    :param behaviours: model -> behaviour; "*" is that of every other model.
    :param port: 0: a free one. :param seed: of the faults; a model's draws do not depend on the other models'.
    :param record: how many of the last requests' bodies ``requests`` keeps; 0: none.
    :raises OSError: on entering, if the port is taken.
    """

    def __init__(
        self, behaviours: Mapping[str, Behaviour] | None = None, *, port: int = 0, seed: int = 0, record: int = 1000
    ) -> None:
        self.port, self._seed = port, seed
        self.requests: deque[Json] = deque(maxlen=record)
        self._counted: Counter[tuple[str, str]] = Counter()
        self._models: dict[str, _Model] = {}
        for model, behaviour in ({"*": Behaviour()} | dict(behaviours or {})).items():
            self.behave(model, behaviour)
        self._connections: set[asyncio.Task[None]] = set()
        self._ready = threading.Event()
        self._failure: OSError | None = None
        self._thread = threading.Thread(target=self._run, name="fault-server", daemon=True)

    @property
    def url(self) -> str:
        """Where it listens; OpenAI clients want ``/v1`` after it."""
        return f"http://127.0.0.1:{self.port}"

    def behave(self, model: str, behaviour: Behaviour) -> None:
        """Change what a model does, from its next request on. Its script and its draws begin anew."""
        self._models[model] = _Model(behaviour, f"{self._seed} {model}")

    def count(self, model: str | None = None, fault: str | None = None) -> int:
        """Requests that were received, of one model or all, with one fault ("ok": none) or all."""
        wanted = self._counted.copy().items()
        return sum(n for (m, f), n in wanted if model in (None, m) and fault in (None, f))

    def counts(self) -> Json:
        """``{"requests": n, "faults": {fault: n}, "models": {model: {fault: n}}}``, where "ok" is a fault too."""
        faults: Counter[str] = Counter()
        models: dict[str, dict[str, int]] = {}
        for (model, fault), n in sorted(self._counted.copy().items()):
            faults[fault] += n
            models.setdefault(model, {})[fault] = n
        return {"requests": faults.total(), "faults": dict(faults), "models": models}

    def __enter__(self) -> FaultServer:
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            raise self._failure
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(RuntimeError):  # it has ended already
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def wait(self) -> None:
        """Serve until the process is interrupted."""
        self._thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except OSError as exc:
            self._failure = exc
            self._ready.set()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._connection, "127.0.0.1", self.port, backlog=1024)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            while (request := await _read(reader)) is not None:
                await self._respond(request, reader, writer)
                await writer.drain()
                if not request.keep_alive:
                    break
        except (_HangUpError, OSError, EOFError, asyncio.LimitOverrunError, asyncio.CancelledError):
            pass  # either side may hang up; the server cancels what is open when it stops
        finally:
            self._connections.discard(task)
            writer.close()

    async def _respond(self, request: _Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        route = f"{request.method} {request.path}"
        shape = _FORMATS.get(request.path)
        if shape is not None and request.method == "POST":
            await self._complete(shape, request, reader, writer)
        elif route == "GET /v1/models":
            models = [{"id": name, "object": "model", "created": 0, "owned_by": "fault"} for name in self._models]
            writer.write(_response(200, {"object": "list", "data": models}))
        elif route == "GET /__counts":
            writer.write(_response(200, self.counts()))
        elif route == "POST /__behave":
            writer.write(self._behave_as(request.body))
        else:
            writer.write(_response(404, {"error": {"message": f"no such path: {route}"}}))

    def _behave_as(self, body: bytes) -> bytes:
        try:
            behaviours = scenario(body.decode())
        except ValueError as exc:
            return _response(400, {"error": {"message": str(exc)}})
        for model, behaviour in behaviours.items():
            self.behave(model, behaviour)
        return _response(200, {"changed": sorted(behaviours)})

    async def _complete(
        self, shape: Format, request: _Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        body = _asked(request.body)
        if body is None:
            writer.write(_response(*shape.problem(PROBLEMS["400"])))
            return
        model = self._models.get(body["model"], self._models["*"])
        behaviour, fault = model.behaviour, model.next_fault()
        self._counted[body["model"], fault] += 1
        self.requests.append(body)
        if behaviour.delay_s > 0.0:
            await asyncio.sleep(behaviour.delay_s)
        if fault == "timeout":
            await _stall(reader, behaviour.stall_s)
        if fault in ("timeout", "close"):
            raise _HangUpError
        if fault in PROBLEMS:
            again = (
                {} if fault != "429" or behaviour.retry_after_s is None else {"retry-after": behaviour.retry_after_s}
            )
            writer.write(_response(*shape.problem(PROBLEMS[fault]), headers={**behaviour.headers, **again}))
        elif body.get("stream"):
            await self._stream(shape, body, behaviour, fault, writer)
        else:
            await self._answer(shape, body, behaviour, fault, writer)

    async def _answer(
        self, shape: Format, body: Json, behaviour: Behaviour, fault: str, writer: asyncio.StreamWriter
    ) -> None:
        reply = behaviour.reply(body)
        whole = json.dumps(shape.empty(reply) if fault == "empty" else shape.body(reply)).encode()
        if fault == "broken_json":
            whole = whole[: len(whole) // 2]
        head = _head(200, {"content-type": "application/json", "content-length": len(whole)} | dict(behaviour.headers))
        if fault in (OK, "broken_json", "empty"):
            writer.write(head + whole)
            return
        if fault in _BREAKS:
            whole = whole[:-1]  # however many pieces are sent, not all of it
        size = -(-len(whole) // _PIECES)
        pieces = (whole[start : start + size] for start in range(0, len(whole), size))
        writer.write(head)
        await _send(writer, pieces, behaviour, fault)

    async def _stream(
        self, shape: Format, body: Json, behaviour: Behaviour, fault: str, writer: asyncio.StreamWriter
    ) -> None:
        reply = behaviour.reply(body)
        if fault == "empty":
            reply = reply._replace(text="", tool_calls=())
        events: Iterable[bytes] = shape.events(reply, body)
        if fault == "broken_json":
            events = itertools.chain(itertools.islice(events, 1), [b'data: {"id": "chatcmpl-\n\n'])
        kind = {"content-type": "text/event-stream", "transfer-encoding": "chunked"}
        writer.write(_head(200, kind | dict(behaviour.headers)))
        await _send(writer, (b"%x\r\n%b\r\n" % (len(event), event) for event in events), behaviour, fault)
        writer.write(b"0\r\n\r\n")


async def _send(writer: asyncio.StreamWriter, pieces: Iterable[bytes], behaviour: Behaviour, fault: str) -> None:
    breaks = fault in _BREAKS
    for piece in itertools.islice(pieces, behaviour.break_after) if breaks else pieces:
        if fault == "slow_stream":
            await asyncio.sleep(behaviour.event_delay_s)
        writer.write(piece)
        await writer.drain()
    if breaks:
        raise _HangUpError


async def _stall(reader: asyncio.StreamReader, seconds: float) -> None:
    """Wait until the client goes away, or the time is over."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(reader.read(1), seconds)


async def _read(reader: asyncio.StreamReader) -> _Request | None:
    """The next request of the connection, None at its end."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    method, path, _ = (*first.split(" "), "", "")[:3]
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    length = headers.get("content-length", "")
    body = await reader.readexactly(int(length)) if length.isdecimal() else b""
    return _Request(method, path.partition("?")[0], body, headers.get("connection", "").lower() != "close")


def _asked(body: bytes) -> Json | None:
    """The request's JSON, None if it is not one that names a model."""
    try:
        asked = json.loads(body)
    except ValueError:
        return None
    return asked if isinstance(asked, dict) and isinstance(asked.get("model"), str) else None


def _head(status: int, headers: Mapping[str, object]) -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status} {'OK' if status < 400 else 'Fault'}\r\n{lines}\r\n".encode("latin-1")


def _response(status: int, body: Json, headers: Mapping[str, object] | None = None) -> bytes:
    text = json.dumps(body).encode()
    kind = {"content-type": "application/json", "content-length": len(text)}
    return _head(status, kind | dict(headers or {})) + text


def scenario(text: str) -> dict[str, Behaviour]:
    """Behaviours by model, from JSON text or from the file of that name.

    :raises ValueError: if it is neither, or a behaviour has an unknown field, fault or probability.
    """
    try:
        known = json.loads(text if text.lstrip().startswith("{") else Path(text).read_text(encoding="utf-8"))
        return {model: Behaviour(**fields) for model, fields in known.items()}
    except (OSError, TypeError, AttributeError) as exc:
        raise ValueError(f"not a scenario: {exc}; expected models mapped to fields of Behaviour") from exc


@click.command("fault-server", help="Serve a provider that misbehaves at will, on loopback.")
@click.option("--port", default=0, show_default="a free one")
@click.option("--seed", default=0, show_default=True, help="Of the faults.")
@click.option("--record", default=0, show_default=True, help="How many request bodies to keep.")
@click.option("--scenario", "described", default="{}", help="JSON, or a file of it: models -> fields of Behaviour.")
def command(port: int, seed: int, record: int, described: str) -> None:
    try:
        behaviours = scenario(described)
    except ValueError as exc:
        raise click.BadParameter(str(exc), param_hint="--scenario") from exc
    try:
        with FaultServer(behaviours, port=port, seed=seed, record=record) as server:
            print(json.dumps({"url": server.url, "port": server.port}), flush=True)
            server.wait()
    except KeyboardInterrupt:
        pass
    except OSError as exc:
        raise click.ClickException(f"port {port} cannot be used: {exc.strerror}") from exc


if __name__ == "__main__":
    sys.exit(command())
