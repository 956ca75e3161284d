"""Train a router on outcome tables, with metrics from rows that it was not fitted on.

    router-ml train --outcomes PATH [--outcomes PATH ...] --out DIR [--pool pool.yaml] [--seed N]
                    [--target-quality 0.95 [--confidence 0.9] [--promise-by-task]]

Routers trained on part of the requests judge the rest; their metrics go into the manifest. The router that is saved is
then trained on all requests; with a target quality, on all but those that choose the threshold. The run is recorded in
MLflow unless ``--no-tracking`` is given.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from router_ml.cli import run
from router_ml.embedding import Encoder, SentenceTransformerEncoder
from router_ml.errors import TableError
from router_ml.pool import ModelPool
from router_ml.router import Router
from training.comparison import DefaultRule
from training.cross_validation import judge_held_out
from training.evaluate import print_evaluation, write_json
from training.evaluation import Evaluation, evaluate
from training.evaluation_page import page
from training.figures import save_figures
from training.fitting import default_encoder, pool_from_table, train_router
from training.judging import Judged
from training.outcome_table import OutcomeTable, read_table
from training.promises import Target, group_cap, kept_apart, make_promise, promise_lines
from training.shipping import choose_policy
from training.simpler import ROUTER
from training.tracking import DEFAULT_URI, EXPERIMENT, MlflowTracking, NullTracking, Recorded, Tracking, TrainingRun

RESAMPLES = 200  # enough to see a lead; `router-ml evaluate` draws more


@click.command(name="train")
@click.option("--outcomes", "paths", type=click.Path(path_type=Path), multiple=True, required=True, help="A table.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the router.")
@click.option("--pool", "pool_path", type=click.Path(path_type=Path), help="pool.yaml; without it, the table's models.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of splits and fit.")
@click.option("--target-quality", type=float, help="Share of the escalation model's quality to promise, such as 0.95.")
@click.option("--confidence", type=float, help="Probability with which the promise is to hold [default: 0.9]")
@click.option("--promise-by-task", is_flag=True, help="A threshold for each task; all promises hold together.")
@click.option("--encoder", "encoder_name", metavar="NAME_OR_PATH", help="A sentence-transformers model instead.")
@click.option("--report", type=click.Path(path_type=Path), help="Folder for the report and its pictures.")
@click.option(
    "--ship",
    type=click.Choice(["auto", "router"]),
    default="auto",
    show_default=True,
    help="auto: a simpler policy where the router does not beat it on requests that it has not seen.",
)
@click.option("--tracking-uri", help=f"MLflow store [default: $MLFLOW_TRACKING_URI or {DEFAULT_URI}]")
@click.option("--no-tracking", is_flag=True, help="Record nothing in MLflow.")
@click.option("--experiment", default=EXPERIMENT, show_default=True, help="MLflow experiment.")
@click.option("--json", "as_json", is_flag=True, help="Print what was trained as JSON.")
def command(
    paths: tuple[Path, ...], out: Path, pool_path: Path | None, seed: int,
    target_quality: float | None, confidence: float | None, promise_by_task: bool, encoder_name: str | None,
    report: Path | None, ship: str, tracking_uri: str | None, no_tracking: bool, experiment: str, as_json: bool,
) -> None:  # fmt: skip
    """Train a router on outcome tables, with metrics from rows that it was not fitted on."""
    if no_tracking and tracking_uri is not None:
        raise click.UsageError("--no-tracking and --tracking-uri contradict each other")
    target = _target(target_quality, confidence, promise_by_task)
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI
    tracking: Tracking = NullTracking() if no_tracking else MlflowTracking(uri, experiment)
    table = read_table(paths)
    pool = None if pool_path is None else ModelPool.from_yaml(pool_path)
    encoder = SentenceTransformerEncoder(encoder_name) if encoder_name is not None else default_encoder()
    evaluation, router = train(table, out, pool=pool, encoder=encoder, seed=seed, target=target, ship=ship)
    with tempfile.TemporaryDirectory() as scratch:
        folder = report if report is not None else Path(scratch)
        write_report(evaluation, folder, str(router.manifest["router_version"]))
        recorded = tracking.record(_training_run(router, evaluation, out, folder, [path.name for path in paths]))
    if as_json:
        click.echo(json.dumps(_summary(router, out, recorded), allow_nan=False))
    else:
        print_evaluation(evaluation)
        _print_saved(router, out, recorded)


def train(
    table: OutcomeTable, out: Path, *, pool: ModelPool | None, encoder: Encoder, seed: int = 0,
    target: Target | None = None, ship: str = "auto",
) -> tuple[Evaluation, Router]:  # fmt: skip
    """Judge on held-out requests, then train on all and save.

    :param out: folder that gets the router; its manifest carries the metrics, each with its n.
    :param pool: None: made from the table.
    :param target: what to promise. Some requests are then kept from all training, and choose the pool's threshold.
    :param ship: "auto": the router, or the simpler policy that it does not beat; "router": the router all the same.
    :return: the evaluation of what is shipped on held-out requests, and the saved router.
    :raises TableError: if the table is too small, or shares no model with the pool, or cannot carry a promise.
    """
    promise, kept, whole, cap = None, None, table, group_cap(table.group_codes)
    if target is not None:
        table, kept = kept_apart(table, seed)
    pool = pool if pool is not None else pool_from_table(table)
    judged, how = judge_held_out(table, pool=pool, encoder=encoder, seed=seed)
    shipped = _shipped(judged, ship, seed)
    if target is not None and kept is not None:
        pool, promise = _promised(table, kept, pool, encoder, seed, target, cap, shipped)
        promise["table_fingerprint"] = whole.fingerprint()  # its figures on this table would be too good
        # another threshold, so other decisions
        judged, how = judge_held_out(table, pool=pool, encoder=encoder, seed=seed)
    rule = DefaultRule(pool.confidence_threshold, pool.escalation_model)
    facts = {"held_out": how, "shipped": shipped["policy"], "shipped_because": shipped["why"]}
    evaluation = evaluate(judged[shipped["policy"]], rule, facts=facts, n_boot=RESAMPLES, seed=seed)
    metrics = {"held_out": how, **evaluation.metrics()}
    router = train_router(
        table, out, pool=pool, encoder=encoder, seed=seed, metrics=metrics, promise=promise, shipped=shipped
    )
    return evaluation, router


def _shipped(judged: Mapping[str, Judged], ship: str, seed: int) -> dict[str, Any]:
    found = choose_policy(judged, n_boot=RESAMPLES, seed=seed)
    if ship == ROUTER != found.policy:
        found = replace(found, policy=ROUTER, why=f"asked for, although {found.why}")
    return found.to_dict()


def _promised(
    table: OutcomeTable, kept: OutcomeTable, pool: ModelPool, encoder: Encoder, seed: int, target: Target, cap: int,
    shipped: dict[str, Any],
) -> tuple[ModelPool, dict[str, Any]]:  # fmt: skip
    """The pool with the threshold that the kept requests chose, and what is promised.

    The router that is judged for it is the one that is saved: the same rows and the same seed train the same router.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "router"
        router = train_router(table, folder, pool=pool, encoder=encoder, seed=seed, shipped=shipped)
    found, promise = make_promise(router, kept, target, cap=cap, seed=seed)
    # of the router's pool only the thresholds: what else it has, such as token factors, training learns again
    return replace(pool, confidence_threshold=found.confidence_threshold, tasks=found.tasks), promise


