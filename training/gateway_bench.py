"""What the gateway costs: the LiteLLM proxy with the router in it against the same proxy without.

    python -m training.gateway_bench [--json OUT.json] [--router DIR] [--rounds N] [--requests N] [--clients N]

Both servers run all the time, on the same provider, which answers at once; they take turns in ABAB rounds, and each
figure is the median over the rounds. The proxy without the router is asked for a model by name. Every request is
different. The outcome log is on, in SQLite. Client, provider and both servers share this machine's cores.

The gateway does more than the proxy, and leaves out what the proxy does for a database of keys that is not there. What
is compared is what somebody gets who starts the one or the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import click
import numpy as np

from router_ml.cli import run
from router_ml.errors import GatewayError
from router_ml.gateway_proxy import MASTER_KEY
from router_ml.gateway_server import QUIET, proxy_config
from router_ml.pool import ModelPool
from router_ml.router import Router
from router_ml.terminal import console, table_of
from training.simulate import World

ADDED_TARGET_MS, THROUGHPUT_TARGET = 2.0, 0.95
KEY = "sk-benchmark-0123456789"
START_S = 120.0
GATEWAY = "from router_ml.cli import run; from router_ml.gateway_server import serve; raise SystemExit(run(serve))"
# the same options of uvicorn as in gateway_server.serve
BARE = """
import sys, uvicorn
app = "litellm.proxy.proxy_server:app"
uvicorn.run(app, port=int(sys.argv[1]), log_level="warning", access_log=False, server_header=False)
"""


class Round(NamedTuple):
    """One server under one load. :param rate: answers a second. :param p50_ms: of the answers' latency."""

    rate: float
    p50_ms: float
    p99_ms: float


class Load(NamedTuple):
    """Requests of one kind. :param clients: connections, each with one request at a time."""

    what: str
    clients: int
    stream: bool


@click.command("gateway-benchmark")
@click.option("--json", "json_path", type=Path, help="Also write the figures to this file.")
@click.option("--router", help="A saved router; without it, the bundled one.")
@click.option("--rounds", default=9, show_default=True, help="Turns of each server under each load.")
@click.option("--requests", default=300, show_default=True, help="Requests of one turn.")
@click.option("--clients", default=16, show_default=True, help="Connections, where throughput is measured.")
def command(json_path: Path | None, router: str | None, rounds: int, requests: int, clients: int) -> None:
    """Measure what the gateway adds to the LiteLLM proxy; takes some minutes."""
    loads = [
        Load("one client", 1, False), Load(f"{clients} clients", clients, False), Load("one client, streams", 1, True),
    ]  # fmt: skip
    with servers(router) as ports:
        found = asyncio.run(measure(ports, loads, rounds, requests))
    report(found)
    if json_path is not None:
        rows = {load.what: {name: [r._asdict() for r in of] for name, of in by.items()} for load, by in found.items()}
        json_path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


@contextlib.contextmanager
def servers(router: str | None) -> Iterator[dict[str, tuple[int, str]]]:
    """Both servers and their provider: name -> (port, the model to ask for).

    :raises GatewayError: if one of them does not start.
    """
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        provider = subprocess.Popen([sys.executable, "-m", "training.fault_server"], stdout=subprocess.PIPE, text=True)
        stack.callback(_stop, provider)
        assert provider.stdout is not None
        stack.callback(provider.stdout.close)
        pool = _pool(router, json.loads(provider.stdout.readline())["url"])
        pool.to_yaml(folder / "pool.yaml")
        (folder / "proxy.yaml").write_text(json.dumps(proxy_config(pool, alone=False)), encoding="utf-8")
        ports = [_free_port(), _free_port()]
        arguments = [] if router is None else ["--router", router]
        commands = [
            ["-c", BARE, str(ports[0])],
            ["-c", GATEWAY, "--config", str(folder / "pool.yaml"), "--port", str(ports[1]),
             "--log", f"sqlite:///{folder / 'log.db'}", *arguments],
        ]  # fmt: skip
        known = os.environ | QUIET | {"CONFIG_FILE_PATH": str(folder / "proxy.yaml"), MASTER_KEY: KEY, "BENCH_KEY": "k"}
        log = stack.enter_context((folder / "out.txt").open("w+"))
        started = [subprocess.Popen([sys.executable, *one], env=known, stdout=log, stderr=log) for one in commands]
        for process in started:
            stack.callback(_stop, process)
        try:
            for process, port in zip(started, ports, strict=True):
                if not _ready(process, port):
                    raise GatewayError(f"the server at port {port} did not start")
            yield {"proxy": (ports[0], pool.names[0]), "gateway": (ports[1], "auto")}
        except GatewayError as exc:
            log.seek(0)
            ended = [process.poll() for process in started]
            raise GatewayError(f"{exc}, of {ports}, which ended with {ended} and said: {log.read()[-3000:]}") from exc


