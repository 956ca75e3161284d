"""Pictures and page of an evaluation: what they show can be read off their parts."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from router_ml.router import Router
from training.evaluation import Evaluation, evaluate_router
from training.evaluation_page import page
from training.figures import (
    MOST_TASKS,
    cell_text,
    cost_quality_figure,
    figures,
    reliability_figure,
    save_figures,
    task_figure,
)
from training.outcome_table import OutcomeTable
from training.simulate import World


@pytest.fixture(scope="module")
def table() -> OutcomeTable:
    return World(7).sample(120, seed=4).table


@pytest.fixture(scope="module")
def evaluation(router_path: Path, table: OutcomeTable) -> Evaluation:
    return evaluate_router(Router.load(router_path), table, n_boot=5)


def test_reliability_shows_every_outcome_and_says_how_many(evaluation: Evaluation) -> None:
    top, below = reliability_figure(evaluation).axes
    assert "600 outcomes of 120 requests" in top.get_title() and "calibration error" in top.get_title()
    assert sum(bar.get_height() for bar in below.patches) == 600  # type: ignore[attr-defined]
    assert below.get_xlabel() and below.get_ylabel() and top.get_ylabel()


def test_cost_quality_names_every_contestant_with_units(evaluation: Evaluation) -> None:
    assert evaluation.comparison is not None
    axes = cost_quality_figure(evaluation.comparison).axes[0]
    legend = axes.get_legend()
    assert legend is not None
    labels = [text.get_text() for text in legend.get_texts()]
    assert "router" in labels and "random mixture of models" in labels and len(labels) == 10
    assert "USD" in axes.get_xlabel() and "120 requests" in axes.get_title()
    best = evaluation.comparison.models[int(evaluation.comparison.router.curve.singles()[:, 1].argmax())]
    assert best.rpartition("/")[2] in {text.get_text() for text in axes.texts}


def test_task_picture_keeps_the_largest_tasks_and_says_what_it_left_out(evaluation: Evaluation) -> None:
    row = evaluation.by_task[0]
    many = [{**row, "task": f"task {i}", "n_requests": i} for i in range(MOST_TASKS + 3)]
    axes = task_figure(dataclasses.replace(evaluation, by_task=many)).axes[0]
    assert "3 smaller tasks not shown" in axes.get_title()
    cells = [cell.get_text().get_text() for cell in axes.tables[0].get_celld().values()]
    assert f"task {MOST_TASKS + 2}" in cells and "task 0" not in cells


def test_pictures_are_written_and_not_blank(evaluation: Evaluation, tmp_path: Path) -> None:
    paths = save_figures(evaluation, tmp_path / "new")
    assert set(paths) == {"reliability", "cost_quality", "tasks"}
    for path in paths.values():
        assert np.ptp(imread(path)[..., :3]) > 0.5


def test_without_prices_there_is_no_cost_picture(router_path: Path, table: OutcomeTable) -> None:
    free = dataclasses.replace(table, cost_usd=np.full(table.n_rows, np.nan))
    evaluation = evaluate_router(Router.load(router_path), free, n_boot=5)
    assert set(figures(evaluation)) == {"reliability", "tasks"}
    assert "no choice can be priced" in page(evaluation)


def test_page_shows_errors_in_either_direction_with_intervals_and_by_task(evaluation: Evaluation) -> None:
    html, errors = page(evaluation), evaluation.routing_errors
    assert errors is not None and "Under-routing and over-routing" in html
    own, tasks = errors["router"], errors["router"]["by_task"]
    for found in (own, *tasks, *errors["baselines"].values()):
        for kind in ("under_routed", "over_routed"):
            assert f"{found[kind]['share']:.3f} [{found[kind]['low']:.3f}, {found[kind]['high']:.3f}]" in html
    assert len(tasks) > 1 and "loss per request" not in html


def test_page_escapes_what_it_is_given(evaluation: Evaluation) -> None:
    script = {"task": "<script>alert(1)</script>"}
    assert evaluation.routing_errors is not None
    own = evaluation.routing_errors["router"]
    errors = {**evaluation.routing_errors, "router": {**own, "by_task": [{**own["by_task"][0], **script}]}}
    rows = [{**evaluation.by_task[0], **script}]
    html = page(dataclasses.replace(evaluation, by_task=rows, routing_errors=errors), "a < b")
    assert "<script>" not in html and "&lt;script&gt;" in html and "<title>a &lt; b</title>" in html


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [("task", None, "(none)"), ("ece", None, "-"), ("n", 12345, "12,345"), ("mean_cost_usd", 0.0012345, "$0.00123"),
     ("auc", 0.5, "0.500"), ("flag", True, "yes"), ("flag", False, "no")],
)  # fmt: skip
def test_values_are_written_for_people(key: str, value: object, expected: str) -> None:
    assert cell_text(key, value) == expected
