"""Parts of the cost that a table teaches, against worlds in which they are known."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from router_ml import artifact
from router_ml.errors import ArtifactError, TableError
from router_ml.pool import ModelPool, ModelSpec
from router_ml.request import ABILITIES, RouteRequest, read_trace
from router_ml.router import Router
from training.cost_parts import MOST_TURNS, PRIOR_RUNS, cost_parts, turns_to_come, with_token_factors
from training.fitting import train_router
from training.outcome_table import OutcomeTable, from_columns
from training.simulate import World

NAMES = ("acme/large", "acme/medium", "acme/small", "other/max", "other/mini")


@pytest.fixture(scope="module")
def table() -> OutcomeTable:
    return World(7).sample(400).table


def priced(**changes: dict[str, Any]) -> ModelPool:
    """A pool of token prices. :param changes: last part of a model's name -> fields."""
    specs = [ModelSpec(name, 1.0 + j, 5.0 + j, abilities=ABILITIES) for j, name in enumerate(NAMES)]
    changed = [dataclasses.replace(s, **changes.get(s.name.rpartition("/")[2], {})) for s in specs]
    return ModelPool(tuple(changed), NAMES[0])


def without(table: OutcomeTable, *columns: str) -> OutcomeTable:
    return dataclasses.replace(table, **{name: np.full(table.n_rows, np.nan) for name in columns})


def runs(turns: list[float], **columns: list[Any]) -> OutcomeTable:
    n = len(turns)
    prompts = {} if "messages" in columns else {"prompt": [f"fix bug {i}" for i in range(n)]}
    ids = [f"r{i}" for i in range(n)]
    return from_columns(
        {"request_id": ids, "model": ["a"] * n, "score": [1.0] * n, "turns": turns, **prompts, **columns}
    )


def test_the_tokens_of_a_models_tokenizer_are_found_whatever_is_put_before_every_prompt(table: OutcomeTable) -> None:
    dense = table.dense("turns")
    assert np.nanmax(dense) > 1  # rows of agents, whose input was read several times
    scale = np.array([1.0, 1.3, 0.7, 1.0, 1.0])[table.model]
    hidden = np.array([0.0, 0.0, 500.0, 0.0, 0.0])[table.model]
    heavier = dataclasses.replace(table, input_tokens=np.round(table.input_tokens * scale) + hidden)
    pool, notes = with_token_factors(heavier, priced(max={"token_factor": 1.5}))
    found = [spec.token_factor for spec in pool.models]
    assert found == [pytest.approx(1.0, abs=0.03), pytest.approx(1.3, abs=0.04), pytest.approx(0.7, abs=0.03), 1.5,
                     pytest.approx(1.0, abs=0.03)]  # fmt: skip
    assert any("other/max: token_factor 1.5 is the pool's own; the table shows 1" in note for note in notes)
    assert all("n = " in note for note in notes)


def test_counts_that_are_not_of_the_prompt_or_too_few_leave_the_factor(table: OutcomeTable) -> None:
    noise = np.random.default_rng(0).uniform(10, 5_000, table.n_rows)
    for changed in (
        dataclasses.replace(table, input_tokens=noise),
        dataclasses.replace(table, input_tokens=table.input_tokens * 40),
        without(table, "input_tokens"),
        table.select_requests(np.arange(20)),
        dataclasses.replace(table, turns=np.full(table.n_rows, 3.0)),
    ):
        pool, _ = with_token_factors(changed, priced())
        assert [spec.token_factor for spec in pool.models] == [1.0] * 5


def test_prompts_of_one_length_say_nothing_of_a_tokenizer() -> None:
    n = 60
    same = from_columns({
        "request_id": [str(i) for i in range(n)], "prompt": [f"count to {i:04d}" for i in range(n)], "model": ["a"] * n,
        "score": [1.0] * n, "input_tokens": [30.0] * n,
    })  # fmt: skip
    pool, notes = with_token_factors(same, ModelPool((ModelSpec("a", 1, 1),), "a"))
    assert pool.models[0].token_factor == 1.0 and "one length" in notes[0]


