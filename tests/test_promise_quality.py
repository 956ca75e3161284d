"""How often promises are kept over random draws: the figures of make quality."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from training import promise_quality
from training.cross_validation import cross_validate
from training.fitting import default_encoder
from training.judging import Judged
from training.promise_quality import Draws, draws_of, promise_rows
from training.promises import Target
from training.simulate import World


@pytest.fixture(scope="module")
def judged() -> Judged:
    return cross_validate(World(7).sample(700).table, default_encoder())


@pytest.fixture(scope="module")
def draws(judged: Judged) -> Draws:
    found = draws_of(judged, Target(0.9, 0.9), n_draws=60)
    assert found is not None
    return found


def test_promises_are_kept_on_rows_that_chose_nothing(draws: Draws) -> None:
    assert draws.kept.shape == draws.cost.shape == (60,)
    assert draws.kept.mean() >= 0.8 and draws.kept_on_all.mean() >= 0.9
    assert draws.promised.mean() > 0.9


def test_hindsight_is_never_dearer_than_a_promise_that_was_kept(draws: Draws) -> None:
    assert (draws.cost >= draws.hindsight - 1e-12)[draws.kept].all()
    assert (draws.ratio_on_all >= 1.0 - 1e-12)[draws.kept_on_all].all()
    assert (draws.hindsight < draws.escalated_cost).mean() > 0.9


def test_the_same_seed_draws_the_same(judged: Judged, draws: Draws) -> None:
    again = draws_of(judged, Target(0.9, 0.9), n_draws=60)
    other = draws_of(judged, Target(0.9, 0.9), n_draws=60, seed=1)
    assert again is not None and other is not None
    np.testing.assert_array_equal(again.cost, draws.cost)
    assert not np.array_equal(other.cost, draws.cost)


def test_rows_have_verdicts_on_the_tables_with_targets_only(judged: Judged, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = list(promise_rows("another", judged, n_draws=10))
    assert [row.reached for row in plain] == [None, None]
    kept, ratio = promise_rows("routerbench", judged, n_draws=10)
    assert kept.value is not None and kept.reached == (kept.value >= 0.9)
    monkeypatch.setattr(promise_quality, "MAX_RATIO", 0.5)
    kept, ratio = promise_rows("routerbench", judged, n_draws=10)
    assert ratio.reached is False and ratio.target == "<= 0.500"


def test_a_table_that_cannot_be_priced_has_no_rows(judged: Judged) -> None:
    free = dataclasses.replace(judged, cost=np.full(judged.cost.shape, np.nan))
    assert list(promise_rows("routerbench", free)) == []
