"""The policy: pins, loss, threshold, escalation, budget, exploration, prompt cache; rules of task and segment."""

from __future__ import annotations

import dataclasses
import math
import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from router_ml.errors import NoEligibleModelError, RequestError, RouterError
from router_ml.policy import Choice, Live, Policy
from router_ml.pool import Budgets, ModelPool, ModelSpec, Planning, Rule
from router_ml.request import ReasonCode, RouteRequest, Trace, VerifierSpec

NAMES = ("a/small", "b/middle", "c/large", "d/home")
SPECS = (
    ModelSpec("a/small", 1, 4, 0.1, 100_000, abilities=frozenset({"tools"})),
    ModelSpec("b/middle", 3, 15, 0.3, 1_000_000, abilities=frozenset({"tools", "vision"}), token_factor=2.0),
    ModelSpec("c/large", 5, 25, 0.5, 1_000_000, abilities=frozenset({"tools", "vision"}), first_token_s=5.0,
              output_tokens_per_s=100.0),
    ModelSpec("d/home", local=True, max_input_tokens=8_000),
)  # fmt: skip
P = (0.70, 0.80, 0.90, 0.30)
COST = (0.010, 0.030, 0.050, 0.0)
TRACE = Trace("hi", "hi", 1_000, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, frozenset())


def pool(**fields: Any) -> ModelPool:
    return ModelPool(SPECS, "c/large", **fields)


def decide(
    request: RouteRequest | None = None, p: Any = P, cost: Any = COST, *, of: ModelPool | None = None, **more: Any
) -> Choice:
    return Policy(of or pool()).decide(request or RouteRequest("hi"), more.pop("trace", TRACE), p, cost, **more)


def ask(**fields: Any) -> RouteRequest:
    return RouteRequest("hi", **fields)


def chosen(choice: Choice) -> str:
    return NAMES[choice.model]


# -- threshold and escalation


def test_the_cheapest_candidate_likely_enough_is_chosen() -> None:
    choice = decide()
    assert (chosen(choice), choice.escalated, choice.degraded, choice.threshold) == ("a/small", False, False, 0.6)
    assert choice.reason.code is ReasonCode.CHEAPEST_LIKELY
    assert choice.reason.text == "a/small is the cheapest eligible model with a probability of success (0.700) >= 0.600"
    assert choice.propensity == 1.0


def test_a_probability_equal_to_the_threshold_is_enough() -> None:
    assert chosen(decide(p=(0.6, 0.8, 0.9, 0.3))) == "a/small"


def test_of_equally_cheap_candidates_the_likelier_one_is_chosen() -> None:
    assert chosen(decide(cost=(0.03, 0.03, 0.05, 0.05))) == "b/middle"


def test_the_threshold_of_the_request_wins_over_that_of_the_pool() -> None:
    choice = decide(ask(min_quality=0.75), of=pool(confidence_threshold=0.1))
    assert (chosen(choice), choice.threshold) == ("b/middle", 0.75)


def test_min_quality_escalation_asks_for_what_the_escalation_model_would_reach() -> None:
    choice = decide(ask(min_quality="escalation"), p=(0.5, 0.86, 0.86, 0.3))
    assert (chosen(choice), choice.threshold, choice.escalated) == ("b/middle", 0.86, False)


def test_nobody_likely_enough_escalates_even_if_another_model_is_likelier() -> None:
    choice = decide(p=(0.55, 0.50, 0.40, 0.30))
    assert (chosen(choice), choice.escalated) == ("c/large", True)
    assert choice.reason.code is ReasonCode.LOW_CONFIDENCE
    assert "no eligible model reaches a probability of success of 0.600; escalated to c/large" in choice.reason.text


def test_escalation_without_the_escalation_model_takes_the_likeliest() -> None:
    choice = decide(ask(deny=["c/large"]), p=(0.55, 0.50, 0.40, 0.30))
    assert (chosen(choice), choice.escalated) == ("a/small", True)
    assert choice.reason.text.endswith("the likeliest, since c/large is not eligible")


def test_supervision_moves_no_threshold() -> None:
    assert decide(ask(supervised=False)) == decide(ask(supervised=True)) == decide()


