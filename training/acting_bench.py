"""Measure what carrying a decision out costs and survives, against a provider on loopback that fails on purpose.

    python -m training.acting_bench [--part overhead|storm|outage|replay|log]

Overhead is measured over HTTP by litellm, turn about with a bare litellm call to the same server. The storm fails one
call in five. The replay runs two days of traffic through one process as fast as it goes, on a simulated clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import click

from router_ml.attempt import Attempt
from router_ml.cascade import Cascade
from router_ml.cli import run
from router_ml.completion import Call, FakeClient
from router_ml.errors import AttemptsFailedError, ProviderError, ProviderUnavailableError
from router_ml.live import LiveRouter
from router_ml.outcomes import OutcomeLog
from router_ml.parameters import import_litellm
from router_ml.pool import ModelPool
from router_ml.request import RouteRequest
from router_ml.router import Router
from training.bench import Figure, report
from training.fault_server import Behaviour, FaultServer
from training.simulate import World

KEY_VARIABLE, KEY = "ROUTER_ML_BENCH_KEY", "sk-bench-0123456789"
FAULTS = {"429": 0.05, "500": 0.05, "timeout": 0.05, "broken_json": 0.05}
CALLS, WARM_UP = 1_500, 50
STORM_REQUESTS, AT_ONCE, STORM_TIMEOUT_S = 2_000, 40, 0.5
REPLAY_HOURS, REPLAY_SECONDS_APART = 48, 2.0


def behind(pool: ModelPool, url: str) -> ModelPool:
    """The pool with every model at an OpenAI-compatible server."""
    os.environ[KEY_VARIABLE] = KEY
    models = tuple(
        dataclasses.replace(
            spec,
            call_as=f"openai/{spec.name.replace('/', '-')}",
            api_base=f"{url}/v1",
            api_key_env=KEY_VARIABLE,
            params={},
        )
        for spec in pool.models
    )
    return dataclasses.replace(pool, models=models)


@contextlib.contextmanager
def server_process() -> Iterator[str]:
    """The fault server in a process of its own, so that it takes no time of what is measured. Gives its URL."""
    command = [sys.executable, "-m", "training.fault_server", "--record", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())["url"]
        finally:
            process.terminate()


def overhead(calls: int = CALLS) -> list[Figure]:
    """Milliseconds that ``complete()`` adds to a bare litellm call to the same server, log and all."""
    litellm = import_litellm()
    router = Router.load()
    prompts = World(3).sample(2 * (calls + WARM_UP), models_per_request=1).table.prompts
    texts = [text for text in prompts if isinstance(text, str)][: calls + WARM_UP]
    with server_process() as url, tempfile.TemporaryDirectory() as scratch:
        router = router.with_pool(behind(router.pool, url))
        with OutcomeLog(f"sqlite:///{scratch}/log.db") as log:
            cascade = Cascade(LiveRouter(router, log=log))
            bare, ours = [], []
            for text in texts:
                call = {
                    "model": "openai/x", "messages": [{"role": "user", "content": text}], "api_base": f"{url}/v1",
                    "api_key": KEY, "max_retries": 0, "timeout": 30,
                }  # fmt: skip
                bare.append(_seconds(partial(litellm.completion, **call)))
                ours.append(_seconds(partial(cascade.complete, text)))
    base, own = median(bare[WARM_UP:]) * 1e3, median(ours[WARM_UP:]) * 1e3
    return [
        Figure("a bare litellm call over HTTP, p50", base, "ms"),
        Figure("complete() over a bare litellm call, added p50", own - base, "ms", 1.5),
    ]


class Storm(NamedTuple):
    """What came of requests to a server that fails often.

    Fewer calls may be ``received`` than there were attempts: one that is out of time may not have left this machine.
    """

    answered: int
    typed_errors: int
    other_errors: int
    attempts: int
    logged_attempts: int
    logged_decisions: int
    received: int


def storm(
    router: Router, requests: int = STORM_REQUESTS, *, faults: dict[str, float] | None = None,
    timeout_s: float = STORM_TIMEOUT_S,
) -> Storm:  # fmt: skip
    """Send requests, many at once, to models whose calls fail at random."""
    faults = FAULTS if faults is None else faults
    found = {"answered": 0, "typed": 0, "other": 0}
    attempts: list[Attempt] = []
    with (
        FaultServer({"*": Behaviour(faults=faults)}, seed=1, record=0) as server,
        tempfile.TemporaryDirectory() as folder,
    ):
        router = router.with_pool(behind(router.pool, server.url))
        with OutcomeLog(f"sqlite:///{folder}/log.db") as log:
            cascade = Cascade(LiveRouter(router, log=log))
            asyncio.run(_send(cascade, requests, timeout_s, found, attempts))
            log.flush()
            logged = list(log.decisions())
        received = server.count()
    return Storm(
        found["answered"], found["typed"], found["other"], len(attempts),
        sum(len(one.attempts) for one in logged), len(logged), received,
    )  # fmt: skip


async def _send(
    cascade: Cascade, requests: int, timeout_s: float, found: dict[str, int], attempts: list[Attempt]
) -> None:
    free = asyncio.Semaphore(AT_ONCE)
    texts = World(5).sample(requests, models_per_request=1).table.prompts

    async def one(text: Any) -> None:
        async with free:
            try:
                done = await cascade.acomplete(text, timeout_s=timeout_s)
                found["answered"] += 1
                attempts.extend(done.attempts)
            except AttemptsFailedError as failed:
                found["typed"] += 1
                attempts.extend(failed.attempts)
            except Exception:
                found["other"] += 1

    await asyncio.gather(*map(one, texts))


class Outage(NamedTuple):
    """How a model's breaker met an outage. ``touched`` is the share of requests after opening that still called it."""

    calls_until_open: int
    touched: float
    closed_by: str


