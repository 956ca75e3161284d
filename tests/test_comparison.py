"""Router beside baselines, on small grids with a known answer."""

from __future__ import annotations

import math

import numpy as np
import pytest

from training.comparison import REFUSED, Comparison, DefaultRule, compare, finite, interval_dict
from training.cost_quality import PairedDifference
from training.metrics import FloatArray, IntArray
from training.prediction import Prediction, Requests

NAN = math.nan
MODELS = ("cheap", "unpriced", "dear")


def world(n: int = 60) -> tuple[FloatArray, FloatArray, Requests]:
    """Even requests: cheap succeeds too; odd ones: only dear does. The middle model's cost is not known."""
    hard = np.arange(n) % 2 == 1
    score = np.column_stack([~hard, np.ones(n), np.ones(n)]).astype(float)
    cost = np.tile([1.0, NAN, 10.0], (n, 1))
    texts = ["a long and hard question, with reasons" if h else "hi" for h in hard]
    embedding = np.column_stack([hard, ~hard]).astype(float)
    return score, cost, Requests(texts, ["hard" if h else "easy" for h in hard], embedding)


def compared(chosen: IntArray | None = None, p: FloatArray | None = None) -> Comparison:
    score, cost, requests = world()
    n = len(score)
    prediction = Prediction(np.clip(score if p is None else p, 0.05, 0.95), np.tile([1.0, 1.0, 10.0], (n, 1)))
    found = compare(
        score, cost, prediction, MODELS, requests,
        fold=np.arange(n) // 2 % 5, group=np.arange(n), rule=DefaultRule(0.6, "dear"), chosen=chosen, n_boot=100,
    )  # fmt: skip
    assert found is not None
    return found


def test_only_priced_models_compete_and_a_perfect_router_reaches_the_oracle() -> None:
    found = compared()
    assert found.models == ("cheap", "dear") and found.n == 60 and found.n_left_out == 0
    assert found.router.default_point == pytest.approx((5.5, 1.0))
    figures = found.router.to_dict()
    assert figures["cost_at_quality"] == pytest.approx({"0.95": 0.505, "0.99": 0.541, "1.0": 0.55}, abs=0.01)
    assert figures["area"] == pytest.approx(found.baselines["oracle"].to_dict()["area"])


def test_baselines_are_all_there_and_only_the_oracle_has_no_difference() -> None:
    found = compared()
    expected = {
        "single:cheap", "single:dear", "cheapest", "best_single", "random_mixture", "per_task_table", "knn",
        "prompt_length", "complexity_heuristic", "task_type_table", "oracle",
    }  # fmt: skip
    assert set(found.baselines) == expected and set(found.differences) == expected - {"oracle"}
    against = found.differences["single:cheap"]
    assert against["area"].low > 0 and against["cost_at_quality"].high == -math.inf
    assert "difference" not in found.baselines_dict()["oracle"]


def test_choices_of_the_router_itself_count_and_a_refusal_earns_and_costs_nothing() -> None:
    chosen = np.zeros(60, dtype=np.intp)
    chosen[:30] = 2
    chosen[59] = REFUSED
    found = compared(chosen)
    # 30 dear ones all succeed; of the other 30, the 15 even ones do; the last, odd, is refused
    assert found.router.default_point == pytest.approx(((30 * 10 + 29) / 60, 45 / 60))
    assert found.n_refused == 1


def test_a_router_that_knows_nothing_is_not_ahead_of_the_mixture() -> None:
    flat = compared(p=np.tile([0.5, 0.5, 0.9], (60, 1)))
    assert flat.differences["random_mixture"]["area"].difference == pytest.approx(0.0, abs=1e-9)
    assert flat.differences["per_task_table"]["area"].high < 0


def test_without_a_complete_row_there_is_no_comparison() -> None:
    score, cost, requests = world()
    prediction = Prediction(np.full(score.shape, 0.5), np.ones(score.shape))
    fold = np.arange(60) % 5
    found = compare(
        score, np.full_like(cost, NAN), prediction, MODELS, requests, fold=fold, group=fold, rule=DefaultRule(0.6)
    )
    assert found is None


def test_rule_escalates_to_the_named_model_else_to_the_likeliest_and_takes_published_rules_as_they_are() -> None:
    prediction = Prediction(np.array([[0.5, 0.1, 0.4]]), np.array([[1.0, 2.0, 3.0]]))
    assert DefaultRule(0.6, "dear").choose(prediction, MODELS).tolist() == [2]
    assert DefaultRule(0.6, "elsewhere").choose(prediction, MODELS).tolist() == [0]
    assert DefaultRule(0.4, "unpriced").choose(prediction, MODELS).tolist() == [0]
    published = Prediction(prediction.p, prediction.c, np.array([[1], [2]]))
    assert DefaultRule(0.6, "dear").choose(published, MODELS).tolist() == [1]


def test_what_json_cannot_hold_becomes_null() -> None:
    assert finite(math.inf) is None and finite(NAN) is None and finite(0.5) == 0.5
    unreached = interval_dict(PairedDifference(-math.inf, -math.inf, -0.1, 1.0, 7, 50))
    assert unreached["router_minus_baseline"] is None and unreached["low"] is None and unreached["high"] == -0.1