def test_runs_without_memory_have_as_many_turns_to_come_at_any_time() -> None:
    turns = np.random.default_rng(1).geometric(0.2, 4_000).astype(float)
    entry = turns_to_come(runs([*turns.tolist()]))
    assert entry is not None
    # a request that took one turn and called no tool is not an agent's, so the first entry is of runs of two or more
    assert entry["overall"][0] == pytest.approx(5.0, rel=0.1)
    assert entry["overall"][1:10] == pytest.approx([4.0] * 9, rel=0.15)
    assert entry["n_requests"] == int((turns > 1).sum())


def test_runs_of_a_fixed_length_count_down() -> None:
    entry = turns_to_come(runs([6.0] * 500))
    assert entry is not None
    assert entry["overall"] == pytest.approx([5, 4, 3, 2, 1, 0], abs=0.15)


def test_a_prompt_that_holds_turns_joins_at_its_own() -> None:
    turn = [{"role": "assistant", "content": "next"}, {"role": "user", "content": "go on"}]
    messages = [[{"role": "user", "content": f"bug {i}"}, *turn * (i % 4)] for i in range(400)]
    entry = turns_to_come(runs([float(8 - i % 4) for i in range(400)], messages=messages))
    assert entry is not None
    assert entry["overall"] == pytest.approx([7, 6, 5, 4, 3, 2, 1, 0], abs=0.4)


def test_a_task_has_its_own_curve_if_it_has_runs_enough_and_leans_on_all() -> None:
    turns = [3.0] * 200 + [21.0] * 200 + [50.0] * 5
    entry = turns_to_come(runs(turns, task=["short"] * 200 + ["long"] * 200 + ["rare"] * 5))
    assert entry is not None and set(entry["by_task"]) == {"short", "long"}
    overall = entry["overall"][0]
    for task, left in (("short", 2.0), ("long", 20.0)):
        assert entry["by_task"][task][0] == pytest.approx(
            (200 * left + PRIOR_RUNS * overall) / (200 + PRIOR_RUNS), abs=1e-3
        )
    assert entry["by_task"]["short"][10] == pytest.approx(entry["overall"][10], abs=1e-3)  # nobody was there


def test_requests_count_once_however_many_models_tried_them() -> None:
    columns = {
        "request_id": [f"r{i}" for i in range(40)] + ["many"] * 200,
        "model": ["a"] * 40 + [f"m{i}" for i in range(200)],
        "prompt": [f"bug {i}" for i in range(40)] + ["the same"] * 200, "score": [1.0] * 240,
        "turns": [5.0] * 40 + [90.0] * 200,
    }  # fmt: skip
    entry = turns_to_come(from_columns(columns))
    assert entry is not None and entry["overall"][0] == pytest.approx((40 * 4 + 89) / 41, rel=0.01)


def test_without_agents_or_with_few_nothing_is_known(table: OutcomeTable) -> None:
    assert turns_to_come(runs([1.0] * 100)) is None
    assert turns_to_come(runs([9.0] * 9)) is None
    assert turns_to_come(without(table, "turns")) is None
    long = turns_to_come(runs([1_000.0] * 20))
    assert long is not None and len(long["overall"]) == MOST_TURNS


def test_tokens_are_those_of_one_call_of_a_typical_model(table: OutcomeTable) -> None:
    pool = priced(mini={"output_factor": 2.0})
    parts = cost_parts(table, pool)
    assert parts.unit == "output_tokens" and parts.turns is not None
    tokens, turns = table.dense("output_tokens"), table.dense("turns")
    expected = tokens / turns / np.array([1.0, 1.0, 1.0, 1.0, 2.0])
    np.testing.assert_allclose(parts.target, expected)
    unknown_turns = cost_parts(without(table, "turns"), pool)
    np.testing.assert_allclose(unknown_turns.target[:, 0], tokens[:, 0])
    assert unknown_turns.turns is None


def test_a_pool_of_prices_per_request_keeps_whole_requests_and_its_factors(table: OutcomeTable) -> None:
    pool = priced(mini={"cost_per_request_usd": 0.001})
    parts = cost_parts(table, pool)
    assert (parts.pool, parts.unit, parts.turns, parts.notes) == (pool, "usd", None, ())
    np.testing.assert_array_equal(parts.target, table.dense("cost_usd"))