# -- failure cost


@pytest.mark.parametrize(("failure_cost", "model"), [(0.0, "d/home"), (0.04, "a/small"), (0.21, "c/large")])
def test_a_failure_cost_gives_the_lowest_expected_loss(failure_cost: float, model: str) -> None:
    choice = decide(ask(failure_cost_usd=failure_cost))
    assert chosen(choice) == model
    assert choice.reason.code is ReasonCode.LOWEST_EXPECTED_LOSS
    losses = [c + (1 - p) * failure_cost for p, c in zip(P, COST, strict=True)]
    assert f"{min(losses):.6g} USD" in choice.reason.text


def test_of_equal_losses_the_likelier_model_is_chosen() -> None:
    assert chosen(decide(ask(failure_cost_usd=0.0), cost=(0.1, 0.1, 0.1, 0.1))) == "c/large"


# -- exclusion


def test_an_excluded_model_is_not_chosen_and_its_sentence_is_kept() -> None:
    choice = decide(ask(deny=["a/small"]))
    assert chosen(choice) == "b/middle"
    assert choice.excluded == ("the request denies it", None, None, None)


def test_no_eligible_model_is_an_error_with_a_reason_for_every_model() -> None:
    with pytest.raises(NoEligibleModelError) as info:
        decide(ask(allow=["a/small"]), live=Live(unavailable={"a/small": "breaker open"}))
    assert info.value.excluded == {
        "a/small": "unavailable: breaker open",
        **dict.fromkeys(NAMES[1:], "the request does not allow it"),
    }


@pytest.mark.parametrize("part", ["allow", "deny"])
def test_an_unknown_model_in_a_list_is_a_request_error_with_the_names_of_the_pool(part: str) -> None:
    with pytest.raises(RequestError, match=rf"{part} names \['z/none'\], not in the pool; expected of \['a/small'"):
        decide(ask(**{part: ["a/small", "z/none"]}))


@pytest.mark.parametrize("pin", ["z/none", ""])
def test_an_unknown_pin_is_a_request_error(pin: str) -> None:
    with pytest.raises(RequestError, match="pin names"):
        decide(ask(pin=pin))


def test_doubt_about_length_stands_in_the_reason() -> None:
    choice = decide(trace=TRACE._replace(input_tokens=700_000))
    assert chosen(choice) == "c/large"
    assert "700000 input tokens are more than any eligible model is reliable for" in choice.reason.text
    assert all(sentence for i, sentence in enumerate(choice.excluded) if i != choice.model)


def test_latency_of_every_model_is_reported() -> None:
    assert decide(expected_output_tokens=[100.0] * 4).latency_s == (None, None, 6.0, None)


# -- pin


def test_a_pinned_model_is_taken_however_unlikely() -> None:
    choice = decide(ask(pin="d/home"))
    assert chosen(choice) == "d/home"
    assert choice.reason == (ReasonCode.PINNED, "the request pins d/home")


def test_a_pin_that_is_excluded_is_an_error_that_explains_every_model() -> None:
    with pytest.raises(NoEligibleModelError) as info:
        decide(ask(pin="d/home", require=["vision"]), trace=TRACE._replace(needs=frozenset({"vision"})))
    assert info.value.excluded["d/home"] == "pinned by the request, but the request needs vision, which it lacks"
    assert info.value.excluded["c/large"] == "the request pins d/home"
    assert set(info.value.excluded) == set(NAMES)


def test_a_pin_over_budget_is_an_error_and_not_another_model() -> None:
    with pytest.raises(NoEligibleModelError, match="pinned by the request, but over budget"):
        decide(ask(pin="c/large", budget_usd=0.02))


def test_a_pin_is_never_explored_away() -> None:
    for seed in range(50):
        choice = decide(ask(pin="d/home"), of=pool(exploration=1.0), rng=random.Random(seed))
        assert (chosen(choice), choice.propensity) == ("d/home", 1.0)


# -- budget


def test_a_budget_that_does_not_bind_changes_nothing_but_who_is_affordable() -> None:
    choice = decide(ask(budget_usd=0.03))
    assert (chosen(choice), choice.degraded) == ("a/small", False)
    assert choice.excluded == (
        None, None, "over budget: expected to cost 0.05 USD, the budget is 0.03 USD", None,
    )  # fmt: skip


