"""Predictions for held-out rows: nothing leaks, groups stay together, large tables are sampled."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from router_ml.errors import TableError
from training import cross_validation
from training.cross_validation import cross_validate, judge_held_out
from training.fitting import default_encoder, pool_from_table
from training.metrics import mean_auc
from training.outcome_table import OutcomeTable
from training.simulate import World


@pytest.fixture(scope="module")
def table() -> OutcomeTable:
    return World(7).sample(200).table


def test_every_request_is_predicted_once_and_groups_are_not_divided(table: OutcomeTable) -> None:
    judged = cross_validate(table, default_encoder())
    assert judged.fold is not None
    assert ((judged.p > 0) & (judged.p < 1)).all() and (judged.c > 0).all()
    for group in np.unique(judged.group):
        assert len(set(judged.fold[judged.group == group].tolist())) == 1
    assert mean_auc(judged.success, judged.p, fold=judged.fold).value > 0.6


def test_outcomes_of_a_fold_do_not_reach_its_own_predictions(table: OutcomeTable) -> None:
    before = cross_validate(table, default_encoder())
    assert before.fold is not None
    held_out = before.fold[table.request] == 0
    flipped = dataclasses.replace(table, score=np.where(held_out, 1.0 - table.score, table.score))
    after = cross_validate(flipped, default_encoder())
    rows = before.fold == 0
    np.testing.assert_array_equal(after.p[rows], before.p[rows])
    assert np.abs(after.p[~rows] - before.p[~rows]).max() > 0.01


def test_a_table_without_costs_is_cross_validated_too(table: OutcomeTable) -> None:
    free = dataclasses.replace(table, cost_usd=np.full(table.n_rows, np.nan))
    judged = cross_validate(free, default_encoder(), n_folds=2)
    assert np.isfinite(judged.c).all() and np.isnan(judged.cost).all()


def test_small_tables_are_held_out_fold_by_fold(table: OutcomeTable) -> None:
    policies, how = judge_held_out(table, pool=pool_from_table(table), encoder=default_encoder())
    judged = policies["router"]
    assert len(judged.p) == 200 and "5-fold" in how and judged.chosen is not None
    groups = [set(judged.group[judged.fold == fold].tolist()) for fold in range(5)]
    assert sum(map(len, groups)) >= 5


def test_simpler_policies_are_judged_on_the_same_rows_and_see_no_text(table: OutcomeTable) -> None:
    policies, _ = judge_held_out(table, pool=pool_from_table(table), encoder=default_encoder())
    assert list(policies) == ["base_rates", "per_task_table", "router"]
    base, by_task, router = policies.values()
    np.testing.assert_array_equal(base.success, router.success)
    np.testing.assert_array_equal(by_task.c, router.c)
    assert all(len(np.unique(base.p[base.fold == fold], axis=0)) == 1 for fold in range(5))
    for fold in range(5):
        rows = np.flatnonzero(by_task.fold == fold)
        assert len(np.unique(by_task.p[rows], axis=0)) == len({by_task.requests.tasks[i] for i in rows.tolist()})


def test_of_a_large_table_one_fold_of_a_sample_is_held_out(
    table: OutcomeTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_validation, "CROSS_VALIDATED", 50)
    monkeypatch.setattr(cross_validation, "JUDGED_SAMPLE", 120)
    policies, how = judge_held_out(table, pool=pool_from_table(table), encoder=default_encoder())
    judged = policies["router"]
    assert 10 <= len(judged.p) <= 30 and judged.fold is None
    assert how.startswith("one fold of 5 held out") and how.endswith("a sample of 200")


def test_a_table_too_small_to_hold_anything_out_is_refused(table: OutcomeTable) -> None:
    one_session = dataclasses.replace(table, group=["same"] * table.n_requests)
    with pytest.raises(TableError, match=r"1 independent requests \(groups\); expected at least 10"):
        judge_held_out(one_session, pool=pool_from_table(table), encoder=default_encoder())