def outage(router: Router) -> Outage:
    """A model that all requests want works for a minute, is down for five, and comes back; 50 requests a second."""
    clock, down = [1_000_000.0], False
    live = LiveRouter(router, clock=lambda: clock[0])
    request = RouteRequest("What is 2 + 2?", min_quality=0.001)
    wanted = live.decide(live.read(request)).model

    def answer(call: Call) -> str | ProviderError:
        broken = down and call.spec.name == wanted
        return ProviderUnavailableError("down", model=wanted) if broken else "fine"

    client = FakeClient(answer)
    cascade = Cascade(live, client=client, sleep=lambda seconds: None)

    def seconds(n: int) -> int:
        client.calls.clear()
        for _ in range(n * 50):
            clock[0] += 0.02
            cascade.complete(request)
        return sum(call.spec.name == wanted for call in client.calls)

    seconds(60)
    down = True
    client.calls.clear()
    while live.health.status()[wanted].state == "closed" and len(client.calls) < 1_000:
        cascade.complete(request)
    until_open = sum(call.spec.name == wanted for call in client.calls)
    touched = seconds(300) / (300 * 50)
    down = False
    clock[0] += router.pool.breaker.half_open_after_s
    probes = 0
    while live.health.status()[wanted].state != "closed" and probes < 10:
        clock[0] += 0.02
        cascade.complete(request)
        probes += 1
    return Outage(until_open, touched, f"probe {probes}")


def replay(router: Router, hours: float = REPLAY_HOURS, apart_s: float = REPLAY_SECONDS_APART) -> tuple[int, float]:
    """Two days of traffic, sessions, faults and all, in one process.

    :return: how many requests, and by how much memory left its mean, once the first tenth had passed, as a share.
    """
    clock, rng = [1_000_000.0], random.Random(0)
    texts = itertools.cycle(World(9).sample(5_000, models_per_request=1).table.prompts)
    n = int(hours * 3600 / apart_s)

    def answer(call: Call) -> str | ProviderError:
        if rng.random() < 0.05:
            return ProviderUnavailableError("now and then", model=call.spec.name)
        return "an answer " * rng.randrange(1, 200)

    sizes: list[float] = []
    with tempfile.TemporaryDirectory() as folder, OutcomeLog(f"sqlite:///{folder}/log.db") as log:
        live = LiveRouter(router, log=log, clock=lambda: clock[0])
        client = _Forgetful(answer)
        cascade = Cascade(live, client=client, sleep=lambda seconds: None)
        for i in range(n):
            clock[0] += apart_s
            request = RouteRequest(next(texts), session_id=f"s{i // 4}", tags=[f"team{i % 5}"])
            with contextlib.suppress(AttemptsFailedError):
                cascade.complete(request)
            if i % max(1, n // 200) == 0 and i >= n // 10:
                sizes.append(_resident_bytes())
    mean = sum(sizes) / len(sizes)
    return n, max(abs(size - mean) for size in sizes) / mean


class _Forgetful(FakeClient):
    """A fake that does not remember its calls: two days of them are no small list."""

    def complete(self, call: Call) -> Any:
        reply = super().complete(call)
        self.calls.clear()
        return reply


def log_write(calls: int = 5_000) -> list[Figure]:
    """Microseconds that the outcome log takes of its caller, beside a decision that goes on all the time."""
    router = Router.load()
    texts = World(3).sample(calls, models_per_request=1).table.prompts
    times = []
    with tempfile.TemporaryDirectory() as folder, OutcomeLog(f"sqlite:///{folder}/log.db") as log:
        live = LiveRouter(router, log=log)
        for text in texts:
            reading = live.read(text)
            decision = live.decide(reading)
            times.append(_seconds(partial(live.record, reading, decision, (), "bench")))
    return [Figure("writing to the outcome log, p50 of its caller", median(times) * 1e6, "us", 100.0)]


def figures(part: str) -> list[Figure]:
    """The figures of one part."""
    if part == "overhead":
        return overhead()
    if part == "log":
        return log_write()
    if part == "storm":
        found = storm(Router.load())
        what = f"{STORM_REQUESTS:,} requests, 20 % of calls failing"
        return [
            Figure(f"{what}: answered", found.answered, ""),
            Figure(f"{what}: typed errors", found.typed_errors, ""),
            Figure(f"{what}: neither", STORM_REQUESTS - found.answered - found.typed_errors, "", 0),
            Figure(f"{what}: outcomes lost", STORM_REQUESTS - found.logged_decisions, "", 0),
            Figure(f"{what}: calls received but not in the log", max(0, found.received - found.logged_attempts), "", 0),
        ]
    router = Router.load()
    if part == "outage":
        met = outage(router)
        return [
            Figure("a model goes down: calls until its breaker opens", met.calls_until_open, "", 25),
            Figure("a model is down: share of requests that still touch it", met.touched, "", 0.02),
            Figure(f"a model is back: closed by {met.closed_by}", 0.0 if met.closed_by == "probe 1" else 1.0, "", 0),
        ]
    n, spread = replay(router)
    return [Figure(f"{n:,} requests of {REPLAY_HOURS} h: memory leaves its mean by", spread, "", 0.05)]


PARTS = ("overhead", "log", "storm", "outage", "replay")


@click.command("acting")
@click.option("--part", type=click.Choice(PARTS), help="Only this part.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def command(part: str | None, as_json: bool) -> None:
    """Measure what carrying a decision out costs and survives."""
    found = [figure for one in ([part] if part else PARTS) for figure in figures(one)]
    if as_json:
        click.echo(json.dumps(found))
    else:
        report(found)


def _seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _resident_bytes() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    raise SystemExit(run(command))
