"""The pool: which candidates a request may go to, what they cost and can do, and the rules that bind the choice.

A candidate is a model *with its parameters*: the same model at a higher effort is a second candidate, named with a
suffix (``anthropic/claude-sonnet-4-6@high``). ``ModelPool`` is pool.yaml in memory. Everything is checked when it is
built, from a file or in code, so that a pool that exists is a pool that can be used.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from router_ml.configuration import (
    ABILITY_SET,
    AMOUNT,
    AMOUNTS,
    CACHE_TYPE,
    COUNT,
    COUNT_OR_ZERO,
    FLAG,
    MAPPING,
    NAME,
    NAMES,
    ON_EXCEEDED,
    POSITIVE,
    POSITIVE_SHARE,
    QUALITY,
    SHARE,
    STAGES,
    UNLIKE,
    Checked,
    Kind,
    build,
    changed,
    known_keys,
    of,
    parse_yaml,
)
from router_ml.cost import LongContext
from router_ml.errors import PoolError, brief
from router_ml.failure_cost import FAILURE_COSTS, FailureCost, check_order, read_failure_costs
from router_ml.reliability import MeasuredVerifier, read_measured, with_measured

_LONG_CONTEXT = Kind("a tariff with above_input_tokens", lambda v: isinstance(v, LongContext), lambda v: v)
_SECRETS = frozenset({"api_key", "aws_secret_access_key", "azure_ad_token", "vertex_credentials"})


@dataclass(frozen=True, slots=True)
class ModelSpec(Checked):
    """One candidate: a model, its parameters, its price, its limits.

    Prices are US dollars per million tokens. Token counts of a request are estimates common to all models;
    ``token_factor`` turns them into this model's tokens.

    :param name: unique in the pool: ``provider/model``, or ``provider/model@variant`` for a model with parameters.
    :param cached_input_usd_per_mtok: price of a prompt token that the provider has cached; None: no discount.
    :param long_context: the tariff of long prompts; None: all prompts cost the same a token.
    :param max_input_tokens: context window; None: not known, so no request is too long.
    :param reliable_input_tokens: input up to which answers stay as good as on short input; None: the window, or the
        pool's ``context.reliability_threshold`` if that is smaller.
    :param max_output_tokens: most that the model can write; None: not known.
    :param abilities: what it can take or do, of ``request.ABILITIES``.
    :param local: runs on the caller's own machines.
    :param token_factor: its tokens for a text, against the common estimate.
    :param params: provider parameters that make this candidate what it is, such as ``{"reasoning_effort": "high"}``.
    :param output_factor: tokens it writes for an answer, against a typical model; a higher effort writes more.
    :param cost_per_request_usd: mean cost of a request, used instead of token prices in a pool made from outcomes.
    :param call_as: litellm's name of the model, if ``name`` is not it: a deployment, a model behind a proxy.
    :param api_base: URL of its server, if not the provider's own.
    :param api_key_env: environment variable that holds its key, if not the provider's usual one.
    :param max_share: most that it may get of recent calls, while another model can take a request.
    :param first_token_s: seconds to the first token. :param output_tokens_per_s: tokens per second from then on.
        If either is None the latency is not known, and no latency limit excludes the model.
    :raises PoolError: if a value is outside its range.
    """

    name: str = of(NAME)
    input_usd_per_mtok: float = of(AMOUNT, 0.0)
    output_usd_per_mtok: float = of(AMOUNT, 0.0)
    cached_input_usd_per_mtok: float | None = of(AMOUNT, None)
    max_input_tokens: int | None = of(COUNT, None)
    reliable_input_tokens: int | None = of(COUNT, None)
    max_output_tokens: int | None = of(COUNT, None)
    abilities: frozenset[str] = of(ABILITY_SET, frozenset())
    local: bool = of(FLAG, False)
    token_factor: float = of(POSITIVE, 1.0)
    params: Mapping[str, Any] = of(MAPPING, dict)
    output_factor: float = of(POSITIVE, 1.0)
    cost_per_request_usd: float | None = of(AMOUNT, None)
    first_token_s: float | None = of(AMOUNT, None)
    output_tokens_per_s: float | None = of(POSITIVE, None)
    call_as: str | None = of(NAME, None)
    api_base: str | None = of(NAME, None)
    api_key_env: str | None = of(NAME, None)
    max_share: float = of(POSITIVE_SHARE, 1.0)
    long_context: LongContext | None = field(default=None, metadata={"kind": _LONG_CONTEXT})

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        if not self.base_name:
            raise PoolError(f"name is {brief(self.name)}; expected a model before the '@'")
        secrets = sorted(_SECRETS & set(self.params))
        if secrets:  # params are shown with every decision and kept in the log
            raise PoolError(f"params hold {secrets}; put a key in an environment variable and name it in api_key_env")
        window, reliable = self.max_input_tokens, self.reliable_input_tokens
        if window is not None and reliable is not None and reliable > window:
            raise PoolError(f"reliable_input_tokens is {reliable}; expected at most max_input_tokens, {window}")

    @property
    def call_name(self) -> str:
        """The name that litellm knows: ``call_as``, or the name without its variant."""
        return self.base_name if self.call_as is None else self.call_as

    @property
    def base_name(self) -> str:
        """The name without its variant, which follows the last '@'."""
        # the last one: some providers have an '@' of their own (vertex_ai/claude-opus-4@20250514@high)
        model, mark, variant = self.name.rpartition("@")
        return model if mark else variant


@dataclass(frozen=True, slots=True)
class Context(Checked):
    """Long input. :param reliability_threshold: input tokens above which a model must be known to be reliable."""

    reliability_threshold: int = of(COUNT, 600_000)


@dataclass(frozen=True, slots=True)
class Fallback(Checked):
    """Errors that may pass. :param max_retries: further attempts on the same model."""

    max_retries: int = of(COUNT_OR_ZERO, 2)


@dataclass(frozen=True, slots=True)
class Breaker(Checked):
    """When a failing model is taken out: ``error_rate`` of at least ``min_requests`` within ``window_s`` seconds."""

    error_rate: float = of(POSITIVE_SHARE, 0.15)
    window_s: float = of(POSITIVE, 60.0)
    min_requests: int = of(COUNT, 20)
    half_open_after_s: float = of(POSITIVE, 30.0)


@dataclass(frozen=True, slots=True)
class Budgets(Checked):
    """Caps in US dollars; None: no cap. Days are UTC.

    :param per_request_usd: most that one request may be expected to cost. :param per_day_usd: of all requests of a day.
    :param per_tag_day_usd: tag -> most that the requests of a day that carry the tag may cost.
    :param on_exceeded: where the wanted model would pass a cap: "degrade" takes the likeliest model that stays within
        it and refuses if there is none; "refuse" refuses.
    """

    per_request_usd: float | None = of(AMOUNT, None)
    per_day_usd: float | None = of(AMOUNT, None)
    per_tag_day_usd: Mapping[str, float] = of(AMOUNTS, dict)
    on_exceeded: str = of(ON_EXCEEDED, "degrade")


@dataclass(frozen=True, slots=True)
class Cache(Checked):
    """The response cache, which is litellm's: equal calls are answered without calling anybody.

    :param type: "off", "memory", "disk" or "redis". :param ttl_s: seconds that an answer is kept.
    :param directory: of a cache on disk. :param url_env: environment variable that holds the URL of a Redis.
    """

    type: str = of(CACHE_TYPE, "off")
    ttl_s: float = of(POSITIVE, 3600.0)
    directory: str = of(NAME, ".router_ml_cache")
    url_env: str = of(NAME, "REDIS_URL")

    def arguments(self) -> dict[str, Any] | None:
        """Arguments of ``litellm.Cache``; None if it is off.

        :raises PoolError: if the variable that should hold the URL is not set.
        """
        if self.type == "off":
            return None
        out: dict[str, Any] = {"type": "local" if self.type == "memory" else self.type, "ttl": self.ttl_s}
        if self.type == "disk":
            out["disk_cache_dir"] = self.directory
        if self.type == "redis":
            out["url"] = os.environ.get(self.url_env)
            if not out["url"]:
                raise PoolError(f"cache.type is redis, but {self.url_env} is not set; expected a URL in that variable")
        return out


@dataclass(frozen=True, slots=True)
class Planning(Checked):
    """What plans may look like, where answers are checked.

    :param last_resort: whether a plan that is wanted to reach a quality holds the escalation model, so that it answers
        where all others are rejected. If not, the plan ends where it is likely enough. Where a failure has a price,
        that price decides.
    :param max_stages: most models that a plan calls one after another; None: 4, or all where there are at most 5.
    :param retry_correlation: probability that a second answer of a model is as right or wrong as its first. 1: no plan
        calls a model twice. Not measured anywhere yet; below 1 only where answers are sampled at a temperature above 0.
    """

    last_resort: bool = of(FLAG, True)
    max_stages: int | None = of(STAGES, None)
    retry_correlation: float = of(SHARE, 1.0)


@dataclass(frozen=True, slots=True)
class Rule(Checked):
    """What holds for the requests of one task or one segment.

    Every field is optional and means what it does in ``RouteRequest``. ``min_quality``, which speaks of the whole
    plan, wins over ``confidence_threshold``. ``verifier`` is what ``router_ml.verifiers.verifier_of`` reads; it checks
    the answers to requests that bring no verifier of their own.

    :raises PoolError: if a value is outside its range, or the rule pins a model that it does not allow.
    """

    confidence_threshold: float | None = of(SHARE, None)
    allow: tuple[str, ...] = of(NAMES, ())
    deny: tuple[str, ...] = of(NAMES, ())
    pin: str | None = of(NAME, None)
    min_quality: float | Literal["escalation"] | None = of(QUALITY, None)
    failure_cost_usd: float | None = of(AMOUNT, None)
    require: frozenset[str] = of(ABILITY_SET, frozenset())
    local_only: bool = of(FLAG, False)
    max_latency_s: float | None = of(POSITIVE, None)
    budget_usd: float | None = of(AMOUNT, None)
    verifier: Mapping[str, Any] = of(MAPPING, dict)

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        if self.pin is not None and (self.pin in self.deny or (self.allow and self.pin not in self.allow)):
            raise PoolError(f"pin is {self.pin!r}, which the same rule does not allow; change pin, allow or deny")


_MODELS = Kind(
    "a list of at least one model",
    lambda v: isinstance(v, (list, tuple)) and len(v) > 0 and all(isinstance(m, ModelSpec) for m in v),
    tuple,
)


@dataclass(frozen=True, slots=True)
class ModelPool(Checked):
    """The candidates and the numbers that decide between them. The numbers are defaults to tune, not truths.

    :param models: candidates; arrays of probabilities and costs are in this order everywhere.
    :param escalation_model: where a request goes that no candidate is likely enough to do.
    :param confidence_threshold: P(success) from which a candidate is likely enough.
    :param success_score: score in [0, 1] from which an outcome counts as a success.
    :param headroom_min: share of a provider's rate limit that is kept free.
    :param max_switch_usd: most that a conversation's change of model may cost in prompt tokens read again; None: no
        limit.
    :param exploration: probability of choosing among the eligible candidates at random.
    :param unlike: what becomes of a request unlike the training data: "escalate", because its probabilities say
        little, or "ignore". A router flags such requests only if training measured at which rate it would flag others.
    :param tasks: rules by task. :param segments: rules by segment; a segment's rule wins over a task's.
    :param failure_costs: rules that price a failure where neither the request nor its task or segment says how to
        choose; the first that fits wins, and where none does the threshold decides.
    :param verifiers: what was measured of verifiers, by ``reliability.verifier_name``.
    :raises PoolError: if anything is invalid.
    """

    models: tuple[ModelSpec, ...] = of(_MODELS)
    escalation_model: str = of(NAME)
    confidence_threshold: float = of(SHARE, 0.6)
    success_score: float = of(POSITIVE_SHARE, 0.5)
    context: Context = field(default_factory=Context)
    fallback: Fallback = field(default_factory=Fallback)
    breaker: Breaker = field(default_factory=Breaker)
    headroom_min: float = of(SHARE, 0.2)
    max_switch_usd: float | None = of(AMOUNT, None)
    exploration: float = of(SHARE, 0.0)
    unlike: str = of(UNLIKE, "escalate")
    budgets: Budgets = field(default_factory=Budgets)
    cache: Cache = field(default_factory=Cache)
    plan: Planning = field(default_factory=Planning)
    tasks: Mapping[str, Rule] = of(MAPPING, dict)
    segments: Mapping[str, Rule] = of(MAPPING, dict)
    failure_costs: tuple[FailureCost, ...] = of(FAILURE_COSTS, ())
    verifiers: Mapping[str, MeasuredVerifier] = of(MAPPING, dict)

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        check_order(self.failure_costs)
        names = self.names
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise PoolError(f"models has {twice} more than once; give each candidate its own name, such as name@high")
        self._check_known("escalation_model", (self.escalation_model,))
        for section in ("tasks", "segments"):
            for key, rule in getattr(self, section).items():
                for part in ("allow", "deny"):
                    self._check_known(f"{section}.{key}.{part}", getattr(rule, part))
                if rule.pin is not None:
                    self._check_known(f"{section}.{key}.pin", (rule.pin,))

    def _check_known(self, path: str, names: tuple[str, ...]) -> None:
        unknown = [name for name in names if name not in self.names]
        if unknown:
            raise PoolError(f"{path} names {unknown}, not in the pool; expected of {list(self.names)}")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the candidates, in pool order."""
        return tuple(spec.name for spec in self.models)

    def spec(self, name: str) -> ModelSpec:
        """The candidate of that name.

        :raises PoolError: if the pool has none.
        """
        for spec in self.models:
            if spec.name == name:
                return spec
        raise PoolError(f"model {name!r} is not in the pool; expected one of {list(self.names)}")

    def reliable_tokens(self, spec: ModelSpec) -> float:
        """Input tokens, as the candidate counts them, up to which it answers as well as on short input."""
        # a model about which nobody says how far it is reliable is trusted up to the threshold
        return spec.reliable_input_tokens or min(spec.max_input_tokens or math.inf, self.context.reliability_threshold)

    @classmethod
    def default(cls) -> ModelPool:
        """The pool that comes with the package."""
        return cls.from_yaml(Path(__file__).with_name("default_pool.yaml"))

    @classmethod
    def from_yaml(cls, path: str | os.PathLike[str]) -> ModelPool:
        """Read pool.yaml.

        :raises PoolError: if the file cannot be read or is not a valid pool; the message names file and key.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as exc:
            raise PoolError(f"{path} cannot be read as a pool: {exc}; expected a YAML file in UTF-8") from exc
        return cls.from_dict(with_measured(parse_yaml(text, str(path)), Path(path)), where=str(path))

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any], where: str = "pool") -> ModelPool:
        """Build a pool from the content of pool.yaml.

        :param where: named at the start of every error, such as the file's name.
        :raises PoolError: naming the key, what came and what was expected.
        """
        try:
            return cls(**_read_sections(mapping))
        except PoolError as exc:
            raise PoolError(f"{where}: {exc}") from None

    def to_dict(self) -> dict[str, Any]:
        """The pool as built-in types; ``from_dict`` gives back an equal pool.

        What equals a default is left out of models and rules, and written for the pool itself: those numbers are
        there to be tuned.
        """
        out: dict[str, Any] = {}
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if item.name == "models":
                out["models"] = [changed(spec, keep=("input_usd_per_mtok", "output_usd_per_mtok")) for spec in value]
            elif item.name in ("tasks", "segments"):
                out |= {item.name: {key: changed(rule) for key, rule in value.items()}} if value else {}
            elif item.name == "failure_costs":
                out |= {item.name: [changed(rule) for rule in value]} if value else {}
            elif item.name == "verifiers":
                out |= {item.name: {key: measured.to_dict() for key, measured in value.items()}} if value else {}
            else:
                section = item.name in _SECTIONS
                out[item.name] = dataclasses.asdict(value) if section else value
        return out

    def to_yaml(self, path: str | os.PathLike[str], comment: str = "") -> None:
        """Write pool.yaml. :param comment: lines to put at the top, without the ``#``."""
        import yaml  # type: ignore[import-untyped]

        head = "".join(f"# {line}".rstrip() + "\n" for line in comment.splitlines())
        body = yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True, width=120)
        Path(path).write_text(head + body, encoding="utf-8")