def _pool(router: str | None, url: str) -> ModelPool:
    """The router's own pool, every model of which is answered by the fake provider."""
    mapping = Router.load(router).pool.to_dict()
    for model in mapping["models"]:
        name = model["name"].replace("/", "-")
        model |= {"call_as": f"openai/{name}", "api_base": f"{url}/v1", "api_key_env": "BENCH_KEY"}
    return ModelPool.from_dict(mapping)


async def measure(
    ports: dict[str, tuple[int, str]], loads: Sequence[Load], rounds: int, requests: int
) -> dict[Load, dict[str, list[Round]]]:
    """Let the servers take turns under each load; the first turn of each warms up and is not counted."""
    texts = iter([str(p) for p in World(7).sample(len(loads) * (rounds + 1) * requests * 2, seed=5).table.prompts])
    found: dict[Load, dict[str, list[Round]]] = {load: {name: [] for name in ports} for load in loads}
    for load in loads:
        for turn in range(rounds + 1):
            for name, (port, model) in ports.items():
                bodies = [_request(model, next(texts), load.stream) for _ in range(requests)]
                one = await _turn(port, bodies, load.clients)
                if turn > 0:
                    found[load][name].append(one)
    return found


def _request(model: str, text: str, stream: bool) -> bytes:
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": text}], "stream": stream}).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: b\r\nauthorization: Bearer {KEY}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def _turn(port: int, bodies: list[bytes], clients: int) -> Round:
    waiting = iter(bodies)
    seconds: list[float] = []

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for body in waiting:
            begin = time.perf_counter()
            writer.write(body)
            try:
                await _answer(reader)
            except asyncio.IncompleteReadError as exc:  # an EOFError, which click would take for the user's
                raise GatewayError(f"the server at port {port} hung up") from exc
            seconds.append(time.perf_counter() - begin)
        writer.close()
        await writer.wait_closed()

    begin = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    rate = len(bodies) / (time.perf_counter() - begin)
    p50, p99 = np.quantile(seconds, [0.5, 0.99]).tolist()
    return Round(rate, p50 * 1e3, p99 * 1e3)


async def _answer(reader: asyncio.StreamReader) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    if not head.startswith(b"http/1.1 200"):
        raise GatewayError(f"a server answered {head[:200]!r}")
    if b"transfer-encoding: chunked" in head:
        while size := int(await reader.readline(), 16):
            await reader.readexactly(size + 2)
        await reader.readline()
    else:
        await reader.readexactly(int(head.partition(b"content-length:")[2].partition(b"\r\n")[0]))


def _free_port() -> int:
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _ready(process: subprocess.Popen[Any], port: int) -> bool:
    from urllib.error import URLError
    from urllib.request import urlopen

    end = time.monotonic() + START_S
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(URLError, OSError), urlopen(f"http://127.0.0.1:{port}/health/liveliness") as answer:
            return bool(answer.status == 200)
        time.sleep(0.2)
    return False


def _stop(process: subprocess.Popen[Any]) -> None:
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def report(found: dict[Load, dict[str, list[Round]]]) -> None:
    """Print medians over the rounds, and what the gateway adds."""
    table = table_of("load", "server", ">answers/s", ">p50 ms", ">p99 ms")
    lines = []
    for load, by in found.items():
        middle = {name: Round(*map(median, zip(*rounds, strict=True))) for name, rounds in by.items()}
        for name, one in middle.items():
            table.add_row(load.what, name, f"{one.rate:.1f}", f"{one.p50_ms:.2f}", f"{one.p99_ms:.2f}")
        # by round, because what else the machine does changes from one to the next
        pairs = list(zip(by["proxy"], by["gateway"], strict=True))
        added = median(g.p50_ms - p.p50_ms for p, g in pairs)
        share = median(g.rate / p.rate for p, g in pairs)
        lines.append(f"{load.what}: the gateway adds {added:.2f} ms to the p50 and has {share:.1%} of the throughput")
    console().print(table)
    console().print("\n".join(lines))
    console().print(f"targets: at most {ADDED_TARGET_MS:g} ms, at least {THROUGHPUT_TARGET:.0%}")


if __name__ == "__main__":
    sys.exit(run(command))
