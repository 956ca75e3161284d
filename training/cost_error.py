"""How far predicted costs are from what was paid, beside two constants: each model's mean, and its mean by task.

Three figures, because no one number is best for all. Expected cost is a mean: it is made to minimise the squared
error and to add up. The median relative error says how far a single request is off, and a mean of skewed costs is
above most of them; a smaller number that did not add up would not be better.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from training.baselines import PerTaskTable, RandomMixture, out_of_fold
from training.comparison import interval_dict
from training.cost_quality import paired_difference, resamples
from training.judging import Judged
from training.metrics import BoolArray, FloatArray, IntArray
from training.quality_rows import Row

BASELINES = {"per_model_mean": RandomMixture, "per_task_mean": PerTaskTable}
ALL = "(all)"  # in place of a model's name


class _Median(NamedTuple):
    value: float
    samples: FloatArray  # (n_boot,) of resampled requests


def cost_error(judged: Judged, fold: IntArray, *, n_boot: int = 1000, seed: int = 0) -> dict[str, Any] | None:
    """The report's section on predicted cost.

    The baselines are cross-validated on the judged rows; that other rows would have taught them other constants is not
    in the intervals. A cost of 0 has no relative error and counts only in the
    total. Rows of several calls are left out where the router prices one call.

    :param fold: (n,) at least two folds, groups kept together.
    :return: a row over all models and one per priced model, each with ``n`` outcomes; None without any cost.
    """
    cost = judged.cost_as_predicted
    known = ~np.isnan(cost)
    if not known.any() or np.unique(fold).size < 2:
        return None
    predicted = {"router": judged.c}
    for name, make in BASELINES.items():
        predicted[name] = out_of_fold(make, judged.requests, judged.success, cost, fold).c
    scale = np.array([cost[known[:, j], j].mean() if known[:, j].any() else np.nan for j in range(cost.shape[1])])
    everything = [(ALL, np.ones(cost.shape[1], dtype=bool))]
    columns = [(name, np.arange(cost.shape[1]) == j) for j, name in enumerate(judged.models) if known[:, j].any()]
    left_out = 0 if judged.several_calls is None else int((judged.several_calls & ~np.isnan(judged.cost)).sum())
    rows = [
        {"model": name, **_row(cost, predicted, known & chosen, scale, judged.group, n_boot, seed)}
        for name, chosen in everything + columns
    ]
    return {"overall": rows[0], "by_model": rows[1:], "n_of_several_calls": left_out}


def cost_error_line(section: dict[str, Any]) -> str:
    """The section in one sentence. :param section: what ``cost_error`` returns."""
    row = section["overall"]
    paid = f"n = {row['n']:,} outcomes"
    if section["n_of_several_calls"]:
        paid += f"; {section['n_of_several_calls']:,} of several calls left out"
    if row["router"]["median_relative_error"] is None:
        return f"predicted cost: nothing was paid ({paid})"
    router, mean, task = (row[name]["median_relative_error"] for name in ("router", *BASELINES))
    lead = row["per_model_mean"]["difference"]
    return (
        f"predicted cost is off by {router:.1%} in the median (each model's mean {mean:.1%}, by task {task:.1%}; "
        f"router minus mean {lead['router_minus_baseline']:+.3f} [{lead['low']:+.3f}, {lead['high']:+.3f}]); "
        f"predicted in all over paid {row['router']['predicted_over_paid']:.3f}; {paid}"
    )


def cost_error_row(table: str, section: dict[str, Any]) -> Row:
    """The line of the quality table. :param section: what ``cost_error`` returns."""
    overall = section["overall"]
    lead = overall["per_model_mean"]["difference"]
    what = "median absolute relative error of cost: router minus per-model mean"
    if lead is None:
        return Row(table, what, None, note=cost_error_line(section))
    errors = [
        f"{name.replace('_', ' ')} {overall[name]['median_relative_error']:.3f}" for name in ("router", *BASELINES)
    ]
    note = (
        f"{', '.join(errors)}; predicted in all over paid {overall['router']['predicted_over_paid']:.3f}; "
        f"n = {overall['n']:,} outcomes"
    )
    value = lead["router_minus_baseline"]
    return Row(table, what, value, "<= 0", value <= 0, lead["low"], lead["high"], note)


def _row(
    cost: FloatArray, predicted: dict[str, FloatArray], cells: BoolArray, scale: FloatArray, group: IntArray,
    n_boot: int, seed: int,
) -> dict[str, Any]:  # fmt: skip
    paid = cells & (cost > 0)
    out: dict[str, Any] = {"n": int(cells.sum()), "n_free": int((cells & ~paid).sum())}
    medians = _medians(cost, predicted, paid, group, n_boot, seed) if paid.any() else {}
    for name, c in predicted.items():
        value = medians[name].value if medians else None
        out[name] = {"median_relative_error": value, **_totals(cost, c, cells, scale)}
    for name in BASELINES:
        out[name]["difference"] = None if not medians else _difference(medians["router"], medians[name], paid)
    return out


def _difference(own: _Median, other: _Median, paid: BoolArray) -> dict[str, Any]:
    n = int(paid.any(axis=1).sum())
    return interval_dict(paired_difference(own.value, other.value, own.samples, other.samples, n))


def _totals(cost: FloatArray, c: FloatArray, cells: BoolArray, scale: FloatArray) -> dict[str, float | None]:
    total = float(cost[cells].sum())
    squares = (((c - cost) / np.where(scale > 0, scale, np.nan)) ** 2)[cells]
    squares = squares[~np.isnan(squares)]
    return {
        "predicted_over_paid": float(c[cells].sum()) / total if total > 0 else None,
        "rmse_over_mean": float(np.sqrt(squares.mean())) if squares.size else None,
    }


def _medians(
    cost: FloatArray, predicted: dict[str, FloatArray], paid: BoolArray, group: IntArray, n_boot: int, seed: int
) -> dict[str, _Median]:
    """Median of ``|c - cost| / cost`` over the paid cells, at least one, and of resamples in which groups are whole."""
    rows, row_of_cell = np.unique(np.nonzero(paid)[0], return_inverse=True)
    codes = np.unique(group[rows], return_inverse=True)[1]
    errors = {name: np.abs(c[paid] - cost[paid]) / cost[paid] for name, c in predicted.items()}
    order = {name: np.argsort(error, kind="stable") for name, error in errors.items()}
    ascending = {name: (errors[name][by], row_of_cell[by]) for name, by in order.items()}
    samples: dict[str, list[float]] = {name: [] for name in predicted}
    for block in resamples(codes, n_boot, seed):
        for weight in block:
            for name, (error, row) in ascending.items():
                samples[name].append(_median(error, weight[row]))
    return {
        name: _Median(_median(error, np.ones(row.size)), np.array(samples[name]))
        for name, (error, row) in ascending.items()
    }


def _median(ascending: FloatArray, weight: FloatArray) -> float:
    """Weighted lower median. :param weight: of each value, not all 0."""
    reached = np.cumsum(weight)
    # the last bit of a sum must not push an exact half over
    return float(ascending[np.searchsorted(reached, 0.5 * reached[-1] * (1 - 1e-12))])
