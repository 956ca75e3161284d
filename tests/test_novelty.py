"""How near requests lie to the training data: the scale, the flag's rate, what serving makes of both."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from router_ml.classifier import NOVELTY_QUANTILES, UNLIKE_RATE
from router_ml.errors import ArtifactError
from training.estimator import RequestMap
from training.fitting import Fitted, Representation, default_encoder, fit, represent_table
from training.novelty import conformal_quantiles, nearness, novelty_scale
from training.novelty_quality import flagged_shares, novelty_rows
from training.outcome_table import OutcomeTable
from training.simulate import World

PLACE = round(UNLIKE_RATE * (NOVELTY_QUANTILES - 1))


@pytest.fixture(scope="module")
def trained() -> tuple[Fitted, OutcomeTable]:
    table = World(3).sample(500).table
    representation = represent_table(table, default_encoder())
    return fit(representation, table.dense("score"), table.dense("cost_usd"), table.task, table.group), table


@pytest.fixture(scope="module")
def fresh() -> Representation:
    return represent_table(World(3).sample(600, seed=1).table, default_encoder())


def test_a_quantile_is_the_order_statistic_that_a_new_request_rarely_falls_below() -> None:
    found = conformal_quantiles(np.arange(1.0, 200.0)[::-1])  # n = 199: floor(i * 200 / 100) = 2 i
    np.testing.assert_array_equal(found, [0.0, *(2.0 * i for i in range(1, 100)), 199.0])


@pytest.mark.parametrize(("n", "some"), [(18, False), (19, True)])
def test_too_few_requests_flag_nothing(n: int, some: bool) -> None:
    limit = conformal_quantiles(np.linspace(0.5, 1.0, n))[PLACE]
    assert (limit > 0.0) == some


def test_over_many_draws_the_rate_is_kept() -> None:
    rng = np.random.default_rng(0)
    flagged = [rng.random() < conformal_quantiles(rng.random(59))[PLACE] for _ in range(4_000)]
    # 59 requests: floor(.05 * 60) / 60 = .05 exactly; three standard errors of 4,000 draws are .0103
    assert np.mean(flagged) == pytest.approx(0.05, abs=0.0104)


def test_requests_held_out_are_flagged_at_about_the_rate_and_training_rows_would_flatter(trained, fresh) -> None:
    fitted, _ = trained
    scale = fitted.novelty
    own = nearness(fitted.request_map, fitted.sample, scale.residual_weight)
    new = nearness(fitted.request_map, fresh.joined, scale.residual_weight)
    assert 0.015 <= (new < scale.quantiles[PLACE]).mean() <= 0.10  # 600 requests that hang together by session
    assert np.median(own) > np.median(new)


def test_the_classifier_ranks_as_training_measured(trained, fresh) -> None:
    fitted, _ = trained
    classifier = fitted.classifier()
    _, _, novelty = classifier.predict(*fresh, [None] * len(fresh.features))
    near = nearness(fitted.request_map, fresh.joined, fitted.novelty.residual_weight)
    limit = fitted.novelty.quantiles[PLACE]
    clear = np.abs(near / limit - 1.0) > 1e-4  # float32 dot products differ in their last bits
    np.testing.assert_array_equal((novelty >= 1.0 - PLACE / NOVELTY_QUANTILES)[clear], (near < limit)[clear])
    one = [classifier.predict_one(f, e, None)[2] for f, e in zip(*fresh, strict=True)]
    assert np.mean(np.array(one) == novelty) > 0.99


def test_without_groups_to_hold_out_nothing_is_novel() -> None:
    X = represent_table(World(3).sample(30).table, default_encoder()).joined
    request_map = RequestMap().fit(X, n_features=X.shape[1] - default_encoder().dim)
    scale = novelty_scale(request_map, X, ["one"] * 30)
    assert scale.n == 0 and not scale.quantiles.any()


def test_an_artifact_has_both_optional_arrays_or_neither(trained, fresh) -> None:
    arrays = trained[0].classifier().to_arrays()
    make = type(trained[0].classifier()).from_arrays
    old = make({name: array for name, array in arrays.items() if name not in ("center", "residual_weight")})
    new = make(arrays)
    row = fresh.features[0], fresh.embedding[0], None
    assert old.predict_one(*row)[:2] == new.predict_one(*row)[:2]
    assert old.predict_one(*row)[2] <= new.predict_one(*row)[2]  # without the residual everything lies nearer
    with pytest.raises(ArtifactError, match="center"):
        make({name: array for name, array in arrays.items() if name != "center"})


def test_another_tables_requests_are_flagged_in_the_quality_table(trained) -> None:
    strange = World(4).sample(120).table
    texts = [f"SELECT c{i} FROM t{i} WHERE k = {i} AND v > {i * 7};" for i in range(120)]
    tables = {"own": trained[1], "strange": dataclasses.replace(strange, prompts=texts)}
    found = flagged_shares(tables, default_encoder())
    assert found["own"].others["strange"] > 0.5 and found["own"].own < 0.15
    rows = list(novelty_rows(tables, default_encoder()))
    assert rows[0].value is not None and rows[0].reached == (rows[0].value >= 0.6)
    assert [row.reached for row in rows[1:]] == [None] * 3
