"""Promises: kept as often as they say, about what the router itself decides, on requests that it was not fitted on."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_ml import artifact
from router_ml.artifact import read_manifest
from router_ml.errors import ArtifactError, TableError
from router_ml.failure_cost import FailureCost
from router_ml.pool import ModelPool, ModelSpec, Rule
from router_ml.request import ABILITIES
from router_ml.router import Router
from training import promises
from training.cost_quality import cheapest_likely
from training.evaluation import evaluate_router
from training.fitting import default_encoder, fit, pool_from_table, represent_table, train_router
from training.judging import judge_router
from training.outcome_table import OutcomeTable, write_table
from training.promises import (
    THRESHOLDS,
    Settings,
    Target,
    calibrate,
    group_cap,
    kept_apart,
    make_promise,
    promise_lines,
    settings_of,
)
from training.simulate import DEFAULT_MODELS, World
from training.train import _training_run, main, train


@pytest.fixture(scope="module")
def table() -> OutcomeTable:
    return World(7).sample(900).table


@pytest.fixture(scope="module")
def rest_and_kept(table: OutcomeTable) -> tuple[OutcomeTable, OutcomeTable]:
    return kept_apart(table, seed=0)


@pytest.fixture(scope="module")
def router(rest_and_kept: tuple[OutcomeTable, OutcomeTable], tmp_path_factory: pytest.TempPathFactory) -> Router:
    return train_router(rest_and_kept[0], tmp_path_factory.mktemp("promised") / "router")


# The statistics, against a world whose truth is known


def picks(score: Sequence[Sequence[float]]) -> Settings:
    """Settings that call each model of a table of scores in turn; the first is the escalation model."""
    values = np.array(score, dtype=float)
    m = values.shape[1]
    choices = np.repeat(np.arange(m)[:, None], len(values), axis=1)
    return settings_of(choices, np.linspace(1.0, 0.0, m), values, np.ones_like(values), 0, 0.95)


def test_in_a_simulated_world_promises_are_broken_no_more_often_than_they_say_and_not_for_lack_of_trying() -> None:
    world, target, n_groups, n_draws = World(1), Target(0.9, 0.8), 250, 100
    past, population = world.sample(500, seed=1).table, world.sample(2500, seed=2)
    future, encoder = population.table, default_encoder()
    fitted = fit(
        represent_table(past, encoder), past.dense("score"), past.dense("cost_usd"), past.task, past.group
    )  # fmt: skip
    p, c = fitted.predict(represent_table(future, encoder), future.task)
    escalation = int(np.argmax(population.p_success.mean(axis=0)))
    choices = np.stack([cheapest_likely(p, c, t, np.full(len(p), escalation)) for t in THRESHOLDS])
    fresh = np.concatenate([[True], (choices[1:] != choices[:-1]).any(axis=1)])
    choices, threshold, cost = choices[fresh], THRESHOLDS[fresh], future.dense("cost_usd")
    truth = settings_of(choices, threshold, population.p_success, cost, escalation, target.quality)
    true_gain, true_cost = truth.gain.mean(axis=0), truth.cost.mean(axis=0)
    members = [np.flatnonzero(future.group_codes == g) for g in range(int(future.group_codes.max()) + 1)]
    rng, broken, careless, ratio = np.random.default_rng(0), [], [], []
    for draw in range(n_draws):
        drawn = [members[g] for g in rng.integers(0, len(members), n_groups)]
        rows, group = np.concatenate(drawn), np.repeat(np.arange(n_groups), [len(one) for one in drawn])
        score = (rng.random((len(rows), p.shape[1])) < population.p_success[rows]).astype(float)
        earned = score[np.arange(len(rows)), choices[:, rows]].T
        found = Settings(threshold, earned - target.quality * score[:, [escalation]], earned, earned)
        chosen = calibrate(found, group, target, 0.2, group_cap(future.group_codes), draw)
        broken.append(true_gain[chosen] < 0)
        careless.append(true_gain[np.flatnonzero(found.gain.mean(axis=0) >= 0)[-1]] < 0)
        ratio.append(true_cost[chosen] / true_cost[true_gain >= 0].min())
    assert np.mean(broken) <= 0.2 + 3 * math.sqrt(0.2 * 0.8 / n_draws)
    assert np.mean(careless) > 0.35  # what just looks good on the rows is no promise
    assert np.median(ratio) < 1.2 < true_cost[0] / true_cost[true_gain >= 0].min()


def test_thresholds_that_choose_alike_are_tried_once_and_the_strictest_stands_for_them() -> None:
    choices = np.array([[0, 0], [0, 0], [0, 1], [0, 1]])
    score = np.array([[1.0, 0.0], [1.0, 0.5]])
    found = settings_of(choices, np.array([1.0, 0.9, 0.8, 0.7]), score, 10 * score, 0, 0.5)
    assert found.threshold.tolist() == [1.0, 0.8]
    assert found.gain.tolist() == [[0.5, 0.5], [0.5, 0.0]]
    assert found.cost.tolist() == [[10.0, 10.0], [10.0, 5.0]]


def test_the_cheapest_setting_before_the_first_that_fails_is_taken() -> None:
    n = 400
    settings = picks([[1.0, 1.0, 0.0, 1.0]] * n)  # the third would always fail, and what follows it is not tried
    assert calibrate(settings, np.arange(n), Target(0.95), 0.1, 1, 0) == 1


def test_a_few_rows_show_nothing() -> None:
    settings = picks([[1.0, 1.0]] * 20)
    assert calibrate(settings, np.arange(20), Target(0.95), 0.1, 1, 0) == 0


def test_rows_of_one_group_are_one_piece_of_evidence() -> None:
    settings = picks([[1.0, 1.0]] * 400)
    group = np.repeat(np.arange(20), 20)
    assert calibrate(settings, np.arange(400), Target(0.95), 0.1, 1, 0) == 1
    assert calibrate(settings, group, Target(0.95), 0.1, group_cap(group), 0) == 0


@given(st.lists(st.integers(1, 30), min_size=1, max_size=30))
def test_nearly_all_requests_count_in_full_under_the_cap(sizes: list[int]) -> None:
    group = np.repeat(np.arange(len(sizes)), sizes)
    cap = group_cap(group)
    assert sum(min(size, cap) for size in sizes) >= 0.95 * sum(sizes)
    assert cap == 1 or sum(min(size, cap - 1) for size in sizes) < 0.95 * sum(sizes)


@pytest.mark.parametrize("values", [(0.0, 0.9), (1.1, 0.9), (0.9, 1.0), (0.9, 0.0), (math.nan, 0.9)])
def test_a_target_out_of_range_is_refused(values: tuple[float, float]) -> None:
    with pytest.raises(TableError, match="expected in"):
        Target(*values)


# What it is promised of


def test_groups_are_kept_whole_and_apart(table: OutcomeTable) -> None:
    rest, kept = kept_apart(table, seed=3)
    assert not set(rest.group) & set(kept.group)
    assert rest.n_requests + kept.n_requests == table.n_requests
    assert len(set(kept.group)) == round(0.3 * len(set(table.group)))
    assert set(kept.request_ids) != set(kept_apart(table, seed=4)[1].request_ids)


@pytest.mark.parametrize("threshold", [1.0, 0.85, 0.7, 0.5, 0.0])
def test_each_threshold_is_judged_by_what_the_router_would_call_with_it(
    router: Router, rest_and_kept: tuple[OutcomeTable, OutcomeTable], threshold: float
) -> None:
    kept = rest_and_kept[1].select_requests(np.arange(80))
    tasks = sorted({task for task in kept.task if task})
    rules = {
        tasks[0]: Rule(pin="acme/medium"), tasks[1]: Rule(failure_cost_usd=0.01), tasks[2]: Rule(deny=("acme/small",)),
        tasks[3]: Rule(confidence_threshold=0.3),
    }  # fmt: skip
    ruled = router.with_pool(dataclasses.replace(router.pool, tasks=rules, max_switch_usd=1.0))
    pools = [dataclasses.replace(ruled.pool, confidence_threshold=t) for t in (0.0, 1.0, threshold)]
    low, high, wanted = (judge_router(router.with_pool(pool), kept, router.models) for pool in pools)
    choices = promises._choices(low, high)
    assert wanted.chosen is not None
    row = int(np.flatnonzero(threshold == THRESHOLDS)[0])
    np.testing.assert_array_equal(choices[row], wanted.chosen)


def test_the_pool_gets_the_threshold_and_the_manifest_what_it_is_worth(
    router: Router, rest_and_kept: tuple[OutcomeTable, OutcomeTable]
) -> None:
    kept = rest_and_kept[1]
    pool, promise = make_promise(router, kept, Target(0.9), cap=2)
    assert promise["promised"] and promise["threshold"] == pool.confidence_threshold < 1.0
    assert dataclasses.replace(pool, confidence_threshold=router.pool.confidence_threshold) == router.pool
    assert promise["n_requests"] == kept.n_requests and promise["n_groups"] == len(set(kept.group))
    judged = judge_router(router.with_pool(pool), kept)
    assert judged.chosen is not None
    rows = np.arange(kept.n_requests)
    escalation = judged.models.index(router.pool.escalation_model)
    assert promise["quality"] == pytest.approx(judged.score[rows, judged.chosen].mean())
    assert promise["cost_usd"] == pytest.approx(judged.cost[rows, judged.chosen].mean())
    assert promise["escalation_quality"] == pytest.approx(judged.score[:, escalation].mean())
    assert promise["escalated_cost_usd"] == pytest.approx(judged.cost[:, escalation].mean())
    assert promise["quality"] >= 0.9 * promise["escalation_quality"]
    json.dumps(promise, allow_nan=False)


def test_without_a_threshold_to_promise_everything_escalates_and_the_reason_says_why(
    router: Router, rest_and_kept: tuple[OutcomeTable, OutcomeTable]
) -> None:
    few = rest_and_kept[1].select_requests(np.arange(30))
    pool, promise = make_promise(router, few, Target(0.99), cap=2)
    assert not promise["promised"] and pool.confidence_threshold == promise["threshold"] == 1.0
    assert promise["quality"] == promise["escalation_quality"]
    assert "no threshold could be shown to keep it on 30 requests in" in promise["reason"]
    assert "about" in promise["reason"] or "would not help" in promise["reason"]
    assert router.with_pool(pool).predict("What is 2+2?").model == pool.escalation_model


def test_what_a_rule_decides_is_not_said_to_escalate(
    router: Router, rest_and_kept: tuple[OutcomeTable, OutcomeTable]
) -> None:
    prices = (FailureCost(usd=0.0),)  # a failure costs nothing, so the cheapest model is called, whatever the threshold
    careless = router.with_pool(dataclasses.replace(router.pool, failure_costs=prices))
    _, promise = make_promise(careless, rest_and_kept[1], Target(0.9), cap=2)
    assert not promise["promised"] and promise["quality"] < promise["escalation_quality"]
    assert "everything that no rule of the pool decides escalates" in promise["reason"]
    with pytest.raises(TableError, match="a threshold of a task overrides failure_costs"):
        make_promise(careless, rest_and_kept[1], Target(0.9, by_task=True), cap=2)


def test_more_rows_are_not_asked_for_where_they_would_not_help(
    router: Router, rest_and_kept: tuple[OutcomeTable, OutcomeTable]
) -> None:
    kept = rest_and_kept[1]
    column = kept.models.index(router.pool.escalation_model)
    perfect = dataclasses.replace(kept, score=(kept.model == column).astype(float))  # nobody else ever succeeds
    _, promise = make_promise(router, perfect, Target(1.0), cap=2)
    assert not promise["promised"] and promise["reason"].endswith("more rows alone would not help")


def test_exploration_does_not_disturb_a_promise(
    router: Router, rest_and_kept: tuple[OutcomeTable, OutcomeTable]
) -> None:
    exploring = router.with_pool(dataclasses.replace(router.pool, exploration=0.5))
    pool, promise = make_promise(exploring, rest_and_kept[1], Target(0.9), cap=2)
    assert promise == make_promise(router, rest_and_kept[1], Target(0.9), cap=2)[1]
    assert pool.exploration == 0.5


def test_by_task_each_task_gets_a_threshold_at_its_share_of_the_level(
    router: Router, rest_and_kept: tuple[OutcomeTable, OutcomeTable]
) -> None:
    kept = rest_and_kept[1]
    two = dataclasses.replace(kept, task=["even" if i % 2 else None for i in range(kept.n_requests)])
    ruled = router.with_pool(dataclasses.replace(router.pool, tasks={"even": Rule(deny=("other/max",))}))
    pool, promise = make_promise(ruled, two, Target(0.85, 0.8, by_task=True), cap=2)
    assert promise["level"] == promise["by_task"]["even"]["level"] == pytest.approx(0.1)
    assert pool.confidence_threshold == promise["threshold"]
    assert pool.tasks["even"] == Rule(deny=("other/max",), confidence_threshold=promise["by_task"]["even"]["threshold"])
    assert promise["n_requests"] + promise["by_task"]["even"]["n_requests"] == kept.n_requests
    assert promise["promised"] and len(promise_lines(promise)) == 2
    all_named = dataclasses.replace(kept, task=["one"] * kept.n_requests)
    pool, promise = make_promise(router, all_named, Target(0.85, by_task=True), cap=2)
    assert pool.confidence_threshold == 1.0 and pool.tasks["one"].confidence_threshold < 1.0
    assert "escalate" in promise["reason"] and promise["n_requests"] == 0


def test_a_table_that_cannot_say_what_others_would_have_done_is_refused(
    router: Router, rest_and_kept: tuple[OutcomeTable, OutcomeTable]
) -> None:
    sparse = World(7).sample(200, models_per_request=2, seed=5).table
    with pytest.raises(TableError, match=r"0 of the 200 requests .* cannot say what another model would have done"):
        make_promise(router, sparse, Target(0.9), cap=2)
    kept = rest_and_kept[1]
    other = dataclasses.replace(kept, models=("acme/huge", *kept.models[1:]))
    with pytest.raises(TableError, match=r"it has no outcome of \['acme/large'\]"):
        make_promise(router, other, Target(0.9), cap=2)
    with pytest.raises(TableError, match=r"20 independent requests .*expected at least 10"):
        kept_apart(dataclasses.replace(sparse, group=[str(i % 20) for i in range(200)]), 0)


def test_a_table_of_which_the_guards_refuse_all_is_refused(
    router: Router, rest_and_kept: tuple[OutcomeTable, OutcomeTable]
) -> None:
    tasks = {task: Rule(require=frozenset({"video"})) for task in rest_and_kept[1].task if task}
    specs = tuple(dataclasses.replace(spec, abilities=frozenset()) for spec in router.pool.models)
    blind = router.with_pool(dataclasses.replace(router.pool, models=specs, tasks=tasks))
    with pytest.raises(TableError, match="the router's guards refuse all"):
        make_promise(blind, rest_and_kept[1], Target(0.9), cap=2)


def test_requests_on_which_a_model_is_missing_are_left_out_and_counted(
    router: Router, rest_and_kept: tuple[OutcomeTable, OutcomeTable]
) -> None:
    kept = rest_and_kept[1]
    gaps = kept.n_requests // 5
    whole = np.flatnonzero((kept.request >= gaps) | (kept.model > 0))
    columns = {
        name: getattr(kept, name)[whole]
        for name in (field.name for field in dataclasses.fields(OutcomeTable))
        if isinstance(getattr(kept, name), np.ndarray)
    }
    _, promise = make_promise(router, dataclasses.replace(kept, **columns), Target(0.9), cap=2)
    assert promise["n_left_out"] == gaps and promise["n_requests"] == kept.n_requests - gaps


# The command


def test_the_router_that_is_saved_is_the_one_that_was_judged_and_saw_none_of_the_kept_rows(
    table: OutcomeTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.train.RESAMPLES", 5)
    few = table.select_requests(np.arange(200))
    rest, kept = kept_apart(few, 0)
    encoder = default_encoder()
    router = train_router(rest, tmp_path / "before", pool=pool_from_table(rest), encoder=encoder)
    evaluation, saved = train(few, tmp_path / "a", pool=None, encoder=encoder, target=Target(0.8))
    promise = saved.manifest["promise"]
    wanted = make_promise(router, kept, Target(0.8), cap=promise["group_cap"])[1]
    assert promise == {**wanted, "table_fingerprint": few.fingerprint()}
    assert saved.manifest["training"]["data_fingerprint"] == rest.fingerprint()
    assert saved.pool == dataclasses.replace(router.pool, confidence_threshold=promise["threshold"])
    asked = ["What is 2+2?", "Prove that there are infinitely many primes."]
    np.testing.assert_array_equal(saved.predict_proba(asked), router.predict_proba(asked))
    run = _training_run(saved, evaluation, tmp_path / "a", tmp_path, ["t"])
    assert run.params["target_quality"] == 0.8 and run.params["promised"] == promise["promised"]
    assert run.metrics["promise_threshold"] == promise["threshold"]
    assert run.metrics["promise_quality"] == promise["quality"]
    for seen in (few, rest):  # the threshold was chosen on what the router was not fitted on
        assert evaluate_router(saved, seen, n_boot=5).to_dict()["trained_on_this_table"] is True
    _, other = train(few, tmp_path / "b", pool=None, encoder=encoder, target=Target(0.7))
    assert saved.manifest["training"]["data_fingerprint"] == other.manifest["training"]["data_fingerprint"]
    assert saved.manifest["router_version"] != other.manifest["router_version"]  # a log must tell the two apart


def test_token_factors_are_the_tables_also_where_something_is_promised(
    table: OutcomeTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.train.RESAMPLES", 5)
    specs = tuple(
        ModelSpec(model.name, model.input_usd_per_mtok, model.output_usd_per_mtok, abilities=ABILITIES)
        for model in DEFAULT_MODELS
    )
    few = table.select_requests(np.arange(200))
    more = dataclasses.replace(few, input_tokens=few.input_tokens * 1.25, turns=np.ones(few.n_rows))
    pool = ModelPool(specs, escalation_model="acme/large")
    _, saved = train(more, tmp_path / "a", pool=pool, encoder=default_encoder(), target=Target(0.8))
    assert {spec.token_factor for spec in saved.pool.models} == {1.25}
    notes = saved.manifest["training"]["notes"]
    assert len(notes) == 5 and all("from the table" in note for note in notes)


def test_the_command_says_and_saves_what_is_promised(
    table: OutcomeTable, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.train.RESAMPLES", 5)
    outcomes, out = tmp_path / "outcomes.csv", tmp_path / "router"
    write_table(table.select_requests(np.arange(120)), outcomes)
    arguments = ["--outcomes", str(outcomes), "--out", str(out), "--no-tracking"]
    assert main([*arguments, "--target-quality", "0.8"]) == 0
    manifest, said = read_manifest(out), capsys.readouterr().out
    assert manifest["promise"]["confidence"] == 0.9
    assert f"promise of 80% of acme/large's quality (confidence 0.9): {manifest['promise']['reason']}" in said
    for wrong in (["--confidence", "0.9"], ["--promise-by-task"], ["--target-quality", "1.5"]):
        assert main([*arguments, *wrong]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "Error: target quality 1.5, expected in (0, 1]; confidence 0.9, in (0, 1)"
    sparse = tmp_path / "sparse.csv"
    write_table(World(7).sample(100, models_per_request=2).table, sparse)
    out = tmp_path / "none"
    assert main(["--outcomes", str(sparse), "--out", str(out), "--no-tracking", "--target-quality", "0.9"]) == 1
    assert "cannot say what another model would have done" in capsys.readouterr().err and not out.exists()


PROMISE = {
    "target_quality": 0.9, "confidence": 0.9, "threshold": 1.0, "escalation_model": "m", "promised": True, "reason": "",
}  # fmt: skip


@pytest.mark.parametrize(
    "promise",
    [
        None, [], {"target_quality": 0.9}, PROMISE | {"target_quality": "0.9"}, PROMISE | {"target_quality": math.nan},
        PROMISE | {"confidence": 1.5}, PROMISE | {"level": "x"}, PROMISE | {"reason": None}, PROMISE | {"by_task": []},
        PROMISE | {"by_task": {"math": 0.7}}, PROMISE | {"by_task": {"math": {"threshold": 0.7}}},
    ],
)  # fmt: skip
def test_an_artifact_with_a_promise_that_is_none_is_refused(router_path: Path, tmp_path: Path, promise: object) -> None:
    parts = artifact.load(router_path)
    artifact.save(
        tmp_path / "r", pool=ModelPool.from_dict(parts.pool.to_dict()), classifier=parts.classifier,
        encoder=parts.encoder, cost_unit="usd", router_version="x", extra={"promise": promise},
    )  # fmt: skip
    with pytest.raises(ArtifactError, match="promise"):
        read_manifest(tmp_path / "r")
