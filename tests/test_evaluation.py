"""The report on a router: its contract, and figures that can be counted by hand."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from router_ml import artifact
from router_ml.errors import TableError
from router_ml.pool import Budgets
from router_ml.router import Router
from training.comparison import REFUSED, DefaultRule
from training.evaluate import main
from training.evaluation import evaluate, evaluate_router
from training.judging import Judged, judge_router
from training.outcome_table import OutcomeTable, write_table
from training.prediction import Requests
from training.simulate import DEFAULT_MODELS, SimulatedModel, World

CALIBRATION = {"ece", "brier", "brier_skill", "auc", "auc_within_task"}
ALWAYS_THERE = {
    "cheapest", "best_single", "random_mixture", "per_task_table", "knn", "prompt_length", "complexity_heuristic",
    "task_type_table", "oracle",
}  # fmt: skip


@pytest.fixture(scope="module")
def router(router_path: Path) -> Router:
    return Router.load(router_path)


@pytest.fixture(scope="module")
def unseen() -> OutcomeTable:
    """Requests of the world that the router was trained in, which it has not seen."""
    return World(7).sample(150, seed=3).table


def without_cost(table: OutcomeTable) -> OutcomeTable:
    return dataclasses.replace(table, cost_usd=np.full(table.n_rows, np.nan))


def test_report_holds_what_the_contract_names_and_is_json(router: Router, unseen: OutcomeTable) -> None:
    report = evaluate_router(router, unseen, n_boot=20).to_dict()
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["n_requests"] == 150 and report["models"] == list(router.models)
    assert set(report["baselines"]) == ALWAYS_THERE | {f"single:{name}" for name in router.models}
    for figures in (report["router"], *report["baselines"].values()):
        assert 0 <= figures["quality"] <= 1 and figures["cost_usd"] > 0 and 0 <= figures["area"] <= 1
        assert list(figures["cost_at_quality"]) == ["0.95", "0.99", "1.0"]
    for name in CALIBRATION:
        assert isinstance(report["calibration"][name], float) and report["calibration"]["n"][name] > 0
    for name in ALWAYS_THERE - {"oracle"}:
        difference = report["baselines"][name]["difference"]
        assert difference["area"]["low"] <= difference["area"]["router_minus_baseline"] <= difference["area"]["high"]
        assert set(difference["cost_at_quality"]) == {"0.95"}
    assert report["trained_on_this_table"] is False


def test_default_figures_are_those_of_the_routers_own_decisions(router: Router, unseen: OutcomeTable) -> None:
    report = evaluate_router(router, unseen, n_boot=20).to_dict()
    score, cost = unseen.dense("score"), unseen.dense("cost_usd")
    earned, spent = [], []
    for row, (prompt, task) in enumerate(zip(unseen.prompts, unseen.task, strict=True)):
        request = {"messages": prompt, "task": task}
        column = unseen.models.index(router.predict(request).model)
        earned.append(score[row, column])
        spent.append(cost[row, column])
    assert report["router"]["quality"] == pytest.approx(np.mean(earned))
    assert report["router"]["cost_usd"] == pytest.approx(np.mean(spent))
    by_task = report["by_task"]
    assert sum(row["n_requests"] for row in by_task) == 150
    weighted = sum(row["router_quality"] * row["n_priced_requests"] for row in by_task) / 150
    assert weighted == pytest.approx(np.mean(earned))
    assert sum(row["share_of_requests"] for row in report["by_model"]) == pytest.approx(1.0)


def test_predictions_are_the_routers_and_stand_in_the_tables_columns(router: Router, unseen: OutcomeTable) -> None:
    judged = judge_router(router, unseen)
    requests = [{"messages": p, "task": t} for p, t in zip(unseen.prompts, unseen.task, strict=True)]
    np.testing.assert_allclose(judged.p, router.predict_proba(requests), atol=1e-9)
    np.testing.assert_allclose(judged.c, router.predict_cost(requests), rtol=1e-9)
    np.testing.assert_array_equal(judged.score, unseen.dense("score"))


def test_errors_in_either_direction_are_those_of_the_routers_own_decisions(
    router: Router, unseen: OutcomeTable
) -> None:
    evaluation = evaluate_router(router, unseen, n_boot=20)
    judged, errors = evaluation.judged, evaluation.to_dict()["routing_errors"]
    assert judged.chosen is not None and set(errors["baselines"]) >= set(evaluation.to_dict()["baselines"])
    under = over = 0
    for row, pick in enumerate(judged.chosen):
        won = [model for model in range(5) if judged.score[row, model] >= 0.5]
        cheaper = [model for model in won if judged.cost[row, model] < judged.cost[row, pick]]
        under += bool(won) and pick not in won
        over += pick in won and bool(cheaper)
    own = errors["router"]
    assert (own["under_routed"]["n"], own["over_routed"]["n"], errors["n"]) == (under, over, 150) and under and over
    assert own["under_routed"]["low"] < own["under_routed"]["share"] < own["under_routed"]["high"]
    assert errors["baselines"]["oracle"]["under_routed"]["n"] == errors["baselines"]["oracle"]["over_routed"]["n"] == 0
    metrics = evaluation.metrics()
    assert metrics["under_routed_share"] == {"value": under / 150, "n": 150}
    assert metrics["over_routed_share"] == {"value": over / 150, "n": 150}


def test_an_error_is_what_the_pool_calls_a_failure(router_path: Path, unseen: OutcomeTable) -> None:
    parts = artifact.load(router_path)
    strict = Router(dataclasses.replace(parts, pool=dataclasses.replace(parts.pool, success_score=0.9)))
    fractional = dataclasses.replace(unseen, score=unseen.score * 0.8)
    errors = evaluate_router(strict, fractional, n_boot=5).to_dict()["routing_errors"]
    assert errors["router"]["unavoidable"]["n"] == 150


def test_a_table_without_cost_gets_calibration_only(router: Router, unseen: OutcomeTable) -> None:
    evaluation = evaluate_router(router, without_cost(unseen), n_boot=20)
    report = evaluation.to_dict()
    assert report["router"]["area"] is None and report["router"]["quality"] is None and report["baselines"] == {}
    assert report["calibration"]["auc"] > 0.5 and report["n_priced_requests"] == 0
    assert report["routing_errors"] is None
    assert set(evaluation.metrics()) == CALIBRATION


def test_models_that_only_one_side_knows_are_reported_and_left_out(router: Router) -> None:
    newcomer = SimulatedModel("acme/brand-new", 0.5, 1.0, 4.0)
    table = World(7, (*DEFAULT_MODELS[:3], newcomer)).sample(120, seed=5).table
    report = evaluate_router(router, table, n_boot=20).to_dict()
    assert report["models"] == [model.name for model in sorted(DEFAULT_MODELS[:3], key=lambda m: m.name)]
    assert report["models_only_in_table"] == ["acme/brand-new"]
    assert report["models_only_in_router"] == ["other/max", "other/mini"]
    assert sum(row["share_of_requests"] for row in report["by_model"]) == pytest.approx(1.0)


def test_a_table_of_strangers_is_refused(router: Router) -> None:
    table = World(1, [SimulatedModel("x/y", 0.0, 1.0, 1.0)]).sample(20).table
    with pytest.raises(TableError, match="share no model"):
        evaluate_router(router, table)


def test_the_table_that_trained_the_router_is_recognised(router: Router) -> None:
    report = evaluate_router(router, World(7).sample(300).table, n_boot=5).to_dict()
    assert report["trained_on_this_table"] is True


def test_requests_that_no_model_may_take_are_counted_as_refused(router_path: Path, unseen: OutcomeTable) -> None:
    parts = artifact.load(router_path)
    models = tuple(dataclasses.replace(spec, max_input_tokens=60) for spec in parts.pool.models)
    narrow = Router(dataclasses.replace(parts, pool=dataclasses.replace(parts.pool, models=models)))
    judged = judge_router(narrow, unseen)
    assert judged.chosen is not None
    refused = int((judged.chosen == REFUSED).sum())
    assert 0 < refused < 150
    report = evaluate_router(narrow, unseen, n_boot=5).to_dict()
    assert report["router"]["n_refused"] == refused
    rows = np.flatnonzero(judged.chosen != REFUSED)
    assert report["router"]["quality"] == pytest.approx(judged.score[rows, judged.chosen[rows]].sum() / 150)


def test_requests_that_a_budget_refuses_are_counted_as_refused(router_path: Path, unseen: OutcomeTable) -> None:
    router = Router.load(router_path)
    dear = router.predict_cost(list(unseen.prompts))[:, router.models.index(router.pool.escalation_model)]
    budgets = Budgets(per_request_usd=float(np.median(dear)), on_exceeded="refuse")
    strict = router.with_pool(dataclasses.replace(router.pool, budgets=budgets, confidence_threshold=1.0))
    judged = judge_router(strict, unseen)
    assert judged.chosen is not None and 0 < int((judged.chosen == REFUSED).sum()) < 150
    assert np.isfinite(judged.p).all() and np.isfinite(judged.c).all()


def test_success_is_what_the_pool_says_it_is(router_path: Path, unseen: OutcomeTable) -> None:
    parts = artifact.load(router_path)
    strict = Router(dataclasses.replace(parts, pool=dataclasses.replace(parts.pool, success_score=0.9)))
    table = dataclasses.replace(unseen, score=unseen.score * 0.8)
    assert np.nanmax(judge_router(strict, table).success) == 0.0


def test_parts_judged_by_several_routers_become_folds(router: Router, unseen: OutcomeTable) -> None:
    halves = [judge_router(router, unseen.select_requests(np.arange(150) % 2 == half)) for half in (0, 1)]
    whole = Judged.concat(halves)
    assert whole.fold is not None and whole.chosen is not None
    assert np.bincount(whole.fold).tolist() == [75, 75] and whole.p.shape == (150, 5)
    assert whole.requests.texts[75] == halves[1].requests.texts[0]
    bare = Judged.concat([dataclasses.replace(half, chosen=None) for half in halves])
    assert bare.chosen is None


def test_predictions_without_decisions_are_judged_by_the_default_rule() -> None:
    n = 40
    score = np.tile([0.0, 1.0], (n, 1))
    judged = Judged(
        ("cheap", "dear"), score, score, np.tile([1.0, 2.0], (n, 1)), np.tile([0.3, 0.7], (n, 1)),
        np.tile([1.0, 2.0], (n, 1)), Requests(["text"] * n, [None] * n, np.ones((n, 1))), np.arange(n),
        np.arange(n) % 4,
    )  # fmt: skip
    dear = evaluate(judged, DefaultRule(0.6, "dear"), n_boot=5).to_dict()
    assert (dear["router"]["quality"], dear["router"]["cost_usd"]) == (1.0, 2.0)
    cheap = evaluate(judged, DefaultRule(0.2, "dear"), n_boot=5).to_dict()
    assert (cheap["router"]["quality"], cheap["router"]["cost_usd"]) == (0.0, 1.0)
    assert cheap["by_task"][0]["task"] is None and cheap["by_task"][0]["router_quality"] == 0.0
    assert cheap["calibration"]["auc"] is None  # each model has one class only


def test_single_request_is_judged_without_baselines(router: Router, unseen: OutcomeTable) -> None:
    report = evaluate_router(router, unseen.select_requests([0]), n_boot=5).to_dict()
    assert report["baselines"] == {} and report["calibration"]["brier"] >= 0


# --- the command --------------------------------------------------------------------------------------------------


@pytest.fixture
def table_path(tmp_path: Path, unseen: OutcomeTable) -> Path:
    path = tmp_path / "unseen.csv"
    write_table(unseen.select_requests(np.arange(80)), path)
    return path


def test_command_writes_report_and_page(
    router_path: Path, table_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, page = tmp_path / "out.json", tmp_path / "out.html"
    arguments = ["--router", str(router_path), "--outcomes", str(table_path), "--json", str(out), "--html", str(page)]
    assert main(arguments) == 0
    report = json.loads(out.read_text(encoding="utf-8"))
    assert report["n_requests"] == 80 and not math.isnan(report["router"]["area"])
    assert page.read_text(encoding="utf-8").count("data:image/png;base64,") == 2
    shown = capsys.readouterr().out
    assert "80 requests, 400 outcomes" in shown and "random_mixture" in shown
    assert "under-routed" in shown and "over-routed" in shown and report["routing_errors"]["n"] == 80


def test_command_prices_a_failure(
    router_path: Path, table_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, page = tmp_path / "out.json", tmp_path / "out.html"
    arguments = ["--router", str(router_path), "--outcomes", str(table_path), "--json", str(out), "--html", str(page)]
    assert main([*arguments, "--failure-cost-usd", "0.05"]) == 0
    errors = json.loads(out.read_text(encoding="utf-8"))["routing_errors"]
    assert errors["failure_cost_usd"] == 0.05 and errors["router_at_failure_cost"]["loss"]["total_usd"] > 0
    shown = capsys.readouterr().out
    for words in ("loss at $0.0500", "choosing by what a failure costs", "router_at_failure_cost"):
        assert words in shown
    assert "by under-routing" in page.read_text(encoding="utf-8")
    for wrong in ("-1", "nan", "inf"):
        assert main([*arguments, "--failure-cost-usd", wrong]) == 2


def test_command_refuses_what_is_no_router_in_one_line(
    table_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    assert main(["--router", str(tmp_path / "none"), "--outcomes", str(table_path), "--json", str(out)]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1 and not out.exists()
    assert main(["--json", str(out)]) == 2