def test_a_table_without_costs_and_tokens_never_makes_a_model_free(table: OutcomeTable, tmp_path: Path) -> None:
    bare = without(table.select_requests(np.arange(60)), "cost_usd", "output_tokens", "input_tokens", "turns")
    router = train_router(bare, tmp_path / "router", pool=priced(mini={"output_factor": 2.0}))
    notes = router.manifest["training"]["notes"]
    assert any("neither cost nor output tokens in the table" in note and "500 tokens" in note for note in notes)
    prompt = "What is the capital of Iceland?"
    read = read_trace(RouteRequest(prompt)).input_tokens
    written = np.array([500, 500, 500, 500, 1_000])
    expected = (read * (1.0 + np.arange(5)) + written * (5.0 + np.arange(5))) / 1e6
    np.testing.assert_allclose(router.predict_cost([prompt])[0], expected, rtol=1e-6)


def test_a_model_with_token_prices_beside_prices_per_request_is_not_free_either(table: OutcomeTable) -> None:
    for order in ((0, 1), (1, 0)):
        specs = (ModelSpec("acme/large", 5.0, 25.0), ModelSpec("acme/small", cost_per_request_usd=0.001))
        pool = ModelPool(tuple(specs[i] for i in order), "acme/large")
        parts = cost_parts(without(table, "cost_usd"), pool)
        dear = parts.target[:, order.index(0)]
        assert (dear > 500 * 25e-6).all() and (parts.target[:, order.index(1)] == 0.001).all()
        assert len(parts.notes) == 2


def test_a_router_of_token_prices_saves_what_it_learned_and_pays_for_turns_to_come(
    table: OutcomeTable, tmp_path: Path
) -> None:
    heavier = dataclasses.replace(table, input_tokens=table.input_tokens * np.where(table.model == 1, 1.3, 1.0))
    router = train_router(heavier, tmp_path / "router", pool=priced())
    loaded = Router.load(tmp_path / "router")
    assert loaded.pool.spec("acme/medium").token_factor == pytest.approx(1.3, abs=0.04)
    curve = loaded.manifest["turns_to_come"]["overall"]
    assert router.manifest == loaded.manifest and curve[0] > 1
    tool = {"type": "function", "function": {"name": "run", "parameters": {"type": "object", "properties": {}}}}
    reading = loaded.read({"messages": "Fix the failing test.", "tools": [tool], "task": "no such task"})
    again = (1.0 + np.arange(5)) / 1e6  # no discount for cached tokens
    assert reading.tokens is not None
    read = reading.trace.input_tokens * np.array([s.token_factor for s in loaded.pool.models]) * (1.0 + np.arange(5))
    once = (read + np.array(reading.tokens) * (5.0 + np.arange(5))) / 1e6
    np.testing.assert_allclose(reading.cost, once + curve[0] * np.array(reading.tokens) * again)
    assert loaded.predict_cost([reading.request])[0] == pytest.approx(reading.cost)
    decided = loaded.predict_batch([reading.request])[0]
    assert [candidate.expected_cost_usd for candidate in decided.candidates] == pytest.approx(reading.cost)


def test_a_broken_entry_of_turns_is_refused(tmp_path: Path, table: OutcomeTable) -> None:
    train_router(table.select_requests(np.arange(60)), tmp_path / "router", pool=priced())
    file = tmp_path / "router" / artifact.MANIFEST
    broken = json.loads(file.read_text(encoding="utf-8")) | {"turns_to_come": {"overall": "x"}}
    file.write_text(json.dumps(broken), encoding="utf-8")
    with pytest.raises(ArtifactError, match="turns_to_come"):
        Router.load(tmp_path / "router")


def test_a_table_and_a_pool_without_a_common_model_are_refused(table: OutcomeTable, tmp_path: Path) -> None:
    with pytest.raises(TableError, match="share no model"):
        train_router(table, tmp_path / "router", pool=ModelPool((ModelSpec("x/y", 1, 1),), "x/y"))
