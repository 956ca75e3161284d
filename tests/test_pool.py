"""The pool: reading, checking, writing, and refreshing from a price map."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from hypothesis import given
from hypothesis import strategies as st

import router_ml.pool
from router_ml.errors import MissingExtraError, PoolError
from router_ml.failure_cost import FailureCost
from router_ml.pool import Breaker, Budgets, Context, Fallback, ModelPool, ModelSpec, Rule
from router_ml.price_map import refresh
from router_ml.reliability import MeasuredRates, MeasuredVerifier
from router_ml.request import ABILITIES

DEFAULT_NAMES = (
    "anthropic/claude-haiku-4-5", "anthropic/claude-sonnet-4-6", "anthropic/claude-opus-4-7", "openai/gpt-5.4-mini",
    "openai/gpt-5.5", "deepseek/deepseek-v4-flash", "deepseek/deepseek-v4-pro", "gemini/gemini-3.1-pro-preview",
    "ollama/llama4",
)  # fmt: skip


def model(name: str = "a/small", **fields: Any) -> dict[str, Any]:
    return {"name": name, "input_usd_per_mtok": 1.0, "output_usd_per_mtok": 4.0, **fields}


def config(**fields: Any) -> dict[str, Any]:
    return {"models": [model(), model("b/large")], "escalation_model": "b/large", **fields}


# -- defaults


def test_numbers_not_given_have_the_documented_defaults() -> None:
    pool = ModelPool.from_dict(config())
    assert (pool.confidence_threshold, pool.success_score, pool.headroom_min, pool.exploration) == (0.6, 0.5, 0.2, 0.0)
    assert pool.context == Context(600_000)
    assert pool.fallback == Fallback(2)
    assert pool.breaker == Breaker(error_rate=0.15, window_s=60, min_requests=20, half_open_after_s=30)
    assert pool.budgets == Budgets(None, None)
    assert pool.tasks == {} == pool.segments


def test_default_pool_has_the_documented_models_and_escalates_to_opus() -> None:
    pool = ModelPool.default()
    assert pool.names == DEFAULT_NAMES
    assert pool.escalation_model == "anthropic/claude-opus-4-7"
    assert pool == ModelPool(pool.models, pool.escalation_model, failure_costs=pool.failure_costs)


def test_default_pool_knows_window_reliable_window_and_speed_of_every_model() -> None:
    for spec in ModelPool.default().models:
        assert spec.max_input_tokens is not None
        assert spec.reliable_input_tokens is not None
        assert spec.reliable_input_tokens <= min(600_000, spec.max_input_tokens)
        assert None not in (spec.max_output_tokens, spec.first_token_s, spec.output_tokens_per_s)
        assert "tools" in spec.abilities


def test_only_the_local_model_of_the_default_pool_is_free() -> None:
    free = [spec.name for spec in ModelPool.default().models if spec.input_usd_per_mtok == 0]
    assert free == ["ollama/llama4"] == [spec.name for spec in ModelPool.default().models if spec.local]


def test_the_commented_example_of_the_default_pool_is_a_valid_candidate() -> None:
    path = Path(router_ml.pool.__file__).with_name("default_pool.yaml")
    lines = path.read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("# - name: "))
    lines[start:] = [line.removeprefix("# ") for line in lines[start:]]
    pool = ModelPool.from_dict(yaml.safe_load("\n".join(lines)))
    example = pool.models[-1]
    assert example.call_name in DEFAULT_NAMES
    assert example.name not in DEFAULT_NAMES
    assert example.params == {"reasoning_effort": "high"}
    assert example.output_factor > 1


# -- a candidate is a model with parameters


@pytest.mark.parametrize(
    ("name", "call_name"),
    [
        ("anthropic/claude-sonnet-4-6@high", "anthropic/claude-sonnet-4-6"),
        ("anthropic/claude-sonnet-4-6", "anthropic/claude-sonnet-4-6"),
        ("vertex_ai/claude-opus-4@20250514@high", "vertex_ai/claude-opus-4@20250514"),
    ],
)
def test_call_name_is_the_name_without_the_variant(name: str, call_name: str) -> None:
    assert ModelSpec(name).call_name == call_name


def test_the_same_model_stands_twice_under_two_names() -> None:
    high = model("a/small@high", params={"reasoning_effort": "high"}, output_factor=3)
    pool = ModelPool.from_dict({"models": [model(), high], "escalation_model": "a/small@high"})
    assert {spec.call_name for spec in pool.models} == {"a/small"}
    assert pool.spec("a/small@high").params == {"reasoning_effort": "high"}


def test_spec_of_an_unknown_name_lists_the_pool() -> None:
    with pytest.raises(PoolError, match=r"'c/none' is not in the pool.*'a/small', 'b/large'"):
        ModelPool.from_dict(config()).spec("c/none")


def test_pool_and_spec_can_be_hashed_copied_and_pickled() -> None:
    pool = ModelPool.from_dict(config(tasks={"chat": {"deny": ["a/small"]}}))
    assert pickle.loads(pickle.dumps(pool)) == pool == copy.deepcopy(pool)
    assert hash(pool) == hash(copy.deepcopy(pool))


def test_a_spec_does_not_share_the_params_it_was_made_from() -> None:
    params = {"reasoning_effort": "low"}
    spec = ModelSpec("a/small", params=params)
    params["reasoning_effort"] = "high"
    assert spec.params == {"reasoning_effort": "low"}


# -- every problem is one PoolError that names the key, what came and what was expected

BAD = [
    ("not a mapping", [1], r"the pool is \[1\]; expected a mapping"),
    ("none", None, r"the pool is None; expected a mapping"),
    ("unknown key", config(treshold=0.5), r"unknown key\(s\) \['treshold'\]; known: .*'confidence_threshold'"),
    ("no models", {"escalation_model": "a"}, r"models is None; expected a list"),
    ("empty models", config(models=[]), r"models is \[\]; expected a list of at least one model"),
    ("models a mapping", config(models={"a": 1}), r"models is \{'a': 1\}; expected a list"),
    ("a model that is a string", config(models=["a/b"]), r"models\[0\] is 'a/b'; expected a mapping"),
    ("no escalation", {"models": [model()]}, r"escalation_model is missing; expected one of \['a/small'\]"),
    ("unknown escalation", config(escalation_model="c"), r"escalation_model names \['c'\], not in the pool.*b/large"),
    ("duplicate", config(models=[model(), model(), model("b/large")]), r"models has \['a/small'\] more than once"),
    ("threshold 1.4", config(confidence_threshold=1.4), r"confidence_threshold is 1.4; expected a number in \[0, 1\]"),
    ("threshold NaN", config(confidence_threshold=math.nan), r"confidence_threshold is nan; expected"),
    ("threshold text", config(confidence_threshold="0.6"), r"confidence_threshold is '0.6'; expected"),
    ("bool for number", config(exploration=True), r"exploration is True; expected a number"),
    ("unlike", config(unlike="refuse"), r"unlike is 'refuse'; expected 'escalate' or 'ignore'"),
    ("bool for count", config(fallback={"max_retries": True}), r"fallback\.max_retries is True; expected a whole"),
    ("score 0", config(success_score=0), r"success_score is 0; expected a number in \(0, 1\]"),
    ("negative retries", config(fallback={"max_retries": -1}), r"fallback\.max_retries is -1"),
    ("section not a mapping", config(breaker=0.15), r"breaker is 0.15; expected a mapping"),
    ("falsy section", config(budgets=0), r"budgets is 0; expected a mapping"),
    ("unknown nested key", config(breaker={"rate": 1}), r"breaker has unknown key\(s\) \['rate'\]; known: .*error"),
    ("infinite window", config(breaker={"window_s": math.inf}), r"breaker\.window_s is inf; expected a finite"),
    ("fractional count", config(context={"reliability_threshold": 6e5}), r"context\.reliability_threshold is 600000\."),
    ("negative budget", config(budgets={"per_day_usd": -1}), r"budgets\.per_day_usd is -1; expected a finite"),
    ("tasks a list", config(tasks=[]), r"tasks is \[\]; expected a mapping"),
    ("rule a number", config(tasks={"chat": 1}), r"tasks\.chat is 1; expected a mapping"),
    ("rule with unknown key", config(tasks={"chat": {"model": "a"}}), r"tasks\.chat has unknown key\(s\) \['model'\]"),
    ("rule threshold", config(tasks={"x": {"confidence_threshold": 1.4}}), r"tasks\.x\.confidence_threshold is 1"),
    ("rule quality 0", config(segments={"x": {"min_quality": 0}}), r"segments\.x\.min_quality is 0; .*'escalation'"),
    ("rule allow text", config(tasks={"x": {"allow": "a/small"}}), r"tasks\.x\.allow is 'a/small'; expected a list"),
    ("rule unknown allow", config(tasks={"x": {"allow": ["c"]}}), r"tasks\.x\.allow names \['c'\], not in the pool"),
    ("rule unknown deny", config(segments={"x": {"deny": ["c"]}}), r"segments\.x\.deny names \['c'\], not in the pool"),
    ("rule unknown pin", config(tasks={"x": {"pin": "c"}}), r"tasks\.x\.pin names \['c'\], not in the pool"),
    ("pin denied", config(tasks={"x": {"pin": "a/small", "deny": ["a/small"]}}), r"tasks\.x\.pin is 'a/small', w"),
    ("pin not allowed", config(tasks={"x": {"pin": "a/small", "allow": ["b/large"]}}), r"tasks\.x\.pin is 'a/small', "),
    ("rule ability", config(tasks={"x": {"require": ["sight"]}}), r"tasks\.x\.require is \['sight'\]; .*'vision'"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "message"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_a_bad_pool_is_refused_by_key_value_and_expectation(content: Any, message: str) -> None:
    with pytest.raises(PoolError, match=message) as info:
        ModelPool.from_dict(content, where="team.yaml")
    assert str(info.value).startswith("team.yaml: ")


BAD_MODELS = [
    ({"name": ""}, r"models\[0\]\.name is ''"),
    ({"name": "@high"}, r"models\[0\]\.name is '@high'; expected a model before"),
    ({"name": 5}, r"models\[0\]\.name is 5"),
    ({"input_usd_per_mtok": -1}, r"models\[0\]\.input_usd_per_mtok is -1; expected a finite number >= 0"),
    ({"output_usd_per_mtok": math.nan}, r"models\[0\]\.output_usd_per_mtok is nan"),
    ({"output_usd_per_mtok": 10**400}, r"models\[0\]\.output_usd_per_mtok is 10000"),
    ({"cached_input_usd_per_mtok": "0"}, r"models\[0\]\.cached_input_usd_per_mtok is '0'"),
    ({"abilities": ["sight"]}, r"models\[0\]\.abilities is \['sight'\]; expected a list of abilities.*vision"),
    ({"abilities": "vision"}, r"models\[0\]\.abilities is 'vision'; expected a list"),
    ({"abilities": [{}]}, r"models\[0\]\.abilities is \[\{\}\]"),
    ({"local": "yes"}, r"models\[0\]\.local is 'yes'; expected true or false"),
    ({"token_factor": 0}, r"models\[0\]\.token_factor is 0; expected a finite number > 0"),
    ({"max_input_tokens": 0}, r"models\[0\]\.max_input_tokens is 0; expected a whole number >= 1"),
    ({"max_input_tokens": True}, r"models\[0\]\.max_input_tokens is True"),
    ({"max_input_tokens": 10, "reliable_input_tokens": 11}, r"models\[0\]\.reliable_input_tokens is 11; expected at"),
    ({"params": ["effort"]}, r"models\[0\]\.params is \['effort'\]; expected a mapping"),
    ({"price": 3}, r"models\[0\] has unknown key\(s\) \['price'\]; known: .*'input_usd_per_mtok'"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "message"), BAD_MODELS)
def test_a_bad_model_is_refused_by_its_place_in_the_list(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(PoolError, match=message):
        ModelPool.from_dict(config(models=[{**model(), **fields}, model("b/large")]))


@pytest.mark.parametrize("key", ["input_usd_per_mtok", "output_usd_per_mtok"])
def test_a_forgotten_price_does_not_make_a_model_free(key: str) -> None:
    entry = model()
    del entry[key]
    with pytest.raises(PoolError, match=rf"models\[0\]\.{key} is missing; expected a price"):
        ModelPool.from_dict(config(models=[entry, model("b/large")]))


@pytest.mark.parametrize("instead", [{"local": True}, {"cost_per_request_usd": 0.01}])
def test_a_local_model_or_one_with_a_cost_per_request_needs_no_prices(instead: dict[str, Any]) -> None:
    pool = ModelPool.from_dict(config(models=[{"name": "a/small", **instead}, model("b/large")]))
    assert pool.models[0].input_usd_per_mtok == 0.0


def test_a_pool_built_in_code_is_checked_too() -> None:
    with pytest.raises(PoolError, match=r"^confidence_threshold is 1.4"):
        ModelPool((ModelSpec("a"),), "a", confidence_threshold=1.4)
    with pytest.raises(PoolError, match=r"^models is .*expected a list of at least one model"):
        ModelPool(("a",), "a")  # type: ignore[arg-type]
    with pytest.raises(PoolError, match=r"^token_factor is -1"):
        ModelSpec("a", token_factor=-1)


# -- YAML


def test_a_pool_is_read_from_yaml(tmp_path: Path) -> None:
    path = tmp_path / "pool.yaml"
    path.write_text(
        "models:\n- {name: a/b, input_usd_per_mtok: 1, output_usd_per_mtok: 2, abilities: [vision]}\n"
        "escalation_model: a/b\nbudgets:\ntasks:\n  chat:\n  code: {require: [tools], local_only: true}\n",
        encoding="utf-8",
    )
    pool = ModelPool.from_yaml(path)
    assert pool.models[0].abilities == frozenset({"vision"})
    assert pool.budgets == Budgets()
    assert pool.tasks == {"chat": Rule(), "code": Rule(require=frozenset({"tools"}), local_only=True)}


@pytest.mark.parametrize("content", [b"models: [", b"\xff\xfe\x00", b"", b"just text", b"models: []\nmodels: []\n"])
def test_an_unreadable_file_is_one_pool_error_with_its_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "pool.yaml"
    path.write_bytes(content)
    with pytest.raises(PoolError, match=r"pool\.yaml"):
        ModelPool.from_yaml(path)


def test_a_missing_file_is_a_pool_error(tmp_path: Path) -> None:
    with pytest.raises(PoolError, match=r"none\.yaml cannot be read as a pool"):
        ModelPool.from_yaml(tmp_path / "none.yaml")


def test_the_comment_is_written_above_the_yaml(tmp_path: Path) -> None:
    path = tmp_path / "pool.yaml"
    ModelPool.default().to_yaml(path, comment="first line\n\nthird line")
    assert path.read_text(encoding="utf-8").startswith("# first line\n#\n# third line\nmodels:\n")
    assert ModelPool.from_yaml(path) == ModelPool.default()


amounts = st.floats(0, 1e6, allow_nan=False)
counts = st.integers(2, 10**7)
abilities = st.frozensets(st.sampled_from(sorted(ABILITIES)))


@st.composite
def pools(draw: st.DrawFn) -> ModelPool:
    names = draw(st.lists(st.text("abc/@-", min_size=1), min_size=1, unique=True))
    names = [f"x/{name}" for name in names]
    specs = tuple(
        ModelSpec(
            name, draw(amounts), draw(amounts), draw(st.none() | amounts), window, draw(st.none() | st.just(1)),
            draw(st.none() | counts), draw(abilities), draw(st.booleans()), draw(st.floats(0.1, 3)),
            draw(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=2)),
            draw(st.floats(0.1, 3)), draw(st.none() | amounts), draw(st.none() | amounts), draw(st.none() | counts),
        )
        for name in names
        for window in [draw(st.none() | counts)]
    )  # fmt: skip
    some = st.lists(st.sampled_from(names), max_size=2).map(tuple)
    rules = st.builds(
        Rule, confidence_threshold=st.none() | st.floats(0, 1), allow=some, deny=some, require=abilities,
        min_quality=st.none() | st.just("escalation") | st.floats(0.01, 1), local_only=st.booleans(),
        failure_cost_usd=st.none() | amounts, max_latency_s=st.none() | st.floats(0.1, 9),
        budget_usd=st.none() | amounts,
    )  # fmt: skip
    unwatched = st.builds(FailureCost, amounts, min_turns=st.none() | st.integers(0, 9))
    sections = st.dictionaries(st.text(min_size=1, max_size=5), rules, max_size=2)
    rates = {
        "true_accept": st.none() | st.floats(0.01, 1), "false_accept": st.none() | st.floats(0, 0.99),
        "cost_usd": st.none() | amounts, "latency_s": st.none() | amounts, "n_right": st.none() | st.integers(0, 99),
    }  # fmt: skip
    by_task = st.dictionaries(st.text(max_size=5), st.builds(MeasuredRates, **rates), max_size=2)
    measured = st.dictionaries(st.text(max_size=5), st.builds(MeasuredVerifier, **rates, tasks=by_task), max_size=2)
    return ModelPool(
        specs, draw(st.sampled_from(names)), draw(st.floats(0, 1)), exploration=draw(st.floats(0, 1)),
        budgets=Budgets(draw(st.none() | amounts), None), tasks=draw(sections), segments=draw(sections),
        failure_costs=draw(st.lists(unwatched, max_size=1)),
        verifiers=draw(measured),
    )  # fmt: skip


@given(pools())
def test_dict_and_yaml_give_back_an_equal_pool(pool: ModelPool) -> None:
    assert ModelPool.from_dict(pool.to_dict()) == pool
    assert ModelPool.from_dict(yaml.safe_load(yaml.safe_dump(pool.to_dict()))) == pool


json_like = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


SOME_KEYS = ["models", "context", "breaker", "tasks", "exploration", "escalation_model", "verifiers"]


@given(st.sampled_from(SOME_KEYS), json_like)
def test_any_content_is_a_pool_or_a_pool_error(key: str, value: Any) -> None:
    with contextlib.suppress(PoolError):
        pool = ModelPool.from_dict(config(**{key: value}))
        assert pool.escalation_model in pool.names


# -- refresh

PRICES: dict[str, dict[str, Any]] = {
    "claude-x": {
        "litellm_provider": "anthropic", "input_cost_per_token": 7.5e-08, "output_cost_per_token": 5e-06,
        "cache_read_input_token_cost": 1e-07, "max_input_tokens": 200_000, "max_output_tokens": 64_000,
        "supports_vision": True, "supports_function_calling": True, "supports_computer_use": False,
    },
    "deepseek/flash": {"input_cost_per_token": 3e-07, "output_cost_per_token": None, "max_input_tokens": 1_000_000},
    "llama9": {"litellm_provider": "hosted", "input_cost_per_token": 1.0},
}  # fmt: skip


def pool_of(*specs: ModelSpec) -> ModelPool:
    return ModelPool(specs, specs[0].name, exploration=0.1)


def test_refresh_reads_prices_windows_and_abilities_under_the_name_without_provider_and_variant() -> None:
    old = ModelSpec("anthropic/claude-x@high", 9, 9, params={"effort": "high"}, output_factor=2, first_token_s=1)
    pool, missing = refresh(pool_of(old), PRICES)
    assert missing == ()
    assert pool.exploration == 0.1
    assert pool.models[0] == ModelSpec(
        "anthropic/claude-x@high", 0.075, 5.0, 0.1, 200_000, 150_000, 64_000, frozenset({"vision", "tools"}),
        params={"effort": "high"}, output_factor=2, first_token_s=1,
    )  # fmt: skip


def test_refresh_keeps_what_the_map_does_not_say() -> None:
    old = ModelSpec("deepseek/flash", 9, 7, max_output_tokens=5, abilities=frozenset({"tools"}))
    new = refresh(pool_of(old), PRICES)[0].models[0]
    assert (new.input_usd_per_mtok, new.output_usd_per_mtok) == (0.3, 7.0)
    assert (new.max_output_tokens, new.abilities) == (5, frozenset({"tools"}))


def test_refresh_sets_a_cautious_reliable_window_only_where_none_was_given() -> None:
    def reliable(given_tokens: int | None) -> int | None:
        pool, _ = refresh(pool_of(ModelSpec("deepseek/flash", reliable_input_tokens=given_tokens)), PRICES)
        return pool.models[0].reliable_input_tokens

    assert reliable(None) == 600_000
    assert reliable(100) == 100
    assert reliable(2_000_000) == 1_000_000


def test_refresh_reports_models_the_map_does_not_know_and_leaves_them() -> None:
    unknown = ModelSpec("ollama/llama4", local=True, max_input_tokens=10)
    pool, missing = refresh(pool_of(ModelSpec("deepseek/flash"), unknown), PRICES)
    assert missing == ("ollama/llama4",)
    assert pool.models[1] == unknown


def test_a_local_model_does_not_get_the_price_of_a_hosted_one_with_its_name() -> None:
    pool, missing = refresh(pool_of(ModelSpec("ollama/llama9", local=True)), PRICES)
    assert missing == ("ollama/llama9",)
    assert pool.models[0].input_usd_per_mtok == 0.0


def test_refresh_without_litellm_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "litellm", None)
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    with pytest.raises(MissingExtraError, match=r"pip install 'router-ml\[llm\]'"):
        refresh(ModelPool.default())


def test_refresh_takes_the_map_of_the_installed_litellm_without_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    class Litellm:
        model_cost = PRICES

    monkeypatch.setitem(sys.modules, "litellm", Litellm)
    monkeypatch.delenv("LITELLM_LOCAL_MODEL_COST_MAP", raising=False)
    pool, _ = refresh(pool_of(ModelSpec("deepseek/flash")))
    assert pool.models[0].input_usd_per_mtok == 0.3
    assert os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] == "True"


def test_a_key_among_the_parameters_is_refused_without_being_shown() -> None:
    with pytest.raises(PoolError, match="api_key_env") as caught:
        ModelSpec("a/b", params={"api_key": "sk-hush"})
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    ("section", "values", "said"),
    [
        ("budgets", {"on_exceeded": "explode"}, "'degrade' or 'refuse'"),
        ("budgets", {"per_tag_day_usd": {"team": -1}}, "finite numbers"),
        ("cache", {"type": "paper"}, "'memory'"),
        ("cache", {"ttl_s": 0}, "finite number > 0"),
    ],
)
def test_a_bad_budget_or_cache_is_named(section: str, values: dict[str, object], said: str) -> None:
    with pytest.raises(PoolError, match=section) as caught:
        ModelPool.from_dict({**ModelPool.default().to_dict(), section: values})
    assert said in str(caught.value)


def test_a_bare_off_in_yaml_turns_the_cache_off() -> None:
    pool = ModelPool.from_dict({**ModelPool.default().to_dict(), "cache": {"type": False}})
    assert pool.cache.type == "off" and pool.cache.arguments() is None


def test_a_cache_on_redis_needs_its_url(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = dataclasses.replace(ModelPool.default().cache, type="redis", url_env="SOME_REDIS")
    with pytest.raises(PoolError, match="SOME_REDIS"):
        cache.arguments()
    monkeypatch.setenv("SOME_REDIS", "redis://127.0.0.1/0")
    assert cache.arguments() == {"type": "redis", "ttl": 3600.0, "url": "redis://127.0.0.1/0"}
