"""What an artifact ships: simpler policies as arrays, who beats whom, worlds with known truth, the command."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from router_ml.artifact import read_manifest
from router_ml.classifier import SuccessClassifier
from router_ml.router import Router
from training.cost_quality import PairedDifference
from training.cross_validation import cross_validate
from training.fitting import default_encoder, fit, represent_table, success_rates, train_router
from training.judging import Judged
from training.outcome_table import OutcomeTable, write_table
from training.shipped_quality import Nested, nested_choice, shipped_rows
from training.shipping import Difference, choose_policy, compare_policies, simpler_policies
from training.simpler import BASE_RATES, PER_TASK_TABLE, ROUTER, SuccessRates
from training.simulate import World
from training.train import main


def shuffled(table: OutcomeTable, *, within_tasks: bool, seed: int = 0) -> OutcomeTable:
    """The same outcomes with prompts that say nothing of them, or nothing beyond the task."""
    rng = np.random.default_rng(seed)
    order, tasks = np.arange(table.n_requests), np.array(table.task)
    for task in sorted(set(table.task)) if within_tasks else [None]:
        members = np.flatnonzero(tasks == task) if within_tasks else order.copy()
        order[members] = rng.permutation(members)
    prompts, task = [table.prompts[i] for i in order], [table.task[i] for i in order]
    return dataclasses.replace(table, prompts=prompts, task=task)


def ships(table: OutcomeTable) -> str:
    return choose_policy(simpler_policies(cross_validate(table, default_encoder()))).policy


@pytest.fixture(scope="module")
def table() -> OutcomeTable:
    return World(7).sample(400).table


@pytest.fixture(scope="module")
def judged(table: OutcomeTable) -> Judged:
    return cross_validate(table, default_encoder())


# -- the policies as arrays


@pytest.mark.parametrize("policy", [BASE_RATES, PER_TASK_TABLE])
def test_the_arrays_predict_the_rates_whatever_the_text_says(table: OutcomeTable, policy: str) -> None:
    representation = represent_table(table, default_encoder())
    fitted = fit(representation, table.dense("score"), table.dense("cost_usd"), table.task, table.group)
    full, rates = fitted.classifier(), SuccessRates.fit(table.dense("score"), table.task)
    simple = SuccessClassifier.from_arrays(rates.replace_in(full, policy).to_arrays())
    tasks = [*table.task[:50], None, "never seen"]
    part = representation.select(np.arange(52))
    p, cost, novelty = simple.predict(*part, tasks)
    np.testing.assert_allclose(p, rates.predict(policy, tasks), atol=1e-12)
    np.testing.assert_array_equal(p[-2], p[-1])
    for before, after in zip(full.predict(*part, tasks)[1:], (cost, novelty), strict=True):
        np.testing.assert_array_equal(before, after)
    one = simple.predict_one(part.features[3], part.embedding[3], tasks[3])
    np.testing.assert_allclose(one[0], p[3], atol=1e-12)
    kept = simple.select([2, 0])
    np.testing.assert_allclose(kept.predict(*part, tasks)[0], p[:, [2, 0]], atol=1e-12)


def test_rates_are_means_shrunk_by_five_outcomes_and_kept_off_certainty() -> None:
    success = np.array([[1.0, 1.0], [1.0, np.nan], [1.0, 0.0], [1.0, 0.0]])
    rates = SuccessRates.fit(success, ["a", "a", "b", None])
    np.testing.assert_allclose(rates.base, [0.99, 1 / 3])
    np.testing.assert_allclose(rates.by_task[:, 1], [(1 + 5 / 3) / 6, (0 + 5 / 3) / 6])
    np.testing.assert_allclose(rates.predict(BASE_RATES, ["a", "c"]), [rates.base] * 2)


# -- who beats whom


def test_equal_policies_do_not_beat_each_other_and_the_simplest_is_shipped(judged: Judged) -> None:
    found = choose_policy(dict.fromkeys((BASE_RATES, PER_TASK_TABLE, ROUTER), judged))
    assert found.policy == BASE_RATES
    assert not any(difference.beats for difference in found.differences.values())
    assert found.why.startswith("the table of base rates is not beaten by the per-task table (Brier score +0.0000")


def test_the_brier_difference_and_its_error_are_those_of_group_means(judged: Judged) -> None:
    other = dataclasses.replace(judged, p=np.full_like(judged.p, 0.5))
    found = compare_policies(judged, other, n_boot=5)
    gain = (judged.p - judged.success) ** 2 - 0.25
    assert found.brier == pytest.approx(gain.mean())
    groups = [np.flatnonzero(judged.group == g) for g in np.unique(judged.group)]
    rng = np.random.default_rng(0)
    means = []
    for _ in range(2_000):
        rows = np.concatenate([groups[i] for i in rng.integers(0, len(groups), len(groups))])
        means.append(gain[rows].mean())
    assert found.error == pytest.approx(np.std(means), rel=0.08)


def test_better_probabilities_that_route_worse_do_not_beat(judged: Judged) -> None:
    policies = simpler_policies(judged)
    # the likeliest model is taken for the least likely one, though the probabilities on the whole are good
    oracle = dataclasses.replace(judged, p=np.clip(judged.success, 0.05, 0.95))
    assert compare_policies(oracle, policies[BASE_RATES]).beats
    flipped = np.where(judged.success > 0.5, 0.60, 0.61)
    worse = dataclasses.replace(judged, p=flipped, c=np.ones_like(judged.c))
    found = compare_policies(worse, dataclasses.replace(worse, p=np.full_like(flipped, 0.99)))
    assert found.brier < 0 and found.area is not None and found.area.difference < 0 and not found.beats


def test_the_area_leaves_out_requests_of_several_calls_where_one_call_is_what_was_predicted(judged: Judged) -> None:
    other = dataclasses.replace(judged, p=np.full_like(judged.p, 0.5))
    several = np.zeros_like(judged.score, dtype=bool)
    several[:50, 0] = True
    found = []
    for factor in (1.0, 1000.0):  # an agent's run may cost any number of calls
        cost = np.where(several.any(axis=1)[:, None], factor * judged.cost, judged.cost)
        pair = [dataclasses.replace(one, cost=cost, several_calls=several) for one in (judged, other)]
        found.append(compare_policies(*pair, n_boot=5))
    assert found[0] == found[1] and found[0].n == 400
    assert found[0].area is not None and found[0].area.n == 350 and str(found[0]).endswith(" of 350, n = 400")


def difference(brier: float, area: float) -> Difference:
    return Difference(brier, 0.001, 100, PairedDifference(area, area - 0.1, area + 0.1, 0.5, 10, 100))


@pytest.mark.parametrize(
    ("router_over_base", "policy", "why"),
    [
        (-0.01, ROUTER, "the router beats the table of base rates"),
        (-0.001, BASE_RATES, "the table of base rates is not beaten by the router"),
    ],
)
def test_in_place_of_a_table_that_routes_worse_than_base_rates_the_router_ships_only_if_it_beats_those(
    judged: Judged, monkeypatch: pytest.MonkeyPatch, router_over_base: float, policy: str, why: str
) -> None:
    table, router = (dataclasses.replace(judged, p=judged.p.copy()) for _ in range(2))
    found = {
        (id(table), id(judged)): difference(-0.01, -0.02), (id(router), id(table)): difference(0.0, 0.01),
        (id(router), id(judged)): difference(router_over_base, 0.0),
    }  # fmt: skip
    monkeypatch.setattr("training.shipping.compare_policies", lambda a, b, **_: found[id(a), id(b)])
    shipped = choose_policy({BASE_RATES: judged, PER_TASK_TABLE: table, ROUTER: router})
    assert shipped.policy == policy and shipped.why.startswith(why)
    assert "which it does not beat, routes worse than the base rates (Brier score -0.0100" in shipped.why


def test_better_probabilities_that_choose_alike_beat(judged: Judged) -> None:
    # half of each probability at twice the price of a failure is the same choice
    found = compare_policies(judged, dataclasses.replace(judged, p=judged.p / 2))
    assert found.area is not None and found.area.difference == 0.0 and found.area.p_a_le_b == 1.0
    assert found.brier < 0 and found.beats


def test_an_area_of_a_few_requests_does_not_count(judged: Judged) -> None:
    def tried_in_full(n: int) -> Judged:
        keep = np.isin(judged.group, np.unique(judged.group)[:n])
        few = np.where(keep[:, None] | (np.arange(judged.score.shape[1]) == 0), judged.score, np.nan)
        return dataclasses.replace(judged, score=few)

    for n, compared in ((19, False), (20, True)):
        few = tried_in_full(n)
        found = compare_policies(few, dataclasses.replace(few, p=np.full_like(few.p, 0.5)), n_boot=5)
        assert (found.area is not None) == compared
    assert found.area is not None and str(found).endswith(f" of {found.area.n}, n = {len(judged.group)}")


def test_without_prices_the_brier_score_alone_decides(table: OutcomeTable) -> None:
    free = dataclasses.replace(table, cost_usd=np.full(table.n_rows, np.nan))
    found = choose_policy(simpler_policies(cross_validate(free, default_encoder())))
    assert found.policy == ROUTER and all(difference.area is None for difference in found.differences.values())
    assert "area" not in found.why and json.dumps(found.to_dict(), allow_nan=False)


def test_without_tasks_there_is_no_table(table: OutcomeTable) -> None:
    bare = dataclasses.replace(table, task=[None] * table.n_requests)
    assert list(simpler_policies(cross_validate(bare, default_encoder(), n_folds=2))) == [BASE_RATES, ROUTER]


# -- worlds with known truth


def test_where_texts_say_nothing_the_base_rates_are_shipped() -> None:
    assert [ships(shuffled(World(seed).sample(300).table, within_tasks=False)) for seed in range(3)] == [BASE_RATES] * 3


def test_where_only_the_task_matters_the_table_is_shipped() -> None:
    assert ships(shuffled(World(1).sample(800).table, within_tasks=True)) == PER_TASK_TABLE


def test_where_texts_tell_the_router_is_shipped() -> None:
    assert [ships(World(seed).sample(600).table) for seed in range(2)] == [ROUTER] * 2


# -- the command and the quality table


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("noise") / "noise.csv"
    write_table(shuffled(World(1).sample(150).table, within_tasks=False), path)
    return path


def test_train_ships_the_simpler_policy_and_says_so(
    noise: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--outcomes", str(noise), "--out", str(tmp_path / "a"), "--no-tracking", "--json"]) == 0
    said, manifest = json.loads(capsys.readouterr().out), read_manifest(tmp_path / "a")
    shipped: dict[str, Any] = manifest["shipped"]
    assert shipped["policy"] == BASE_RATES and said["shipped"] == shipped
    brier = shipped["differences"]["router_minus_base_rates"]["brier"]
    assert brier["low"] <= brier["difference"] <= brier["high"] and brier["n"] == 150
    assert set(shipped["differences"]["router_minus_base_rates"]["area"]) == {"difference", "low", "high", "n"}
    router = Router.load(tmp_path / "a")
    p = router.predict_proba(["What is 2+2?", {"prompt": "Translate this.", "task": "translate"}])
    np.testing.assert_array_equal(p[0], p[1])
    assert "P(success) is that of the table of base rates" in router.predict("What is 2+2?").evidence.note
    assert manifest["router_version"].endswith(".base-rates") and "estimator.skops" in manifest["digests"]


def test_the_full_router_can_be_asked_for(noise: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--no-tracking", "--ship", "router"]
    assert main(["--outcomes", str(noise), "--out", str(tmp_path / "a"), *flags]) == 0
    assert "ships: router; asked for, although the table of base rates is not beaten" in capsys.readouterr().out
    assert read_manifest(tmp_path / "a")["shipped"]["policy"] == ROUTER


def test_a_router_trained_in_code_ships_the_router(table: OutcomeTable, tmp_path: Path) -> None:
    router = train_router(table, tmp_path / "a")
    assert "shipped" not in router.manifest
    rates = success_rates(table, router.pool)
    simple = router.with_classifier(rates.replace_in(router.classifier, BASE_RATES))
    np.testing.assert_allclose(simple.predict_proba(["a", "b"]), [rates.base] * 2)


def test_the_quality_table_judges_what_would_be_shipped_on_rows_that_did_not_choose_it(table: OutcomeTable) -> None:
    judged = cross_validate(table, default_encoder())
    nested = nested_choice(table, judged, default_encoder())
    assert len(nested.dependence) == 5
    rows = list(shipped_rows("t", nested, judged, n_boot=20))
    assert [row.what.rpartition("lead over ")[2] for row in rows] == [
        "the random mixture", "the table of base rates", "the per-task table",
    ]  # fmt: skip
    for row in rows:
        assert row.high is not None and row.reached == (row.high >= 0)
        counts = [int(part.rpartition(" ")[2]) for part in row.note.partition("ship: ")[2].split(", ")]
        assert sum(counts) == 5


def test_a_table_without_prices_has_no_lines(table: OutcomeTable) -> None:
    free = dataclasses.replace(table, cost_usd=np.full(table.n_rows, np.nan))
    judged = cross_validate(free, default_encoder())
    assert list(shipped_rows("t", Nested(judged, Counter(), []), judged)) == []


def test_without_a_task_the_table_is_the_base_rates() -> None:
    rates = SuccessRates.fit(np.array([[1.0], [0.0]]), [None, None])
    assert rates.tasks == () and rates.predict(PER_TASK_TABLE, ["a"]) == [[0.5]]
