"""The error of predicted costs: by hand, against numpy, and whether its intervals say the truth."""

from __future__ import annotations

import dataclasses
import json
from html import escape
from pathlib import Path

import numpy as np
import pytest

from router_ml.pool import ModelPool, ModelSpec
from router_ml.request import ABILITIES
from training.cost_error import ALL, cost_error, cost_error_line, cost_error_row
from training.evaluation import evaluate_router
from training.evaluation_page import page
from training.fitting import default_encoder, train_router
from training.judging import Judged, judge_router
from training.outcome_table import OutcomeTable
from training.prediction import Requests
from training.quality import measure, quality_rows
from training.simulate import World


def judged(
    cost: np.ndarray, predicted: np.ndarray, tasks: list[str | None] | None = None, group: np.ndarray | None = None,
    several: np.ndarray | None = None,
) -> tuple[Judged, np.ndarray]:  # fmt: skip
    n, m = cost.shape
    fold = np.arange(n) % 2
    found = Judged(
        models=tuple(f"m{j}" for j in range(m)), success=np.ones((n, m)), score=np.ones((n, m)), cost=cost,
        p=np.ones((n, m)), c=predicted, requests=Requests([""] * n, tasks or [None] * n, np.zeros((n, 1))),
        group=np.arange(n) if group is None else group, fold=fold, several_calls=several,
    )  # fmt: skip
    return found, fold


@pytest.fixture(scope="module")
def table() -> OutcomeTable:
    return World(7).sample(300).table


def test_figures_that_can_be_counted_by_hand() -> None:
    cost = np.array([[1.0, 10.0], [2.0, 20.0], [4.0, np.nan], [0.0, 40.0]])
    found = cost_error(*judged(cost, np.array([[1.5, 10.0], [2.0, 10.0], [1.0, 9.0], [1.0, 50.0]])), n_boot=50)
    assert found is not None
    overall, (first, second) = found["overall"], found["by_model"]
    assert (overall["model"], overall["n"], overall["n_free"]) == (ALL, 7, 1)
    assert (first["model"], first["n"], first["n_free"], second["n"]) == ("m0", 4, 1, 3)
    # errors of the router: .5, 0, .75 and 0, .5, .25
    assert first["router"]["median_relative_error"] == 0.5
    assert second["router"]["median_relative_error"] == 0.25
    assert overall["router"]["median_relative_error"] == 0.25  # the lower of two middles
    assert first["router"]["predicted_over_paid"] == pytest.approx(5.5 / 7)
    assert second["router"]["predicted_over_paid"] == pytest.approx(1.0)
    squares = (np.array([0.5, 0.0, 3.0, 1.0]) / 1.75) ** 2
    assert first["router"]["rmse_over_mean"] == pytest.approx(np.sqrt(squares.mean()))
    # the mean of the other fold: rows 1 and 3 for 0 and 2, and the other way round
    assert first["per_model_mean"]["median_relative_error"] == pytest.approx(0.25)  # of 0, .25, .75
    assert first["per_model_mean"]["difference"]["router_minus_baseline"] == pytest.approx(0.25)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_the_median_is_numpys_and_a_resample_is_one_with_rows_repeated() -> None:
    rng = np.random.default_rng(0)
    cost, predicted = rng.lognormal(size=(101, 3)), rng.lognormal(size=(101, 3))
    found = cost_error(*judged(cost, predicted), n_boot=10)
    assert found is not None
    error = np.abs(predicted - cost) / cost
    assert found["overall"]["router"]["median_relative_error"] == pytest.approx(np.median(error))
    for j, row in enumerate(found["by_model"]):
        assert row["router"]["median_relative_error"] == pytest.approx(np.median(error[:, j]))
        assert row["router"]["rmse_over_mean"] == pytest.approx(
            np.sqrt(np.mean((predicted - cost)[:, j] ** 2)) / cost[:, j].mean()
        )


