"""Measure speed and memory against the targets.

    python -m training.bench [--json OUT.json] [--router DIR] [--train-rows N]

Each part runs in a process of its own: decisions on one thread, a start from nothing, training under the clock. All
requests are different and written by the simulator, so no cache of texts could help.
"""

from __future__ import annotations

import itertools
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import click
import numpy as np

from router_ml.artifact import ENCODER
from router_ml.cli import run
from router_ml.embedding import TOKENIZER_FILE
from router_ml.errors import RouterError
from router_ml.plan import Candidates, Goal, best_plans
from router_ml.router import Router, bundled_router_path
from router_ml.terminal import console, table_of
from training.brute_force import Problem
from training.simulate import World

CALLS, WARM_UP = 2_000, 200
P50_TARGETS_US = {20: 100.0, 200: 350.0, 2000: 900.0}
TAIL_TARGET = 3.0  # p99 as a multiple of p50
OVERHEAD_TOKENS, OVERHEAD_TARGET = 200, 1.6
CANDIDATES = 10
BATCH_REQUESTS, BATCH_WORDS = 10_000, 100
STARTS = 5
ROWS, MODELS_PER_REQUEST = 1_000_000, 2  # of five: a sparse table
ONE_THREAD = {
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"), "1"),
    "TOKENIZERS_PARALLELISM": "false",
}
HEAVY = ("sklearn", "torch", "litellm", "mlflow")

# Run by a fresh interpreter. Names of router_ml load at first use, so Router is asked for before the clock is read.
START = """
import json, resource, sys, time
begin = time.perf_counter()
import router_ml
router_ml.Router
imported = time.perf_counter()
router = router_ml.Router.load({path!r})
loaded = time.perf_counter()
router.predict("What is the capital of Iceland?")
decided = time.perf_counter()
try:  # getrusage would count what the parent held at the fork
    with open("/proc/self/status") as status:
        peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024
except OSError:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
found = [name for name in {heavy!r} if name in sys.modules]
print(json.dumps([imported - begin, loaded - imported, decided - loaded, peak, found]))
"""


class Figure(NamedTuple):
    """One measured number; ``target`` is the most it should be, None where it is only told."""

    what: str
    value: float
    unit: str
    target: float | None = None

    @property
    def reached(self) -> bool | None:
        return None if self.target is None else self.value <= self.target


@click.command("benchmark")
@click.option("--json", "json_path", type=Path, help="Also write the figures to this file.")
@click.option("--router", "folder", type=Path, help="A saved router; without it, the bundled one.")
@click.option("--train-rows", type=int, default=ROWS, show_default=True, help="Rows to train on; 0 leaves this out.")
@click.option("--part", type=click.Choice(["decisions", "batch"]), hidden=True)
def command(json_path: Path | None, folder: Path | None, train_rows: int, part: str | None) -> None:
    """Measure speed and memory against the targets; takes minutes, most of them training."""
    folder = (folder or bundled_router_path()).resolve()
    if part is not None:
        click.echo(json.dumps((decisions if part == "decisions" else batch)(folder)))
        return
    figures = [*in_own_process("decisions", folder, ONE_THREAD), *in_own_process("batch", folder, {})]
    figures += starts(folder)
    if train_rows > 0:
        figures += training(train_rows)
    report(figures)
    if json_path is not None:
        rows = [{**figure._asdict(), "reached": figure.reached} for figure in figures]
        json_path.write_text(json.dumps({"machine": machine(), "figures": rows}, indent=1) + "\n", encoding="utf-8")


