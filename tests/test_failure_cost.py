"""Rules that price a failure: which one fits, what it says, and what it yields to."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_ml.errors import PoolError
from router_ml.failure_cost import FailureCost, first_fit, tool_calls_per_turn
from router_ml.policy import Policy
from router_ml.pool import ModelPool, ModelSpec, Rule
from router_ml.request import ReasonCode, RouteRequest, Trace, read_trace
from router_ml.router import Router
from router_ml.terms import Terms

TOOLS = frozenset({"tools"})
EDIT = "Rename x to total in: def f(x): return x + 1"
RULES = (
    FailureCost(0.02, supervised=True, max_turns=3),
    FailureCost(5.0, supervised=False, min_turns=10, min_tool_calls_per_turn=0.5),
    FailureCost(0.5, supervised=False),
)


def trace(turns: int = 0, calls: int = 0) -> Trace:
    return read_trace(RouteRequest("hi"))._replace(assistant_turns=turns, tool_calls=calls)


def agent(turns: int) -> list[dict[str, Any]]:
    """A conversation in which the assistant has called a tool in each of its turns."""
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "Find out why the nightly export drops rows; fix it."}
    ]
    for turn in range(turns):
        call = {"id": str(turn), "type": "function", "function": {"name": "run", "arguments": "{}"}}
        messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
        messages.append({"role": "tool", "tool_call_id": str(turn), "content": "120 rows in, 118 rows out"})
    return messages


def pool(rules: Any = RULES, **fields: Any) -> ModelPool:
    specs = (ModelSpec("a/small", 1, 4, abilities=TOOLS), ModelSpec("b/large", 5, 25, abilities=TOOLS))
    return ModelPool(specs, "b/large", failure_costs=rules, **fields)


def terms(request: RouteRequest, of: ModelPool | None = None) -> Terms:
    return Policy(of or pool()).terms(request, read_trace(request))


# -- what fits


@pytest.mark.parametrize(
    ("supervised", "turns", "calls", "price"),
    [
        (True, 0, 0, 0.02), (True, 3, 9, 0.02), (True, 4, 0, None), (False, 0, 0, 0.5), (False, 9, 99, 0.5),
        (False, 10, 5, 5.0), (False, 10, 4, 0.5), (False, 40, 40, 5.0), (None, 0, 0, None), (None, 40, 40, None),
    ],
)  # fmt: skip
def test_the_first_rule_that_fits_sets_the_price(
    supervised: bool | None, turns: int, calls: int, price: float | None
) -> None:
    found = first_fit(RULES, RouteRequest("hi", supervised=supervised), trace(turns, calls))
    assert (found and found[0]) == price


def test_tool_calls_are_counted_per_turn_of_the_assistant_and_are_none_before_its_first() -> None:
    assert tool_calls_per_turn(read_trace(RouteRequest(agent(4)))) == 1.0
    assert tool_calls_per_turn(trace(8, 6)) == 0.75
    assert tool_calls_per_turn(trace(0, 0)) == 0.0 == tool_calls_per_turn(trace(0, 3))


def test_the_rule_says_which_it_is_and_what_made_it_fit() -> None:
    supervised, unsupervised = (RouteRequest("hi", supervised=said) for said in (True, False))
    assert first_fit(RULES, supervised, trace(1)) == (0.02, "failure_costs[0] (supervised, 1 turn so far)")
    assert first_fit(RULES, unsupervised, trace(12, 18)) == (
        5.0, "failure_costs[1] (unsupervised, 12 turns so far, 1.5 tool calls a turn)"
    )  # fmt: skip
    assert first_fit(RULES, unsupervised, trace()) == (0.5, "failure_costs[2] (unsupervised)")
    assert first_fit([FailureCost(1.0)], RouteRequest("hi"), trace()) == (1.0, "failure_costs[0] (any request)")


def test_conditions_are_put_in_words() -> None:
    assert [rule.conditions() for rule in RULES] == [
        "supervised, at most 3 turns", "unsupervised, at least 10 turns, at least 0.5 tool calls a turn",
        "unsupervised",
    ]  # fmt: skip
    assert FailureCost(1.0, min_turns=2, max_turns=5).conditions() == "2 to 5 turns"
    assert FailureCost(1.0).conditions() == "any request"


conditions = st.fixed_dictionaries(
    {"supervised": st.none() | st.booleans()},
    optional={
        "min_turns": st.integers(0, 2), "max_turns": st.integers(2, 4),
        "min_tool_calls_per_turn": st.sampled_from([0.0, 0.5]), "max_tool_calls_per_turn": st.sampled_from([0.5, 2.0]),
    },
)  # fmt: skip
rules = conditions.map(lambda fields: FailureCost(1.0, **fields))


@given(rules, st.sampled_from([None, True, False]), st.integers(0, 5), st.integers(0, 12))
def test_a_rule_fits_where_every_condition_that_is_given_holds(
    rule: FailureCost, supervised: bool | None, turns: int, calls: int
) -> None:
    density = calls / turns if turns else 0.0
    held = [
        rule.supervised is None or rule.supervised == supervised,
        rule.min_turns is None or turns >= rule.min_turns,
        rule.max_turns is None or turns <= rule.max_turns,
        rule.min_tool_calls_per_turn is None or density >= rule.min_tool_calls_per_turn,
        rule.max_tool_calls_per_turn is None or density <= rule.max_tool_calls_per_turn,
    ]
    assert rule.fits(RouteRequest("hi", supervised=supervised), trace(turns, calls)) == all(held)


@given(rules, rules)
def test_a_rule_that_covers_another_fits_all_that_the_other_does(one: FailureCost, other: FailureCost) -> None:
    seen = [
        (rule.fits(request, trace(turns, calls)) for rule in (one, other))
        for request in (RouteRequest("hi", supervised=said) for said in (None, True, False))
        for turns in range(6)
        for calls in range(13)
    ]
    if one.covers(other):
        assert all(mine or not theirs for mine, theirs in seen)


# -- what is refused


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ([{"supervised": True}], "failure_costs[0].usd is missing"),
        ([{"usd": -1}], "failure_costs[0].usd is -1; expected a finite number >= 0"),
        ([{"usd": 1}, {"usd": 1, "turns": 3}], "failure_costs[1] has unknown key(s) ['turns']"),
        ([{"usd": 1, "supervised": "no"}], "failure_costs[0].supervised is 'no'; expected true or false"),
        ([{"usd": 1, "min_turns": 1.5}], "failure_costs[0].min_turns is 1.5; expected a whole number >= 0"),
        (
            [{"usd": 1, "min_turns": 5, "max_turns": 3}],
            "failure_costs[0].min_turns is 5; expected at most max_turns, 3",
        ),
        ([3], "failure_costs[0] is 3; expected a mapping"),
        ({"usd": 1}, "failure_costs is {'usd': 1}; expected a list of rules"),
        (0, "failure_costs is 0; expected a list of rules"),
        (
            [{"usd": 1}, {"usd": 2, "supervised": True}],
            "failure_costs[1] is never reached: failure_costs[0] fits every",
        ),
        (
            [{"usd": 1, "max_turns": 9}, {"usd": 2, "supervised": True}, {"usd": 3, "min_turns": 2, "max_turns": 4}],
            "failure_costs[2] is never reached: failure_costs[0]",
        ),
    ],
)
def test_a_mistake_is_named_by_rule_and_key(section: Any, words: str) -> None:
    mapping = {**pool(()).to_dict(), "failure_costs": section}
    with pytest.raises(PoolError) as info:
        ModelPool.from_dict(mapping, where="pool.yaml")
    assert str(info.value).startswith("pool.yaml: ") and words in str(info.value)


def test_rules_come_back_from_the_file_and_an_empty_section_is_none() -> None:
    assert ModelPool.from_dict(pool().to_dict()) == pool()
    assert ModelPool.from_dict({**pool(()).to_dict(), "failure_costs": None}).failure_costs == ()
    assert "failure_costs" not in pool(()).to_dict()


# -- what they yield to


TASKS = {
    "strict": Rule(min_quality=0.9), "lax": Rule(confidence_threshold=0.2), "priced": Rule(failure_cost_usd=1.0),
    "narrow": Rule(allow=("a/small",)),
}  # fmt: skip
RULED = pool(tasks=TASKS, segments={"pro": Rule(failure_cost_usd=2.0), "sure": Rule(min_quality=0.8)})


@pytest.mark.parametrize(
    ("fields", "price", "threshold"),
    [
        ({}, 0.5, 0.6),
        ({"failure_cost_usd": 7.0}, 7.0, 0.6),
        ({"failure_cost_usd": 0.0}, 0.0, 0.6),
        ({"min_quality": 0.3}, None, 0.3),
        ({"min_quality": 0.3, "failure_cost_usd": 7.0}, 7.0, 0.3),
        ({"task": "strict"}, None, 0.9),
        ({"task": "lax"}, None, 0.2),
        ({"task": "priced"}, 1.0, 0.6),
        ({"task": "narrow"}, 0.5, 0.6),
        ({"segment": "pro"}, 2.0, 0.6),
        ({"segment": "sure", "task": "priced"}, None, 0.8),
        ({"segment": "pro", "task": "strict"}, 2.0, 0.9),
        ({"task": "priced", "min_quality": 0.3}, None, 0.3),
        ({"task": "priced", "failure_cost_usd": 7.0}, 7.0, 0.6),
    ],
)
def test_a_rule_yields_to_the_request_and_to_the_rules_of_task_and_segment(
    fields: dict[str, Any], price: float | None, threshold: float
) -> None:
    found = terms(RouteRequest("hi", supervised=False, **fields), RULED)
    assert (found.failure_cost_usd, found.threshold) == (price, threshold)
    by = {0.5: "failure_costs[2] (unsupervised)", 1.0: "the rule of task 'priced'", 2.0: "the rule of segment 'pro'"}
    assert found.failure_cost_rule == (None if price is None else by.get(price))


def test_a_request_that_no_rule_fits_goes_by_the_threshold() -> None:
    request = RouteRequest("hi")
    assert terms(request) == terms(request, pool(()))
    choice = Policy(pool()).decide(request, read_trace(request), (0.7, 0.9), (0.01, 0.05))
    assert choice.reason.code is ReasonCode.CHEAPEST_LIKELY


def test_the_reason_names_the_rule_that_set_the_price() -> None:
    request = RouteRequest(EDIT, supervised=True)
    choice = Policy(pool()).decide(request, read_trace(request), (0.7, 0.9), (0.001, 0.05))
    assert (choice.model, choice.reason.code) == (0, ReasonCode.LOWEST_EXPECTED_LOSS)
    assert choice.reason.text.endswith(
        "where a failure costs 0.02 USD, by failure_costs[0] (supervised, 0 turns so far)"
    )
    own = dataclasses.replace(request, failure_cost_usd=0.02)
    said = Policy(pool()).decide(own, read_trace(own), (0.7, 0.9), (0.001, 0.05)).reason.text
    assert said.endswith("where a failure costs 0.02 USD")


def test_a_pin_decides_whatever_a_failure_costs() -> None:
    request = RouteRequest(agent(40), supervised=False, pin="a/small")
    choice = Policy(pool()).decide(request, read_trace(request), (0.1, 0.9), (0.001, 0.05))
    assert (choice.model, choice.reason.code) == (0, ReasonCode.PINNED)


# -- the default pool and the bundled router


def test_the_bundled_router_prices_a_failure_by_the_default_pool() -> None:
    assert Router.load().pool.failure_costs == ModelPool.default().failure_costs != ()


def test_the_default_rules_ask_whether_anybody_watches_so_a_plain_request_is_decided_as_without_them() -> None:
    assert all(rule.supervised is not None for rule in ModelPool.default().failure_costs)
    bundled = Router.load()
    bare = bundled.with_pool(dataclasses.replace(bundled.pool, failure_costs=()))
    for messages in (EDIT, agent(40)):
        with_rules, without = bundled.predict(messages), bare.predict(messages)
        assert (with_rules.model, with_rules.reason) == (without.model, without.reason)


def test_a_supervised_edit_may_miss_cheaply_and_an_agent_that_nobody_watches_may_not() -> None:
    bundled = Router.load()
    edit = bundled.predict(RouteRequest(EDIT, supervised=True))
    unwatched = bundled.predict(RouteRequest(agent(40), supervised=False))
    assert edit.expected_cost_usd < 0.25 * edit.baseline_cost_usd
    assert unwatched.confidence == pytest.approx(max(c.p_success for c in unwatched.candidates), abs=0.01)
    assert unwatched.expected_cost_usd > 5 * bundled.predict(RouteRequest(agent(40), supervised=True)).expected_cost_usd
    assert "failure_costs[0]" in edit.reason.text and "40 turns so far" in unwatched.reason.text
