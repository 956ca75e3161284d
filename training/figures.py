"""Pictures of an evaluation for people to read: reliability, cost against quality, and the table of tasks.

Each function draws one matplotlib figure; ``save_figures`` writes them all as PNG.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter

from router_ml.explanation import usd
from training.calibration import reliability
from training.comparison import Comparison, Contestant
from training.cost_quality import upper_hull
from training.evaluation import Evaluation
from training.metrics import FloatArray

N_BINS = 15
DPI = 150
MOST_TASKS = 25  # rows of the task picture; the page and the report hold all
# Okabe and Ito's colours, told apart also by the colour-blind
ROUTER, MIXTURE, ORACLE = "#D55E00", "#000000", "#009E73"
LINES = {
    "per_task_table": ("#0072B2", "-", "per-task table"),
    "knn": ("#56B4E9", "-", "kNN (quality and cost)"),
    "prompt_length": ("#CC79A7", "--", "prompt length"),
    "complexity_heuristic": ("#8C6D1F", ":", "complexity heuristic"),
    "task_type_table": ("#E69F00", "-.", "task-type table"),
}
TASK_COLUMNS = (
    ("task", "task"),
    ("n_requests", "requests"),
    ("n_outcomes", "outcomes"),
    ("success_rate", "success\nrate"),
    ("mean_p", "mean\nP(success)"),
    ("ece", "calibration\nerror"),
    ("auc_within", "AUC\nwithin"),
    ("router_quality", "router:\nquality"),
    ("router_cost_usd", "router:\nUSD/request"),
    ("best_single_quality", "best single:\nquality"),
    ("best_single_cost_usd", "best single:\nUSD/request"),
)


def reliability_figure(evaluation: Evaluation) -> Figure:
    """Observed success rate against predicted P(success), with the number of outcomes in each bin below."""
    judged = evaluation.judged
    bins = reliability(judged.success, judged.p, judged.group, N_BINS)
    figure = _figure(6.4, 6.6)
    top, below = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [4, 1]})
    top.plot([0, 1], [0, 1], color="#999999", linestyle="--", linewidth=1, label="perfectly calibrated")
    errors = [bins.success_rate - bins.low, bins.high - bins.success_rate]
    top.errorbar(
        bins.mean_p, bins.success_rate, yerr=errors, fmt="o", color=ROUTER, ecolor=ROUTER, capsize=3, markersize=5,
        label="router, 95 % interval of the rate",
    )  # fmt: skip
    ece, floor = evaluation.calibration["ece"], evaluation.calibration["ece_noise_floor"]
    title = f"Reliability: {bins.counts.sum():,} outcomes of {len(judged.p):,} requests, {len(judged.models)} models"
    top.set_title(f"{title}\ncalibration error {cell_text('', ece)} (noise alone: {cell_text('', floor)})")
    top.set_ylabel("observed success rate")
    top.set_ylim(-0.02, 1.02)
    top.legend(loc="lower right", frameon=False)
    bars = below.bar(bins.edge, bins.counts, 1 / N_BINS, align="edge", color="#BBBBBB")
    below.bar_label(bars, [f"{count:,}" for count in bins.counts], fontsize=7, padding=1)
    below.set_ylim(0, 1.2 * max(bins.counts, default=1))
    below.set_ylabel("outcomes\nin bin")
    below.set_xlabel(f"predicted P(success), {N_BINS} bins")
    below.set_xlim(-0.02, 1.02)
    below.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    for axes in (top, below):
        axes.grid(alpha=0.3)
    return figure


def cost_quality_figure(comparison: Comparison) -> Figure:
    """Mean quality against mean cost: the router, every baseline, the single models, their mixture, the oracle."""
    figure = _figure(9.2, 5.8)
    axes = figure.subplots()
    singles = comparison.router.curve.singles()
    low, high = float(singles[:, 0].min()), float(singles[:, 0].max())
    span = (max(low, high / 1e4) if low <= 0 else low, high)
    _hull_line(axes, comparison.baselines["oracle"], span, ORACLE, "-", "oracle (cannot be had)", 1.2)
    for name, (colour, style, label) in LINES.items():
        _hull_line(axes, comparison.baselines[name], span, colour, style, label, 1.2)
    _hull_line(axes, comparison.baselines["random_mixture"], span, MIXTURE, "--", "random mixture of models", 1.2)
    _hull_line(axes, comparison.router, span, ROUTER, "-", "router", 2.4)
    lowest = min(float(line.get_ydata().min()) for line in axes.get_lines())  # type: ignore[union-attr]
    lowest = min(lowest, comparison.router.default_point[1])
    bottom = lowest - 0.08 * (float(axes.dataLim.ymax) - lowest)
    hidden = int((singles[:, 1] < bottom).sum())
    label = f"single models ({hidden} below the picture)" if hidden else "single models"
    axes.scatter(singles[:, 0], singles[:, 1], s=22, color="#666666", zorder=3, label=label)
    _name_singles(axes, singles, comparison.models)
    axes.scatter(
        *comparison.router.default_point, marker="*", s=190, color=ROUTER, edgecolor="black", zorder=5,
        label="router, its default rule",
    )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlim(span[0] / 1.3, span[1] * 1.3)
    axes.set_ylim(bottom=bottom)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(_plain_usd))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel("mean cost of a request, USD (logarithmic)")
    axes.set_ylabel("mean quality (score)")
    axes.set_title(f"Cost and quality on {comparison.n:,} requests, {len(comparison.models)} models with prices")
    axes.grid(alpha=0.3, which="both")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return figure


def task_figure(evaluation: Evaluation) -> Figure:
    """The table of tasks as a picture; of more than ``MOST_TASKS`` tasks, the largest."""
    rows = sorted(evaluation.by_task, key=lambda row: -row["n_requests"])
    shown = rows[:MOST_TASKS]
    figure = _figure(14.0, 1.3 + 0.32 * (len(shown) + 2))
    axes = figure.subplots()
    axes.axis("off")
    cells = [[cell_text(key, row[key]) for key, _ in TASK_COLUMNS] for row in shown]
    widths = [0.17, *([0.083] * (len(TASK_COLUMNS) - 1))]
    table = axes.table(cells, colLabels=[label for _, label in TASK_COLUMNS], colWidths=widths, loc="upper center")
    table.auto_set_font_size(False)
    table.set_fontsize(9)
    for (line, column), cell in table.get_celld().items():
        cell.set_edgecolor("#DDDDDD")
        cell.set_height((2.1 if line == 0 else 1.0) / (len(shown) + 3))
        cell.set_text_props(ha="left" if column == 0 else "right", weight="bold" if line == 0 else "normal")
        if line and line % 2 == 0:
            cell.set_facecolor("#F5F5F5")
    left_out = f"; {len(rows) - len(shown)} smaller tasks not shown" if len(rows) > len(shown) else ""
    axes.set_title(f"By task: {len(evaluation.judged.group):,} requests{left_out}", pad=12)
    return figure


def figures(evaluation: Evaluation) -> dict[str, Figure]:
    """:return: every figure that the evaluation allows, by name; without prices there is no cost-quality curve."""
    drawn = {"reliability": reliability_figure(evaluation)}
    if evaluation.comparison is not None:
        drawn["cost_quality"] = cost_quality_figure(evaluation.comparison)
    return {**drawn, "tasks": task_figure(evaluation)}


def save_figures(evaluation: Evaluation, folder: Path) -> Mapping[str, Path]:
    """Write every figure as ``<name>.png``. :return: the paths by name."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for name, figure in figures(evaluation).items():
        paths[name] = folder / f"{name}.png"
        figure.savefig(paths[name], dpi=DPI)
    return paths


