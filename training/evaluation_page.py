"""An evaluation as one HTML page that needs no other file: figures, headline, baselines, tasks, models."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from training.comparison import TARGETS
from training.cost_error import BASELINES, cost_error_line
from training.evaluation import NOTES, Evaluation
from training.figures import DPI, TASK_COLUMNS, cell_text, figures
from training.routing_errors import contestants

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 1150px; margin: 2em auto; padding: 0 1em; color: #222; }
table { border-collapse: collapse; margin: 1em 0; font-variant-numeric: tabular-nums; }
th, td { padding: .3em .7em; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; }
th { background: #f5f5f5; vertical-align: bottom; }
img { max-width: 100%; }
dt { font-weight: 600; } dd { margin: 0 0 .6em 1.5em; }
"""
_ALT = {
    "reliability": "observed success rate against predicted probability",
    "cost_quality": "mean quality against mean cost of router and baselines",
    "tasks": "figures by task",
}
_HEADLINE = {
    "ece": "calibration error, 15 bins",
    "ece_noise_floor": "calibration error of a perfectly calibrated predictor on these outcomes",
    "brier": "Brier score",
    "brier_skill": "Brier skill against each model's base rate",
    "brier_skill_pooled": "Brier skill against one rate for all",
    "auc": "AUC, mean over models",
    "auc_pooled": "AUC, all outcomes as one list",
    "auc_within_task": "AUC within task",
}
_MODEL_COLUMNS = (
    ("model", "model"), ("n_outcomes", "outcomes"), ("success_rate", "success rate"), ("mean_p", "mean P(success)"),
    ("ece", "calibration error"), ("auc", "AUC"), ("mean_cost_usd", "USD/request"),
    ("share_of_requests", "share of the router's calls"),
)  # fmt: skip


def page(evaluation: Evaluation, title: str = "Router evaluation") -> str:
    """The page's HTML.

    :param title: what the page is called; plain text.
    """
    report = evaluation.to_dict()
    pictures = figures(evaluation)
    # the table of tasks is on the page as text, where it can be copied
    images = [_image(figure, _ALT[name]) for name, figure in pictures.items() if name != "tasks"]
    facts = [(name.replace("_", " "), value) for name, value in evaluation.facts.items()]
    body = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{report['n_requests']:,} requests, {report['n_outcomes']:,} outcomes, {len(report['models'])} models.</p>",
        _table(("", ""), ((name, _fact(value)) for name, value in facts)) if facts else "",
        *images,
        "<h2>Router and baselines</h2>",
        _baselines(report),
        *_routing_errors(evaluation.routing_errors),
        "<h2>Calibration and discrimination</h2>",
        _table(
            ("figure", "value", "outcomes"),
            (
                (label, cell_text(key, report["calibration"][key]), cell_text("", report["calibration"]["n"][key]))
                for key, label in _HEADLINE.items()
            ),
        ),
        *_cost_error(report["cost_error"]),
        "<h2>By task</h2>",
        _rows(TASK_COLUMNS, report["by_task"]),
        "<h2>By model</h2>",
        _rows(_MODEL_COLUMNS, report["by_model"]),
        "<h2>How to read it</h2>",
        "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in NOTES.items()) + "</dl>",
    ]
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(body)}</body></html>\n'


def _baselines(report: dict[str, Any]) -> str:
    if report["router"]["area"] is None:
        return "<p>No request has score and cost of every model, so no choice can be priced.</p>"
    columns = (
        "", "quality", "USD/request", "area", *(f"cost at {t:.0%} of the best model's quality" for t in TARGETS),
        "router's lead in area", "router's lead in cost at 95 %",
    )  # fmt: skip
    rows = []
    for name, found in {"router": report["router"], **report["baselines"]}.items():
        costs = [cell_text("", cost) for cost in found["cost_at_quality"].values()]
        difference = found.get("difference")
        leads = ["", ""]
        if difference is not None:
            leads = [_interval(difference["area"]), _interval(difference["cost_at_quality"]["0.95"])]
        figures_of = [cell_text(key, found[key]) for key in ("quality", "cost_usd", "area")]
        rows.append([name, *figures_of, *costs, *leads])
    n = f"<p>On the {report['n_priced_requests']:,} requests where every priced model has score and cost.</p>"
    return n + _table(columns, rows)


