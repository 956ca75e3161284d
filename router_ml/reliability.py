"""How far a verifier can be trusted: what was measured of it, in place of what it declares.

A verifier is known by its kind and a short hash of its configuration, ``judge-3f0c52a90b1d``. The outcome log keeps
that name with each verdict, ``router-ml outcomes verifiers`` measures by it, and the section ``verifiers`` of pool.yaml
holds what was measured under it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from router_ml.configuration import (
    AMOUNT,
    COUNT_OR_ZERO,
    POSITIVE_SHARE,
    Checked,
    Kind,
    build,
    changed,
    is_number,
    of,
    parse_yaml,
)
from router_ml.errors import PoolError, brief
from router_ml.request import RouteRequest, VerifierSpec

if TYPE_CHECKING:
    from router_ml.pool import ModelPool

HASH_DIGITS = 12
MAX_KIND = 60  # characters: the name of a caller's own function may be any text

_BELOW_ONE = Kind("a number in [0, 1)", lambda v: is_number(v) and 0 <= v < 1, float)
_TASKS = Kind(
    "a mapping of tasks to what was measured there",
    lambda v: isinstance(v, Mapping) and all(isinstance(rates, MeasuredRates) for rates in v.values()),
    dict,
)


@dataclass(frozen=True, slots=True)
class MeasuredRates(Checked):
    """What was measured of a verifier; None: not measured, so what it declares holds.

    The acceptances are the cautious ends of their intervals, as a plan counts on them.

    :param true_accept: P(accepted | right), in (0, 1]. :param false_accept: P(accepted | wrong), in [0, 1).
    :param cost_usd: mean cost of a check. :param latency_s: mean seconds of a check.
    :param n_right: right answers with a label and a verdict that stand behind it. :param n_wrong: wrong ones.
    :raises PoolError: if a number is outside its range.
    """

    true_accept: float | None = of(POSITIVE_SHARE, None)
    false_accept: float | None = of(_BELOW_ONE, None)
    cost_usd: float | None = of(AMOUNT, None)
    latency_s: float | None = of(AMOUNT, None)
    n_right: int | None = of(COUNT_OR_ZERO, None)
    n_wrong: int | None = of(COUNT_OR_ZERO, None)

    def over(self, declared: VerifierSpec) -> VerifierSpec:
        """What is declared, with what was measured in its place."""
        fields = ((entry.name, getattr(self, entry.name)) for entry in dataclasses.fields(VerifierSpec))
        return dataclasses.replace(declared, **{name: value for name, value in fields if value is not None})


@dataclass(frozen=True, slots=True)
class MeasuredVerifier(MeasuredRates):
    """The same over all requests, and by task. :param tasks: what is missing there is taken from the whole."""

    tasks: Mapping[str, MeasuredRates] = of(_TASKS, dict)

    def to_dict(self) -> dict[str, Any]:
        """As pool.yaml has it."""
        tasks = {task: changed(rates) for task, rates in self.tasks.items()}
        return {**changed(dataclasses.replace(self, tasks={})), **({"tasks": tasks} if tasks else {})}


def read_measured(section: Any, path: str = "verifiers") -> dict[str, MeasuredVerifier]:
    """The section ``verifiers`` of pool.yaml.

    :param path: named in errors. :raises PoolError: naming the key, what came and what was expected.
    """
    out = {}
    for name, item in _mapping(section, path).items():
        key = f"{path}.{name}"
        if isinstance(item, Mapping) and "tasks" in item:
            tasks = _mapping(item["tasks"], f"{key}.tasks")
            rates = {task: build(MeasuredRates, rates, f"{key}.tasks.{task}") for task, rates in tasks.items()}
            item = {**item, "tasks": rates}
        out[name] = build(MeasuredVerifier, item, key)
    return out


def with_measured(content: Any, path: Path) -> Any:
    """pool.yaml with the measured verifiers of another file in place of its name, which is relative to pool.yaml.

    :raises PoolError: if the other file cannot be read, or holds anything else.
    """
    named = content.get("verifiers") if isinstance(content, Mapping) else None
    if not isinstance(named, str):
        return content
    where = path.parent / named
    try:
        read = parse_yaml(where.read_text(encoding="utf-8"), str(where))
    except (OSError, UnicodeDecodeError) as exc:
        raise PoolError(f"{path}: verifiers is {brief(named)}, which cannot be read: {exc}") from exc
    if not isinstance(read, Mapping) or read.keys() != {"verifiers"} or isinstance(read["verifiers"], str):
        raise PoolError(f"{where}: expected the one key `verifiers`, as `router-ml outcomes verifiers --out` writes it")
    return {**content, "verifiers": read["verifiers"]}


def _mapping(value: Any, path: str) -> dict[str, Any]:
    value = {} if value is None else value
    if not isinstance(value, Mapping):
        raise PoolError(f"{path} is {brief(value)}; expected a mapping of names to what was measured")
    return {str(name): item for name, item in value.items()}


def reliability_of(request: RouteRequest, pool: ModelPool) -> VerifierSpec | None:
    """The reliability to plan with, of the verifier that a request has; None without one.

    A VerifierSpec in the request is the caller's own word and holds. For a verifier, what was measured of it on the
    request's task comes first, then what was measured of it at all, then what it declares; each number by itself.
    """
    verifier = request.verifier
    if verifier is None or isinstance(verifier, VerifierSpec):
        return verifier
    spec = verifier.spec
    measured = pool.verifiers.get(verifier_name(verifier)) if pool.verifiers else None
    if measured is None:
        return spec
    spec = measured.over(spec)
    rates = measured.tasks.get(request.task) if request.task is not None else None
    return spec if rates is None else rates.over(spec)


def verifier_name(verifier: Any) -> str:
    """Kind and hash of the configuration: the same in every process, another if the verifier checks differently.

    Declared reliability is no part of it, nor are the values of fields that a ``repr`` leaves out, for they may be
    secrets. A caller's function is told by its module and name: give it another if its meaning changes. The name holds
    no text of the configuration but the kind.
    """
    verifier = _inside(verifier)
    try:
        kind = str(verifier.name)[:MAX_KIND]
        told = json.dumps(_configuration(verifier), sort_keys=True)
    except Exception:  # a caller's own verifier; a verdict is worth more than the name of who gave it
        kind, told = type(verifier).__name__, _qualified(type(verifier))
    return f"{kind}-{hashlib.sha256(told.encode()).hexdigest()[:HASH_DIGITS]}"


def _inside(verifier: Any) -> Any:
    from router_ml.programs import Isolated

    return verifier.verifier if isinstance(verifier, Isolated) else verifier  # where it runs changes no verdict


def _configuration(value: Any) -> Any:
    """Built-in types of JSON that tell two configurations apart."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _configuration(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_configuration(inner) for inner in value]
    if isinstance(value, (set, frozenset)):
        return sorted(json.dumps(_configuration(inner), sort_keys=True) for inner in value)
    if isinstance(value, partial):
        return [_configuration(inner) for inner in (value.func, value.args, value.keywords)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = _inside(value)
        held = {e.name: _field(e, getattr(value, e.name)) for e in dataclasses.fields(value) if e.name != "spec"}
        return {"type": _qualified(type(value)), **held}
    return _qualified(value if callable(value) else type(value))


def _field(entry: dataclasses.Field[Any], value: Any) -> Any:
    if not entry.init:  # made from the others
        return None
    if not entry.repr:
        return sorted(map(str, value)) if isinstance(value, Mapping) else None
    return _configuration(value)


def _qualified(value: Any) -> str:
    """Module and name of a class or a function; of a lambda, which has none, where it stands."""
    name = getattr(value, "__qualname__", None)
    if name is None:  # an object that can be called
        value = type(value)
        name = value.__qualname__
    code = getattr(value, "__code__", None)
    line = f":{code.co_firstlineno}" if code is not None and name.endswith("<lambda>") else ""
    return f"{getattr(value, '__module__', '')}.{name}{line}"
