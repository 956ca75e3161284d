"""Placing a pool that no table holds: on a small world whose truth is known, and on the shipped facts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from router_ml.classifier import logit, sigmoid
from router_ml.errors import PoolError
from router_ml.pool import ModelPool, ModelSpec
from training.ability import canonical_names, fit_abilities, load_facts
from training.answer_length import fit_answer_length
from training.bundled import PublicTable, SourceRow, day_0_figures, fit_bundled, leave_one_source_out
from training.fitting import Fitted
from training.placement import Placement, attenuate, place, place_length, placement_of
from training.transfer import FIELDS, LEAST_SLOPE, REFERENCE, Source, TransferModel, fit_transfer

Array = NDArray[np.float64]
N_FEATURES = 152
WIDTH = N_FEATURES + 8
TABLE_MODELS = ("model-a", "model-b", "model-c", "model-d")
ABILITY = np.array([0.5, 1.2, 1.8, 2.6])


def _inputs(rng: np.random.Generator, n: int, shift: float) -> NDArray[np.float32]:
    """Two features matter, the third only tells the sources apart."""
    inputs = np.zeros((n, WIDTH), np.float32)
    inputs[:, :2] = rng.normal(size=(n, 2))
    inputs[:, 2] = shift
    inputs[:, N_FEATURES:] = rng.normal(size=(n, 8)) * 0.1
    return inputs


def _source(name: str, seed: int, n: int = 600) -> Source:
    rng = np.random.default_rng(seed)
    inputs = _inputs(rng, n, float(seed))
    level = 0.4 - 1.2 * inputs[:, 0]
    slope = 1.0 + 0.3 * np.tanh(inputs[:, 1])
    p = sigmoid(level[:, None] + slope[:, None] * (ABILITY - REFERENCE))
    success = (rng.random(p.shape) < p).astype(float)
    fields = np.where(inputs[:, 1] > 0, "code", "knowledge")
    return Source(name, inputs, success, TABLE_MODELS, np.array([name] * n), fields)


@pytest.fixture(scope="module")
def model() -> TransferModel:
    return fit_transfer([_source("one", 1), _source("two", 2)], [ABILITY, ABILITY], n_features=N_FEATURES)


def _pool(*names: str) -> ModelPool:
    return ModelPool(models=tuple(ModelSpec(name=name) for name in names), escalation_model=names[-1])


def _placement(ability: float, spread: float = 0.1, **profile: float) -> Placement:
    return Placement(ability, spread, np.array([profile.get(f, 0.0) for f in FIELDS]), (1.0, 2.0, 4.0))


def _facts() -> dict[str, Any]:
    results = {name: 100 * float(sigmoid(np.array(a))) for name, a in zip(TABLE_MODELS, ABILITY, strict=True)}
    models: dict[str, Any] = {
        name: {"results": {"mmlu": share, "mmlu_pro": share - 10}, "relatives": []} for name, share in results.items()
    }
    stated = {"estimate": 0.8, "low": 0.7, "high": 0.87}
    models["pool-model"] = {
        "results": {}, "relatives": ["model-d"],
        "placement": {
            "general": stated, "code": {"estimate": 0.9, "low": 0.8, "high": 0.95},
            "output_tokens_factor": {"estimate": 2.0, "low": 1.0, "high": 4.0},
            "at_max_effort": {"general": {"estimate": 0.88, "low": 0.8, "high": 0.92}},
        },
    }  # fmt: skip
    models["unpublished"] = {"results": {}, "relatives": ["model-a"]}
    return {"models": models, "aliases": {"pool": {"maker/pool-model": "pool-model"}, "one": {"A": "model-a"}}}


# ---- abilities


def test_ability_follows_the_anchor_result() -> None:
    scale = fit_abilities(_facts())
    assert [scale.ability[name] for name in TABLE_MODELS] == pytest.approx(ABILITY.tolist(), abs=0.25)


def test_a_model_without_results_stands_near_its_relatives_and_is_less_certain() -> None:
    scale = fit_abilities(_facts())
    assert abs(scale.ability["unpublished"] - scale.ability["model-a"]) < 0.2
    assert scale.spread["unpublished"] > 2 * scale.spread["model-a"]


def test_ignored_results_do_not_move_abilities() -> None:
    facts = _facts()
    before = fit_abilities(facts, {"mmlu_pro"})
    for entry in facts["models"].values():
        entry["results"].pop("mmlu_pro", None)
    assert fit_abilities(facts, {"mmlu_pro"}).ability == before.ability == fit_abilities(facts).ability


def test_a_result_and_its_ability_are_inverse() -> None:
    scale = fit_abilities(_facts())
    level, slope = scale.curves["mmlu_pro"]
    share = float(sigmoid(np.array(level + slope * 1.7)))
    assert scale.of_result("mmlu_pro", share) == pytest.approx(1.7)


def test_a_table_model_that_the_facts_do_not_know_is_named() -> None:
    assert canonical_names(_facts(), "one", ["A", "model-b"]) == ["model-a", "model-b"]
    with pytest.raises(PoolError, match="model-x"):
        canonical_names(_facts(), "one", ["A", "model-x"])


# ---- transfer


def test_difficulty_is_found_on_a_source_never_seen(model: TransferModel) -> None:
    new = _source("three", 3)
    z = model.log_odds(new.inputs, ABILITY)
    assert np.corrcoef(z[:, 1], -new.inputs[:, 0])[0, 1] > 0.85


def test_more_ability_never_hurts_on_a_training_request(model: TransferModel) -> None:
    source = _source("one", 1)
    weak, strong = model.log_odds(source.inputs, np.array([0.0, 3.0])).T
    assert (strong - weak).min() >= 3.0 * LEAST_SLOPE * model.slope[0] - 1e-9


def test_sources_and_tasks_count_equally() -> None:
    source = _source("one", 1, 400)
    uneven = Source("x", source.inputs, source.success, TABLE_MODELS, np.array(["big"] * 390 + ["small"] * 10),
                    source.fields)  # fmt: skip
    weights = uneven.weights()
    assert weights[:390].sum() == pytest.approx(weights[390:].sum())
    assert weights.sum() == pytest.approx(source.weights().sum())


# ---- placement


def test_a_stronger_placement_gets_a_higher_probability_on_every_request(model: TransferModel) -> None:
    success = place(_pool("weak", "middle", "strong"), model, [_placement(a) for a in (1.0, 2.0, 2.8)], shift=0.3)
    p = success.predict_proba(model.request_map.transform(_source("one", 1).inputs))
    assert (np.diff(p, axis=1) > 0).all()


def test_an_easy_request_is_easy_for_all_and_a_hard_one_tells_models_apart(model: TransferModel) -> None:
    success = place(_pool("weak", "strong"), model, [_placement(1.3), _placement(2.8)], shift=0.3)
    requests = np.zeros((2, WIDTH), np.float32)
    requests[:, 0] = -2.0, 2.0  # easy, hard
    requests[:, 2] = 1.0
    easy, hard = success.predict_proba(model.request_map.transform(requests))
    assert easy.min() > 0.8 > hard.max()
    assert easy[1] - easy[0] < hard[1] - hard[0]


def test_a_field_in_which_a_model_is_strong_raises_it_there(model: TransferModel) -> None:
    success = place(_pool("plain", "coder"), model, [_placement(2.0), _placement(2.0, code=0.8)], shift=0.0)
    source = _source("one", 1)
    z = logit(success.predict_proba(model.request_map.transform(source.inputs)))
    gain = z[:, 1] - z[:, 0]
    code = source.fields == "code"
    assert gain[code].mean() > gain[~code].mean() + 0.2


def test_what_is_not_known_draws_probabilities_towards_one_half(model: TransferModel) -> None:
    pool = _pool("sure", "unsure")
    phi = model.request_map.transform(_source("one", 1).inputs)
    p = place(pool, model, [_placement(2.0, 0.0), _placement(2.0, 1.5)], shift=0.0).predict_proba(phi)
    assert (np.abs(p[:, 1] - 0.5) <= np.abs(p[:, 0] - 0.5)).all()
    doubtful = place(pool, model, [_placement(2.0, 0.0), _placement(2.0, 1.5)], shift=2.0).predict_proba(phi)
    assert (np.abs(doubtful - 0.5) <= np.abs(p - 0.5)).all()


def test_attenuation_is_close_to_the_mean_over_normal_log_odds() -> None:
    rng = np.random.default_rng(0)
    for mean, variance in ((1.0, 0.5), (-2.0, 1.0), (0.5, 2.0)):
        exact = sigmoid(mean + np.sqrt(variance) * rng.normal(size=400_000)).mean()
        assert sigmoid(mean * attenuate(np.array([variance])))[0] == pytest.approx(exact, abs=0.01)


def test_a_placed_pool_counts_no_outcomes_and_serves_as_it_predicts(model: TransferModel) -> None:
    placements = [_placement(1.3, code=0.3), _placement(2.5, 0.4)]
    success = place(_pool("a", "b"), model, placements, shift=0.3)
    source = _source("two", 2, 50)
    phi = model.request_map.transform(source.inputs)
    length = place_length(fit_answer_length([phi], [np.full(50, 100.0)], [np.ones(50)]), placements)
    served = Fitted(model.request_map, success, length, source.inputs.astype(np.float32)).classifier()
    p, tokens, _ = served.predict(
        source.inputs[:, :N_FEATURES].astype(float), source.inputs[:, N_FEATURES:], [None] * 50
    )
    assert served.n_outcomes.tolist() == [0, 0]
    np.testing.assert_allclose(p, success.predict_proba(phi), atol=1e-9)
    np.testing.assert_allclose(tokens, length.predict(phi), rtol=1e-9)


def test_a_placement_is_read_off_the_facts() -> None:
    facts = _facts()
    scale = fit_abilities(facts)
    usual = placement_of(ModelSpec(name="maker/pool-model"), facts, scale)
    assert usual.ability == pytest.approx(scale.of_result("mmlu_pro", 0.8))
    assert usual.profile[FIELDS.index("code")] > 0 == usual.profile[FIELDS.index("general")]
    assert usual.output_factor == (1.0, 2.0, 4.0)
    variant = ModelSpec(name="maker/pool-model@high", params={"reasoning_effort": "high"})
    assert placement_of(variant, facts, scale).ability > usual.ability
    unplaced = placement_of(ModelSpec(name="maker/model-c"), facts, scale)
    assert unplaced.ability == scale.ability["model-c"]


def test_a_pool_model_that_the_facts_do_not_know_is_refused_by_name() -> None:
    facts = _facts()
    with pytest.raises(PoolError, match="maker/unheard-of"):
        placement_of(ModelSpec(name="maker/unheard-of"), facts, fit_abilities(facts))


def test_every_model_of_the_default_pool_is_placed() -> None:
    facts = load_facts()
    scale = fit_abilities(facts)
    placed = {spec.name: placement_of(spec, facts, scale) for spec in ModelPool.default().models}
    assert all(0.5 < p.ability < 4.0 and 0.0 < p.spread < 1.0 for p in placed.values())
    assert placed["anthropic/claude-opus-4-7"].ability > placed["anthropic/claude-haiku-4-5"].ability


# ---- answer length


def test_expected_length_follows_the_request_and_the_model_factor() -> None:
    rng = np.random.default_rng(0)
    phi = rng.normal(size=(300, 3))
    tokens = np.exp(5.0 + 0.8 * phi[:, 0])
    tokens[::7] = np.nan
    length = fit_answer_length([phi[:100], phi[100:]], [tokens[:100], tokens[100:]], [np.ones(100), np.ones(200)])
    two = place_length(length, [_placement(1.0), Placement(1.0, 0.1, np.zeros(5), (2.0, 4.0, 8.0))]).predict(phi)
    np.testing.assert_allclose(two[:, 1], 2.0 * two[:, 0])
    assert np.corrcoef(np.log(two[:, 0]), phi[:, 0])[0, 1] > 0.99
    assert two[:, 0].min() > 0


def test_a_strange_request_gets_a_length_within_bounds() -> None:
    phi = np.random.default_rng(0).normal(size=(100, 2))
    length = fit_answer_length([phi], [np.exp(5.0 + phi[:, 0])], [np.ones(100)])
    placed = place_length(length, [_placement(1.0)])
    extreme = placed.predict(np.array([[1e4, 0.0], [-1e4, 0.0]]))[:, 0]
    assert extreme == pytest.approx([4_000 * 2 * placed.smearing_[0], 8 * 2 * placed.smearing_[0]])


# ---- the whole


def _table(name: str, seed: int, texts: list[str] | None = None) -> PublicTable:
    source = _source(name, seed, 200)
    return PublicTable(source, texts or [f"{name} asks question {i}" for i in range(200)], np.full(200, 50.0))


def test_a_source_left_out_is_predicted_better_than_chance_and_in_order() -> None:
    rows = leave_one_source_out([_table(f"s{i}", i) for i in (1, 2, 3)], None, _facts(), [_table("further", 4)])
    assert [(row.source, row.counted) for row in rows] == [
        ("s1", True), ("s2", True), ("s3", True), ("further", False),
    ]  # fmt: skip
    assert all(row.auc > 0.65 for row in rows)
    assert day_0_figures(rows)["n_sources"] == 3
    assert day_0_figures(rows)["ece"] == pytest.approx(np.mean([row.ece for row in rows[:3]]))


def test_requests_shared_with_the_source_left_out_are_not_learned_from(monkeypatch: pytest.MonkeyPatch) -> None:
    long = [f"number {i} " + " ".join(f"word{i}of{j}" for j in range(30)) for i in range(200)]
    seen: list[dict[str, int]] = []

    def spy(sources: list[Source], *args: Any, **kwargs: Any) -> TransferModel:
        seen.append({s.name: len(s.inputs) for s in sources})
        return fit_transfer(sources, *args, **kwargs)

    monkeypatch.setattr("training.bundled.fit_transfer", spy)
    half = long[:100] + [f"other request {i}" for i in range(100)]
    leave_one_source_out([_table("s1", 1, long), _table("s2", 2, half), _table("s3", 3)], None, _facts())
    outer = [sizes for sizes in seen if set(sizes) == {"s2", "s3"}]
    assert outer[-1] == {"s2": 100, "s3": 200}


def test_tasks_of_published_comparisons_are_never_learned_from() -> None:
    table = _table("s1", 1)
    source = table.source
    tasks = np.array(["mmlu"] * 50 + ["gsm8k"] * 50 + ["fine"] * 100)
    mixed = PublicTable(
        Source("s1", source.inputs, source.success, TABLE_MODELS, tasks, source.fields),
        table.texts, table.output_tokens,
    )  # fmt: skip
    day_0 = [SourceRow("s1", 200, 4, 0.6, 0.1, 0.5, 0.5, 0.3, True)]
    bundled = fit_bundled([mixed], _table("written", 2), _pool("maker/pool-model"), _facts(), day_0=day_0)
    assert bundled.metadata["sources"] == {"s1": 100, "written": 200}
    assert bundled.metadata["shift_variance"] == pytest.approx(0.09)


def test_the_bundle_repeats_itself_with_a_seed() -> None:
    tables = [_table("s1", 1), _table("s2", 2)]
    pool, facts = _pool("maker/pool-model", "maker/model-a"), _facts()
    first, again = (fit_bundled(tables, _table("written", 3), pool, facts, seed=5) for _ in range(2))
    phi = first.request_map.transform(tables[0].source.inputs)
    np.testing.assert_array_equal(first.success.predict_proba(phi), again.success.predict_proba(phi))
    assert first.metadata == again.metadata
    assert first.metadata["day_0"]["n_sources"] == 2