def _routing_errors(report: dict[str, Any] | None) -> list[str]:
    """Under-routing and over-routing of router and baselines, then of the router by task; nothing without prices."""
    if report is None:
        return []
    price = report["failure_cost_usd"]
    columns = [
        "", "requests", "under-routed", "cheapest success: dearer per error by", "over-routed",
        "excess per error", "excess in all", "no model succeeds",
    ]  # fmt: skip
    if price is not None:
        columns += ["loss per request", "by under-routing", "by over-routing"]

    def row(name: str, n: int, found: dict[str, Any]) -> list[str]:
        under, over = found["under_routed"], found["over_routed"]
        cells = [
            name, f"{n:,}", _share(under), cell_text("usd", under["more_usd_per_error"]), _share(over),
            cell_text("usd", over["excess_usd_per_error"]), cell_text("usd", over["excess_usd_total"]),
            _share(found["unavoidable"]),
        ]  # fmt: skip
        parts = ("total_usd", "under_routing_usd", "over_routing_usd") if price is not None else ()
        return cells + [cell_text("usd", found["loss"][part]) for part in parts]

    everybody = [row(name, report["n"], found) for name, found in contestants(report).items()]
    by_task = [row(cell_text("task", task["task"]), task["n"], task) for task in report["router"]["by_task"]]
    priced = "" if price is None else f" A failure is priced at {cell_text('usd', price)}."
    return [
        "<h2>Under-routing and over-routing</h2>",
        f"<p>Apart, never net: a failure where another model succeeds, a success where a cheaper one does.{priced}</p>",
        _table(columns, everybody),
        "<h3>The router by task</h3>",
        _table(["task", *columns[1:]], by_task),
    ]


def _share(found: dict[str, Any]) -> str:
    return f"{found['share']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


def _cost_error(section: dict[str, Any] | None) -> list[str]:
    if section is None:
        return []
    columns = (
        "model", "outcomes", "router's median error", "model mean's", "task mean's", "router minus model mean",
        "router minus task mean", "router: predicted / paid", "router: RMSE / mean", "model mean: RMSE / mean",
    )  # fmt: skip
    rows = []
    for row in (section["overall"], *section["by_model"]):
        found = [row["router"], *(row[name] for name in BASELINES)]
        leads = [row[name]["difference"] for name in BASELINES]
        rows.append([
            row["model"], cell_text("", row["n"]), *(cell_text("", one["median_relative_error"]) for one in found),
            *("-" if lead is None else _interval(lead) for lead in leads),
            cell_text("", found[0]["predicted_over_paid"]), *(cell_text("", f["rmse_over_mean"]) for f in found[:2]),
        ])  # fmt: skip
    return ["<h2>Predicted cost</h2>", f"<p>{escape(cost_error_line(section))}</p>", _table(columns, rows)]


def _interval(found: dict[str, Any]) -> str:
    low, high, middle = (found[key] for key in ("low", "high", "router_minus_baseline"))
    ends = ["-" if end is None else f"{end:+.3f}" for end in (low, high)]
    return f"{'-' if middle is None else f'{middle:+.3f}'} [{ends[0]}, {ends[1]}]"


def _fact(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return cell_text("", value)


def _rows(columns: Sequence[tuple[str, str]], rows: Sequence[dict[str, Any]]) -> str:
    return _table([label for _, label in columns], ([cell_text(key, row[key]) for key, _ in columns] for row in rows))


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    lines = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{''.join(f'<tr>{line}</tr>' for line in lines)}</tbody></table>"


def _image(figure: Any, alt: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return (
        f'<p><img alt="{escape(alt)}" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"></p>'
    )