def test_the_interval_covers_the_truth_and_widens_with_rows_that_hang_together() -> None:
    rng = np.random.default_rng(1)

    def draw(n: int) -> tuple[np.ndarray, np.ndarray]:
        level = rng.normal(size=(n, 1))
        return np.exp(level + rng.normal(scale=0.5, size=(n, 2))), np.exp(level) * np.ones((1, 2))

    big = cost_error(*judged(*draw(20_000)), n_boot=1)
    assert big is not None
    truth = big["overall"]["per_model_mean"]["difference"]["router_minus_baseline"]
    inside = 0
    for _ in range(60):
        found = cost_error(*judged(*draw(150)), n_boot=200)
        assert found is not None
        interval = found["overall"]["per_model_mean"]["difference"]
        inside += interval["low"] <= truth <= interval["high"]
    assert inside >= 50  # 57 are expected; the constants' own uncertainty is not in the interval
    cost, predicted = draw(400)
    alone, fold = judged(np.repeat(cost, 4, axis=0), np.repeat(predicted, 4, axis=0))
    together = dataclasses.replace(alone, group=np.repeat(np.arange(400), 4))
    widths = []
    for one in (alone, together):
        found = cost_error(one, fold, n_boot=300)
        assert found is not None
        interval = found["overall"]["per_model_mean"]["difference"]
        widths.append(interval["high"] - interval["low"])
    assert widths[1] > 1.5 * widths[0]  # twice, up to noise: four times as many rows, no more evidence


def test_rows_of_several_calls_do_not_count_where_one_call_is_priced() -> None:
    cost = np.array([[1.0], [2.0], [100.0], [2.0]])
    several = np.array([[False], [False], [True], [False]])
    found = cost_error(*judged(cost, np.full((4, 1), 2.0), several=several), n_boot=5)
    assert found is not None and found["overall"]["n"] == 3 and found["n_of_several_calls"] == 1
    assert found["overall"]["router"]["predicted_over_paid"] == pytest.approx(6 / 5)
    assert "1 of several calls left out" in cost_error_line(found)


def test_without_costs_there_is_no_section_and_free_models_have_no_relative_error() -> None:
    assert cost_error(*judged(np.full((4, 1), np.nan), np.ones((4, 1)))) is None
    one_fold, _ = judged(np.ones((4, 1)), np.ones((4, 1)))
    assert cost_error(one_fold, np.zeros(4, dtype=np.intp)) is None
    free = cost_error(*judged(np.zeros((4, 1)), np.zeros((4, 1))), n_boot=5)
    assert free is not None and free["overall"]["router"]["median_relative_error"] is None
    assert json.loads(json.dumps(free, allow_nan=False)) == free
    assert "nothing was paid" in cost_error_line(free)
    assert cost_error_row("t", free).reached is None


def test_a_router_of_token_prices_is_judged_on_calls(table: OutcomeTable, tmp_path: Path) -> None:
    specs = [ModelSpec(name, 1.0, 5.0, abilities=ABILITIES) for name in table.models]
    router = train_router(table, tmp_path / "router", pool=ModelPool(tuple(specs), specs[0].name))
    found = judge_router(router, table)
    assert found.several_calls is not None
    np.testing.assert_array_equal(found.several_calls, table.dense("turns") > 1)
    joined = Judged.concat([found, found])
    assert joined.several_calls is not None and joined.several_calls.shape == (600, 5)
    mixed = Judged.concat([found, dataclasses.replace(found, several_calls=None)])
    assert mixed.several_calls is None


def test_the_report_the_page_and_the_quality_table_say_it(table: OutcomeTable, tmp_path: Path) -> None:
    router = train_router(table.select_requests(np.arange(150)), tmp_path / "router")
    evaluation = evaluate_router(router, table.select_requests(np.arange(150, 300)), n_boot=20)
    section = evaluation.to_dict()["cost_error"]
    assert section["overall"]["n"] == 750 and [row["model"] for row in section["by_model"]] == list(table.models)
    assert evaluation.metrics()["cost_median_relative_error"] == {
        "value": section["overall"]["router"]["median_relative_error"], "n": 750,
    }  # fmt: skip
    html = page(evaluation)
    assert "Predicted cost" in html and escape(cost_error_line(section)) in html
    free = dataclasses.replace(evaluation, cost_error=None)
    assert "Predicted cost" not in page(free) and "cost_median_relative_error" not in free.metrics()


def test_the_quality_row_shows_the_lead_with_its_interval(table: OutcomeTable) -> None:

    rows = [
        row for row in quality_rows(measure("x", table, default_encoder(), n_boot=20)) if "error of cost" in row.what
    ]
    assert len(rows) == 1
    row = rows[0]
    assert row.value is not None and row.low is not None and row.high is not None
    assert row.low <= row.value <= row.high and row.reached == (row.value <= 0) and "n = 1,500 outcomes" in row.note
