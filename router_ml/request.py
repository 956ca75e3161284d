"""The request, and the facts that cross modules.

``RouteRequest`` is what a caller wants done. ``read_trace`` walks its messages once and keeps what features, guards
and cost need, so that no other module parses messages. ``RouteDecision`` is the answer, with its evidence.
"""

from __future__ import annotations

import enum
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from router_ml.errors import RequestError, brief

if TYPE_CHECKING:
    from router_ml.verifiers import Verifier

ABILITIES = frozenset({"vision", "pdf", "video", "audio", "tools", "json_schema", "reasoning", "computer_use"})
ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})

# Tokens that one attachment costs when its size is not known: mid-range of what providers publish per image or page.
IMAGE_TOKENS = 1_000
PDF_TOKENS = 6_000
VIDEO_TOKENS = 10_000
AUDIO_TOKENS = 1_500
BYTES_PER_TOKEN = 4  # UTF-8 bytes; holds within a third for English, code and CJK alike

_ATTACHMENTS = {
    "image": "image", "image_url": "image", "input_image": "image",
    "document": "pdf", "file": "pdf", "input_file": "pdf",
    "video": "video", "video_url": "video", "input_video": "video",
    "audio": "audio", "input_audio": "audio",
}  # fmt: skip
_TEXTS = frozenset({"text", "input_text", "output_text"})
_FAILURE_MARKS = ("error", "exception", "traceback", "failed", "command not found", "no such file", "permission denied")


@dataclass(frozen=True, slots=True)
class VerifierSpec:
    """How far a check of the answer can be trusted.

    :param true_accept: P(accepted | answer is right), in (0, 1].
    :param false_accept: P(accepted | answer is wrong), in [0, 1).
    :param cost_usd: cost of one check.
    :param latency_s: seconds of one check.
    :raises RequestError: if a number is outside its range.
    """

    true_accept: float = 0.95
    false_accept: float = 0.05
    cost_usd: float = 0.0
    latency_s: float = 0.0

    def __post_init__(self) -> None:
        if not _is_number(self.true_accept) or not 0.0 < self.true_accept <= 1.0:
            raise RequestError(f"true_accept is {brief(self.true_accept)}; it must lie in (0, 1]")
        if not _is_number(self.false_accept) or not 0.0 <= self.false_accept < 1.0:
            raise RequestError(f"false_accept is {brief(self.false_accept)}; it must lie in [0, 1)")
        for name in ("cost_usd", "latency_s"):
            _positive(name, getattr(self, name), zero=True)


