"""Configuration that is checked where it is built: dataclasses whose fields say what they accept, read from YAML.

An error begins with the field it is about, so that each level of nesting puts its own key in front and the message
ends up with the whole path: ``pool.yaml: models[2].input_usd_per_mtok is -1; expected a finite number >= 0``.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from router_ml.errors import PoolError, brief
from router_ml.request import ABILITIES

T = TypeVar("T")


class Kind(NamedTuple):
    """What a field accepts, in words for the error and as a test; ``read`` brings it to the type that is stored."""

    expected: str
    accepts: Callable[[Any], bool]
    read: Callable[[Any], Any]


def is_number(value: Any) -> bool:
    """Whether the value is a finite int or float. A bool is not: ``exploration: yes`` would otherwise pass as 1."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def is_count(value: Any) -> bool:
    """Whether the value is an int, and not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value) and value == value.strip()


def _is_names(value: Any) -> bool:
    return isinstance(value, (list, tuple, frozenset)) and all(map(_is_name, value))


NAME = Kind("a name: a string without spaces around it", _is_name, str)
NAMES = Kind("a list of model names", _is_names, tuple)
ABILITY_SET = Kind(
    f"a list of abilities, of {sorted(ABILITIES)}", lambda v: _is_names(v) and ABILITIES.issuperset(v), frozenset
)
AMOUNT = Kind("a finite number >= 0", lambda v: is_number(v) and v >= 0, float)
POSITIVE = Kind("a finite number > 0", lambda v: is_number(v) and v > 0, float)
SHARE = Kind("a number in [0, 1]", lambda v: is_number(v) and 0 <= v <= 1, float)
POSITIVE_SHARE = Kind("a number in (0, 1]", lambda v: is_number(v) and 0 < v <= 1, float)
QUALITY = Kind(
    "a number in (0, 1] or 'escalation'",
    lambda v: v == "escalation" or POSITIVE_SHARE.accepts(v),
    lambda v: v if isinstance(v, str) else float(v),
)
COUNT = Kind("a whole number >= 1", lambda v: is_count(v) and v >= 1, int)
STAGES = Kind("a whole number in 1..4", lambda v: is_count(v) and 1 <= v <= 4, int)
COUNT_OR_ZERO = Kind("a whole number >= 0", lambda v: is_count(v) and v >= 0, int)
FLAG = Kind("true or false", lambda v: isinstance(v, bool), bool)
MAPPING = Kind("a mapping", lambda v: isinstance(v, Mapping) and all(isinstance(k, str) for k in v), dict)
AMOUNTS = Kind(
    "a mapping of names to finite numbers >= 0",
    lambda v: MAPPING.accepts(v) and all(map(AMOUNT.accepts, v.values())),
    lambda v: {name: float(amount) for name, amount in v.items()},
)
_CACHES = ("off", "memory", "disk", "redis")
# YAML reads a bare off as false
CACHE_TYPE = Kind("'off', 'memory', 'disk' or 'redis'", lambda v: v is False or v in _CACHES, lambda v: v or "off")
ON_EXCEEDED = Kind("'degrade' or 'refuse'", lambda v: v in ("degrade", "refuse"), str)
UNLIKE = Kind("'escalate' or 'ignore'", lambda v: v in ("escalate", "ignore"), str)


def of(kind: Kind, default: Any = dataclasses.MISSING) -> Any:
    """A dataclass field of that kind. :param default: the default, or ``dict`` for an empty one of its own."""
    if default is dict:
        # left out of the hash: a dict has none, and equal dataclasses still get equal hashes
        return dataclasses.field(default_factory=dict, hash=False, metadata={"kind": kind})
    return dataclasses.field(default=default, metadata={"kind": kind})


class Checked:
    """Base of dataclasses whose fields are made with ``of``; None passes where None is the default."""

    __slots__ = ()

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):  # type: ignore[arg-type]
            kind: Kind | None = item.metadata.get("kind")
            value = getattr(self, item.name)
            if kind is None or (value is None and item.default is None):
                continue
            if not kind.accepts(value):
                raise PoolError(f"{item.name} is {brief(value)}; expected {kind.expected}")
            object.__setattr__(self, item.name, kind.read(value))


def build(cls: Callable[..., T], item: Any, path: str) -> T:
    """Make ``cls`` from a mapping of its fields.

    :param path: key path of the mapping, for errors.
    :raises PoolError: for an unknown key, a missing one, or a value that its field does not accept.
    """
    values = known_keys(cls, item, path)
    for entry in dataclasses.fields(cls):  # type: ignore[arg-type]
        missing = entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING
        if missing and entry.name not in values:
            raise PoolError(f"{path}.{entry.name} is missing; expected {entry.metadata['kind'].expected}")
    try:
        return cls(**values)
    except PoolError as exc:
        raise PoolError(f"{path}.{exc}") from None


def known_keys(cls: Any, item: Any, path: str) -> dict[str, Any]:
    """The mapping as a dict, if all its keys are fields of ``cls``.

    :raises PoolError: if not, naming the unknown keys and the known ones.
    """
    known = [entry.name for entry in dataclasses.fields(cls)]
    if not isinstance(item, Mapping):
        raise PoolError(f"{path} is {brief(item)}; expected a mapping with keys of {known}")
    unknown = [key for key in item if key not in known]
    if unknown:
        raise PoolError(f"{path} has unknown key(s) {unknown}; known: {known}")
    return dict(item)


def changed(item: Any, keep: tuple[str, ...] = ()) -> dict[str, Any]:
    """Fields of a dataclass that differ from their default, or are in ``keep``, as types that YAML knows."""
    out: dict[str, Any] = {}
    for entry in dataclasses.fields(item):
        value = getattr(item, entry.name)
        default = {} if entry.default_factory is dict else entry.default
        if entry.name in keep or value != default:
            if isinstance(value, (tuple, frozenset)):
                value = sorted(value) if isinstance(value, frozenset) else list(value)
            out[entry.name] = changed(value) if dataclasses.is_dataclass(value) else value
    return out


def parse_yaml(text: str, where: str) -> Any:
    """Content of one YAML document, None if it is empty.

    :param where: named in errors.
    :raises PoolError: for bad syntax and for a key that is there twice.
    """
    import yaml  # type: ignore[import-untyped]

    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        repeated = _repeated_key(node)
        content = None if node is None else loader.construct_document(node)
    except (yaml.YAMLError, ValueError) as exc:  # ValueError: a date such as 2026-13-45
        mark = getattr(exc, "problem_mark", None)
        line = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise PoolError(f"{where}{line}: not valid YAML: {getattr(exc, 'problem', None) or exc}") from exc
    if repeated is not None:
        raise PoolError(f"{where} line {repeated.start_mark.line + 1}: key {repeated.value!r} is there twice; keep one")
    return content


def _repeated_key(root: Any) -> Any:
    """First key node of a YAML tree that its mapping already has: a reader drops the earlier one in silence."""
    nodes, visited = [root], set()
    while nodes:
        node = nodes.pop()
        if node is None or node.id == "scalar" or id(node) in visited:  # an alias may lead back to its own parent
            continue
        visited.add(id(node))
        if node.id == "sequence":
            nodes += node.value
            continue
        keys = set()
        for key, child in node.value:
            nodes.append(child)
            if key.id == "scalar" and key.value in keys:
                return key
            keys.add(key.value if key.id == "scalar" else id(key))
    return None
