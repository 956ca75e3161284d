"""Show routers at work: the bundled one, then one trained here.

The second is shown beside the truth, which is honest in a way that no real table allows: its outcomes come from the
project's simulator, so the probability with which the chosen model succeeds is known.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.text import Text

from router_ml.cli import run
from router_ml.errors import RouterError
from router_ml.explanation import usd
from router_ml.request import BYTES_PER_TOKEN, RouteDecision, RouteRequest
from router_ml.router import Router
from router_ml.terminal import console, decisions_table, table_of
from training.simulate import Sample, World

DATA = Path(__file__).resolve().parents[1] / "data"
WORLD_SEED = 7  # the world that data/example_outcomes.csv was drawn from
FRESH_REQUESTS = 2_000
SHOWN = 8
BANDS = (0.0, 0.6, 0.7, 0.8, 0.9, 1.0)


@click.command("demo")
@click.option("--data", type=Path, default=DATA, help="Folder of the demo's files; the checkout's by default.")
@click.option(
    "--out", type=Path, default=Path("temp/demo/router"), help="Folder for the trained router.", show_default=True
)
def command(data: Path, out: Path) -> None:
    """Route varied requests with the bundled router, then train a router on simulated outcomes and use it."""
    requests_file, outcomes = data / "demo_requests.jsonl", data / "example_outcomes.csv"
    for path in (requests_file, outcomes):
        if not path.is_file():
            raise RouterError(f"{path} is not there; run the demo in a checkout of the project, or name --data")
    route_varied(read_requests(requests_file))
    train(outcomes, out)
    use_trained(Router.load(out), World(WORLD_SEED).sample(FRESH_REQUESTS, seed=1))


def read_requests(path: Path) -> list[RouteRequest]:
    """The requests of a file, those marked ``repeat_to_tokens`` at their full length."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [lengthened(RouteRequest.of(json.loads(line))) for line in lines if line.strip()]


def lengthened(request: RouteRequest) -> RouteRequest:
    """The request with its last user message repeated to ``metadata.repeat_to_tokens`` tokens, if that is given."""
    tokens = request.metadata.get("repeat_to_tokens")
    if tokens is None or isinstance(request.messages, str):
        return request
    messages: list[Mapping[str, Any]] = list(request.messages)
    last = max(i for i, message in enumerate(messages) if message["role"] == "user")
    text = messages[last]["content"]
    missing = int(tokens) * BYTES_PER_TOKEN - sum(len(str(message["content"])) for message in messages)
    repeated = text + text * (missing // len(text) + 1)
    messages[last] = {**messages[last], "content": repeated}
    return dataclasses.replace(request, messages=messages)


def route_varied(requests: Sequence[RouteRequest]) -> None:
    """Part one: the bundled router."""
    router = Router.load()
    router.predict(requests[0])  # the first decision also loads what is loaded at first use
    start = time.perf_counter()
    decisions = [router.predict(request) for request in requests]
    seconds = time.perf_counter() - start
    out = console()
    out.rule("1. The bundled router", style="default")
    out.print(decisions_table((str(r.metadata.get("title", "")), d) for r, d in zip(requests, decisions, strict=True)))
    shares = [d.saving_usd / d.baseline_cost_usd for d in decisions if d.baseline_cost_usd > 0.0]
    out.print(
        f"{len(requests)} decisions in {seconds * 1e3:.0f} ms. The saving is against always calling "
        f"{router.pool.escalation_model}: {np.mean(shares):.0%} of a request's cost on average, {_saving(decisions)} "
        "of the cost of all together, most of which is the one over 600K tokens."
    )
    out.print(Text(f"What the confidence rests on: {decisions[0].evidence.kind}. {decisions[0].evidence.note}"))


def train(outcomes: Path, out_dir: Path) -> None:
    """Part two: train with the project's own command.

    :raises RouterError: if the command failed; it has said why.
    """
    store, report = out_dir.with_name("mlflow.db"), out_dir.with_name("report")
    arguments = ["--outcomes", os.path.relpath(outcomes), "--out", str(out_dir)]
    arguments += ["--report", str(report), "--tracking-uri", f"sqlite:///{store}"]
    out = console()
    out.print()
    out.rule("2. A router trained here, on outcomes of a simulated world", style="default")
    out.print(Text(f"$ router-ml train {' '.join(arguments)}"))
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    if subprocess.run([sys.executable, "-m", "training.train", *arguments], check=False).returncode != 0:
        raise RouterError("training failed, see above")
    out.print(Text(f"Pictures: {report / 'evaluation.html'}. Runs: mlflow ui --backend-store-uri sqlite:///{store}"))


def use_trained(router: Router, fresh: Sample) -> None:
    """Part three: requests that the router has not seen, and how often the choice really succeeds.

    :param fresh: a sample of the world that the router was trained on; its models are the router's.
    """
    table = fresh.table
    decisions = router.predict_batch([RouteRequest(prompt) for prompt in table.prompts])
    column = {name: j for j, name in enumerate(table.models)}
    truth = fresh.p_success[np.arange(len(decisions)), [column[d.model] for d in decisions]]
    out = console()
    out.print()
    out.rule("3. It routes requests that it has not seen", style="default")
    shown = table_of("request", "model", ">confidence", ">true P(success)", ">expected cost")
    for i in range(SHOWN):
        d = decisions[i]
        title = f"{table.task[i]}: {_words(table.prompts[i])}"
        shown.add_row(Text(title), d.model, f"{d.confidence:.2f}", f"{truth[i]:.2f}", usd(d.expected_cost_usd))
    out.print(shown)
    out.print(
        "One request's true probability also depends on what its text does not show, so single rows differ; "
        f"the confidence must be right on average. Over {len(decisions):,} requests:"
    )
    bands = table_of("confidence", ">requests", ">mean confidence", ">true P(success)")
    confidence = np.array([d.confidence for d in decisions])
    for low, high in itertools.pairwise(BANDS):
        inside = (confidence >= low) & (confidence < high)
        if inside.any():
            means = (f"{values[inside].mean():.3f}" for values in (confidence, truth))
            bands.add_row(f"{low:.1f} to {high:.1f}", f"{inside.sum():,}", *means)
    bands.add_section()
    bands.add_row("all", f"{len(decisions):,}", f"{confidence.mean():.3f}", f"{truth.mean():.3f}")
    out.print(bands)
    always = fresh.p_success[:, column[router.pool.escalation_model]].mean()
    out.print(
        f"Always calling {router.pool.escalation_model} would succeed on {always:.3f} of them; "
        f"the router saves {_saving(decisions)} of that cost."
    )


def _saving(decisions: Sequence[RouteDecision]) -> str:
    always = sum(d.baseline_cost_usd for d in decisions)
    return f"{sum(d.saving_usd for d in decisions) / always:.0%}" if always > 0.0 else "nothing"


def _words(prompt: str | Sequence[Mapping[str, Any]], limit: int = 60) -> str:
    text = prompt if isinstance(prompt, str) else next(str(m["content"]) for m in prompt if m["role"] == "user")
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 3] + "..."


if __name__ == "__main__":
    raise SystemExit(run(command))
