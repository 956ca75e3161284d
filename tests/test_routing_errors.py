"""Under- and over-routing: figures that can be counted by hand, sums that must hold, intervals that cover the truth."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from router_ml.policy import Policy
from router_ml.pool import ModelPool, ModelSpec
from router_ml.request import RouteRequest, read_trace
from training.comparison import REFUSED, Comparison, Contestant
from training.cost_quality import lowest_loss, realised_curve
from training.metrics import FloatArray, IntArray
from training.prediction import Prediction
from training.routing_errors import AT_PRICE, MIXTURE, RoutingErrors, contestants, routing_errors

MODELS = ("cheap", "middle", "dear")
KINDS = ("under_routed", "over_routed", "unavoidable")
# what happens, the model that is called, and what that is
CASES: list[tuple[tuple[int, int, int], int, str]] = [
    ((1, 1, 1), 0, "right"),
    ((1, 1, 1), 2, "over_routed"),
    ((0, 1, 1), 2, "over_routed"),
    ((0, 1, 1), 1, "right"),
    ((0, 0, 1), 2, "right"),
    ((0, 0, 1), 0, "under_routed"),
    ((0, 0, 1), 1, "under_routed"),
    ((1, 0, 0), 2, "under_routed"),
    ((0, 0, 0), 0, "unavoidable"),
    ((0, 0, 0), 2, "unavoidable"),
    ((1, 1, 1), REFUSED, "refused"),
    ((0, 0, 0), REFUSED, "refused"),
]
SUCCESS = np.array([success for success, _, _ in CASES], dtype=float)
COST = np.tile([1.0, 3.0, 10.0], (len(CASES), 1))
PICKS = np.array([pick for _, pick, _ in CASES], dtype=np.intp)


def compared(
    success: FloatArray, cost: FloatArray, picks: IntArray, others: dict[str, IntArray] | None = None,
    group: IntArray | None = None,
) -> Comparison:  # fmt: skip
    def contestant(chosen: IntArray) -> Contestant:
        return Contestant(realised_curve(np.maximum(chosen, 0)[None], success, cost, group), (0.0, 0.0), chosen)

    baselines = {name: contestant(chosen) for name, chosen in (others or {}).items()}
    return Comparison(MODELS, 0, contestant(picks), 0, baselines, {})


def report(
    success: FloatArray = SUCCESS, cost: FloatArray = COST, picks: IntArray = PICKS, *, p: FloatArray | None = None,
    others: dict[str, IntArray] | None = None, group: IntArray | None = None, tasks: Any = None, **more: Any,
) -> dict[str, Any]:  # fmt: skip
    found = compared(success, cost, picks, others, group)
    prediction = Prediction(success if p is None else p, cost)
    return routing_errors(found, success, prediction, tasks or [None] * len(picks), **{"n_boot": 50, **more})


# -- counted by hand


def test_every_choice_is_one_of_five_kinds() -> None:
    found = RoutingErrors.of(SUCCESS, COST, PICKS)
    for row, (_, _, expected) in enumerate(CASES):
        kinds = {name: getattr(found, name)[row] for name in (*KINDS, "refused")}
        assert kinds == {name: float(name == expected) for name in kinds}


def test_counts_shares_and_amounts_are_those_of_the_table() -> None:
    own = report()["router"]
    assert (own["n_right"], own["n_refused"], own["unavoidable"]["n"]) == (3, 2, 2)
    under, over = own["under_routed"], own["over_routed"]
    assert (under["n"], under["share"], over["n"], over["share"]) == (3, 3 / 12, 2, 2 / 12)
    # a success at 10 would have cost 9 and 7 more; where cheap would have done, it would have cost 9 less
    assert (under["more_usd_total"], under["less_usd_total"], under["n_no_dearer"]) == (16.0, 9.0, 1)
    assert under["more_usd_per_error"] == pytest.approx(16 / 3)
    # 10 in place of 1, and in place of 3
    assert (over["excess_usd_total"], over["excess_usd_per_error"]) == (16.0, 8.0)
    assert over["excess_usd_per_request"] == pytest.approx(16 / 12)


def test_without_an_error_there_is_no_amount_per_error() -> None:
    own = report(np.ones((4, 3)), COST[:4], np.zeros(4, dtype=np.intp))["router"]
    assert own["under_routed"]["more_usd_per_error"] is None and own["over_routed"]["excess_usd_per_error"] is None
    assert own["n_right"] == 4


def test_an_equally_cheap_success_is_no_over_routing() -> None:
    success, cost = np.ones((1, 2)), np.full((1, 2), 2.0)
    for pick in (0, 1):
        assert RoutingErrors.of(success, cost, np.array([pick])).over_routed.sum() == 0


def test_errors_of_either_kind_do_not_offset_each_other() -> None:
    """One router is always right, one errs both ways as often; the mean cost and the mean success are the same."""
    success, cost = np.array([[1.0, 1.0], [0.0, 1.0]]), np.array([[1.0, 3.0], [1.0, 3.0]])
    right, wrong = np.array([0, 1]), np.array([1, 0])
    found = report(success, cost, wrong, others={"right": right})
    assert cost[[0, 1], right].sum() == cost[[0, 1], wrong].sum()
    assert [found["router"][kind]["n"] for kind in KINDS] == [1, 1, 0]
    assert [found["baselines"]["right"][kind]["n"] for kind in KINDS] == [0, 0, 0]


# -- what must hold

grids = st.integers(1, 8).flatmap(
    lambda n: st.tuples(
        arrays(np.float64, (n, 3), elements=st.sampled_from([0.0, 1.0])),
        arrays(np.float64, (n, 3), elements=st.sampled_from([0.0, 1.0, 2.5, 4.0])),
        arrays(np.intp, n, elements=st.integers(-1, 2)),
        arrays(np.float64, (n, 3), elements=st.floats(0, 1)),
    )
)


@given(grids, st.floats(0, 10))
def test_kinds_add_up_to_all_requests_and_the_parts_of_the_loss_to_the_loss(grid: Any, price: float) -> None:
    success, cost, picks, p = grid
    found = report(success, cost, picks, p=p, failure_cost_usd=price, n_boot=3)
    n = len(picks)
    for one in contestants(found).values():
        counts = [one[kind]["n"] for kind in KINDS] + [one["n_right"], one["n_refused"]]
        assert sum(counts) == pytest.approx(n) and min(counts) >= 0
        loss = dict(one["loss"])
        parts = [loss[f"{part}_usd"] for part in ("under_routing", "over_routing", "unavoidable", "refused")]
        assert sum(parts) + loss["other_spend_usd"] == pytest.approx(loss["total_usd"])
        assert min(*parts, loss["other_spend_usd"]) >= -1e-12
    rows, called = np.arange(n), picks != REFUSED
    failed = ~called | (success[rows, picks] == 0)
    expected = (np.where(called, cost[rows, picks], 0) + price * failed).mean()
    assert found["router"]["loss"]["total_usd"] == pytest.approx(expected)


@given(grids)
def test_whoever_takes_the_cheapest_success_errs_in_neither_direction(grid: Any) -> None:
    success, cost, _, _ = grid
    best = np.argmin(np.where(success > 0, cost, np.inf), axis=1)
    found = RoutingErrors.of(success, cost, best)
    assert found.under_routed.sum() == found.over_routed.sum() == 0
    np.testing.assert_array_equal(found.unavoidable, (success.sum(axis=1) == 0).astype(float))


@given(grids)
def test_tasks_add_up_to_the_whole(grid: Any) -> None:
    success, cost, picks, _ = grid
    tasks = [("b", None, "a")[i % 3] for i in range(len(picks))]
    own = report(success, cost, picks, tasks=tasks, n_boot=3)["router"]
    assert [row["task"] for row in own["by_task"]] == [name for name in ("a", "b", None) if name in tasks]
    assert sum(row["n"] for row in own["by_task"]) == len(picks)
    for kind in KINDS:
        assert sum(row[kind]["n"] for row in own["by_task"]) == own[kind]["n"]


# -- the mixture and the price


def test_the_mixture_costs_what_the_router_does_and_its_errors_are_expected_ones() -> None:
    success, cost = np.tile([0.0, 1.0], (10, 1)), np.tile([1.0, 3.0], (10, 1))
    half = np.repeat([0, 1], 5)
    found = report(success, cost, half, failure_cost_usd=1.0)
    mixed = found["baselines"][MIXTURE]
    assert mixed["under_routed"]["n"] == pytest.approx(5) and mixed["over_routed"]["n"] == 0
    assert mixed["loss"]["total_usd"] == pytest.approx(found["router"]["loss"]["total_usd"])
    quarter = report(success, cost, np.repeat([0, 1], [8, 2]))["baselines"][MIXTURE]
    assert quarter["under_routed"]["n"] == pytest.approx(8)


def test_a_router_dearer_than_the_best_model_is_set_beside_that_model_alone() -> None:
    success, cost = np.tile([0.0, 1.0, 0.0], (6, 1)), np.tile([1.0, 3.0, 10.0], (6, 1))
    mixed = report(success, cost, np.full(6, 2, dtype=np.intp))["baselines"][MIXTURE]
    assert mixed["n_right"] == 6


def test_a_router_cheaper_than_every_model_has_no_mixture_at_its_cost() -> None:
    cost = np.array([[1.0, 9.0], [9.0, 1.0]])
    assert MIXTURE not in report(np.ones((2, 2)), cost, np.array([0, 1]))["baselines"]


def test_at_a_price_the_router_chooses_as_the_serving_policy_does() -> None:
    rng = np.random.default_rng(3)
    p, cost = rng.choice([0.2, 0.5, 0.9], (60, 3)), rng.choice([0.01, 0.02, 0.5], (60, 3))
    policy = Policy(ModelPool(tuple(ModelSpec(name, 1.0, 1.0) for name in MODELS), "dear"))
    for price in (0.0, 0.03, 2.0):
        request = RouteRequest("hi", failure_cost_usd=price)
        rows = zip(p.tolist(), cost.tolist(), strict=True)
        served = [policy.decide(request, read_trace(request), *row).model for row in rows]
        assert lowest_loss(p, cost, price).tolist() == served
        success = (rng.random((60, 3)) < p).astype(float)
        found = report(success, cost, np.zeros(60, dtype=np.intp), p=p, failure_cost_usd=price)
        expected = RoutingErrors.of(success, cost, np.array(served)).loss_usd(price).mean()
        assert found[AT_PRICE]["loss"]["total_usd"] == pytest.approx(expected)


def test_without_a_price_there_is_no_loss() -> None:
    found = report()
    assert found["failure_cost_usd"] is None and AT_PRICE not in found
    assert all("loss" not in one and "loss_usd" not in one.get("difference", {}) for one in contestants(found).values())


# -- intervals


def test_rows_that_hang_together_are_drawn_together() -> None:
    """Ten copies of each request as one group tell no more than one copy: the intervals are the same."""
    one = report(n_boot=300, seed=4)["router"]
    copies = [np.repeat(part, 10, axis=0) for part in (SUCCESS, COST, PICKS)]
    grouped = report(*copies, group=np.repeat(np.arange(12), 10), n_boot=300, seed=4)["router"]
    alone = report(*copies, n_boot=300, seed=4)["router"]
    for kind in KINDS:
        assert (grouped[kind]["low"], grouped[kind]["high"]) == pytest.approx((one[kind]["low"], one[kind]["high"]))
        assert alone[kind]["high"] - alone[kind]["low"] < 0.6 * (one[kind]["high"] - one[kind]["low"])


def test_intervals_cover_the_true_rates() -> None:
    """A world of three models that succeed independently, one of which is called: every rate is known.

    200 tables: the standard error of a coverage of .95 is .015, and a percentile interval of 150 rows falls a little
    short of it.
    """
    rng = np.random.default_rng(11)
    chance, picks = np.array([0.3, 0.5, 0.8]), np.ones(150, dtype=np.intp)
    truth = {"under_routed": 0.5 * (1 - 0.7 * 0.2), "over_routed": 0.5 * 0.3, "unavoidable": 0.7 * 0.5 * 0.2}
    covered = dict.fromkeys(truth, 0)
    excess_covered = 0
    for seed in range(200):
        success = (rng.random((150, 3)) < chance).astype(float)
        own = report(success, np.tile(COST[0], (150, 1)), picks, n_boot=200, seed=seed)["router"]
        for kind, rate in truth.items():
            covered[kind] += own[kind]["low"] <= rate <= own[kind]["high"]
        over = own["over_routed"]
        low, high = over["excess_usd_per_request_low"], over["excess_usd_per_request_high"]
        excess_covered += low <= truth["over_routed"] * 2.0 <= high
    assert all(180 <= n <= 199 for n in (*covered.values(), excess_covered))


def test_the_difference_to_a_baseline_is_paired() -> None:
    """Where router and baseline choose alike the difference is 0 for certain, however wide the interval of each is."""
    found = report(others={"twin": PICKS, "cheap": np.zeros(12, dtype=np.intp)}, failure_cost_usd=2.0)
    twin, cheap = found["baselines"]["twin"]["difference"], found["baselines"]["cheap"]["difference"]
    assert set(twin) == {"under_routed", "over_routed", "excess_usd", "loss_usd"}
    assert all(one[end] == 0.0 for one in twin.values() for end in ("router_minus_baseline", "low", "high"))
    assert cheap["over_routed"]["router_minus_baseline"] == pytest.approx(2 / 12)
    assert math.isclose(cheap["under_routed"]["router_minus_baseline"], (3 - 5) / 12)


def test_the_same_seed_gives_the_same_intervals() -> None:
    assert report(seed=5) == report(seed=5) != report(seed=6)