@dataclass(frozen=True, slots=True)
class RouteRequest:
    """What the caller wants done, and within which limits.

    :param messages: a string (one user message) or OpenAI-style messages.
    :param tools: tool schemas offered to the model. They count for the context window, never for difficulty.
    :param task: a name that the pool's ``tasks`` rules or the training table know.
    :param max_output_tokens: limit asked of the model; a model that cannot write as much is excluded.
    :param min_quality: probability of success wanted, in (0, 1]; or "escalation": as good as the escalation model.
    :param budget_usd: most that the call may be expected to cost.
    :param max_latency_s: most seconds the call may be expected to take.
    :param failure_cost_usd: what a wrong answer costs the caller. If given, the decision minimises
        ``expected cost + (1 - P(success)) * failure_cost_usd`` instead of using a threshold.
    :param supervised: whether a person looks at the answer before it takes effect.
    :param local_only: only models that run on the caller's own machines.
    :param allow: if not empty, only these models. :param deny: never these. :param pin: this model, if it can.
    :param require: abilities the model must have, of ``ABILITIES``.
    :param current_model: model that holds the conversation now. :param cached_tokens: prompt tokens it has cached.
    :param max_switch_usd: most that leaving ``current_model`` may cost in prompt tokens read again at full price.
    :param tags: labels that budgets and reports count by, such as a team or a product.
    :param verifier: how the answer will be checked: a verifier of ``router_ml.verifiers``, or its reliability alone.
    :raises RequestError: if the request cannot be read.
    """

    messages: str | Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] = ()
    task: str | None = None
    max_output_tokens: int | None = None
    min_quality: float | Literal["escalation"] | None = None
    budget_usd: float | None = None
    max_latency_s: float | None = None
    failure_cost_usd: float | None = None
    supervised: bool | None = None
    local_only: bool = False
    allow: Sequence[str] = ()
    deny: Sequence[str] = ()
    pin: str | None = None
    require: Sequence[str] = ()
    session_id: str | None = None
    current_model: str | None = None
    cached_tokens: int = 0
    max_switch_usd: float | None = None
    segment: str | None = None
    tags: Sequence[str] = ()
    verifier: VerifierSpec | Verifier | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_messages(self.messages)
        _check_limits(self)

    @classmethod
    def of(cls, value: RouteRequest | str | Sequence[Mapping[str, Any]] | Mapping[str, Any]) -> RouteRequest:
        """Read a request from any form a caller may hold.

        :param value: a RouteRequest, a string, OpenAI-style messages, or a mapping of RouteRequest's fields.
        :raises RequestError: for anything else.
        """
        if isinstance(value, cls):
            return value
        if isinstance(value, Mapping):
            return cls._from_mapping(value)
        return cls(value)  # type: ignore[arg-type]

    @classmethod
    def _from_mapping(cls, value: Mapping[str, Any]) -> RouteRequest:
        fields = dict(value)
        if "prompt" in fields and "messages" not in fields:
            fields["messages"] = fields.pop("prompt")
        unknown = sorted(map(str, set(fields) - set(cls.__dataclass_fields__)))
        if unknown:
            raise RequestError(f"unknown request field(s) {brief(unknown)}; known: {sorted(cls.__dataclass_fields__)}")
        if "messages" not in fields:
            raise RequestError("a request needs `messages` (or `prompt`)")
        if isinstance(fields.get("verifier"), Mapping):
            from router_ml.verifiers import verifier_of

            fields["verifier"] = verifier_of(fields["verifier"])
        return cls(**fields)


class Trace(NamedTuple):
    """What one walk over the messages found. Counts are of the whole conversation; texts are the user's own words."""

    user_text: str  # every user turn, joined by blank lines
    last_user_text: str
    input_tokens: int  # estimate for the whole prompt: messages, attachments, tool schemas
    user_turns: int
    assistant_turns: int
    tool_calls: int
    tool_results: int
    failed_tool_calls: int
    tools_offered: int
    images: int
    pdfs: int
    videos: int
    audios: int
    needs: frozenset[str]  # abilities without which a model cannot take the request


class ReasonCode(enum.StrEnum):
    """Why a model was chosen."""

    CHEAPEST_LIKELY = "cheapest_likely"
    CHEAPEST_PLAN = "cheapest_plan"
    LOWEST_EXPECTED_LOSS = "lowest_expected_loss"
    LOW_CONFIDENCE = "low_confidence"
    UNLIKE = "unlike"
    RULE = "rule"
    PINNED = "pinned"
    BUDGET = "budget"
    EXPLORATION = "exploration"


class Reason(NamedTuple):
    """A code a program can branch on and a sentence a person can read."""

    code: ReasonCode
    text: str


class Candidate(NamedTuple):
    """One model of the pool as the decision saw it. ``excluded_by`` is None if it was eligible, else a sentence."""

    model: str
    p_success: float
    expected_cost_usd: float
    expected_latency_s: float | None
    excluded_by: str | None


class Evidence(NamedTuple):
    """How much data stands behind the confidence.

    ``kind`` is "measured" (outcomes of this very model) or "prior" (placed by its relatives and published results).
    ``n_outcomes`` counts training outcomes of the chosen model. ``novelty`` in [0, 1] is the share of training requests
    that lie nearer to the training data than this request does: near 1 means that it is unlike anything seen.
    ``unlike`` flags what is farther than all but a known share of requests that were held out (the manifest's
    ``unlike.rate``); a router that was not measured so, such as the bundled one, flags nothing.
    """

    kind: str
    n_outcomes: int
    novelty: float
    note: str
    unlike: bool = False


