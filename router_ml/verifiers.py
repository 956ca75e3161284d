"""Verifiers: is this answer acceptable?

::

    AllOf(NotRefusal(), JsonSchema({"type": "object", "required": ["total"]}))
    verifier_of({"all": [{"not_refusal": True}, {"judge": {"model": "openai/gpt-5-mini"}, "cost_usd": 0.002}]})

Each has a ``spec``, its reliability, by which a plan is made. The defaults are cautious: a check of the form alone is
passed by most wrong answers. Whoever has measured a verifier gives its own numbers.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from router_ml.answer import Answer, BaseVerifier, Verifier
from router_ml.attempt import Verdict
from router_ml.checks import Check, JsonSchema, Matches, MinimumLength, NotRefusal
from router_ml.errors import RequestError, VerifierError, brief
from router_ml.judge import Judge
from router_ml.programs import Command, Isolated
from router_ml.request import VerifierSpec

__all__ = [
    "AllOf", "Answer", "AnyOf", "Check", "Command", "Isolated", "JsonSchema", "Judge", "Matches", "MinimumLength",
    "NotRefusal", "Verifier", "VerifierMappingError", "verifier_of",
]  # fmt: skip

# Characters of what came over the network. Reading it is not isolated: an expression of some thousand takes seconds to
# compile, a schema of 20,000 to be compared with its meta-schema, and both hold the interpreter's lock. For all parts.
MAX_UNTRUSTED = {"json_schema": 5_000, "regex": 500}
MAX_PARTS, MAX_DEPTH = 20, 8  # of a verifier made of others


class VerifierMappingError(VerifierError, RequestError):
    """A mapping cannot be read as a verifier. A RequestError too, because it may have come with a request."""


@dataclass(frozen=True, slots=True, init=False)
class AllOf(BaseVerifier):
    """Every one accepts. They are asked in the given order, so put the cheap ones first; the first rejection ends it.

    One that cannot check is passed over: if another rejects, that is the verdict, and VerifierError is raised only if
    it would have mattered.

    :param spec: None: the product of the parts' acceptances, as if they erred independently, which flatters checks
        that look at the same thing; and the sum of costs and latencies, an upper bound.
    :raises VerifierError: if there is none, or one that is no verifier.
    """

    name: ClassVar[str] = "all"
    verifiers: tuple[Verifier, ...]
    spec: VerifierSpec

    def __init__(self, *verifiers: Verifier, spec: VerifierSpec | None = None) -> None:
        _compose(self, verifiers, spec, math.prod)

    def _verdict(self, answer: Answer) -> Verdict:
        return _ask(self.verifiers, answer, decisive=False)


@dataclass(frozen=True, slots=True, init=False)
class AnyOf(BaseVerifier):
    """At least one accepts; the first acceptance ends it. Otherwise as ``AllOf``.

    :param spec: None: 1 - product of the parts' rejections, under the same assumption.
    """

    name: ClassVar[str] = "any"
    verifiers: tuple[Verifier, ...]
    spec: VerifierSpec

    def __init__(self, *verifiers: Verifier, spec: VerifierSpec | None = None) -> None:
        _compose(self, verifiers, spec, lambda rates: 1.0 - math.prod(1.0 - rate for rate in rates))

    def _verdict(self, answer: Answer) -> Verdict:
        return _ask(self.verifiers, answer, decisive=True)


def _compose(
    whole: AllOf | AnyOf, parts: tuple[Verifier, ...], spec: VerifierSpec | None,
    rate: Callable[[list[float]], float],
) -> None:  # fmt: skip
    if not parts:
        raise VerifierError(f"{whole.name} has no verifiers; expected at least one")
    for part in parts:
        if not callable(getattr(part, "verify", None)) or not isinstance(getattr(part, "spec", None), VerifierSpec):
            raise VerifierError(f"{whole.name} has {brief(part)}; expected verifiers")
    specs = [part.spec for part in parts]
    combined = VerifierSpec(
        # many parts round to 0 or 1, which VerifierSpec does not take
        max(rate([one.true_accept for one in specs]), sys.float_info.min),
        min(rate([one.false_accept for one in specs]), 1.0 - sys.float_info.epsilon),
        sum(one.cost_usd for one in specs),
        sum(one.latency_s for one in specs),
    )
    object.__setattr__(whole, "verifiers", parts)
    object.__setattr__(whole, "spec", combined if spec is None else spec)


def _ask(verifiers: tuple[Verifier, ...], answer: Answer, *, decisive: bool) -> Verdict:
    """Ask until one says ``decisive``; costs add up."""
    cost = 0.0
    details: list[str] = []
    broken: Exception | None = None
    for verifier in verifiers:
        try:
            verdict = verifier.verify(answer)
        except Exception as exc:  # a caller's own verifier may raise anything
            broken = broken or exc
            continue
        cost += verdict.cost_usd
        if verdict.accepted is decisive:
            return verdict._replace(cost_usd=cost)
        details += [verdict.detail] if verdict.detail else []
    if broken is not None:
        raise broken
    return Verdict(not decisive, "; ".join(details), cost)


_NAMES = ("all", "any", "command", "json_schema", "judge", "min_length", "not_refusal", "regex")
_SPEC = tuple(entry.name for entry in dataclasses.fields(VerifierSpec))


def verifier_of(mapping: Mapping[str, Any], trusted: bool = False) -> Verifier | VerifierSpec:
    """Read a verifier from YAML or JSON.

    ``{"json_schema": {...}}``, ``{"regex": "..."}``, ``{"min_length": 20}``, ``{"not_refusal": true}``,
    ``{"command": ["pytest", "-q"]}`` or ``{"command": {"argv": [...], "timeout_s": 10}}``,
    ``{"judge": {"model": ..., "rubric": ..., "threshold": ...}}``, ``{"all": [...]}``, ``{"any": [...]}``; beside it
    any of VerifierSpec's fields, which replace the default. With nothing but those, the VerifierSpec itself.

    :param trusted: the mapping is the operator's own. If not, ``command`` is refused, schemas and regular expressions
        are bounded in size, and they are checked in a process of their own (``Isolated``).
    :raises VerifierMappingError: if it cannot be read. :raises RequestError: for a field of VerifierSpec out of range.
    :raises MissingExtraError: for a schema, without jsonschema.
    """
    try:
        return _Reader(trusted).read(mapping)
    except VerifierError as exc:
        raise VerifierMappingError(str(exc)) from None


class _Reader:
    """One reading of a mapping, which counts the parts, and their length as a share of the allowed one."""

    def __init__(self, trusted: bool) -> None:
        self.trusted = trusted
        self.parts, self.length = 0, 0.0

    def read(self, mapping: Any, depth: int = 0) -> Verifier | VerifierSpec:
        if not isinstance(mapping, Mapping):
            raise VerifierError(f"a verifier is {brief(mapping)}; expected a mapping")
        names = [key for key in mapping if key not in _SPEC]
        if unknown := [key for key in names if key not in _NAMES]:
            raise VerifierError(
                f"unknown verifier {brief(unknown)}; known: {', '.join(_NAMES)}, and VerifierSpec's {', '.join(_SPEC)}"
            )
        given = {key: mapping[key] for key in _SPEC if key in mapping}
        if not names:
            return VerifierSpec(**given)
        if len(names) > 1:
            raise VerifierError(f"a verifier names {', '.join(names)}; expected one of them, or `all` with a list")
        verifier = self._make(names[0], mapping[names[0]], depth)
        # nobody else has seen it yet, so it may still change
        object.__setattr__(verifier, "spec", dataclasses.replace(verifier.spec, **given))
        return verifier

    def _make(self, name: str, value: Any, depth: int) -> Verifier:
        self.parts += 1
        if self.parts > MAX_PARTS or depth > MAX_DEPTH:
            raise VerifierError(f"a verifier has more than {MAX_PARTS} parts or {MAX_DEPTH} levels; simplify it")
        if name in ("all", "any"):
            return self._composite(AllOf if name == "all" else AnyOf, value, depth)
        if name in ("json_schema", "regex"):
            return self._pattern(name, value)
        if name == "not_refusal":
            if value is not True:
                raise VerifierError(f"not_refusal is {brief(value)}; expected true")
            return NotRefusal()
        if name == "min_length":
            return MinimumLength(value)
        if name == "judge":
            return _from_fields(Judge, name, value, ("model", "rubric", "threshold"))
        if not self.trusted:
            raise VerifierError("command runs a program, so a request cannot bring one; put it into pool.yaml")
        value = value if isinstance(value, Mapping) else {"argv": value}
        return _from_fields(Command, name, value, ("argv", "timeout_s", "env", "directory"))

    def _composite(self, cls: type[AllOf | AnyOf], value: Any, depth: int) -> Verifier:
        if not isinstance(value, (list, tuple)):
            raise VerifierError(f"{cls.name} is {brief(value)}; expected a list of verifiers")
        parts = [self.read(one, depth + 1) for one in value]
        return cls(*parts)  # type: ignore[arg-type]  # a VerifierSpec among them is refused there

    def _pattern(self, name: str, value: Any) -> Verifier:
        self.length += _size(value) / MAX_UNTRUSTED[name]
        if not self.trusted and self.length > 1.0:
            raise VerifierError(
                f"{name} of a request is longer than {MAX_UNTRUSTED[name]} characters, alone or with the other parts; "
                "put it into pool.yaml"
            )
        if name == "json_schema":
            schema = JsonSchema(value)
            return schema if self.trusted else Isolated(schema, {name: schema.schema})
        return Matches(value) if self.trusted else Isolated(Matches(value), {name: value})


def _from_fields(cls: Callable[..., Verifier], name: str, value: Any, known: tuple[str, ...]) -> Verifier:
    if not isinstance(value, Mapping) or not value.keys() <= set(known) or known[0] not in value:
        got = brief(list(value) if isinstance(value, Mapping) else value)
        raise VerifierError(f"{name} has {got}; expected {known[0]} and, if wanted, {', '.join(known[1:])}")
    return cls(**value)


def _size(value: Any) -> int:
    try:
        return len(json.dumps(value))
    except (TypeError, ValueError, RecursionError):
        return 0  # no JSON: refused with its own message when built