def test_a_choice_over_budget_gives_the_likeliest_affordable_one_marked_as_degraded() -> None:
    choice = decide(ask(min_quality=0.85, budget_usd=0.03))
    assert (chosen(choice), choice.degraded, choice.escalated) == ("b/middle", True, False)
    assert choice.reason.code is ReasonCode.BUDGET
    assert choice.reason.text.startswith("c/large was wanted but is over budget; of the models within it b/middle")


def test_an_escalation_over_budget_is_degraded_too() -> None:
    choice = decide(ask(budget_usd=0.0), p=(0.5, 0.5, 0.5, 0.1))
    assert (chosen(choice), choice.degraded, choice.escalated) == ("d/home", True, False)


def test_of_equally_likely_affordable_models_the_cheaper_one_is_taken() -> None:
    choice = decide(ask(min_quality=0.85, budget_usd=0.03), p=(0.8, 0.8, 0.9, 0.3))
    assert chosen(choice) == "a/small"


def test_nothing_affordable_is_an_error_over_budget_for_all() -> None:
    with pytest.raises(NoEligibleModelError) as info:
        decide(ask(budget_usd=0.001), cost=(0.01, 0.02, 0.03, 0.04))
    assert all(sentence.startswith("over budget") for sentence in info.value.excluded.values())


@pytest.mark.parametrize(
    ("asked", "rule", "pooled"), [(0.02, 0.04, None), (0.04, 0.02, 0.05), (None, None, 0.02), (None, 0.04, 0.02)]
)
def test_the_smallest_budget_counts(asked: float | None, rule: float | None, pooled: float | None) -> None:
    of = pool(budgets=Budgets(pooled), tasks={"chat": Rule(budget_usd=rule)})
    assert Policy(of).terms(ask(task="chat", budget_usd=asked), TRACE).budget_usd == 0.02


# -- rules of task and segment

RULES = pool(
    tasks={
        "code": Rule(confidence_threshold=0.75, max_latency_s=9.0, deny=("a/small",), failure_cost_usd=1.0),
        "easy": Rule(confidence_threshold=0.2),
        "legal": Rule(pin="b/middle"),
        "same": Rule(confidence_threshold=0.65),
        "priced": Rule(failure_cost_usd=0.21),
    },
    segments={
        "pro": Rule(min_quality=0.85, max_latency_s=5.0, deny=("b/middle",)),
        "home": Rule(local_only=True),
        "lean": Rule(allow=("a/small", "b/middle")),
        "only-large": Rule(allow=("c/large",)),
        "seeing": Rule(require=frozenset({"vision"})),
        "held": Rule(pin="c/large"),
    },
)


def test_a_rule_that_changes_the_choice_is_the_reason() -> None:
    choice = decide(ask(task="easy"), of=RULES)
    assert (chosen(choice), choice.reason.code, choice.threshold) == ("d/home", ReasonCode.RULE, 0.2)
    assert choice.reason.text.endswith(">= 0.200, asked by the rule of task 'easy'")


def test_a_rule_that_changes_nothing_is_not_the_reason() -> None:
    assert decide(ask(task="same"), of=RULES).reason.code is ReasonCode.CHEAPEST_LIKELY


def test_an_unknown_task_or_segment_has_no_rule() -> None:
    assert decide(ask(task="poetry", segment="none"), of=RULES) == decide(of=RULES)


def test_the_rule_of_the_segment_wins_over_that_of_the_task_and_the_request_over_both() -> None:
    policy = Policy(RULES)
    assert policy.terms(ask(task="code"), TRACE).threshold == 0.75
    assert policy.terms(ask(task="code", segment="pro"), TRACE).threshold == 0.85
    assert policy.terms(ask(task="code", segment="pro"), TRACE).max_latency_s == 5.0
    assert policy.terms(ask(task="code", segment="pro", max_latency_s=7.0, min_quality=0.1), TRACE)[1:5] == (
        0.1,
        None,
        None,
        7.0,
    )
    assert policy.terms(ask(task="code", segment="home"), TRACE).max_latency_s == 9.0