class Objective(NamedTuple):
    """What the decision was made by.

    :param kind: "threshold", "failure_cost", "min_quality" (of a whole plan) or "pinned".
    :param value: probability wanted, or US dollars that a failure costs; None for "pinned".
    """

    kind: Literal["threshold", "failure_cost", "min_quality", "pinned"]
    value: float | None


class Stage(NamedTuple):
    """One call of a plan.

    :param p_reached: probability that it is made: that every answer before it is rejected.
    :param p_success: P(its answer is right | it is made). Below the candidate's own, because what another model failed
        at is hard.
    """

    model: str
    p_reached: float
    p_success: float


class PlanOption(NamedTuple):
    """A plan that was not taken."""

    models: tuple[str, ...]
    p_success: float
    expected_cost_usd: float


@dataclass(frozen=True, slots=True)
class RouteDecision:
    """Where a request goes, how likely it is to succeed there, and why.

    ``plan`` names the models in the order of calling and ``stages`` says how likely each call is to be made and to
    succeed. ``second_plan`` is the best one that begins with another model, where a plan decided.
    """

    decision_id: str
    model: str
    confidence: float
    plan_confidence: float
    escalated: bool
    degraded: bool
    reason: Reason
    candidates: tuple[Candidate, ...]
    plan: tuple[str, ...]
    params: Mapping[str, Any]
    expected_cost_usd: float
    baseline_cost_usd: float
    propensity: float
    evidence: Evidence
    router_version: str
    stages: tuple[Stage, ...] = ()
    second_plan: PlanOption | None = None
    objective: Objective | None = None

    @property
    def saving_usd(self) -> float:
        """Expected saving against always calling the escalation model."""
        return self.baseline_cost_usd - self.expected_cost_usd

    def to_dict(self) -> dict[str, Any]:
        """The decision as JSON-ready built-in types."""
        out: dict[str, Any] = {name: getattr(self, name) for name in self.__dataclass_fields__}
        out["reason"] = {"code": self.reason.code.value, "text": self.reason.text}
        out["candidates"] = [c._asdict() for c in self.candidates]
        out["plan"] = list(self.plan)
        out["params"] = dict(self.params)
        out["evidence"] = self.evidence._asdict()
        out["stages"] = [stage._asdict() for stage in self.stages]
        out["second_plan"] = None if self.second_plan is None else self.second_plan._asdict()
        out["objective"] = None if self.objective is None else self.objective._asdict()
        return out


def read_trace(request: RouteRequest) -> Trace:
    """Walk the messages once.

    System and developer messages and tool schemas count towards ``input_tokens`` and nothing else: a long system
    prompt makes a request dear, not hard.

    :raises RequestError: if a message part cannot be read, or nothing at all is asked.
    """
    messages = request.messages
    if isinstance(messages, str):
        tokens = _tokens(messages) + _schema_tokens(request.tools)
        needs = _needs(request, tools=bool(request.tools), kinds=())
        return Trace(messages, messages, tokens, 1, 0, 0, 0, 0, len(request.tools), 0, 0, 0, 0, needs)
    return _walk(messages, request)


def _walk(messages: Sequence[Mapping[str, Any]], request: RouteRequest) -> Trace:
    user_texts: list[str] = []
    kinds: list[str] = []
    tokens = _schema_tokens(request.tools)
    users = assistants = calls = results = failed = 0
    for index, message in enumerate(messages):
        role = message["role"]
        text, found, inner_calls, inner_results = _read_content(message.get("content"), index)
        kinds += found
        tokens += _tokens(text) + 4  # chat templates spend about four tokens a message
        calls += inner_calls
        if role == "user":
            if text or found:
                users += 1
            if text:
                user_texts.append(text)
        elif role == "assistant":
            assistants += 1
            tool_calls = message.get("tool_calls")
            if tool_calls is None:
                tool_calls = ()
            if not _is_object_list(tool_calls):
                raise RequestError(f"message {index}: tool_calls must be a list of objects; got {brief(tool_calls)}")
            calls += len(tool_calls)
            tokens += _object_tokens(tool_calls, f"message {index}: tool_calls")
        elif role in ("tool", "function"):
            inner_results.append(text)
        results += len(inner_results)
        failed += sum(map(_looks_failed, inner_results))
        tokens += sum(_tokens(result) for result in inner_results if result is not text)
    if not kinds and not results and all(text.isspace() for text in user_texts):
        raise RequestError("the request is empty: no user text, attachment or tool result in its messages")
    count = {kind: kinds.count(kind) for kind in ("image", "pdf", "video", "audio")}
    tokens += (
        count["image"] * IMAGE_TOKENS + count["pdf"] * PDF_TOKENS
        + count["video"] * VIDEO_TOKENS + count["audio"] * AUDIO_TOKENS
    )  # fmt: skip
    return Trace(
        "\n\n".join(user_texts), user_texts[-1] if user_texts else "", tokens, users, assistants, calls, results,
        failed, len(request.tools), count["image"], count["pdf"], count["video"], count["audio"],
        _needs(request, tools=bool(request.tools) or calls > 0 or results > 0, kinds=kinds),
    )  # fmt: skip


