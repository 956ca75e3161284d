"""A router in service: what it reads besides the request, what it chooses when the world is not well, what it books."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from acting import acting_router

from router_ml.attempt import Attempt, AttemptKind, Usage
from router_ml.errors import ContextTooLongError, CredentialsError, PoolError, ProviderUnavailableError
from router_ml.live import Course, LiveRouter
from router_ml.pool import Budgets, Rule
from router_ml.request import ReasonCode, RouteRequest, VerifierSpec
from router_ml.router import Router
from router_ml.verifiers import MinimumLength

CHEAP, STRONG = "other/mini", "other/max"
ASK = RouteRequest("What is 2 + 2?", min_quality=0.01)
LOW = {"x-ratelimit-limit-requests": "100", "x-ratelimit-remaining-requests": "1", "x-ratelimit-reset-requests": "60s"}


@pytest.fixture(scope="module")
def router(router_path: Path) -> Router:
    return acting_router(router_path)


def break_down(live: LiveRouter, *models: str) -> None:
    for model in models:
        for _ in range(25):
            live.health.admit(model)
            live.health.failed(model, ProviderUnavailableError("down", model=model), 0.1)


def test_an_open_breaker_excludes_with_its_reason(router: Router) -> None:
    live = LiveRouter(router)
    wanted = live.decide(live.read(ASK)).model
    break_down(live, wanted)
    decision = live.decide(live.read(ASK))
    assert decision.model != wanted
    assert "breaker" in next(str(c.excluded_by) for c in decision.candidates if c.model == wanted)


def test_where_all_breakers_are_open_the_decision_is_what_it_would_have_been(router: Router) -> None:
    live = LiveRouter(router)
    wanted = live.decide(live.read(ASK)).model
    break_down(live, *router.models)
    assert live.decide(live.read(ASK)).model == wanted
    assert live.alternative(live.read(ASK), {wanted: "failed"}) not in (None, wanted)
    assert live.alternative(live.read(ASK), {}, healthy=True) is None


def test_low_headroom_is_overlooked_where_nothing_else_is_likely_enough(router: Router) -> None:
    live = LiveRouter(router)
    sure = dataclasses.replace(ASK, allow=[CHEAP, "acme/small"], min_quality=1.0)
    wanted = live.decide(live.read(sure)).model  # no model is sure enough, and the escalation model may not be taken
    live.health.succeeded(wanted, 0.1, LOW)
    assert live.decide(live.read(sure)).model == wanted


def test_measured_latency_replaces_the_guess_and_its_p95_is_held_against_the_limit(router: Router) -> None:
    live = LiveRouter(router)
    wanted = live.decide(live.read(ASK)).model
    for i in range(40):
        live.health.admit(wanted)
        live.health.succeeded(wanted, 1.0 if i % 4 else 9.0)
    patient = live.decide(live.read(dataclasses.replace(ASK, max_latency_s=20.0)))
    assert next(c.expected_latency_s for c in patient.candidates if c.model == wanted) == pytest.approx(1.0)
    assert patient.model == wanted
    assert live.decide(live.read(dataclasses.replace(ASK, max_latency_s=5.0))).model != wanted


def test_a_model_with_its_share_of_calls_is_spared(router_path: Path) -> None:
    live = LiveRouter(acting_router(router_path, changes={"acme/small": {"max_share": 0.5}}))
    reading = live.read(dataclasses.replace(ASK, allow=["acme/small", CHEAP]))
    chosen = []
    for _ in range(100):
        chosen.append(live.decide(reading).model)
        live.health.admit(chosen[-1])
        live.health.succeeded(chosen[-1], 0.1)
    assert 0.4 <= chosen.count("acme/small") / 100 <= 0.65


def test_a_segment_or_task_brings_its_verifier_and_the_requests_own_wins(router_path: Path) -> None:
    rules = {
        "tasks": {"essay": Rule(verifier={"min_length": 10})},
        "segments": {"vip": Rule(verifier={"min_length": 99})},
    }
    live = LiveRouter(acting_router(router_path, **rules))

    def verifier(**fields: object) -> object:
        return live.read(RouteRequest("hi", **fields)).request.verifier  # type: ignore[arg-type]

    assert verifier() is None and verifier(task="essay") == MinimumLength(10)
    assert verifier(task="essay", segment="vip") == MinimumLength(99)
    assert verifier(task="essay", verifier=MinimumLength(1)) == MinimumLength(1)


def test_what_an_error_says_of_other_models(router_path: Path) -> None:
    windows = {"acme/small": 4_000, "acme/medium": 8_000, "acme/large": 100_000, CHEAP: 8_000, STRONG: 100_000}
    live = LiveRouter(acting_router(router_path, changes={n: {"max_input_tokens": w} for n, w in windows.items()}))
    failed: dict[str, str] = {}
    live.give_up(failed, CHEAP, ContextTooLongError("long", model=CHEAP))
    assert set(failed) == {CHEAP, "acme/small", "acme/medium"}
    failed = {}
    live.give_up(failed, CHEAP, CredentialsError("no", model=CHEAP))
    assert set(failed) == set(windows)
    failed = {}
    live.give_up(failed, CHEAP, ProviderUnavailableError("down", model=CHEAP))
    assert set(failed) == {CHEAP}


def test_the_baseline_translates_tokens_between_models(router_path: Path) -> None:
    changes = {STRONG: {"token_factor": 1.5, "output_factor": 2.0}, CHEAP: {"output_factor": 0.5}}
    live = LiveRouter(acting_router(router_path, changes=changes))
    expected = (1_000 * 1.5 * 5.0 + 100 * 4.0 * 25.0) / 1e6
    assert live.baseline_cost(CHEAP, Usage(1_000, 100)) == pytest.approx(expected)
    assert live.baseline_cost(STRONG, Usage(1_000, 100)) == pytest.approx((1_000 * 5.0 + 100 * 25.0) / 1e6)


def test_a_failed_call_costs_nothing_and_a_checks_cost_counts(router_path: Path) -> None:
    live = LiveRouter(acting_router(router_path, budgets=Budgets(per_day_usd=1.0)))
    reading = live.read(ASK)
    course = Course(reading, live.decide(reading))
    error = ProviderUnavailableError("down", model=CHEAP)
    live.book(course, Attempt(CHEAP, AttemptKind.ANSWER, 0, 0.0, 0.1, error=error), live.ledger.reserve((), 0.4), {})
    live.spend((), 0.25)
    cap = live.ledger.tightest(())
    assert cap is not None and cap.spent_usd == pytest.approx(0.25) and len(course.attempts) == 1
    live.spend((), 5.0)
    live.spend((), 1.0)  # a full cap takes no more, and nothing is raised


def test_the_policy_is_told_apart_by_its_pool(router_path: Path, router: Router) -> None:
    same, other = LiveRouter(acting_router(router_path)), LiveRouter(acting_router(router_path, exploration=0.5))
    assert LiveRouter(router).policy == same.policy != other.policy


def test_exploration_is_drawn_once_so_its_propensity_is_true(router_path: Path) -> None:
    live = LiveRouter(acting_router(router_path, exploration=0.5))
    sure = dataclasses.replace(ASK, allow=[CHEAP, "acme/small"], min_quality=1.0)
    reading = live.read(sure)
    # the likelier of the two is spared, which leaves a makeshift, so the sparing is overlooked
    greedy = LiveRouter(acting_router(router_path)).decide(reading).model
    live.health.succeeded(greedy, 0.1, LOW)
    decisions = [live.decide(reading) for _ in range(2_000)]
    taken = sum(decision.model == greedy for decision in decisions) / 2_000
    stated = next(decision.propensity for decision in decisions if decision.model == greedy)
    assert stated == pytest.approx(0.75) and taken == pytest.approx(stated, abs=0.04)


def test_a_rule_whose_verifier_cannot_be_made_is_named(router_path: Path) -> None:
    with pytest.raises(PoolError, match=r"tasks\.essay\.verifier.*no_such"):
        LiveRouter(acting_router(router_path, tasks={"essay": Rule(verifier={"no_such": 1})}))


def test_a_pin_is_kept_whatever_leaving_costs(router_path: Path) -> None:
    live = LiveRouter(acting_router(router_path, max_switch_usd=0.0))
    held = RouteRequest("word " * 10_000, current_model="acme/large", cached_tokens=9_000)
    assert live.decide(live.read(held)).model == "acme/large"
    assert live.decide(live.read(dataclasses.replace(held, pin=STRONG))).model == STRONG


def test_a_plan_that_ends_at_the_escalation_model_is_no_makeshift(router_path: Path) -> None:
    """No plan is as likely as is asked; the likeliest begins with a model that is spared, and can do without."""
    live = LiveRouter(acting_router(router_path))
    sure = RouteRequest("What is 2 + 2?", min_quality=1.0, verifier=VerifierSpec(1.0, 0.0))
    reading = live.read(sure)
    wanted = live.decide(reading)
    assert wanted.reason.code is ReasonCode.LOW_CONFIDENCE and STRONG in wanted.plan[1:]
    live.health.succeeded(wanted.plan[0], 0.1, LOW)
    spared = live.decide(reading).plan
    assert wanted.plan[0] not in spared and STRONG in spared