def test_min_quality_of_a_rule_wins_over_its_confidence_threshold() -> None:
    of = pool(tasks={"x": Rule(confidence_threshold=0.1, min_quality="escalation")})
    assert decide(ask(task="x"), of=of).threshold == 0.90


def test_a_nearer_threshold_overrides_a_failure_cost_further_away() -> None:
    policy = Policy(RULES)
    assert policy.terms(ask(task="priced"), TRACE).failure_cost_usd == 0.21
    assert policy.terms(ask(task="priced", segment="pro"), TRACE).failure_cost_usd is None
    assert policy.terms(ask(task="priced", min_quality=0.5), TRACE).failure_cost_usd is None
    assert policy.terms(ask(task="priced", segment="pro", failure_cost_usd=2.0), TRACE).failure_cost_usd == 2.0


def test_deny_lists_unite() -> None:
    choice = decide(ask(task="code", segment="pro", deny=["d/home"], max_latency_s=60.0), of=RULES)
    assert choice.excluded == (
        "the rule of task 'code' denies it", "the rule of segment 'pro' denies it", None, "the request denies it",
    )  # fmt: skip


def test_allow_lists_intersect() -> None:
    choice = decide(ask(segment="lean", allow=["b/middle", "c/large"]), of=RULES)
    assert choice.excluded == (
        "the request does not allow it", None, "the rule of segment 'lean' does not allow it",
        "the rule of segment 'lean' does not allow it",
    )  # fmt: skip


def test_allow_lists_without_a_common_model_leave_nothing() -> None:
    with pytest.raises(NoEligibleModelError):
        decide(ask(segment="only-large", allow=["a/small"]), of=RULES)


def test_a_rule_may_require_abilities_and_local_models() -> None:
    seeing = decide(ask(segment="seeing"), of=RULES)
    assert seeing.excluded[0] == "the rule of segment 'seeing' requires vision, which it lacks"
    assert chosen(seeing) == "b/middle"
    assert chosen(decide(ask(segment="home"), of=RULES)) == "d/home"


def test_a_pin_of_a_rule_is_kept_unless_a_nearer_level_pins() -> None:
    by_rule = decide(ask(task="legal"), of=RULES)
    assert (chosen(by_rule), by_rule.reason) == (
        "b/middle",
        (ReasonCode.RULE, "the rule of task 'legal' pins b/middle"),
    )
    assert chosen(decide(ask(task="legal", segment="held"), of=RULES)) == "c/large"
    by_request = decide(ask(task="legal", segment="held", pin="a/small"), of=RULES)
    assert (chosen(by_request), by_request.reason.code) == ("a/small", ReasonCode.PINNED)


# -- prompt cache of the model that holds the conversation


def test_the_current_model_is_cheaper_by_what_its_cache_saves() -> None:
    choice = decide(ask(current_model="b/middle", cached_tokens=500))
    # 500 tokens, twice as many for this model, at 3 - 0.3 USD per million
    assert choice.expected_cost_usd == pytest.approx((0.010, 0.030 - 500 * 2 * 2.7e-6, 0.050, 0.0))


def test_a_warm_cache_can_keep_the_conversation_where_it_is() -> None:
    cost = (0.0100, 0.0111, 0.05, 0.0)
    assert chosen(decide(cost=cost)) == "a/small"
    assert chosen(decide(ask(current_model="b/middle", cached_tokens=900), cost=cost)) == "b/middle"


def test_the_cache_saves_no_more_than_the_prompt_and_never_makes_a_cost_negative() -> None:
    long = decide(ask(current_model="b/middle", cached_tokens=10**9))
    assert long.expected_cost_usd[1] == pytest.approx(0.030 - 1_000 * 2 * 2.7e-6)
    assert decide(ask(current_model="b/middle", cached_tokens=10**9), cost=(1, 1e-6, 1, 1)).expected_cost_usd[1] == 0.0


@pytest.mark.parametrize("current", ["d/home", "elsewhere/model", None])
def test_a_current_model_without_a_cache_price_or_outside_the_pool_changes_no_cost(current: str | None) -> None:
    assert decide(ask(current_model=current, cached_tokens=500)).expected_cost_usd == COST