def _read_content(content: Any, index: int) -> tuple[str, list[str], int, list[str]]:
    """Text, attachment kinds, tool calls, tool results of one message's content (OpenAI or Anthropic parts)."""
    if isinstance(content, str):
        return content, [], 0, []
    if content is None:
        return "", [], 0, []
    if not isinstance(content, (list, tuple)):
        raise RequestError(
            f"message {index}: content is {type(content).__name__}; expected str, a list of parts or None"
        )
    texts: list[str] = []
    kinds: list[str] = []
    results: list[str] = []
    calls = 0
    for part in content:
        if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
            raise RequestError(f"message {index}: a content part must be an object with a `type`; got {brief(part)}")
        kind = part["type"]
        if kind in _TEXTS:
            text = part.get("text")
            if not isinstance(text, str):
                raise RequestError(f"message {index}: a text part needs a string `text`; got {brief(text)}")
            texts.append(text)
        elif kind in _ATTACHMENTS:
            kinds.append(_ATTACHMENTS[kind])
        elif kind == "tool_use":
            calls += 1
        elif kind == "tool_result":
            inner, inner_kinds, _, _ = _read_content(part.get("content"), index) if _shallow(part) else ("", [], 0, [])
            results.append(("error: " if part.get("is_error") is True else "") + inner)
            kinds += inner_kinds
        elif kind not in ("thinking", "redacted_thinking", "refusal", "reasoning"):
            raise RequestError(
                f"message {index}: unknown content part type {brief(kind)}; "
                f"known: {sorted(_TEXTS | set(_ATTACHMENTS) | {'tool_use', 'tool_result', 'thinking'})}"
            )
    return "\n".join(texts), kinds, calls, results


def _shallow(part: Mapping[str, Any]) -> bool:
    """Whether a tool result holds no tool result itself, so that reading it cannot recurse without end."""
    content = part.get("content")
    if not isinstance(content, (list, tuple)):
        return True
    return not any(isinstance(p, Mapping) and p.get("type") == "tool_result" for p in content)


def _looks_failed(result: str) -> bool:
    head = result[:300].lower()
    return any(mark in head for mark in _FAILURE_MARKS)


def _needs(request: RouteRequest, *, tools: bool, kinds: Sequence[str]) -> frozenset[str]:
    if not (request.require or tools or kinds):
        return _NOTHING
    needs = set(request.require)
    if tools:
        needs.add("tools")
    for kind in kinds:
        needs.add("vision" if kind == "image" else kind)
    return frozenset(needs)


_NOTHING: frozenset[str] = frozenset()