_SECTIONS: dict[str, Any] = {
    "context": Context, "fallback": Fallback, "breaker": Breaker, "budgets": Budgets, "cache": Cache, "plan": Planning,
}  # fmt: skip


def _read_sections(mapping: Any) -> dict[str, Any]:
    """Arguments of ModelPool from the content of pool.yaml."""
    values = known_keys(ModelPool, mapping, "the pool")
    models = values.get("models")
    if not isinstance(models, (list, tuple)) or not models:
        raise PoolError(f"models is {brief(models)}; expected {_MODELS.expected}")
    values["models"] = tuple(_read_model(item, f"models[{i}]") for i, item in enumerate(models))
    for key, section in _SECTIONS.items():
        values[key] = build(section, _or_empty(values.get(key)), key)
    for key in ("tasks", "segments"):
        rules = _or_empty(values.get(key))
        if not isinstance(rules, Mapping):
            raise PoolError(f"{key} is {brief(rules)}; expected a mapping of names to rules")
        values[key] = {str(name): build(Rule, _or_empty(rule), f"{key}.{name}") for name, rule in rules.items()}
    values["failure_costs"] = read_failure_costs(values.get("failure_costs"))
    values["verifiers"] = read_measured(values.get("verifiers"))
    if "escalation_model" not in values:
        raise PoolError(f"escalation_model is missing; expected one of {[spec.name for spec in values['models']]}")
    return values


def _or_empty(value: Any) -> Any:
    return {} if value is None else value  # a YAML section with every line commented out reads as None


def _read_model(item: Any, path: str) -> ModelSpec:
    values = known_keys(ModelSpec, item, path)
    if values.get("long_context") is not None:
        values["long_context"] = build(LongContext, values["long_context"], f"{path}.long_context")
    spec = build(ModelSpec, values, path)
    # a forgotten price must not make a model free, and so the cheapest
    if spec.cost_per_request_usd is None and not spec.local:
        for key in ("input_usd_per_mtok", "output_usd_per_mtok"):
            if key not in item:
                raise PoolError(
                    f"{path}.{key} is missing; expected a price, or `cost_per_request_usd`, or `local: true`"
                )
    return spec
