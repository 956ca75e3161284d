"""What an explanation says holds: the flips flip, the second is second."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from router_ml.explanation import explain, usd
from router_ml.request import Reason, ReasonCode, RouteDecision, RouteRequest, VerifierSpec
from router_ml.router import Router

TEXT = "Prove that there are infinitely many primes, and say which step fails for twin primes."


@pytest.fixture(scope="module")
def router() -> Router:
    return Router.load()


def decide(router: Router, **limits: Any) -> RouteDecision:
    return router.predict(RouteRequest(TEXT, **limits))


def test_it_is_one_paragraph_with_the_numbers(router: Router) -> None:
    decision = decide(router, min_quality=0.85)
    explanation = explain(decision)
    assert "\n" not in str(explanation) and decision.model in explanation.text
    assert f"{decision.confidence:.2f}" in explanation.text and explanation.chosen.model == decision.model
    assert explanation.second is not None and explanation.second.model in explanation.text
    assert "prior" in explanation.text


@pytest.mark.parametrize("wanted", [0.7, 0.8, 0.85, 0.9, 0.94])
def test_a_threshold_that_would_have_changed_it_does(router: Router, wanted: float) -> None:
    decision = decide(router, min_quality=wanted)
    explanation = explain(decision)
    flips = [flip for flip in explanation.flips if flip.what == "threshold"]
    assert flips
    for flip in flips:
        side = "above" if flip.value > wanted else "below"
        assert f"{flip.to} at a threshold {side} {flip.value:.3f}" in explanation.text
        assert decide(router, min_quality=flip.value).model == flip.to != decision.model
        inside = flip.value + (1e-6 if flip.value < wanted else -1e-6)
        assert decide(router, min_quality=inside).model == decision.model


@pytest.mark.parametrize("price", [0.001, 0.05, 0.5, 3.0])
def test_a_price_of_a_failure_that_would_have_changed_it_does(router: Router, price: float) -> None:
    decision = decide(router, failure_cost_usd=price)
    flips = explain(decision).flips
    assert flips
    for flip in flips:
        beyond = flip.value * (1.001 if flip.value > price else 0.999)
        assert decide(router, failure_cost_usd=beyond).model == flip.to != decision.model
        before = flip.value * (0.999 if flip.value > price else 1.001)
        assert decide(router, failure_cost_usd=before).model == decision.model


@pytest.mark.parametrize("limits", [{"min_quality": 0.8}, {"failure_cost_usd": 0.5}])
def test_the_second_would_answer_if_the_chosen_one_could_not(router: Router, limits: dict[str, Any]) -> None:
    decision = decide(router, **limits)
    second = explain(decision).second
    assert second is not None and decide(router, deny=[decision.model], **limits).model == second.model


@pytest.mark.parametrize("limits", [{}, {"failure_cost_usd": 0.3}])
def test_a_plan_is_told_stage_by_stage_with_the_best_other(router: Router, limits: dict[str, Any]) -> None:
    decision = decide(router, verifier=VerifierSpec(0.9, 0.2, cost_usd=0.0005), **limits)
    explanation = explain(decision)
    assert len(decision.plan) > 1 and decision.second_plan is not None
    for stage in decision.stages:
        assert f"{stage.model} is called in {stage.p_reached:.0%} of such cases" in explanation.text
    assert ", then ".join(decision.second_plan.models) in explanation.text
    assert explanation.second is not None and explanation.second.model == decision.second_plan.models[0]


@pytest.mark.parametrize("limits", [{}, {"failure_cost_usd": 0.3}, {"failure_cost_usd": 2.0}])
def test_a_plan_would_have_begun_elsewhere_if_it_cost_what_the_best_other_is_ahead_of(
    router: Router, limits: dict[str, Any]
) -> None:
    decision = decide(router, verifier=VerifierSpec(0.9, 0.2, cost_usd=0.0005), **limits)
    (flip,) = explain(decision).flips
    assert flip.what == "expected_cost_usd" and flip.to != decision.model
    assert f"if what was chosen cost {usd(flip.value)} or more" in explain(decision).text
    price = limits.get("failure_cost_usd", 0.0)

    def loss(cost: float, p: float) -> float:
        return cost + (1.0 - p) * price

    second = decision.second_plan
    assert second is not None and flip.to == second.models[0]
    ahead = loss(second.expected_cost_usd, second.p_success) - loss(
        decision.expected_cost_usd, decision.plan_confidence
    )
    assert flip.value - decision.expected_cost_usd == pytest.approx(ahead)


@pytest.mark.parametrize("limits", [{}, {"failure_cost_usd": 0.05}])
def test_nothing_would_have_changed_what_was_drawn_at_random(router: Router, limits: dict[str, Any]) -> None:
    curious = router.with_pool(dataclasses.replace(router.pool, exploration=1.0))
    decisions = [decide(curious, **limits) for _ in range(20)]
    drawn = [decision for decision in decisions if decision.reason.code is ReasonCode.EXPLORATION]
    assert drawn and all(explain(decision).flips == () for decision in drawn)


def test_where_no_other_model_is_eligible_it_says_so(router: Router) -> None:
    explanation = explain(decide(router, pin=router.models[0]))
    assert explanation.flips == ()
    only = decide(router, allow=[router.models[0]])
    assert explain(only).second is None and "No other model is eligible" in explain(only).text


def test_a_decision_of_an_older_version_is_explained_as_far_as_it_goes(router: Router) -> None:
    old = dataclasses.replace(decide(router), stages=(), second_plan=None, objective=None)
    assert explain(old).flips == () and old.model in explain(old).text


def test_nothing_would_have_changed_what_escalates_for_being_unlike(router: Router) -> None:
    decision = decide(router, min_quality=0.8)
    reason = Reason(ReasonCode.UNLIKE, "the request is unlike the training data")
    unlike = dataclasses.replace(decision, reason=reason, evidence=decision.evidence._replace(unlike=True))
    explanation = explain(unlike)
    assert explanation.flips == () and "so it is unlike them" in explanation.text
