"""Judge a saved router on an outcome table, beside every baseline.

router-ml evaluate --router DIR --outcomes PATH [--outcomes PATH ...] --json OUT.json [--html OUT.html]
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from router_ml.cli import FiniteRange, run
from router_ml.explanation import usd
from router_ml.router import Router
from router_ml.terminal import console, table_of
from training.comparison import TARGETS
from training.cost_error import cost_error_line
from training.evaluation import Evaluation, evaluate_router
from training.outcome_table import read_table
from training.routing_errors import AT_PRICE, contestants


@click.command(name="evaluate")
@click.option(
    "--router", "folder", type=click.Path(path_type=Path), help="A saved router; without it, the bundled one."
)
@click.option("--outcomes", "paths", type=click.Path(path_type=Path), multiple=True, required=True, help="A table.")
@click.option("--json", "out", type=click.Path(path_type=Path), required=True, help="Write the report here.")
@click.option("--html", "page_path", type=click.Path(path_type=Path), help="Write a page with figures here.")
@click.option("--failure-cost-usd", type=FiniteRange(min=0.0), help="Price of a failure: adds the loss, in its parts.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of baselines and bootstrap.")
def command(
    folder: Path | None, paths: tuple[Path, ...], out: Path, page_path: Path | None, failure_cost_usd: float | None,
    seed: int,
) -> None:  # fmt: skip
    """Judge a saved router on an outcome table, beside every baseline."""
    router = Router.load(folder)
    evaluation = evaluate_router(router, read_table(paths), failure_cost_usd=failure_cost_usd, seed=seed)
    write_json(evaluation, out)
    if page_path is not None:
        from training.evaluation_page import page

        title = f"Router {router.manifest['router_version']} on {', '.join(path.name for path in paths)}"
        page_path.write_text(page(evaluation, title), encoding="utf-8")
    print_evaluation(evaluation)


def write_json(evaluation: Evaluation, path: Path) -> None:
    """Write the report; see ``Evaluation.to_dict``."""
    path.write_text(json.dumps(evaluation.to_dict(), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def print_evaluation(evaluation: Evaluation) -> None:
    """The report in short, for people."""
    report = evaluation.to_dict()
    out = console()
    for name, missing in (("the table", "models_only_in_router"), ("the router", "models_only_in_table")):
        if report.get(missing):
            out.print(f"not in {name}, left out: {', '.join(report[missing])}", markup=False)
    if report.get("trained_on_this_table"):
        out.print("this very table trained the router: every figure here is too good")
    calibration = report["calibration"]
    names = ("ece", "brier", "brier_skill", "auc", "auc_within_task")
    shown = (f"{name} {'-' if calibration[name] is None else f'{calibration[name]:.3f}'}" for name in names)
    out.print(f"{report['n_requests']:,} requests, {report['n_outcomes']:,} outcomes: {', '.join(shown)}")
    if report["cost_error"] is not None:
        out.print(cost_error_line(report["cost_error"]))
    if evaluation.comparison is None:
        out.print("no request has score and cost of every model, so no choice can be priced")
        return
    table = table_of(
        f"n = {evaluation.comparison.n:,}", ">quality", ">cost", ">area", *(f">cost at {t:.0%}" for t in TARGETS),
        ">router's lead in area",
    )  # fmt: skip
    for name, found in {"router": report["router"], **report["baselines"]}.items():
        costs = ["-" if cost is None else f"{cost:.3f}" for cost in found["cost_at_quality"].values()]
        lead = evaluation.comparison.differences.get(name)
        interval = ""
        if lead is not None:
            interval = f"{lead['area'].difference:+.3f} [{lead['area'].low:+.3f}, {lead['area'].high:+.3f}]"
        table.add_row(name, f"{found['quality']:.3f}", usd(found["cost_usd"]), f"{found['area']:.3f}", *costs, interval)
    out.print(table)
    if evaluation.routing_errors is not None:
        out.print(errors_table(evaluation.routing_errors))
        for line in _beside_the_errors(evaluation.routing_errors):
            out.print(line)


def errors_table(report: dict[str, Any]) -> Table:
    """A row per contestant: errors in either direction, never net; see ``routing_errors.NOTES``."""
    price = report["failure_cost_usd"]
    loss = () if price is None else (f">loss at {usd(price)}", ">under-routing", ">over-routing")
    table = table_of(f"n = {report['n']:,}", ">under-routed", ">over-routed", ">excess in all", *loss)
    for name, found in contestants(report).items():
        rates = [
            f"{found[kind]['share']:.3f} [{found[kind]['low']:.3f}, {found[kind]['high']:.3f}]"
            for kind in ("under_routed", "over_routed")
        ]
        parts = ("total_usd", "under_routing_usd", "over_routing_usd") if price is not None else ()
        table.add_row(
            name, *rates, usd(found["over_routed"]["excess_usd_total"]),
            *(usd(found["loss"][part]) for part in parts),
        )  # fmt: skip
    return table


def _beside_the_errors(report: dict[str, Any]) -> list[str]:
    n = report["router"]["unavoidable"]["n"]
    lines = [f"{n:,} more of the router's choices failed as every other model would have"]
    if AT_PRICE in report:
        saved = report[AT_PRICE]["difference"]["loss_usd"]
        amount, low, high = (usd(saved[key]) for key in ("router_minus_baseline", "low", "high"))
        lines.append(f"choosing by what a failure costs, without guards, saves {amount} a request [{low}, {high}]")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see ``router_ml.cli.run`` for the exit codes."""
    return run(command, argv)


if __name__ == "__main__":
    raise SystemExit(main())
