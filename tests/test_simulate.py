"""The simulated world: what it draws follows the truth it claims, and the data files made with it can be read."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from router_ml.request import RouteRequest, read_trace
from training.outcome_table import OutcomeTable, group_folds, read_table
from training.request_templates import FILLERS, TASKS
from training.simulate import DEFAULT_MODELS, Sample, SimulatedModel, World, main

DATA = Path(__file__).parent.parent / "data"


@pytest.fixture(scope="module")
def grid() -> Sample:
    return World(11).sample(6_000)


@pytest.fixture(scope="module")
def logged() -> Sample:
    world = World(11)
    return world.sample(6_000, models_per_request=2, policy=world.price_aware)


def test_success_rates_follow_the_true_probabilities(grid: Sample) -> None:
    score, truth = grid.table.dense("score"), grid.p_success
    task = np.asarray(grid.table.task)
    for name in sorted(set(task.tolist())):
        here = task == name
        deviation = (score[here] - truth[here]).sum(axis=0)
        error = np.sqrt((truth[here] * (1.0 - truth[here])).sum(axis=0))
        assert (np.abs(deviation) < 4.5 * error).all(), name


def test_success_rates_follow_the_true_probabilities_at_every_confidence(grid: Sample) -> None:
    score, truth = grid.table.dense("score").ravel(), grid.p_success.ravel()
    tenth = np.minimum((truth * 10).astype(int), 9)
    for i in range(10):
        here = tenth == i
        error = math.sqrt((truth[here] * (1.0 - truth[here])).sum())
        assert abs((score[here] - truth[here]).sum()) < 4.5 * error, i


def test_the_truth_is_the_stated_law(grid: Sample) -> None:
    world = World(11)
    task = np.asarray([[template.name for template in TASKS].index(str(name)) for name in grid.table.task])
    logit = world.discrimination * (world.ability.T[task] - (grid.visible + grid.hidden)[:, None])
    np.testing.assert_allclose(grid.p_success, 1.0 / (1.0 + np.exp(-logit)))


def test_a_seed_fixes_everything_and_another_changes_it() -> None:
    first, again = World(4).sample(100, 2), World(4).sample(100, 2)
    assert first.table.fingerprint() == again.table.fingerprint()
    np.testing.assert_array_equal(first.p_success, again.p_success)
    assert World(5).sample(100, 2).table.prompts != first.table.prompts
    assert World(4).sample(100, 2, seed=1).table.prompts != first.table.prompts


def test_samples_of_one_world_share_abilities_and_can_be_joined() -> None:
    world = World(4)
    np.testing.assert_array_equal(world.ability, World(4).ability)
    joined = OutcomeTable.concat([world.sample(50).table, world.sample(50, seed=1).table])
    assert joined.n_requests == 100


def test_a_full_grid_tries_every_model_with_certainty(grid: Sample) -> None:
    assert grid.table.n_rows == grid.table.n_requests * len(DEFAULT_MODELS)
    assert (grid.table.propensity == 1.0).all()


@pytest.mark.parametrize("k", [1, 2, 4])
def test_uniform_logs_hold_k_models_of_a_request_with_equal_propensity(k: int) -> None:
    table = World(2).sample(500, models_per_request=k).table
    assert (np.bincount(table.request, minlength=500) == k).all()
    np.testing.assert_allclose(table.propensity, k / len(DEFAULT_MODELS))


@pytest.mark.parametrize("k", [1, 2, 4])
def test_inverse_propensities_add_up_to_the_number_of_requests(k: int) -> None:
    world = World(11)
    table = world.sample(6_000, k, world.price_aware).table
    for model in range(len(table.models)):
        weight = 1.0 / table.propensity[table.model == model]
        error = math.sqrt((weight * np.maximum(weight - 1.0, 0.0)).sum())  # Horvitz and Thompson (1952)
        assert abs(weight.sum() - 6_000) <= 4.5 * error + 1e-6


def test_propensities_are_the_policys_probabilities_where_one_model_is_tried() -> None:
    world = World(11)
    sample = world.sample(300, 1, world.price_aware)
    chosen = world.price_aware(sample.visible)[sample.table.request, sample.table.model]
    np.testing.assert_allclose(sample.table.propensity, chosen)


def test_a_sharp_policy_tries_its_favourite_for_certain_and_shares_the_rest() -> None:
    policy = np.asarray([0.9, 0.04, 0.03, 0.02, 0.01])
    table = World(1).sample(2_000, 2, lambda visible: np.tile(policy, (len(visible), 1))).table
    favourite = table.propensity[table.model == 0]
    assert len(favourite) == 2_000 and (favourite == 1.0).all()
    np.testing.assert_allclose(np.unique(table.propensity[table.model != 0].round(9)), [0.1, 0.2, 0.3, 0.4])


def test_weighting_by_propensity_recovers_quality_from_a_log_that_misleads(logged: Sample, grid: Sample) -> None:
    table, truth = logged.table, grid.p_success.mean(axis=0)
    cheap, dear = table.models.index("acme/small"), table.models.index("acme/large")
    for model in (cheap, dear):
        rows = table.model == model
        weight, score = 1.0 / table.propensity[rows], table.score[rows]
        assert abs((weight * score).sum() / 6_000 - truth[model]) < 0.08
    # Cheap models were given easy requests: their plain success rate flatters them.
    assert table.score[table.model == cheap].mean() > truth[cheap] + 0.1


def test_logs_and_grids_of_one_seed_hold_the_same_requests(logged: Sample, grid: Sample) -> None:
    assert logged.table.prompts == grid.table.prompts
    np.testing.assert_array_equal(logged.p_success, grid.p_success)


def test_the_text_shows_part_of_the_difficulty(grid: Sample) -> None:
    length = np.log([len(str(prompt)) for prompt in grid.table.prompts])
    shown = np.corrcoef(length, grid.visible)[0, 1]
    assert 0.2 < shown < 0.9
    assert abs(np.corrcoef(length, grid.hidden)[0, 1]) < 0.06


def test_sessions_share_a_group_a_task_and_part_of_the_hidden_difficulty(grid: Sample) -> None:
    group = np.asarray(grid.table.group)
    same = np.flatnonzero(group[1:] == group[:-1])
    assert len(same) > 500
    assert all(grid.table.task[i] == grid.table.task[i + 1] for i in same.tolist())
    assert np.corrcoef(grid.hidden[same], grid.hidden[same + 1])[0, 1] > 0.3
    assert np.bincount(group_folds(grid.table.group, 5, 0)).tolist() == [1200] * 5


def test_costs_are_tokens_times_price(grid: Sample) -> None:
    table = grid.table
    price = {model.name: (model.input_usd_per_mtok, model.output_usd_per_mtok) for model in DEFAULT_MODELS}
    price_in, price_out = np.asarray([price[name] for name in table.models])[table.model].T
    expected = (table.input_tokens * price_in + table.output_tokens * price_out) / 1e6
    np.testing.assert_allclose(table.cost_usd, expected, atol=1e-9)


def test_only_agents_take_turns(grid: Sample) -> None:
    is_agent = np.asarray([task == "agent" for task in grid.table.task])[grid.table.request]
    assert (grid.table.turns[~is_agent] == 1).all()
    assert grid.table.turns[is_agent].mean() > 2
    np.testing.assert_array_equal(grid.table.tool_calls, grid.table.turns - 1)


def test_every_request_can_be_routed(grid: Sample) -> None:
    traces = [read_trace(RouteRequest.of(prompt)) for prompt in grid.table.prompts[:1500]]
    assert any(trace.failed_tool_calls for trace in traces)
    assert any(trace.tool_calls and not trace.failed_tool_calls for trace in traces)


def test_requests_vary(grid: Sample) -> None:
    assert len({str(prompt) for prompt in grid.table.prompts}) > 0.95 * grid.table.n_requests
    assert {task for task in grid.table.task if task} == {template.name for template in TASKS}


@pytest.mark.parametrize("template", TASKS, ids=lambda template: template.name)
def test_templates_have_enough_demands_and_known_slots(template: Any) -> None:
    sentences = [*template.asks, *template.details, *template.demands]
    assert len(set(sentences)) == len(sentences)
    assert len(template.demands) >= 4 and len(template.details) >= 4
    for sentence in sentences:
        sentence.format(k=2, n=10, **{slot: options[0] for slot, options in FILLERS.items()})


@pytest.mark.parametrize("k", [0, 6, -1])
def test_an_impossible_number_of_models_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match=r"expected 1\.\.5"):
        World().sample(10, k)


@pytest.mark.parametrize("bad", [np.ones((10, 5)), np.full((10, 4), 0.25), np.tile([1.0, 0, 0, 0, 0], (10, 1))])
def test_a_policy_that_gives_no_distribution_is_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match="rows that add up to 1"):
        World().sample(10, 2, lambda visible: bad)


def test_a_world_needs_models_of_distinct_names() -> None:
    model = SimulatedModel("m", 0.0, 1.0, 1.0)
    for models in ((), (model, model)):
        with pytest.raises(ValueError, match="distinct names"):
            World(models=models)


def test_models_of_equal_price_are_chosen_alike() -> None:
    world = World(models=[SimulatedModel("a", 0.0, 1.0, 1.0), SimulatedModel("b", 1.0, 1.0, 1.0)])
    np.testing.assert_allclose(world.price_aware(np.asarray([-2.0, 2.0])), 0.5)


def test_the_command_writes_the_table_of_its_world(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "t.parquet"
    assert main(["--requests", "40", "--out", str(out), "--seed", "3", "--models-per-request", "2"]) == 0
    assert read_table(out).fingerprint() == World(3).sample(40, 2).table.fingerprint()
    assert "40 requests, 80 rows, 5 models" in capsys.readouterr().out


# data/


def test_the_example_table_is_small_and_keeps_the_contract() -> None:
    assert (DATA / "example_outcomes.csv").stat().st_size < 2_000_000
    table = read_table(DATA / "example_outcomes.csv")
    assert (table.n_requests, table.n_rows) == (600, 3000)
    assert table.models == tuple(sorted(model.name for model in DEFAULT_MODELS))


def test_the_example_table_is_what_its_readme_says_the_simulator_writes() -> None:
    held, made = read_table(DATA / "example_outcomes.csv"), World(7).sample(600).table
    assert held.prompts == made.prompts
    np.testing.assert_array_equal(held.score, made.score)


def demo_requests() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / "demo_requests.jsonl").read_text(encoding="utf-8").splitlines()]


def test_every_demo_request_can_be_read_and_has_a_title_of_its_own() -> None:
    requests = [RouteRequest.of(line) for line in demo_requests()]
    titles = [request.metadata["title"] for request in requests]
    assert len(set(titles)) == len(titles) >= 16


def test_the_demo_shows_each_kind_of_request() -> None:
    requests = [RouteRequest.of(line) for line in demo_requests()]
    traces = [read_trace(request) for request in requests]
    assert any(trace.images for trace in traces)
    assert any(trace.pdfs for trace in traces)
    assert any(trace.failed_tool_calls for trace in traces)
    assert any(trace.input_tokens > 6_000 and trace.user_text == "what is 2+2" for trace in traces)
    assert any(request.local_only for request in requests)
    assert any(request.pin for request in requests)
    assert any(request.budget_usd for request in requests)
    assert any(request.failure_cost_usd and request.supervised is False for request in requests)
    assert any(request.metadata.get("repeat_to_tokens", 0) > 600_000 for request in requests)