def _target(quality: float | None, confidence: float | None, by_task: bool) -> Target | None:
    if quality is None:
        if confidence is not None or by_task:
            raise click.UsageError("--confidence and --promise-by-task need --target-quality")
        return None
    try:
        return Target(quality, 0.9 if confidence is None else confidence, by_task)
    except TableError as exc:
        raise click.UsageError("; ".join(exc.problems)) from exc


def write_report(evaluation: Evaluation, folder: Path, version: str) -> None:
    """Write ``evaluation.json``, ``evaluation.html`` and the pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(evaluation, folder / "evaluation.json")
    (folder / "evaluation.html").write_text(page(evaluation, f"Router {version}, held-out requests"), encoding="utf-8")
    save_figures(evaluation, folder)


def _training_run(router: Router, evaluation: Evaluation, out: Path, report: Path, names: Sequence[str]) -> TrainingRun:
    training, encoder = router.manifest["training"], router.manifest["encoder"]
    params = {
        "outcomes": ", ".join(names),
        "n_models": len(router.models),
        "escalation_model": router.pool.escalation_model,
        "confidence_threshold": router.pool.confidence_threshold,
        "encoder": encoder.get("name", encoder["kind"]),
        "encoder_fingerprint": encoder["fingerprint"][:12],
        "router_version": router.manifest["router_version"],
        "held_out": evaluation.facts["held_out"],
        "shipped": router.manifest["shipped"]["policy"],
        **{key: training[key] for key in ("data_fingerprint", "n_requests", "n_rows", "seed")},
    }
    found = evaluation.metrics()
    metrics = {name: figure["value"] for name, figure in found.items()}
    metrics |= {f"{name}_n": float(figure["n"]) for name, figure in found.items()}
    if evaluation.comparison is not None:
        leads = evaluation.comparison.differences.items()
        metrics |= {f"lead_in_area_over_{name}": pair["area"].difference for name, pair in leads if ":" not in name}
    if (promise := router.manifest.get("promise")) is not None:
        params |= {name: promise[name] for name in ("target_quality", "confidence", "promised")}
        of = ("threshold", "n_requests", "n_groups", "quality", "escalation_quality", "cost_usd", "escalated_cost_usd")
        metrics |= {f"promise_{name}": promise.get(name) for name in of}
    return TrainingRun(params, metrics, out, report)


def _summary(router: Router, out: Path, recorded: Recorded | None) -> dict[str, Any]:
    return {
        "out": str(out),
        "router_version": router.manifest["router_version"],
        "models": list(router.models),
        "escalation_model": router.pool.escalation_model,
        "metrics": router.manifest["metrics"],
        "promise": router.manifest.get("promise"),
        "shipped": router.manifest["shipped"],
        "notes": router.manifest["training"]["notes"],
        "tracking": None if recorded is None else vars(recorded),
    }


def _print_saved(router: Router, out: Path, recorded: Recorded | None) -> None:
    click.echo(f"held out: {router.manifest['metrics']['held_out']}")
    for line in promise_lines(router.manifest.get("promise")):
        click.echo(line)
    click.echo(f"ships: {router.manifest['shipped']['policy']}; {router.manifest['shipped']['why']}")
    for note in router.manifest["training"]["notes"]:
        click.echo(f"note: {note}")
    click.echo(f"{out}: router {router.manifest['router_version']} of {len(router.models)} models")
    if recorded is not None:
        click.echo(f"recorded in {recorded.uri}: run {recorded.run_id}, version {recorded.version} ({recorded.alias})")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see ``router_ml.cli.run`` for the exit codes."""
    return run(command, argv)


if __name__ == "__main__":
    raise SystemExit(main())
