"""Measure routing quality on the evaluation tables and print it against its targets.

    python -m training.quality [--data DIR] [--json OUT] [--only TABLE ...]

Every table is cross-validated: 5 folds, grouped by request, on requests represented by the bundled static encoder. The
tables are not part of the project; where they are not found, the example table is measured instead, without targets.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from router_ml.cli import run
from router_ml.embedding import Encoder
from router_ml.errors import TableError
from router_ml.terminal import console, table_of
from training.ability import load_facts
from training.baselines import PerTaskTable, out_of_fold
from training.bundled import (
    FURTHER_SOURCES,
    day_0_figures,
    leave_one_source_out,
    read_public_tables,
    written_table,
)
from training.calibration import base_rates, calibration_report
from training.comparison import BOOTSTRAP_TARGET, TARGETS, DefaultRule
from training.cost_error import cost_error_row
from training.cross_validation import cross_validate
from training.evaluation import Evaluation, evaluate
from training.fitting import default_encoder
from training.metrics import IntArray
from training.novelty_quality import NOVELTY, novelty_rows
from training.outcome_table import OutcomeTable, read_table
from training.plan_quality import TARGETS as PLAN_TARGETS
from training.plan_quality import plan_rows, planner_rows
from training.promise_quality import promise_rows
from training.quality_rows import Row, print_rows
from training.shipped_quality import nested_choice, shipped_in, shipped_rows

DAY_0 = "day_0"  # in place of a table's name
EVALUATION_TABLES = Path("..") / "shared" / "data"
EXAMPLE_TABLE = Path("data") / "example_outcomes.csv"
THRESHOLD = 0.6  # of the default rule, as in a pool that says nothing else
MAX_ECE = 0.010
PLANNER = "planner"  # in place of a table's name
SHIPPED_TABLES = ("swebench_bash", "bfcl", "routerbench")  # what would be shipped is chosen anew in each fold
DAY_0_AUC, DAY_0_ECE = 0.62, 0.10

# table -> figure -> target; a figure of cost is an upper limit, every other a lower one
TARGET_FIGURES: dict[str, dict[str, float]] = {
    "routerbench": {"cost_at_0.95": 0.200, "area": 0.858, "auc_within_task": 0.58},
    "swebench_bash": {"area": 0.720, "auc_within_task": 0.57},
    "bfcl": {"auc_within_task": 0.62},
    "mmlupro": {"auc_within_task": 0.64},
    "zeroeval": {"auc": 0.815, "brier_skill": 0.28},
}
# table -> (baseline, figure) that the router must be ahead of, beyond the noise of the judged requests
TARGET_LEADS: dict[str, tuple[tuple[str, str], ...]] = {
    "routerbench": tuple((name, of) for name in ("per_task_table", "knn") for of in ("cost_at_quality", "area")),
}
LABELS = {
    "cost_at_0.95": "cost to keep 95 % of the best model's quality, of its cost",
    "area": "area under the cost-quality hull",
    "auc": "mean AUC per model",
    "auc_within_task": "mean AUC within task",
    "auc_pooled": "AUC, all outcomes as one list",
    "brier_skill": "Brier skill against each model's base rate",
    "brier_skill_pooled": "Brier skill against one rate for all",
    "ece": "calibration error (15 bins)",
}


@dataclass(frozen=True, eq=False)
class Measured:
    """A table, its evaluation, and the calibration figures of the per-task table on the same folds."""

    name: str
    evaluation: Evaluation
    per_task: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**self.evaluation.to_dict(), "per_task_table_calibration": self.per_task}


def measure(name: str, table: OutcomeTable, encoder: Encoder, *, seed: int = 0, n_boot: int = 1000) -> Measured:
    """Cross-validate one table and evaluate it."""
    judged = cross_validate(table, encoder, seed=seed)
    fold: IntArray = np.asarray(judged.fold, dtype=np.intp)
    per_task = out_of_fold(PerTaskTable, judged.requests, judged.success, judged.cost, fold)
    base = base_rates(judged.success, fold)
    return Measured(
        name,
        evaluate(judged, DefaultRule(THRESHOLD), n_boot=n_boot, seed=seed),
        calibration_report(judged.success, per_task.p, table.task, base, fold=fold, seed=seed),
    )


def quality_rows(measured: Measured) -> Iterator[Row]:
    """The lines of one table: figures with targets, then what is needed to read them."""
    name, calibration = measured.name, measured.evaluation.calibration
    found = measured.evaluation.comparison
    curve = found.router.to_dict() if found is not None else {}
    values = {**calibration, "area": curve.get("area")}
    values["cost_at_0.95"] = (curve.get("cost_at_quality") or {}).get(str(BOOTSTRAP_TARGET))
    targets = TARGET_FIGURES.get(name, {})
    for figure in ("cost_at_0.95", "area", "auc_within_task", "auc", "brier_skill", "auc_pooled", "brier_skill_pooled"):
        if figure in targets or (values[figure] is not None and figure not in ("cost_at_0.95", "area")):
            yield _against(name, figure, values[figure], targets.get(figure), _beside(measured.per_task, figure))
    for baseline, of in TARGET_LEADS.get(name, ()):
        yield _lead(measured, baseline, of)
    if found is not None:
        yield _never_below_mixture(measured)
    if measured.evaluation.cost_error is not None:
        yield cost_error_row(name, measured.evaluation.cost_error)
    ece, floor = calibration["ece"], calibration["ece_noise_floor"]
    targeted = name in TARGET_FIGURES and ece is not None
    yield Row(
        name, LABELS["ece"], ece, f"<= {MAX_ECE:.3f}" if targeted else "", ece <= MAX_ECE if targeted else None,
        note=f"a perfectly calibrated predictor would show {floor:.4f} on these {calibration['n']['ece']:,} outcomes",
    )  # fmt: skip


def _against(table: str, figure: str, value: float | None, target: float | None, note: str) -> Row:
    if target is None:
        return Row(table, LABELS[figure], value, note=note)
    upper = figure.startswith("cost")
    reached = value is not None and (value <= target if upper else value >= target)
    return Row(table, LABELS[figure], value, f"{'<=' if upper else '>='} {target:.3f}", reached, note=note)


def _beside(per_task: dict[str, Any], figure: str) -> str:
    value = per_task.get(figure)
    return "" if value is None else f"per-task table {value:.3f}"


def _lead(measured: Measured, baseline: str, of: str) -> Row:
    """Router minus baseline; ahead means that the whole interval lies on the better side of zero."""
    assert measured.evaluation.comparison is not None  # a table with leads to hold has costs
    found = measured.evaluation.comparison.differences[baseline][of]
    cheaper = of == "cost_at_quality"
    label = LABELS["cost_at_0.95" if cheaper else "area"].split(",")[0]
    return Row(
        measured.name, f"{label}: lead over {baseline}", found.difference,
        f"{'< 0' if cheaper else '> 0'}, whole interval", found.high < 0 if cheaper else found.low > 0,
        found.low, found.high,
        f"better in {found.p_a_le_b if cheaper else 1 - found.p_a_le_b:.1%} of {found.n_boot} resamples",
    )  # fmt: skip


def _never_below_mixture(measured: Measured) -> Row:
    assert measured.evaluation.comparison is not None
    found = measured.evaluation.comparison.differences["random_mixture"]["area"]
    return Row(
        measured.name, "area: lead over the random mixture", found.difference, ">= 0", found.difference >= 0,
        found.low, found.high, f"n = {found.n:,} requests",
    )  # fmt: skip


def day_0_rows(data: Path, encoder: Encoder, seed: int = 0) -> Iterator[Row]:
    """Each source judged by a model that was not trained on it, and placed there by published results alone.

    :raises TableError: if a table to train on is missing.
    """
    facts = load_facts()
    tables, written = read_public_tables(data, encoder, facts), written_table(encoder)
    further = read_public_tables(data, encoder, facts, FURTHER_SOURCES)
    judged = leave_one_source_out(tables, written, facts, further, seed=seed)
    found = day_0_figures(judged)
    over = f"mean over {found['n_sources']:.0f} sources"
    yield Row(DAY_0, LABELS["auc"], found["auc"], f">= {DAY_0_AUC:.3f}", found["auc"] >= DAY_0_AUC, note=over)
    yield Row(DAY_0, LABELS["ece"], found["ece"], f"<= {DAY_0_ECE:.3f}", found["ece"] <= DAY_0_ECE, note=over)
    for row in judged:
        counted = "" if row.counted else "; not counted: may not be trained on"
        note = f"calibration error {row.ece:.3f}, predicted {row.predicted:.3f}, observed {row.observed:.3f}{counted}"
        yield Row(DAY_0, f"{LABELS['auc']}, {row.source} left out", row.auc, note=note)


def print_comparison(measured: Measured) -> None:
    """The router beside every baseline on one table; nothing where the table has no costs."""
    found = measured.evaluation.comparison
    if found is None:
        return
    shown = table_of(
        f"{measured.name}, n = {found.n:,}", ">area", *(f">cost at {t:.0%}" for t in TARGETS),
        ">router's lead in area", ">router's lead in cost at 95 %",
    )  # fmt: skip
    figures = {"router": found.router.to_dict(), **found.baselines_dict()}
    for name, figure in figures.items():
        costs = ["-" if cost is None else f"{cost:.3f}" for cost in figure["cost_at_quality"].values()]
        leads = ["", ""]
        if name in found.differences:
            pair = found.differences[name]
            leads = [
                f"{d.difference:+.4f} [{d.low:+.4f}, {d.high:+.4f}]" for d in (pair["area"], pair["cost_at_quality"])
            ]
        if not name.startswith("single:"):
            shown.add_row(name, f"{figure['area']:.4f}", *costs, *leads)
    console().print(shown)


def _tables(data: Path, only: Sequence[str]) -> dict[str, Path]:
    found = {path.stem: path for path in sorted(data.glob("*.parquet"))}
    if not found:
        click.echo(f"no evaluation tables in {data}; measuring {EXAMPLE_TABLE} instead", err=True)
        found = {EXAMPLE_TABLE.stem: EXAMPLE_TABLE}
    further = (DAY_0, NOVELTY, PLANNER)
    unknown = sorted(set(only) - {*found, *further})
    if unknown:
        raise TableError("quality", [f"--only names {unknown}; there are {[*found, *further]}"])
    return {name: path for name, path in found.items() if not only or name in only}


@click.command(name="quality")
@click.option("--data", type=click.Path(path_type=Path), default=EVALUATION_TABLES, show_default=True, help="Tables.")
@click.option("--json", "out", type=click.Path(path_type=Path), help="Write all figures here.")
@click.option("--only", multiple=True, metavar="TABLE", help="Only this table, day_0, novelty or planner.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of folds, fit and bootstrap.")
@click.option("--resamples", type=int, default=1000, show_default=True, help="Resamples of the paired bootstrap.")
def command(data: Path, out: Path | None, only: tuple[str, ...], seed: int, resamples: int) -> None:
    """Measure routing quality on the evaluation tables, against its targets."""
    encoder = default_encoder()
    rows: list[Row] = []
    tables: dict[str, Any] = {}
    for name, path in _tables(data, only).items():
        click.echo(f"measuring {name} ...", err=True)
        table = read_table(path)
        measured = measure(name, table, encoder, seed=seed, n_boot=resamples)
        print_comparison(measured)
        rows += quality_rows(measured)
        rows += promise_rows(name, measured.evaluation.judged, seed=seed)
        if name in SHIPPED_TABLES:
            judged = measured.evaluation.judged
            nested = nested_choice(table, judged, encoder, seed)
            rows += shipped_rows(name, nested, judged, seed=seed, n_boot=resamples)
            if name in PLAN_TARGETS:
                rows += plan_rows(name, nested.judged, nested.dependence, shipped_in(nested.chosen), seed=seed)
        tables[name] = measured.to_dict()
    if PLANNER in only or (not only and EXAMPLE_TABLE.stem not in tables):
        rows += planner_rows(seed=seed)
    if NOVELTY in only or (not only and EXAMPLE_TABLE.stem not in tables):
        click.echo("measuring requests of one table on routers of another ...", err=True)
        rows += novelty_rows(
            {path.stem: read_table(path) for path in sorted(data.glob("*.parquet"))}, encoder, seed=seed
        )
    if DAY_0 in only or (not only and EXAMPLE_TABLE.stem not in tables):
        click.echo("measuring sources left out of training ...", err=True)
        rows += day_0_rows(data, encoder, seed)
    print_rows(rows)
    if out is not None:
        report = {"seed": seed, "rows": [asdict(row) for row in rows], "tables": tables}
        out.write_text(json.dumps(report, indent=1, allow_nan=False), encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see ``router_ml.cli.run`` for the exit codes."""
    return run(command, argv)


if __name__ == "__main__":
    raise SystemExit(main())
