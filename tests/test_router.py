"""The router: one decision however it is asked for, the bundled router's decisions, and odd requests of every kind."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from router_ml.errors import NoEligibleModelError, RequestError, RouterError
from router_ml.pool import ModelPool
from router_ml.request import ABILITIES, ROLES, ReasonCode, RouteDecision, RouteRequest, VerifierSpec
from router_ml.router import BATCH, Router, _bundled, _load_bundled, bundled_router_path, predict_route
from training.simulate import World

IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
LOCAL = "ollama/llama4"


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def system(content: Any) -> dict[str, Any]:
    return {"role": "system", "content": content}


VARIED: tuple[Any, ...] = (
    "what is 2+2",
    "Prove that there are infinitely many primes of the form 4k + 3.",
    "word " * 4_000,
    "翻訳してください: 犬が好きです。",
    "🤖" * 50 + "\ud800\x00",
    [user("Fix this:\n```python\ndef f(x):\n    return x +\n```")],
    [system("You are terse."), user("Hello"), {"role": "assistant", "content": "Hi"}, user("Name three rivers.")],
    [user([{"type": "text", "text": "What is in this picture?"}, IMAGE])],
    [
        user("How warm is it in Oulu?"),
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"name": "weather"}}]},
        {"role": "tool", "tool_call_id": "1", "content": "error: no such station"},
    ],
    RouteRequest("Summarise: the meeting was moved.", task="summary", min_quality="escalation"),
    {"prompt": "Choose A) 1 B) 2", "failure_cost_usd": 0.5, "max_output_tokens": 20, "supervised": False},
    {"messages": "Call the tool", "tools": [WEATHER], "verifier": {"true_accept": 0.9}},
    {"messages": "Continue", "current_model": "anthropic/claude-opus-4-7", "cached_tokens": 500},
)


@pytest.fixture(scope="module")
def bundled() -> Router:
    return Router.load()


def as_dict(decision: RouteDecision) -> dict[str, Any]:
    return {**decision.to_dict(), "decision_id": ""}


def assert_same(a: RouteDecision, b: RouteDecision) -> None:
    """Equal, apart from the id, and from the rounding of a product with one row and one with many."""
    first, second = as_dict(a), as_dict(b)
    for name in ("model", "escalated", "degraded", "plan", "params", "propensity", "router_version"):
        assert first[name] == second[name], name
    assert first["reason"]["code"] == second["reason"]["code"]
    for x, y in zip(a.candidates, b.candidates, strict=True):
        assert (x.model, x.excluded_by is None) == (y.model, y.excluded_by is None)
        assert x.p_success == pytest.approx(y.p_success, rel=1e-9)
        assert x.expected_cost_usd == pytest.approx(y.expected_cost_usd, rel=1e-9)
    for name in ("confidence", "plan_confidence", "expected_cost_usd", "baseline_cost_usd"):
        assert first[name] == pytest.approx(second[name], rel=1e-9)
    assert a.evidence[:2] == b.evidence[:2] and a.evidence.novelty == pytest.approx(b.evidence.novelty, abs=0.02)


# --- one decision however it is asked for


def test_predict_predict_batch_and_predict_route_agree(bundled: Router) -> None:
    batch = bundled.predict_batch(VARIED)
    assert len(batch) == len(VARIED)
    for request, decided in zip(VARIED, batch, strict=True):
        assert_same(bundled.predict(request), decided)
        assert_same(predict_route(request, router=bundled), decided)
    assert len({decision.decision_id for decision in batch}) == len(batch)


def test_predict_route_without_a_router_uses_the_bundled_one(bundled: Router) -> None:
    assert_same(predict_route("what is 2+2"), bundled.predict("what is 2+2"))
    assert (bundled_router_path() / "manifest.json").is_file()


def test_deciding_twice_is_deciding_the_same(bundled: Router) -> None:
    for request in VARIED:
        assert as_dict(bundled.predict(request)) == as_dict(bundled.predict(request))


def test_more_requests_than_one_batch_keep_their_order(bundled: Router) -> None:
    requests = [f"Add {i} and {i * i}" + " please" * (i % 7) for i in range(BATCH + 3)]
    together = bundled.predict_proba(requests)
    alone = np.vstack([bundled.predict_proba([requests[i]]) for i in (0, 1, BATCH - 1, BATCH, BATCH + 2)])
    np.testing.assert_allclose(together[[0, 1, BATCH - 1, BATCH, BATCH + 2]], alone, rtol=1e-9)


def test_probabilities_and_costs_are_those_of_the_decisions(bundled: Router) -> None:
    p, cost = bundled.predict_proba(VARIED), bundled.predict_cost(VARIED)
    assert p.shape == cost.shape == (len(VARIED), len(bundled.models))
    assert ((p > 0.0) & (p < 1.0)).all() and (cost >= 0.0).all() and np.isfinite(cost).all()
    for i, decision in enumerate(bundled.predict_batch(VARIED)):
        assert tuple(c.model for c in decision.candidates) == bundled.models == bundled.pool.names
        assert [c.p_success for c in decision.candidates] == pytest.approx(list(p[i]), rel=1e-12)
        if not (isinstance(VARIED[i], dict) and VARIED[i].get("cached_tokens")):
            assert [c.expected_cost_usd for c in decision.candidates] == pytest.approx(list(cost[i]), rel=1e-12)


def test_no_requests_give_nothing(bundled: Router) -> None:
    assert bundled.predict_batch([]) == []
    assert bundled.predict_proba([]).shape == bundled.predict_cost([]).shape == (0, len(bundled.models))


def test_requests_may_come_from_a_generator(bundled: Router) -> None:
    assert len(bundled.predict_batch(text for text in ("one", "two"))) == 2


def test_the_confidence_is_that_of_the_chosen_model(bundled: Router) -> None:
    for decision in bundled.predict_batch(VARIED):
        chosen = next(c for c in decision.candidates if c.model == decision.model)
        dearest = next(c for c in decision.candidates if c.model == bundled.pool.escalation_model)
        assert decision.confidence == chosen.p_success
        if len(decision.plan) == 1:
            assert decision.plan_confidence == chosen.p_success
            assert decision.expected_cost_usd == chosen.expected_cost_usd
        else:  # what further stages add, in probability and in cost
            assert decision.plan[0] == decision.model and decision.plan[-1] == bundled.pool.escalation_model
            assert decision.plan_confidence >= dearest.p_success - 1e-9
            assert decision.expected_cost_usd > chosen.expected_cost_usd
            assert [stage.model for stage in decision.stages] == list(decision.plan)
            assert decision.stages[0].p_reached == pytest.approx(1.0)
            assert decision.stages[0].p_success == pytest.approx(chosen.p_success)
            assert all(a.p_reached > b.p_reached for a, b in pairwise(decision.stages))
        assert decision.baseline_cost_usd == dearest.expected_cost_usd
        assert decision.params == bundled.pool.spec(decision.model).params


def test_a_decision_is_json(bundled: Router) -> None:
    for decision in bundled.predict_batch(VARIED):
        text = json.dumps(decision.to_dict(), allow_nan=False)
        assert json.loads(text)["model"] == decision.model


def test_the_bundled_router_says_that_its_probabilities_are_priors(bundled: Router) -> None:
    assert bundled.models == ModelPool.default().names
    for decision in bundled.predict_batch(VARIED):
        assert decision.evidence.kind == "prior"
        assert decision.evidence.note
        assert 0.0 <= decision.evidence.novelty <= 1.0


def test_a_router_trained_on_outcomes_says_that_they_were_measured(router_path: Any) -> None:
    decision = Router.load(router_path).predict("Add 2 and 2")
    assert decision.evidence.kind == "measured"
    assert decision.evidence.n_outcomes > 0


# --- what the bundled router decides


@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_long_system_prompt_makes_a_request_dearer_not_harder(bundled: Router, role: str) -> None:
    policy = "Prove every theorem about the compiler with rigorous mathematics. " * 370
    short = bundled.predict([user("what is 2+2")])
    long = bundled.predict([{"role": role, "content": policy}, user("what is 2+2")])
    assert len(policy) / 4 > 6_000
    assert long.model == short.model
    assert [c.p_success for c in long.candidates] == [c.p_success for c in short.candidates]
    assert long.baseline_cost_usd > short.baseline_cost_usd


def test_an_image_goes_to_a_model_that_sees(bundled: Router) -> None:
    decision = bundled.predict([user([{"type": "text", "text": "What is this?"}, IMAGE])])
    assert "vision" in bundled.pool.spec(decision.model).abilities
    blind = [c for c in decision.candidates if "vision" not in bundled.pool.spec(c.model).abilities]
    assert blind and all("vision" in str(c.excluded_by) for c in blind)


def test_more_text_than_any_model_is_reliable_for_says_so(bundled: Router) -> None:
    decision = bundled.predict("word " * 520_000)
    assert "600000" in decision.reason.text and "reliable" in decision.reason.text
    assert (bundled.pool.spec(decision.model).max_input_tokens or 0) > 650_000
    small = {"anthropic/claude-haiku-4-5", "openai/gpt-5.4-mini", LOCAL}
    assert small <= {c.model for c in decision.candidates if c.excluded_by}


def test_local_only_takes_the_local_model(bundled: Router) -> None:
    decision = bundled.predict({"messages": "what is 2+2", "local_only": True})
    assert decision.model == LOCAL
    assert all("local" in str(c.excluded_by) for c in decision.candidates if c.model != LOCAL)


def test_first_calls_at_the_same_time_share_one_router(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Router, "load", lambda: time.sleep(0.05) or object())
    _load_bundled.cache_clear()
    try:
        with ThreadPoolExecutor(4) as threads:
            found = [one.result() for one in [threads.submit(_bundled) for _ in range(4)]]
        assert len(set(map(id, found))) == 1
    finally:
        _load_bundled.cache_clear()


def test_allow_deny_and_pin_are_kept(bundled: Router) -> None:
    free = bundled.predict("what is 2+2").model
    denied = bundled.predict({"messages": "what is 2+2", "deny": [free]})
    assert denied.model != free
    two = ["openai/gpt-5.5", "anthropic/claude-haiku-4-5"]
    assert bundled.predict({"messages": "what is 2+2", "allow": two}).model in two
    pinned = bundled.predict({"messages": "what is 2+2", "pin": "openai/gpt-5.5"})
    assert (pinned.model, pinned.reason.code) == ("openai/gpt-5.5", ReasonCode.PINNED)


def test_a_budget_below_what_was_wanted_degrades(bundled: Router) -> None:
    request = {"messages": "what is 2+2", "deny": [LOCAL], "min_quality": 1.0}
    wanted = bundled.predict(request)
    assert wanted.escalated and not wanted.degraded
    cheapest = min(c.expected_cost_usd for c in wanted.candidates if c.excluded_by is None)
    decision = bundled.predict({**request, "budget_usd": cheapest * 1.01})
    assert decision.degraded and decision.reason.code is ReasonCode.BUDGET
    assert decision.expected_cost_usd <= cheapest * 1.01


@pytest.mark.parametrize(
    "limits",
    [
        {"local_only": True, "deny": [LOCAL]},
        {"require": ["video"], "local_only": True},
        {"budget_usd": 0.0, "deny": [LOCAL]},
        {"max_latency_s": 1e-6},
        {"max_output_tokens": 10**9},
    ],
)
def test_no_eligible_model_is_an_error_with_a_reason_for_each(bundled: Router, limits: dict[str, Any]) -> None:
    with pytest.raises(NoEligibleModelError) as caught:
        bundled.predict({"messages": "what is 2+2", **limits})
    assert set(caught.value.excluded) == set(bundled.models)
    assert all(caught.value.excluded.values())


@pytest.mark.parametrize(
    "value",
    [
        "", "   ", [], {}, {"messages": ""}, [user("")], [system("only this")], None, 3, b"bytes", object(), ["text"],
        [{"role": "wizard", "content": "Hi"}], {"messages": "Hi", "min_quality": 1.4},
        {"messages": "Hi", "budget_usd": math.nan}, {"messages": "Hi", "pin": "nobody/none"},
        {"messages": "Hi", "colour": "red"},
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_a_request_error(bundled: Router, value: Any) -> None:
    for ask in (bundled.predict, lambda one: bundled.predict_batch([one]), lambda one: bundled.predict_proba([one])):
        if isinstance(value, dict) and "pin" in value and ask is not bundled.predict:
            continue  # probabilities do not depend on a pin, so nobody looks at it
        with pytest.raises(RequestError):
            ask(value)


# --- odd requests: a sound decision or a RouterError, nothing else


def assert_sound(router: Router, request: Any) -> bool:
    """:return: whether the request was decided; False: it was refused with a documented error."""
    try:
        decision = predict_route(request, router=router)
    except RouterError as exc:
        assert str(exc)
        return False
    assert decision.model in router.models
    for candidate in decision.candidates:
        assert type(candidate.p_success) is float and 0.0 < candidate.p_success < 1.0
        assert type(candidate.expected_cost_usd) is float and 0.0 <= candidate.expected_cost_usd < math.inf
    assert 0.0 < decision.confidence < 1.0
    assert 0.0 <= decision.expected_cost_usd < math.inf and 0.0 <= decision.baseline_cost_usd < math.inf
    assert 0.0 <= decision.evidence.novelty <= 1.0
    assert decision.propensity == 1.0
    json.dumps(decision.to_dict(), allow_nan=False)
    return True


any_text = st.text(st.characters(exclude_categories=()), max_size=200)
scalar = st.none() | st.booleans() | st.integers() | st.floats() | any_text | st.binary(max_size=8)
anything = st.recursive(
    scalar, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(any_text | st.integers(), inner, max_size=4)
)
part_types = st.sampled_from(
    [
        "text",
        "input_text",
        "image_url",
        "image",
        "document",
        "video",
        "input_audio",
        "tool_use",
        "tool_result",
        "thinking",
    ]
)
parts = st.fixed_dictionaries(
    {"type": part_types | anything},
    optional={"text": any_text | anything, "content": anything, "is_error": anything, "image_url": anything},
)
messages = st.fixed_dictionaries(
    {"role": st.sampled_from(sorted(ROLES)) | anything},
    optional={"content": any_text | st.lists(parts, max_size=5) | anything, "tool_calls": anything, "name": anything},
)
FIELDS = tuple(RouteRequest.__dataclass_fields__)


@settings(max_examples=800, suppress_health_check=list(HealthCheck))
@given(st.lists(messages, min_size=1, max_size=6))
def test_any_messages_are_decided_or_refused(bundled: Router, value: list[Any]) -> None:
    assert_sound(bundled, value)


@settings(max_examples=1_000, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(st.sampled_from(FIELDS), anything, max_size=4), any_text)
def test_any_fields_are_decided_or_refused(bundled: Router, fields: dict[str, Any], text: str) -> None:
    assert_sound(bundled, {"messages": text, **fields})


@settings(max_examples=1_000, suppress_health_check=list(HealthCheck))
@given(any_text | anything)
def test_any_value_is_decided_or_refused(bundled: Router, value: Any) -> None:
    assert_sound(bundled, value)


class Hostile:
    """Its own representation raises."""

    def __repr__(self) -> str:
        raise RuntimeError("no")


def nested(depth: int, wrap: Callable[[Any], Any]) -> Any:
    value: Any = wrap("x")
    for _ in range(depth):
        value = wrap(value)
    return value


def circular() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


def weird_values() -> list[Any]:
    return [
        None, True, False, 0, -1, 1, 10**400, 10**6_000, -(10**400), 1e308, -1e308, 1e-320, math.nan, math.inf,
        -math.inf, "", " ", "escalation", "\ud800", "\x00\x1b[31m", "💥" * 9, b"", b"\xff", bytearray(b"x"),
        memoryview(np.zeros((2, 2))), 1j, object(), Hostile(), Hostile, len, Ellipsis, NotImplemented, range(3), [],
        (), {}, set(), frozenset({"x"}), [None], [[]], [{}], ({},), {"": None}, {1: 2}, {None: Hostile()},
        [{"a": Hostile()}], [{"a": 10**6_000}], ["\ud800"], [LOCAL], (LOCAL, LOCAL), {LOCAL}, iter("ab"),
        np.float64(0.5), np.int64(3), np.array([1.0, 2.0]), np.array(["escalation"]), np.nan, VerifierSpec(),
        {"true_accept": math.nan}, {"true_accept": 0.5, 3: 4}, circular(), nested(3_000, lambda v: [v]),
        nested(3_000, lambda v: {"type": "tool_result", "content": [v]}), nested(100, lambda v: {"k": v}),
        *sorted(ABILITIES), list(ABILITIES), RouteRequest("inner"),
    ]  # fmt: skip


ALPHABETS = (
    "abcdefghij      \n", "0123456789+-*/=^()[]{}.,\n ", "🤖💥🧮👩‍👩‍👧🇫🇮 ",
    "".join(map(chr, range(32))) + "\x7f\x80\x9f",
    "\ud800\udbff\udc00\udfff a", "漢字かなカナ한글 ", "اردوעברית \u202e\u200f", "```def class import ;{}<>\t\n",
    "A) B) C) D)\n1. 2. ?", "\u0300\u0301e\u200b\ufeff\u2028", "\U000e0001\U0010ffff\ufffe\uffff ",
)  # fmt: skip


def odd_text(rng: random.Random) -> str:
    alphabet = rng.choice(ALPHABETS)
    size = rng.choice([0, 1, 2, 17, 120, 900]) if rng.random() < 0.97 else 20_000
    return "".join(rng.choices(alphabet, k=size))


def odd_part(rng: random.Random, weird: list[Any]) -> Any:
    kind = rng.choice(["text", "text", "text", "image_url", "file", "video", "input_audio", "tool_use", "tool_result"])
    part: dict[Any, Any] = {"type": kind, "text": odd_text(rng), "content": rng.choice([odd_text(rng), None, []])}
    if rng.random() < 0.15:
        part[rng.choice(["type", "text", "content", "is_error", 3])] = rng.choice(weird)
    return part if rng.random() < 0.95 else rng.choice(weird)


def odd_message(rng: random.Random, weird: list[Any]) -> Any:
    content: Any = odd_text(rng) if rng.random() < 0.5 else [odd_part(rng, weird) for _ in range(rng.randrange(4))]
    message: dict[Any, Any] = {"role": rng.choice(["user", "user", "user", *sorted(ROLES)]), "content": content}
    if rng.random() < 0.1:
        message[rng.choice(["role", "content", "tool_calls", "name", None])] = rng.choice(weird)
    return message if rng.random() < 0.97 else rng.choice(weird)


def odd_requests(seed: int, n: int) -> Iterator[Any]:
    rng, weird = random.Random(seed), weird_values()
    for _ in range(n):
        messages: Any = (
            odd_text(rng) if rng.random() < 0.3 else [odd_message(rng, weird) for _ in range(rng.randrange(5))]
        )
        fields = {name: rng.choice(weird) for name in rng.sample(FIELDS[1:], rng.choice([0, 0, 0, 0, 0, 1, 2, 5]))}
        yield {"messages": messages, **fields} if fields or rng.random() < 0.2 else messages


def test_ten_thousand_odd_requests_are_decided_or_refused(bundled: Router) -> None:
    decided = [assert_sound(bundled, request) for request in odd_requests(11, 8_000)]
    # neither side may be empty, or the test would say nothing about it
    assert 2_000 < sum(decided) < 6_000


@pytest.mark.parametrize("field", FIELDS)
def test_every_weird_value_in_every_field_is_decided_or_refused(bundled: Router, field: str) -> None:
    for value in weird_values():
        assert_sound(bundled, {"messages": "Hi", field: value})


@pytest.mark.parametrize(
    "place", ["request", "message", "role", "content", "tool_calls", "part", "type", "text", "result"]
)
def test_every_weird_value_in_every_place_of_a_message_is_decided_or_refused(bundled: Router, place: str) -> None:
    for value in weird_values():
        part = {"type": "text", "text": "Hi"}
        if place in ("type", "text"):
            part = {**part, place: value}
        elif place == "result":
            part = {"type": "tool_result", "content": value}
        message: dict[str, Any] = {"role": "user", "content": [part, value] if place == "part" else [part]}
        if place in ("role", "content", "tool_calls"):
            message = {"role": "assistant", **message, place: value}
            message["role"] = value if place == "role" else "assistant" if place == "tool_calls" else "user"
        assert_sound(bundled, value if place == "request" else [user("Hi"), value if place == "message" else message])


@pytest.mark.parametrize(
    "text",
    ["x" * 5_000_000, "word \n" * 833_333, "🤖" * 1_250_000, "\ud800" * 5_000_000, "(" * 5_000_000, "1" * 5_000_000],
)
def test_five_megabytes_are_decided_or_refused(bundled: Router, text: str) -> None:
    assert_sound(bundled, text)
    assert_sound(bundled, [system(text), user("Hi")])


# -- requests unlike the training data

GIBBERISH = "zxqv 9931 :: {{{{ ### qwpo ;;;; 00x00 " * 40


def test_a_trained_router_flags_and_escalates_what_is_unlike_its_training_data(router_path: Path) -> None:
    router = Router.load(router_path)
    decision = router.predict(GIBBERISH)
    assert decision.evidence.unlike and decision.evidence.novelty > 0.95
    assert decision.model == router.pool.escalation_model
    assert decision.to_dict()["evidence"]["unlike"] is True
    assert router.predict_batch([GIBBERISH])[0].model == decision.model
    ignoring = router.with_pool(dataclasses.replace(router.pool, unlike="ignore"))
    assert ignoring.predict(GIBBERISH).evidence.unlike
    assert ignoring.predict(GIBBERISH).reason.code is not ReasonCode.UNLIKE


def test_few_requests_like_the_training_data_are_flagged(router_path: Path) -> None:
    decisions = Router.load(router_path).predict_batch(World(7).sample(400, seed=5).table.prompts)
    assert 0.0 < np.mean([decision.evidence.unlike for decision in decisions]) < 0.12


def test_a_router_that_was_not_measured_flags_nothing(bundled: Router) -> None:
    old = Router.load(Path(__file__).with_name("data") / "protocol_1")
    for router in (bundled, old):
        assert not router.predict(GIBBERISH).evidence.unlike
