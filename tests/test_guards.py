"""Guards: which models a request excludes, and the sentence for each."""

from __future__ import annotations

from typing import Any

import pytest

from router_ml.guards import Guards, barred_by
from router_ml.pool import Context, ModelPool, ModelSpec, Rule
from router_ml.request import RouteRequest, Trace

SMALL = ModelSpec(
    "a/small", max_input_tokens=1_000, reliable_input_tokens=800, max_output_tokens=200,
    first_token_s=1.0, output_tokens_per_s=100.0, abilities=frozenset({"tools"}),
)  # fmt: skip
LARGE = ModelSpec(
    "b/large", max_input_tokens=1_000_000, reliable_input_tokens=600_000, max_output_tokens=64_000,
    first_token_s=5.0, output_tokens_per_s=50.0, abilities=frozenset({"tools", "vision"}),
)  # fmt: skip
HOME = ModelSpec("c/home", max_input_tokens=1_000_000, local=True)
POOL = ModelPool((SMALL, LARGE, HOME), "b/large")


def trace(tokens: int = 10, *needs: str) -> Trace:
    return Trace("hi", "hi", tokens, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, frozenset(needs))


def exclude(
    pool: ModelPool = POOL, tokens: int = 10, *needs: str, output_tokens: list[float] | None = None,
    max_latency_s: float | None = None, unavailable: dict[str, str] | None = None, **request: Any,
) -> tuple[list[str | None], str]:  # fmt: skip
    guards = Guards(pool)
    asked = RouteRequest("hi", **request)
    return guards.exclude(
        asked, trace(tokens, *needs), barred=[None] * len(pool.models), latency=guards.latency(asked, output_tokens),
        max_latency_s=max_latency_s, output_tokens=output_tokens, unavailable=unavailable,
    )  # fmt: skip


def test_a_plain_request_excludes_nobody() -> None:
    assert exclude() == ([None, None, None], "")


@pytest.mark.parametrize(
    ("fields", "sentences"),
    [
        ({"deny": ["a/small"]}, ("the request denies it", None, None)),
        ({"allow": ["b/large"]}, ("the request does not allow it", None, "the request does not allow it")),
        ({"local_only": True}, ("the request takes local models only", "the request takes local models only", None)),
        ({"max_output_tokens": 201}, ("201 output tokens were asked, it writes at most 200", None, None)),
        ({"max_latency_s": 15}, (None, None, None)),
        ({"max_latency_s": 7}, (None, "it takes about 15 s, the limit is 7 s", None)),
        ({"unavailable": {"c/home": "no answer since 12:00"}}, (None, None, "unavailable: no answer since 12:00")),
        ({"unavailable": {"elsewhere": "x"}}, (None, None, None)),
    ],
)
def test_each_limit_excludes_what_it_should_with_its_sentence(
    fields: dict[str, Any], sentences: tuple[str | None, ...]
) -> None:
    assert tuple(exclude(**fields)[0]) == sentences


def test_a_missing_ability_is_named() -> None:
    assert exclude(POOL, 10, "vision", "tools")[0] == [
        "the request needs vision, which it lacks",
        None,
        "the request needs tools, vision, which it lacks",
    ]


def test_input_and_asked_output_must_fit_the_window_together() -> None:
    assert exclude(tokens=700, max_output_tokens=200)[0][0] is None
    assert (
        exclude(tokens=801, max_output_tokens=200)[0][0] == "801 input and 200 output tokens exceed its window of 1000"
    )


def test_expected_output_counts_for_the_window_where_none_was_asked() -> None:
    assert exclude(tokens=700, output_tokens=[300.0, 1.0, 1.0])[0][0] is None
    assert exclude(tokens=700, output_tokens=[301.0, 1.0, 1.0])[0][0] is not None


def test_the_token_factor_makes_a_request_longer_for_its_model() -> None:
    heavy = ModelSpec("d/heavy", max_input_tokens=1_000, token_factor=1.5)
    pool = ModelPool((heavy, LARGE), "b/large")
    assert exclude(pool, 666)[0] == [None, None]
    assert exclude(pool, 667)[0] == ["1000 input and 0 output tokens exceed its window of 1000", None]