def decisions(folder: Path) -> list[Figure]:
    """Time of one decision and of tokenizing alone, by length of the request."""
    router, tokenizer = Router.load(folder), tokenizer_of(folder)
    figures: list[Figure] = []
    for tokens, target in P50_TARGETS_US.items():
        texts = texts_of(
            WARM_UP + CALLS,
            tokens,
            lambda text: [end for _, end in tokenizer.encode(text, add_special_tokens=False).offsets],
        )
        decide, tokenize = _time_both(router, tokenizer, texts)
        p50, p99 = np.quantile(decide, [0.5, 0.99]).tolist()
        alone = float(np.median(tokenize))
        ratio = p50 / alone
        figures += [
            Figure(f"one decision, {tokens} tokens, p50", p50, "us", target),
            Figure(f"one decision, {tokens} tokens, p99", p99, "us"),
            Figure(f"one decision, {tokens} tokens, p99 / p50", p99 / p50, "x", TAIL_TARGET),
            Figure(f"tokenizing alone, {tokens} tokens, p50", alone, "us"),
            Figure(
                f"one decision / tokenizing alone, {tokens} tokens", ratio, "x",
                OVERHEAD_TARGET if tokens == OVERHEAD_TOKENS else None,
            ),
        ]  # fmt: skip
    return [*figures, planning()]


def planning() -> Figure:
    """Time of a plan where answers are checked, beside the decision itself."""
    problem = Problem.random(np.random.default_rng(0), CANDIDATES)
    dependence, goal = problem.dependence, Goal(failure_cost_usd=0.5)
    seconds = []
    for _ in range(WARM_UP + CALLS):
        start = time.perf_counter()
        best_plans(Candidates(range(CANDIDATES), problem.p, problem.cost, problem.verifier, dependence), goal)
        seconds.append(time.perf_counter() - start)
    p50 = median(seconds[WARM_UP:]) * 1e6
    return Figure(f"a plan of {CANDIDATES} candidates, p50", p50, "us", 300.0)


def batch(folder: Path) -> list[Figure]:
    """Time of many decisions at once."""
    router = Router.load(folder)
    texts = texts_of(BATCH_REQUESTS, BATCH_WORDS, lambda text: [word.end() for word in re.finditer(r"\S+", text)])
    router.predict_batch(texts[:100])
    start = time.perf_counter()
    router.predict_batch(texts)
    seconds = time.perf_counter() - start
    return [Figure(f"predict_batch, {BATCH_REQUESTS:,} requests of {BATCH_WORDS} words", seconds, "s", 2.0)]


def starts(folder: Path) -> list[Figure]:
    """Import, load and memory of a fresh process, medians."""
    code = START.format(path=str(folder), heavy=HEAVY)
    runs = [json.loads(_output([sys.executable, "-c", code])) for _ in range(STARTS)]
    imported, loaded, decided, peak = (median(column) for column in list(zip(*runs, strict=True))[:4])
    heavy = sorted({name for found in runs for name in found[4]})
    return [
        Figure("import router_ml, with Router", imported, "s", 0.15),
        Figure("load of the router", loaded, "s", 0.25),
        Figure("first decision", decided * 1e3, "ms"),
        Figure("peak memory after a decision", peak / 1e6, "MB", 120.0),
        Figure(f"of {', '.join(HEAVY)} loaded: {', '.join(heavy) or 'none'}", len(heavy), "", 0),
    ]


