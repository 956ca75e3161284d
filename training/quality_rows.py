"""Lines of the quality table: a figure, its target, whether it was reached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from router_ml.terminal import console, table_of


@dataclass(frozen=True)
class Row:
    """One line of the quality table. ``reached`` is None where the figure is shown for information."""

    table: str
    what: str
    value: float | None
    target: str = ""
    reached: bool | None = None
    low: float | None = None
    high: float | None = None
    note: str = ""


def print_rows(rows: Sequence[Row]) -> None:
    """The quality table, for people."""
    shown = table_of("table", "figure", ">value", ">95 % interval", ">target", "", "note")
    for row in rows:
        interval = "" if row.low is None or row.high is None else f"[{row.low:+.4f}, {row.high:+.4f}]"
        verdict = {True: "reached", False: "missed", None: ""}[row.reached]
        style = {True: "green", False: "red", None: ""}[row.reached]
        value = "not reached" if row.value is None else f"{row.value:.4f}"
        shown.add_row(row.table, row.what, value, interval, row.target, verdict, row.note, style=style)
    console().print(shown)