def cell_text(key: str, value: Any) -> str:
    """One value of a table as a person reads it; a dash where there is none."""
    if value is None:
        return "(none)" if key == "task" else "-"
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if key.endswith("usd"):
        return usd(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"


def _figure(width: float, height: float) -> Figure:
    # a Figure of its own and not pyplot's: no global state, no display, safe in threads
    return Figure(figsize=(width, height), layout="constrained")


def _hull_line(
    axes: Axes, contestant: Contestant, span: tuple[float, float], colour: str, style: str, label: str, width: float
) -> None:
    """The upper hull, mixing included, drawn from the cheapest single model to the dearest."""
    cheapest = contestant.curve.singles()
    cheapest = cheapest[np.lexsort((-cheapest[:, 1], cheapest[:, 0]))[0]]
    hull = upper_hull(np.vstack([contestant.curve.points(), cheapest]))
    costs = np.geomspace(*span, 400)  # a straight line between two points is a curve on a logarithmic axis
    quality = np.interp(costs, hull[:, 0], hull[:, 1])
    axes.plot(costs, quality, color=colour, linestyle=style, linewidth=width, label=label)


def _plain_usd(value: float, _: int | None) -> str:
    return "$" + np.format_float_positional(value, precision=1, fractional=False, trim="-")


def _name_singles(axes: Axes, singles: FloatArray, models: tuple[str, ...]) -> None:
    """Names at the single models that no other beats in both cost and quality: all names would cover each other."""
    frontier = {tuple(vertex) for vertex in upper_hull(singles).tolist()}
    named = sorted(
        (cost, quality, name)
        for (cost, quality), name in zip(singles.tolist(), models, strict=True)
        if (cost, quality) in frontier
    )
    middle = float(np.sqrt(singles[:, 0].min() * singles[:, 0].max()))
    for place, (cost, quality, name) in enumerate(named):
        left = cost > middle  # names of dear models run to the left, or they would leave the picture
        axes.annotate(
            name.rpartition("/")[2], (cost, quality), xytext=(-5 if left else 5, -13 - 13 * (place % 2)),
            textcoords="offset points", fontsize=8, ha="right" if left else "left", zorder=2.5,
            path_effects=[withStroke(linewidth=3, foreground="white")],
        )  # fmt: skip