# -- exploration


def test_without_a_generator_nothing_is_explored() -> None:
    assert decide(of=pool(exploration=1.0)) == decide()


def test_exploration_takes_every_affordable_eligible_model_about_equally_often() -> None:
    rng = random.Random(7)
    request = ask(budget_usd=0.03, deny=["d/home"])
    counts = Counter(chosen(decide(request, of=pool(exploration=1.0), rng=rng)) for _ in range(400))
    assert set(counts) == {"a/small", "b/middle"}
    assert min(counts.values()) > 150


def test_an_explored_choice_says_so_and_is_not_an_escalation() -> None:
    rng = random.Random(1)
    choices = [decide(p=(0.1, 0.1, 0.1, 0.1), of=pool(exploration=0.5), rng=rng) for _ in range(100)]
    explored = [c for c in choices if chosen(c) != "c/large"]
    assert explored
    assert {c.reason.code for c in explored} == {ReasonCode.EXPLORATION}
    assert not any(c.escalated for c in explored)
    assert all(c.escalated and c.reason.code is ReasonCode.LOW_CONFIDENCE for c in choices if c not in explored)


def test_a_choice_explored_among_what_the_budget_affords_stays_degraded() -> None:
    request = ask(min_quality=0.85, budget_usd=0.03)
    choices = [decide(request, of=pool(exploration=1.0), rng=random.Random(seed)) for seed in range(20)]
    assert len({choice.model for choice in choices}) > 1
    assert all(choice.degraded for choice in choices)


def test_the_same_seed_gives_the_same_choices() -> None:
    runs = [[decide(of=pool(exploration=0.5), rng=rng).model for _ in range(20)] for rng in map(random.Random, (3, 3))]
    assert runs[0] == runs[1]


# -- numbers that cannot be decided on


@pytest.mark.parametrize("bad", [math.nan, -0.01, 1.01, math.inf])
def test_a_probability_out_of_range_is_refused_with_its_model(bad: float) -> None:
    with pytest.raises(RouterError, match=r"b/middle: P\(success\) is"):
        decide(p=(0.7, bad, 0.9, 0.3))


@pytest.mark.parametrize("bad", [math.nan, -1.0, math.inf])
def test_a_cost_out_of_range_is_refused_with_its_model(bad: float) -> None:
    with pytest.raises(RouterError, match=r"c/large: .*expected cost"):
        decide(cost=(0.1, 0.1, bad, 0.1))


@pytest.mark.parametrize(("p", "cost"), [(P[:3], COST), (P, (*COST, 0.1))])
def test_numbers_for_another_pool_are_refused(p: Any, cost: Any) -> None:
    with pytest.raises(RouterError, match="for a pool of 4 models"):
        decide(p=p, cost=cost)


# -- properties

shares = st.floats(0, 1)
four = st.tuples(*[shares] * 4)
subset = st.lists(st.sampled_from(NAMES), max_size=3, unique=True)
requests = st.builds(
    RouteRequest, st.just("hi"), deny=subset, allow=subset, local_only=st.booleans(),
    min_quality=st.none() | st.just("escalation") | st.floats(0.01, 1), budget_usd=st.none() | shares,
    failure_cost_usd=st.none() | shares, max_latency_s=st.none() | st.floats(0.1, 20),
    max_output_tokens=st.none() | st.integers(1, 10**6), task=st.none() | st.sampled_from([*RULES.tasks]),
    segment=st.none() | st.sampled_from([*RULES.segments]), current_model=st.none() | st.sampled_from(NAMES),
    cached_tokens=st.integers(0, 2_000),
)  # fmt: skip
traces = st.builds(
    lambda tokens, needs: TRACE._replace(input_tokens=tokens, needs=needs),
    st.integers(0, 1_200_000) | st.integers(0, 2_000),
    st.frozensets(st.sampled_from(["vision", "tools"])),
)
POLICY = Policy(RULES)


