"""What a call costs: tariffs against litellm's own, cache, later turns; nothing changes where nothing is known."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_ml.attempt import Usage
from router_ml.completion import cost_of
from router_ml.cost import CostModel, LongContext, TurnsToCome, is_turns_entry, tariff, usage_cost
from router_ml.errors import PoolError
from router_ml.policy import Policy
from router_ml.pool import ModelPool, ModelSpec
from router_ml.price_map import refresh
from router_ml.request import RouteRequest, Trace, read_trace
from router_ml.router import Router

LONG = LongContext(1_000, 4.0, 18.0, 0.4)
TIERED = ModelSpec("a/tiered", 2.0, 12.0, 0.2, long_context=LONG)
HEAVY = dataclasses.replace(TIERED, name="a/heavy", token_factor=2.0, output_factor=3.0)
FLAT = ModelSpec("b/flat", 3.0, 15.0)
POOL = ModelPool((TIERED, HEAVY, FLAT), "b/flat")
TURNS = TurnsToCome((6.0, 4.0, 1.0), {"fix": (20.0,)})
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "run", "parameters": {}}}


def traced(input_tokens: int, **fields: Any) -> Trace:
    return read_trace(RouteRequest("hello"))._replace(input_tokens=input_tokens, **fields)


ASK = RouteRequest("hello")


@pytest.mark.parametrize("name", ["openai/gpt-5.5", "gemini/gemini-3.1-pro-preview", "anthropic/claude-opus-4-7"])
def test_real_usage_is_priced_as_litellm_prices_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    from litellm import cost_per_token

    spec = refresh(ModelPool.default())[0].spec(name)  # of the installed map, which may be newer than the pool
    for read, cached in itertools.product((150_000, 200_000, 200_001, 272_000, 272_001, 500_000), (0, 100_000)):
        reference = cost_per_token(
            model=name, prompt_tokens=read, completion_tokens=700, cache_read_input_tokens=cached
        )  # fmt: skip
        assert cost_of(spec, Usage(read, 700, cached)) == pytest.approx(sum(reference)), (read, cached)


def test_the_bundled_router_has_the_tariffs_of_the_default_pool() -> None:
    default = ModelPool.default()
    assert [spec.long_context for spec in Router.load().pool.models] == [spec.long_context for spec in default.models]
    assert sum(spec.long_context is not None for spec in default.models) == 2


def test_a_long_prompt_is_at_its_tariff_as_a_whole() -> None:
    assert usage_cost(TIERED, 1_000, 10) == pytest.approx((1_000 * 2 + 10 * 12) / 1e6)
    assert usage_cost(TIERED, 1_001, 10) == pytest.approx((1_001 * 4 + 10 * 18) / 1e6)
    assert usage_cost(TIERED, 1_001, 10, 1_001) == pytest.approx((1_001 * 0.4 + 10 * 18) / 1e6)
    undiscounted = dataclasses.replace(TIERED, long_context=dataclasses.replace(LONG, cached_input_usd_per_mtok=None))
    assert tariff(undiscounted, 1_001).cached == 4.0


def test_the_mark_is_in_the_models_own_tokens() -> None:
    model = CostModel(POOL, by_tokens=True)
    below, _ = model.expected(ASK, traced(500), [0.0, 0.0, 0.0])
    above, _ = model.expected(ASK, traced(501), [0.0, 0.0, 0.0])
    assert below == pytest.approx([500 * 2e-6, 1_000 * 2e-6, 500 * 3e-6])
    assert above == pytest.approx([501 * 2e-6, 1_002 * 4e-6, 501 * 3e-6])


@given(
    read=st.integers(0, 3_000), predicted=st.lists(st.floats(0, 1e5), min_size=3, max_size=3),
    cached=st.integers(0, 3_000),
)  # fmt: skip
def test_expected_cost_is_what_the_expected_usage_would_cost(read: int, predicted: list[float], cached: int) -> None:
    trace, model = traced(read), CostModel(POOL, by_tokens=True)
    costs, tokens = model.expected(ASK, trace, predicted)
    assert tokens == [n * spec.output_factor for n, spec in zip(predicted, POOL.models, strict=True)]
    for i, spec in enumerate(POOL.models):
        request = dataclasses.replace(ASK, current_model=spec.name, cached_tokens=cached)
        own = [int(n * spec.token_factor) for n in (read, min(cached, read))]
        written = tokens[i] * tariff(spec, own[0]).output / 1e6
        assert costs[i] == pytest.approx(usage_cost(spec, own[0], 0) + written)
        less = model.less_cache(request, trace, costs)
        assert less[i] == pytest.approx(usage_cost(spec, own[0], 0, own[1]) + written, abs=1e-12)
        assert [c for j, c in enumerate(less) if j != i] == [c for j, c in enumerate(costs) if j != i]


def test_cost_in_dollars_is_left_as_predicted() -> None:
    costs, tokens = CostModel(POOL, turns=TURNS).expected(
        ASK, traced(5_000, tools_offered=1), [1.0, 2.0, 3.0]
    )  # fmt: skip
    assert costs == [1.0, 2.0, 3.0] and tokens is None


def test_what_an_agent_writes_is_read_again_at_every_turn_to_come() -> None:
    predicted = [100.0, 100.0, 100.0]
    plain, _ = CostModel(POOL, by_tokens=True).expected(ASK, traced(10), predicted)
    model = CostModel(POOL, by_tokens=True, turns=TURNS)
    first, _ = model.expected(ASK, traced(10, tools_offered=1), predicted)
    # 100, 300 and 100 tokens of their own, read from the cache where that has a price, else in full
    assert first == pytest.approx(
        [c + 6 * n * p / 1e6 for c, n, p in zip(plain, (100, 300, 100), (0.2, 0.2, 3.0), strict=True)]
    )
    assert model.expected(ASK, traced(10), predicted)[0] == plain
    later, _ = model.expected(ASK, traced(10, tool_calls=9, assistant_turns=9), predicted)
    assert later == pytest.approx(
        [c + 1 * n * p / 1e6 for c, n, p in zip(plain, (100, 300, 100), (0.2, 0.2, 3.0), strict=True)]
    )


def test_turns_to_come_are_of_the_task_where_it_is_known_and_of_agents_only() -> None:
    agent = traced(10, tool_results=1, assistant_turns=1)
    assert TURNS.after(None, agent) == TURNS.after("unheard of", agent) == 4.0
    assert TURNS.after("fix", agent) == 20.0
    assert TURNS.after("fix", traced(10)) == 0.0
    assert TurnsToCome().after("fix", agent) == 0.0
    messages = [{"role": "user", "content": "fix it"}]
    assert TURNS.after(None, read_trace(RouteRequest(messages, tools=[TOOL]))) == 6.0


@pytest.mark.parametrize(
    "entry",
    [3, [], {}, {"overall": [1.0]}, {"overall": [], "by_task": {}}, {"overall": [-1.0], "by_task": {}},
     {"overall": [float("nan")], "by_task": {}}, {"overall": [1.0], "by_task": {"a": []}},
     {"overall": [1.0], "by_task": {"a": ["x"]}}, {"overall": 1.0, "by_task": {}}],
)  # fmt: skip
def test_an_entry_that_is_not_turns_to_come_is_known(entry: Any) -> None:
    assert not is_turns_entry(entry)
    assert is_turns_entry({"overall": [1.0, 0], "by_task": {"a": [2.5]}, "n_requests": 9})


def test_leaving_a_cached_conversation_is_priced_at_the_tariff_of_its_length() -> None:
    pool = dataclasses.replace(POOL, max_switch_usd=0.0025)
    request = RouteRequest("hello", current_model="b/flat", cached_tokens=900)
    rates = ([0.9, 0.9, 0.9], [0.1, 0.1, 1.0])
    short = Policy(pool).decide(request, traced(950), *rates)
    assert short.excluded[0] is None  # 900 tokens at 2 USD per million
    long = Policy(pool).decide(request, traced(1_100), *rates)
    assert "switching to it reads 900 cached tokens again for 0.0036 USD" in str(long.excluded[0])


@pytest.mark.parametrize(
    ("tier", "said"),
    [
        ({"above_input_tokens": 0, "input_usd_per_mtok": 1, "output_usd_per_mtok": 1}, "above_input_tokens is 0"),
        ({"above_input_tokens": 9, "input_usd_per_mtok": 1}, "long_context.output_usd_per_mtok is missing"),
        ({"above_input_tokens": 9, "price": 1}, r"unknown key\(s\) \['price'\]"),
        (7, "long_context is 7; expected a mapping"),
    ],
)
def test_a_bad_tariff_is_named_by_its_path(tier: Any, said: str) -> None:
    config = {**POOL.to_dict(), "models": [{"name": "b/flat", "input_usd_per_mtok": 1, "output_usd_per_mtok": 1,
                                            "long_context": tier}]}  # fmt: skip
    with pytest.raises(PoolError, match=said) as caught:
        ModelPool.from_dict(config)
    assert "models[0].long_context" in str(caught.value)


def test_a_tariff_survives_the_file() -> None:
    assert ModelPool.from_dict(POOL.to_dict()) == POOL
    with pytest.raises(PoolError, match="long_context is"):
        ModelSpec("a/b", long_context={"above_input_tokens": 9})  # type: ignore[arg-type]


def test_of_several_tariffs_the_lowest_mark_is_read_and_what_is_not_stated_stays() -> None:
    entry = {
        "input_cost_per_token": 1e-6, "output_cost_per_token": 2e-6, "cache_read_input_token_cost": 1e-7,
        "input_cost_per_token_above_256k_tokens": 9e-6, "output_cost_per_token_above_128k_tokens": 4e-6,
        "input_cost_per_token_above_128k_tokens_batches": 5e-7, "input_cost_per_token_above_64k_tokens": None,
        "cache_creation_input_token_cost_above_1hr": 6e-6,
    }  # fmt: skip
    pool, _ = refresh(ModelPool((ModelSpec("x/y"),), "x/y"), {"x/y": entry})
    assert pool.models[0].long_context == LongContext(128_000, 1.0, 4.0, 0.1)
    usual, _ = refresh(ModelPool((ModelSpec("x/y"),), "x/y"), {"x/y": {"input_cost_per_token": 1e-6}})
    assert usual.models[0].long_context is None