def test_a_model_is_not_used_beyond_its_reliable_window() -> None:
    excluded, note = exclude(tokens=801)
    assert excluded == ["801 input tokens exceed the 800 up to which it is reliable", None, None]
    assert note == ""


def test_above_the_threshold_a_model_must_be_known_to_be_reliable() -> None:
    far = ModelSpec("d/far", max_input_tokens=2_000_000, reliable_input_tokens=900_000)
    pool = ModelPool((far, HOME), "d/far")
    assert exclude(pool, 600_000)[0] == [None, None]
    assert exclude(pool, 600_001)[0] == [None, "600001 input tokens exceed the 600000 up to which it is reliable"]
    lower = ModelPool((far, HOME), "d/far", context=Context(1_000))
    assert exclude(lower, 1_001)[0] == [None, "1001 input tokens exceed the 1000 up to which it is reliable"]


def test_reliability_gives_way_when_no_model_is_reliable_that_far_and_the_note_says_so() -> None:
    excluded, note = exclude(tokens=900_000)
    assert excluded == ["900000 input and 0 output tokens exceed its window of 1000", None, None]
    assert "900000 input tokens are more than any eligible model is reliable for" in note
    assert "600000 tokens, was accepted" in note


def test_when_reliability_gives_way_the_largest_reliable_window_is_preferred() -> None:
    nearer = ModelSpec("d/nearer", max_input_tokens=1_000_000, reliable_input_tokens=500_000)
    excluded, _ = exclude(ModelPool((nearer, LARGE), "b/large"), 700_000)
    assert excluded == ["700000 input tokens exceed the 500000 up to which it is reliable", None]


def test_reliability_gives_way_only_to_models_that_no_other_guard_excludes() -> None:
    excluded, note = exclude(tokens=900, deny=["b/large", "c/home"])
    assert excluded == [None, "the request denies it", "the request denies it"]
    assert "800 tokens, was accepted" in note


def test_above_the_window_nothing_gives_way() -> None:
    excluded, note = exclude(tokens=1_000_001)
    assert None not in excluded
    assert note == ""


def test_unknown_limits_exclude_nobody() -> None:
    bare = ModelPool((ModelSpec("x"),), "x")
    assert exclude(bare, 500_000, max_output_tokens=10**9, max_latency_s=0.001)[0] == [None]


def test_a_model_that_a_rule_bars_keeps_the_sentence_of_the_rule() -> None:
    guards = Guards(POOL)
    request = RouteRequest("hi", deny=["a/small"])
    excluded, _ = guards.exclude(request, trace(), barred=["barred", None, None], latency=[None] * 3)
    assert excluded == ["barred", None, None]


# -- latency


def test_latency_is_first_token_and_expected_output_at_its_rate() -> None:
    assert Guards(POOL).latency(RouteRequest("hi"), [300.0, 100.0, 50.0]) == (4.0, 7.0, None)


def test_without_an_estimate_a_typical_output_is_assumed_up_to_the_limit_of_the_request() -> None:
    verbose = ModelSpec("v", first_token_s=0.0, output_tokens_per_s=100.0, output_factor=2.0)
    guards = Guards(ModelPool((verbose,), "v"))
    assert guards.latency(RouteRequest("hi"), None) == (10.0,)
    assert guards.latency(RouteRequest("hi", max_output_tokens=100), None) == (1.0,)


# -- rules


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        (Rule(), None),
        (Rule(deny=("a/small",)), "the rule denies it"),
        (Rule(allow=("b/large",)), "the rule does not allow it"),
        (Rule(allow=("a/small",)), None),
        (Rule(local_only=True), "the rule takes local models only"),
        (Rule(require=frozenset({"pdf", "tools"})), "the rule requires pdf, which it lacks"),
    ],
)
def test_a_rule_bars_with_its_name(rule: Rule, sentence: str | None) -> None:
    assert barred_by(rule, "the rule", SMALL) == sentence