@given(requests, traces, four, four, st.sets(st.sampled_from(NAMES)))
def test_a_decision_takes_an_eligible_model_or_explains_every_exclusion(
    request: RouteRequest, trace: Trace, p: Any, cost: Any, down: set[str]
) -> None:
    try:
        choice = POLICY.decide(request, trace, p, cost, live=Live(unavailable=dict.fromkeys(down, "down")))
    except NoEligibleModelError as exc:
        sentences = exc.excluded
        assert tuple(sentences) == NAMES
    else:
        sentences = {name: why for name, why in zip(NAMES, choice.excluded, strict=True) if why is not None}
        assert chosen(choice) not in sentences
        assert chosen(choice) not in {*down, *request.deny}
        assert choice.reason.text
        assert choice.degraded == (choice.reason.code is ReasonCode.BUDGET)
        budget = POLICY.terms(request, trace).budget_usd
        assert budget is None or choice.expected_cost_usd[choice.model] <= budget
    assert all(sentences.values())


@given(requests, traces, four, four)
def test_a_decision_is_degraded_exactly_when_the_budget_changed_it(
    request: RouteRequest, trace: Trace, p: Any, cost: Any
) -> None:
    of = pool()
    free = Policy(of).decide
    try:
        without = free(ask_again(request, budget_usd=None), trace, p, cost)
        within = free(request, trace, p, cost)
    except NoEligibleModelError:
        assume(False)
    assert within.degraded == (within.model != without.model)


def ask_again(request: RouteRequest, **changes: Any) -> RouteRequest:
    return RouteRequest(**{name: getattr(request, name) for name in request.__dataclass_fields__} | changes)


@given(four, four, st.floats(0.01, 1), st.floats(0.01, 1))
def test_a_lower_threshold_never_makes_a_choice_dearer_unless_the_higher_one_escalates(
    p: Any, cost: Any, one: float, other: float
) -> None:
    low, high = sorted((one, other))
    strict = decide(ask(min_quality=high), p, cost)
    assume(not strict.escalated)
    lenient = decide(ask(min_quality=low), p, cost)
    assert cost[lenient.model] <= cost[strict.model]
    assert not lenient.escalated


@given(requests, traces, four, four, st.floats(0.001, 1))
def test_propensities_are_positive_and_sum_to_one_over_the_models(
    request: RouteRequest, trace: Trace, p: Any, cost: Any, epsilon: float
) -> None:
    policy = Policy(pool(exploration=epsilon))
    try:
        affordable = [i for i, why in enumerate(policy.decide(request, trace, p, cost).excluded) if why is None]
    except NoEligibleModelError:
        assume(False)
    seen: dict[int, float] = {}
    for draw in (0.0, 1.0 - 1e-16):
        for index in range(len(affordable)):
            choice = policy.decide(request, trace, p, cost, rng=Scripted(draw, index))
            assert seen.setdefault(choice.model, choice.propensity) == choice.propensity
    assert sorted(seen) == affordable
    assert min(seen.values()) > 0
    assert sum(seen.values()) == pytest.approx(1.0)


class Scripted(random.Random):
    """Draws what it is told, so that every branch of the mixture can be enumerated."""

    def __init__(self, draw: float, index: int) -> None:
        super().__init__(0)
        self._draw, self._position = draw, index

    def random(self) -> float:
        return self._draw

    def choice(self, seq: Any) -> Any:
        return seq[self._position]


# -- requests unlike the training data


def test_a_request_unlike_the_training_data_escalates() -> None:
    choice = decide(unlike=True)
    assert (chosen(choice), choice.escalated, choice.reason.code) == ("c/large", True, ReasonCode.UNLIKE)
    assert "unlike the training data" in choice.reason.text
    assert chosen(decide(ask(min_quality=0.1), unlike=True)) == "c/large"
    assert chosen(decide(unlike=True, of=pool(unlike="ignore"))) == chosen(decide()) == "a/small"


def test_what_escalates_anyway_keeps_its_reason() -> None:
    assert decide(ask(min_quality=0.99), unlike=True).reason.code is ReasonCode.LOW_CONFIDENCE


def test_a_pin_decides_for_unlike_requests_too() -> None:
    choice = decide(ask(pin="d/home"), unlike=True)
    assert (chosen(choice), choice.reason.code) == ("d/home", ReasonCode.PINNED)