def training(n_rows: int) -> list[Figure]:
    """Wall time and peak memory of ``router-ml train`` on a sparse simulated table."""
    with tempfile.TemporaryDirectory() as scratch:
        table, out = Path(scratch) / "outcomes.parquet", Path(scratch) / "router"
        size = ["--requests", str(n_rows // MODELS_PER_REQUEST), "--models-per-request", str(MODELS_PER_REQUEST)]
        _output([sys.executable, "-m", "training.simulate", *size, "--policy", "price_aware", "--out", str(table)])
        arguments = [
            sys.executable,
            "-m",
            "training.train",
            "--no-tracking",
            "--outcomes",
            str(table),
            "--out",
            str(out),
        ]
        start = time.perf_counter()
        with open(Path(scratch) / "log", "w+", encoding="utf-8") as log:
            process = subprocess.Popen(arguments, stdout=log, stderr=log)
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.perf_counter() - start
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode != 0:
                log.seek(0)
                raise RouterError(f"training on {n_rows} rows failed: {log.read()[-500:]}")
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    what = f"train, {n_rows:,} sparse rows"
    return [Figure(f"{what}, time", seconds / 60, "min", 8.0), Figure(f"{what}, peak memory", peak / 1e9, "GB", 6.0)]


def texts_of(n: int, size: int, ends: Callable[[str], list[int]]) -> list[str]:
    """Different texts of equal size, from the simulator's requests joined.

    :param size: how many units each text holds. :param ends: where each unit of a text ends: its tokens, its words.
    """
    source = _prompts()
    texts = []
    for _ in range(n):
        text, found = "", list[int]()
        while len(found) < size:
            # a prompt has some 60 units, so one step is mostly enough
            text += "".join(f"{next(source)}\n" for _ in range(max(1, size // 50)))
            found = ends(text)
        texts.append(text[: found[size - 1]])
    return texts


def _prompts() -> Iterator[str]:
    world = World(11)
    for seed in itertools.count():
        for prompt in world.sample(10_000, models_per_request=1, seed=seed).table.prompts:
            if isinstance(prompt, str):
                yield prompt


def _time_both(router: Router, tokenizer: Any, texts: list[str]) -> tuple[list[float], list[float]]:
    """Microseconds of each decision and of tokenizing alone, taken in turns so that both meet the same machine."""
    decide, tokenize = [], []
    half = len(texts) // 2
    for i, text in enumerate(texts):
        other = texts[(i + half) % len(texts)]  # not the text just decided: its memory would still be warm
        start = time.perf_counter_ns()
        router.predict(text)
        middle = time.perf_counter_ns()
        tokenizer.encode_batch_fast([other], add_special_tokens=False)[0].ids  # noqa: B018 - ids are made when read
        end = time.perf_counter_ns()
        decide.append((middle - start) / 1e3)
        tokenize.append((end - middle) / 1e3)
    return decide[WARM_UP:], tokenize[WARM_UP:]


def tokenizer_of(folder: Path) -> Any:
    """The tokenizer of a saved router.

    :raises RouterError: if its encoder is not the static one.
    """
    from tokenizers import Tokenizer

    path = folder / ENCODER / TOKENIZER_FILE
    if not path.is_file():
        raise RouterError(f"{path} is not there; the benchmark needs a router with a static encoder")
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def in_own_process(part: str, folder: Path, environment: dict[str, str]) -> list[Figure]:
    """Run one part under other environment variables, which libraries read when they are loaded."""
    arguments = [sys.executable, "-m", "training.bench", "--part", part, "--router", str(folder)]
    return [Figure(*row) for row in json.loads(_output(arguments, environment))]


def _output(arguments: list[str], environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        arguments, env={**os.environ, **(environment or {})}, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RouterError(f"{' '.join(arguments[1:4])} failed: {done.stderr.strip()[-500:]}")
    return done.stdout


def machine() -> str:
    """Processor, cores and Python of this machine."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        found = re.search(r"model name\s*:\s*(.+)", info.read_text(encoding="utf-8"))
        name = found.group(1) if found else name
    return f"{name}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"


def report(figures: list[Figure]) -> None:
    """Print the figures, each with its target."""
    table = table_of("figure", ">measured", ">target", "")
    for figure in figures:
        target = "" if figure.target is None else f"<= {figure.target:g} {figure.unit}".strip()
        verdict = {None: "", True: "reached", False: "MISSED"}[figure.reached]
        value = f"{figure.value:,.0f}" if figure.value >= 1000 else f"{figure.value:.3g}"
        table.add_row(figure.what, f"{value} {figure.unit}".strip(), target, verdict)
    out = console()
    out.print(table)
    out.print(machine())


if __name__ == "__main__":
    raise SystemExit(run(command))