def _tokens(text: str) -> int:
    # isascii() is a flag lookup in CPython, so the common case does not encode the text
    size = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
    return -(-size // BYTES_PER_TOKEN)


def _schema_tokens(tools: Sequence[Mapping[str, Any]]) -> int:
    return _object_tokens(tools, "tools")


def _object_tokens(objects: Sequence[Mapping[str, Any]], name: str) -> int:
    try:
        return sum(_tokens(str(one)) for one in objects)
    except RecursionError:
        raise RequestError(f"{name}: nested too deeply to be read; flatten the schema") from None
    except Exception as exc:  # whatever the repr() of a caller's object raises, such as an int of too many digits
        raise RequestError(f"{name}: cannot be written as text: {exc}") from exc


def _check_messages(messages: Any) -> None:
    if isinstance(messages, str):
        if not messages.strip():
            raise RequestError("the request is empty; expected some text")
        return
    if isinstance(messages, (bytes, bytearray, memoryview, Mapping)) or not isinstance(messages, Sequence):
        raise RequestError(
            f"a request is a string, a list of messages or a RouteRequest; got {type(messages).__name__}"
        )
    if not messages:
        raise RequestError("the request is empty: no messages")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise RequestError(f"message {index} is {type(message).__name__}; expected an object with role and content")
        role = message.get("role")
        if not isinstance(role, str) or role not in ROLES:
            raise RequestError(f"message {index}: unknown role {brief(role)}; known: {sorted(ROLES)}")


_NO_NAMES: tuple[str, ...] = ()  # the interpreter has one empty tuple, so the defaults are known without a check


def _check_limits(request: RouteRequest) -> None:
    if request.budget_usd is not None:
        _positive("budget_usd", request.budget_usd, zero=True)
    if request.max_latency_s is not None:
        _positive("max_latency_s", request.max_latency_s)
    if request.failure_cost_usd is not None:
        _positive("failure_cost_usd", request.failure_cost_usd, zero=True)
    if request.max_output_tokens is not None:
        _positive("max_output_tokens", request.max_output_tokens)
    _positive("cached_tokens", request.cached_tokens, zero=True)
    if request.max_switch_usd is not None:
        _positive("max_switch_usd", request.max_switch_usd, zero=True)
    quality = request.min_quality
    # an array compares element by element, so only a string is compared
    if quality is not None and not (isinstance(quality, str) and quality == "escalation"):
        _positive("min_quality", quality)
        if quality > 1.0:
            raise RequestError(f"min_quality is {brief(quality)}; it must lie in (0, 1] or be 'escalation'")
    for name in ("task", "pin", "session_id", "current_model", "segment"):
        value = getattr(request, name)
        if value is not None and not isinstance(value, str):
            raise RequestError(f"{name} is {brief(value)}; expected a string")
    # "false" and 0 are no answers: one would count as true, the other hides a mistake
    if not isinstance(request.local_only, bool):
        raise RequestError(f"local_only is {brief(request.local_only)}; expected True or False")
    if request.supervised is not None and not isinstance(request.supervised, bool):
        raise RequestError(f"supervised is {brief(request.supervised)}; expected True, False or None")
    for name in ("allow", "deny", "require", "tags"):
        names = getattr(request, name)
        if names is _NO_NAMES:
            continue
        if not isinstance(names, (list, tuple, set, frozenset)) or not all(isinstance(one, str) for one in names):
            raise RequestError(f"{name} is {brief(names)}; expected a list of names")
    if request.require:
        unknown = sorted(map(str, set(request.require) - ABILITIES))
        if unknown:
            raise RequestError(f"require names unknown abilities {unknown}; known: {sorted(ABILITIES)}")
    if not _is_object_list(request.tools):
        raise RequestError(f"tools must be a list of tool schemas (objects); got {brief(request.tools)}")
    verifier = request.verifier
    is_verifier = hasattr(verifier, "verify") and isinstance(getattr(verifier, "spec", None), VerifierSpec)
    if verifier is not None and not isinstance(verifier, VerifierSpec) and not is_verifier:
        raise RequestError(f"verifier is {brief(verifier)}; expected a VerifierSpec, or one of router_ml.verifiers")


def _is_object_list(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(one, Mapping) for one in value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _positive(name: str, value: Any, *, zero: bool = False) -> None:
    # compared with the largest float, because math.isfinite(10**400) raises OverflowError
    if not _is_number(value) or not 0 <= value <= sys.float_info.max or (value == 0 and not zero):
        raise RequestError(f"{name} is {brief(value)}; expected a finite number {'>=' if zero else '>'} 0")