def test_where_even_a_sure_failure_costs_less_than_escalation_an_unlike_request_stays() -> None:
    assert chosen(decide(ask(failure_cost_usd=0.03), unlike=True)) == "a/small"  # .01 + .03 <= .05
    assert chosen(decide(ask(failure_cost_usd=0.06), unlike=True)) == "c/large"


def test_an_unlike_request_goes_to_the_likeliest_where_the_escalation_model_is_not_eligible() -> None:
    choice = decide(ask(deny=["c/large"]), unlike=True)
    assert (chosen(choice), choice.escalated) == ("b/middle", True)
    assert choice.reason.text.endswith("the likeliest, since c/large is not eligible")


def test_a_budget_bounds_the_escalation_of_an_unlike_request() -> None:
    choice = decide(ask(budget_usd=0.04), unlike=True)
    assert (chosen(choice), choice.degraded) == ("b/middle", True)


def test_a_checked_plan_that_ends_at_the_escalation_model_stands_for_unlike_requests() -> None:
    checked = ask(verifier=VerifierSpec(0.95, 0.05))
    usual, unlike = decide(checked), decide(checked, unlike=True)
    assert usual.plan.models[-1] == NAMES.index("c/large")
    assert unlike.plan == usual.plan and unlike.reason.code is not ReasonCode.UNLIKE


# -- plans under caps


def test_a_budget_that_a_plan_just_fits_changes_nothing() -> None:
    checked = ask(verifier=VerifierSpec(1.0, 0.0), deny=["c/large", "d/home"], failure_cost_usd=100.0)
    cost = (0.1, 0.2, 0.5, 0.0)  # 0.1 + 0.2 is above 0.3 as floats
    free, capped = decide(checked, cost=cost), decide(dataclasses.replace(checked, budget_usd=0.3), cost=cost)
    assert free.plan.models == (0, 1)
    assert (capped.plan, capped.degraded, capped.reason) == (free.plan, False, free.reason)


@pytest.mark.parametrize("price", [None, 0.5])
@given(budget=st.floats(0.0, 0.15), check=st.sampled_from([0.0, 0.002]))
def test_no_plan_that_is_told_of_goes_over_the_budget(price: float | None, budget: float, check: float) -> None:
    checked = ask(verifier=VerifierSpec(0.95, 0.05, cost_usd=check), failure_cost_usd=price)
    choice = decide(dataclasses.replace(checked, budget_usd=budget))
    plans = [plan for plan in (choice.plan, choice.second) if plan is not None]
    if budget >= check:  # the model at home is free, its check is not
        assert all(sum(COST[i] + check for i in plan.models) <= budget + 1e-9 for plan in plans)
    wanted = decide(checked)
    assert choice.degraded == (choice.plan.models != wanted.plan.models)


def test_the_second_plan_is_within_the_budget_too() -> None:
    short = pool(plan=Planning(last_resort=False))
    checked = ask(verifier=VerifierSpec(1.0, 0.0), min_quality=0.6, deny=["d/home"])
    free, capped = decide(checked, of=short), decide(dataclasses.replace(checked, budget_usd=0.02), of=short)
    assert free.second is not None and free.second.models[0] == 1  # for 0.03 USD
    assert (capped.plan.models, capped.second, capped.degraded) == (free.plan.models, None, False)


def test_a_check_that_nothing_leaves_money_for_does_not_make_a_choice_weaker() -> None:
    checked = ask(verifier=VerifierSpec(0.95, 0.05, cost_usd=1.0), allow=["c/large"], budget_usd=0.06)
    choice = decide(checked)
    assert (chosen(choice), choice.degraded, choice.plan.expected_cost_usd) == ("c/large", False, 1.05)


def test_where_no_check_is_quick_enough_the_threshold_decides_and_says_so() -> None:
    choice = decide(ask(verifier=VerifierSpec(latency_s=10.0), max_latency_s=9.0))
    assert (chosen(choice), choice.plan.models) == ("a/small", (0,))
    assert choice.objective == ("threshold", 0.6) and choice.reason.code is ReasonCode.CHEAPEST_LIKELY
