"""What the outcome log holds: an ``Entry`` on its way in as rows, a ``LoggedDecision`` on its way out.

Texts are made such that both databases and JSON take them: NUL characters and halves of surrogate pairs become the
replacement character, numbers that are not finite become null.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from router_ml.attempt import Attempt
from router_ml.features import FEATURE_NAMES
from router_ml.reliability import verifier_name
from router_ml.request import Candidate, RouteDecision, RouteRequest

Floats = NDArray[np.floating[Any]]
Prompt = str | list[dict[str, Any]]
Prompts = Literal["none", "hash", "text"]

IMPORT = "import"  # source of decisions that were read from an outcome table
HASH_VERSION = "sha256-1:"  # what is hashed: messages as JSON with sorted keys; a string is one user message
MESSAGE_CHARS = 500  # kept of an error's message or a verdict's detail

# A request's own limits, logged where they are not the default.
_LIMITS = (
    "max_output_tokens", "min_quality", "budget_usd", "max_latency_s", "failure_cost_usd", "supervised", "local_only",
    "allow", "deny", "pin", "require", "current_model", "cached_tokens", "max_switch_usd",
)  # fmt: skip
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Entry:
    """One request: what was decided, on what evidence, and what came of it.

    :param features: (F,) as ``features.extract`` gives them. :param embedding: (E,) float32. Both are copied.
    :param policy: name of the rule that decided. :param encoder: fingerprint of the encoder of ``embedding``.
    :param input_tokens: estimate for the whole prompt.
    :param baseline_cost_usd: what the escalation model would have cost, from real usage; None: not known.
    :param source: who made the decision: "complete", "gateway", "route".
    :param labels: of experiments, such as ``{"arm": "challenger"}``.
    :param created_at: seconds since 1970; None: now.
    """

    decision: RouteDecision
    request: RouteRequest
    features: Floats | None = None
    embedding: Floats | None = None
    attempts: tuple[Attempt, ...] = ()
    policy: str = ""
    encoder: str = ""
    input_tokens: int = 0
    baseline_cost_usd: float | None = None
    source: str = "complete"
    labels: Mapping[str, str] = field(default_factory=dict)
    created_at: float | None = None


class Rows(NamedTuple):
    """Rows to add, table by table."""

    decisions: Sequence[dict[str, Any]] = ()
    attempts: Sequence[dict[str, Any]] = ()
    feedback: Sequence[dict[str, Any]] = ()


@dataclass(frozen=True, slots=True)
class LoggedAttempt:
    """An attempt as logged; None where a table that was imported did not say.

    :param accepted: the verifier's verdict, None if nobody checked. :param error_kind: class of the error, None if the
        model answered. :param propensity: probability with which the policy chose this model; None for later stages,
        fallbacks and other models. :param verifier: name of what gave the verdict, as ``verifier_name`` makes it.
    """

    position: int
    model: str
    kind: str
    stage: int | None
    started_at: float | None
    latency_s: float | None
    cost_usd: float | None
    input_tokens: float | None
    output_tokens: float | None
    cached_tokens: float | None
    propensity: float | None
    accepted: bool | None
    verdict_detail: str | None
    verdict_cost_usd: float | None
    verdict_latency_s: float | None
    error_kind: str | None
    error_message: str | None
    cache_hit: bool
    turns: float | None = None
    tool_calls: float | None = None
    verifier: str | None = None


@dataclass(frozen=True, slots=True)
class LoggedFeedback:
    """What was said of a decision later. ``model`` is None if it is about the model whose answer was given."""

    created_at: float
    model: str | None
    score: float | None
    verdict: str | None
    text: str | None
    source: str | None


@dataclass(frozen=True, slots=True, eq=False)
class LoggedDecision:
    """A decision as logged, with its attempts in order and its feedback, oldest first.

    What only a router knows is None, and ``candidates`` is empty, where the decision was imported. ``prompt`` is None
    unless texts are logged. ``features`` and ``embedding`` are read-only float32.
    """

    decision_id: str
    created_at: float
    source: str
    router_version: str | None
    policy: str | None
    encoder: str | None
    feature_set: str | None
    session_id: str | None
    task: str | None
    segment: str | None
    tags: tuple[str, ...]
    labels: Mapping[str, str]
    prompt_hash: str | None
    prompt: Prompt | None
    limits: Mapping[str, Any]
    input_tokens: float | None
    features: NDArray[np.float32] | None
    embedding: NDArray[np.float32] | None
    candidates: tuple[Candidate, ...]
    model: str | None
    plan: tuple[str, ...]
    confidence: float | None
    plan_confidence: float | None
    escalated: bool | None
    degraded: bool | None
    reason_code: str | None
    reason_text: str | None
    propensity: float | None
    expected_cost_usd: float | None
    expected_baseline_usd: float | None
    baseline_cost_usd: float | None
    novelty: float | None
    attempts: tuple[LoggedAttempt, ...] = ()
    feedback: tuple[LoggedFeedback, ...] = ()


@cache
def feature_set() -> str:
    """Fingerprint of the hand-built features: a log may outlive the version that wrote it."""
    return hashlib.sha256("\n".join(FEATURE_NAMES).encode()).hexdigest()[:16]


def packed(values: Floats | None) -> bytes | None:
    """(n,) numbers as little-endian float32; None if one is not finite, for no model can be trained on that."""
    if values is None:
        return None
    with np.errstate(over="ignore"):
        small = np.asarray(values, dtype="<f4")
    return small.tobytes() if np.isfinite(small).all() else None


def owned(messages: str | Sequence[Mapping[str, Any]]) -> str | list[dict[str, Any]]:
    """A copy that keeps its value when the caller goes on with the conversation in the same list."""
    return messages if isinstance(messages, str) else [dict(message) for message in messages]


def entry_rows(
    entry: Entry, created_at: float, features: bytes | None, embedding: bytes | None, prompt: Any, prompts: Prompts
) -> Rows:
    """The rows of one entry.

    :param prompt: the request's messages, as ``owned`` gave them; not looked at if ``prompts`` is "none".
    """
    decision, request = entry.decision, entry.request
    row = {
        "decision_id": storable(decision.decision_id),
        "created_at": created_at,
        "source": storable(entry.source),
        "router_version": storable(decision.router_version),
        "policy": storable(entry.policy),
        "encoder": storable(entry.encoder) or None,
        "session_id": storable(request.session_id),
        "task": storable(request.task),
        "segment": storable(request.segment),
        "tags": as_json(list(dict.fromkeys(request.tags))),
        "labels": as_json(dict(entry.labels)) if entry.labels else None,
        "limits": as_json(_limits(request)),
        "input_tokens": finite(entry.input_tokens),
        "candidates": as_json([candidate._asdict() for candidate in decision.candidates]),
        "model": storable(decision.model),
        "plan": as_json(list(decision.plan)),
        "confidence": finite(decision.confidence),
        "plan_confidence": finite(decision.plan_confidence),
        "escalated": bool(decision.escalated),
        "degraded": bool(decision.degraded),
        "reason_code": decision.reason.code.value,
        "reason_text": storable(decision.reason.text),
        "propensity": finite(decision.propensity),
        "expected_cost_usd": finite(decision.expected_cost_usd),
        "expected_baseline_usd": finite(decision.baseline_cost_usd),
        "baseline_cost_usd": finite(entry.baseline_cost_usd),
        "novelty": finite(decision.evidence.novelty),
        **representation_columns(features, embedding),
        **prompt_columns(prompt, prompts),
    }
    checked = any(attempt.verdict is not None for attempt in entry.attempts)
    verifier = storable(verifier_name(request.verifier)) if checked and hasattr(request.verifier, "verify") else None
    return Rows([row], [_attempt_row(decision, i, attempt, verifier) for i, attempt in enumerate(entry.attempts)])


def representation_columns(features: bytes | None, embedding: bytes | None) -> dict[str, Any]:
    """What the classifier saw."""
    return {
        "features": features, "embedding": embedding, "feature_set": None if features is None else feature_set(),
    }  # fmt: skip


def prompt_columns(prompt: str | Sequence[Mapping[str, Any]], prompts: Prompts) -> dict[str, Any]:
    """What is kept of the request's text: nothing of messages that are nested too deeply, or hold too large a number,
    to be written as JSON. The decision is worth more than they are."""
    kept: dict[str, Any] = {"prompt_hash": None, "prompt": None, "messages": None}
    if prompts == "none":
        return kept
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    try:
        canonical = as_json(messages, sort_keys=True)
    except (RecursionError, ValueError):
        return kept
    kept["prompt_hash"] = HASH_VERSION + hashlib.sha256(canonical.encode()).hexdigest()
    if prompts == "text":
        kept["prompt" if isinstance(prompt, str) else "messages"] = (
            storable(prompt) if isinstance(prompt, str) else as_json(prompt)
        )
    return kept


def _limits(request: RouteRequest) -> dict[str, Any]:
    held = {}
    for name in _LIMITS:
        value = getattr(request, name)
        if isinstance(value, (tuple, list, set, frozenset)):
            value = tuple(value)
        if value != RouteRequest.__dataclass_fields__[name].default:
            held[name] = value
    if request.verifier is not None:
        held["verifier"] = type(request.verifier).__name__
    return held


def _attempt_row(decision: RouteDecision, position: int, attempt: Attempt, verifier: str | None) -> dict[str, Any]:
    verdict, error = attempt.verdict, attempt.error
    first = attempt.stage == 0 and attempt.model == decision.model
    return {
        "attempt_id": f"{storable(decision.decision_id)}-{position}",
        "decision_id": storable(decision.decision_id),
        "position": position,
        "model": storable(attempt.model),
        "kind": str(attempt.kind),
        "stage": attempt.stage,
        "started_at": finite(attempt.started_at),
        "latency_s": finite(attempt.latency_s),
        "cost_usd": finite(attempt.cost_usd),
        "input_tokens": finite(attempt.usage.input_tokens),
        "output_tokens": finite(attempt.usage.output_tokens),
        "cached_tokens": finite(attempt.usage.cached_tokens),
        "propensity": finite(decision.propensity) if first else None,
        "accepted": None if verdict is None else bool(verdict.accepted),
        "verdict_detail": None if verdict is None else storable(verdict.detail[:MESSAGE_CHARS]),
        "verdict_cost_usd": None if verdict is None else finite(verdict.cost_usd),
        "verdict_latency_s": None if verdict is None else finite(verdict.latency_s),
        "error_kind": None if error is None else type(error).__name__,
        "error_message": None if error is None else storable(str(error)[:MESSAGE_CHARS]),
        "cache_hit": bool(attempt.cache_hit),
        "turns": None,
        "tool_calls": None,
        "verifier": None if verdict is None else verifier,
    }


def storable(text: Any) -> Any:
    """Text that both databases take; None stays None."""
    if text is None:
        return None
    text = str(text)
    return text if text.isascii() and "\0" not in text else _UNSTORABLE.sub("\ufffd", text)


def finite(number: Any) -> float | None:
    """The number as float64, None if it is none."""
    if number is None:
        return None
    value = float(number)
    return value if math.isfinite(value) else None


def as_json(value: Any, *, sort_keys: bool = False) -> str:
    """JSON that both databases, and any JSON reader, take."""
    encode = _encode_sorted if sort_keys else _encode
    try:
        text = encode(value)
        # a NUL is an escape by then
        if "\\u0000" not in text and (text.isascii() or not _UNSTORABLE.search(text)):
            return text
    except (TypeError, ValueError):  # not built-in types, or not finite
        pass
    return encode(_plain(value))


_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
_encode_sorted = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), sort_keys=True).encode


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return storable(value)
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, (float, np.floating)):
        return finite(value)
    if isinstance(value, Mapping):
        return {storable(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(inner) for inner in value]
    return storable(value)


def decision_of(
    row: Mapping[str, Any], attempts: Iterable[Mapping[str, Any]], feedback: Iterable[Mapping[str, Any]]
) -> LoggedDecision:
    """A decision from its rows."""
    values = dict(row)
    messages = values.pop("messages")
    if messages is not None:
        values["prompt"] = json.loads(messages)
    for name in ("features", "embedding"):
        values[name] = None if values[name] is None else np.frombuffer(values[name], dtype="<f4")
    values["candidates"] = tuple(Candidate(**candidate) for candidate in json.loads(values["candidates"]))
    values["plan"], values["tags"] = tuple(json.loads(values["plan"])), tuple(json.loads(values["tags"]))
    values["labels"], values["limits"] = json.loads(values["labels"] or "{}"), json.loads(values["limits"])
    return LoggedDecision(
        **values,
        attempts=tuple(LoggedAttempt(**_without(a, "attempt_id", "decision_id")) for a in attempts),
        feedback=tuple(LoggedFeedback(**_without(f, "feedback_id", "decision_id")) for f in feedback),
    )


def _without(row: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in names}
