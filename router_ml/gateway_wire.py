"""What clients send the gateway and what models send back, in the three formats that the proxy speaks. Pure.

A format has the proxy's name of its call: ``acompletion`` is OpenAI's chat completions, ``aresponses`` its responses,
``anthropic_messages`` Anthropic's messages.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from router_ml.attempt import Attempt, Usage
from router_ml.errors import ProviderError, RequestError
from router_ml.request import RouteRequest

Body = Mapping[str, Any]

CALLS = ("acompletion", "anthropic_messages", "aresponses")
KNOBS = "router"  # key of the body with what only the router reads
SESSION_HEADER = "x-router-ml-session"
_GIVEN = frozenset({"messages", "prompt", "tools", "metadata"})  # what the body itself says
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]")


def read_request(
    call: str, body: Body, knobs: Any, *, pin: str | None = None, session_id: str | None = None
) -> RouteRequest:
    """The request that a body makes.

    :param knobs: the body's ``router`` object: fields of RouteRequest, as in ``{"task": "code", "local_only": true}``.
        It comes from anybody with a key, so a verifier in it may not name a command.
    :param pin: the candidate that the client named as its model.
    :raises RequestError: if the body or the object cannot be read.
    """
    if knobs is None:
        knobs = {}
    if not isinstance(knobs, Mapping):
        raise RequestError(f"{KNOBS} is {type(knobs).__name__}; expected an object with fields of a request")
    misplaced = sorted(_GIVEN & set(knobs))
    if misplaced:
        raise RequestError(f"{KNOBS} has {misplaced}; they belong beside it, in the body")
    fields: dict[str, Any] = {"session_id": session_id or _conversation(body), **knobs}
    fields |= {"messages": _messages(call, body), "tools": body.get("tools") or ()}
    if "max_output_tokens" not in knobs:
        fields["max_output_tokens"] = _output_limit(body)
    if pin is not None:
        fields["pin"] = pin
    return RouteRequest.of(fields)


def _messages(call: str, body: Body) -> Any:
    if call == "aresponses":
        return _from_responses(body)
    messages = body.get("messages")
    if messages is None and isinstance(body.get("prompt"), str):
        return body["prompt"]
    system = body.get("system")
    if call == "anthropic_messages" and system and isinstance(messages, (list, tuple)):
        return [{"role": "system", "content": system}, *messages]
    return messages


def _from_responses(body: Body) -> Any:
    """Messages of a Responses request, whose ``input`` is a text or a list of items."""
    items = body.get("input")
    known = items if isinstance(items, str) else list(_turns(items)) if isinstance(items, Sequence) else items
    instructions = body.get("instructions")
    if not isinstance(instructions, str) or not instructions:
        return known
    user = [{"role": "user", "content": known}] if isinstance(known, str) else known
    return [{"role": "system", "content": instructions}, *(user or ())]


def _turns(items: Sequence[Any]) -> Iterator[Any]:
    for item in items:
        kind = item.get("type", "message") if isinstance(item, Mapping) else None
        if kind == "function_call":
            yield {"role": "assistant", "content": None, "tool_calls": [item]}
        elif kind == "function_call_output":
            yield {"role": "tool", "content": str(item.get("output", ""))}
        elif kind == "message" or kind is None:
            yield item
        # what else there is (reasoning, references to stored items, calls of the provider's own tools) says nothing
        # of what is asked


def _output_limit(body: Body) -> Any:
    limits = (body.get(name) for name in ("max_completion_tokens", "max_output_tokens", "max_tokens"))
    return next((limit for limit in limits if limit is not None), None)


def _conversation(body: Body) -> str | None:
    """What the client itself calls the conversation: a key of the prompt's cache, or Claude Code's session."""
    key = body.get("prompt_cache_key")
    if isinstance(key, str) and key:
        return key
    metadata = body.get("metadata")
    user = metadata.get("user_id") if isinstance(metadata, Mapping) else None
    return user if isinstance(user, str) and "session" in user else None


def read_usage(response: Any) -> Usage:
    """Tokens of a response in any of the formats; what is missing counts as 0."""
    usage = _get(response, "usage")
    if usage is None:
        return Usage()
    if _get(usage, "prompt_tokens") is not None:
        details = _get(usage, "prompt_tokens_details")
        cached = _count(_get(details, "cached_tokens"))
        return Usage(_count(_get(usage, "prompt_tokens")), _count(_get(usage, "completion_tokens")), cached)
    read, written = _count(_get(usage, "input_tokens")), _count(_get(usage, "output_tokens"))
    details = _get(usage, "input_tokens_details")
    if details is not None:
        return Usage(read, written, _count(_get(details, "cached_tokens")))
    # Anthropic's input_tokens are those that no cache was asked for
    cached = _count(_get(usage, "cache_read_input_tokens"))
    return Usage(read + cached + _count(_get(usage, "cache_creation_input_tokens")), written, cached)


def read_answer(response: Any) -> tuple[str, str | None]:
    """Text and reason of the end of a response in any of the formats."""
    choices = _get(response, "choices")
    if choices:
        message = _get(choices[0], "message")
        content = _get(message, "content")
        return content if isinstance(content, str) else "", _get(choices[0], "finish_reason")
    parts = _get(response, "content")
    if parts is not None:  # Anthropic
        return "".join(_texts(parts)), _get(response, "stop_reason")
    items = _get(response, "output") or ()
    return "".join(text for item in items for text in _texts(_get(item, "content") or ())), _get(response, "status")


def _texts(parts: Any) -> Iterator[str]:
    for part in parts if isinstance(parts, Sequence) and not isinstance(parts, str) else ():
        text = _get(part, "text")
        if isinstance(text, str):
            yield text


def failure_of(attempts: Sequence[Attempt]) -> tuple[int, str, float | None] | None:
    """How to tell the client that no attempt was answered: HTTP status, message, seconds to wait. None: that is not it.

    The provider's own words are told only where the client's request is at fault, whose prompt they may quote.
    """
    errors = [attempt.error for attempt in attempts if attempt.error is not None]
    if not errors or len(errors) < len(attempts):
        return None
    statuses = {_status(error) for error in errors}
    status = statuses.pop() if len(statuses) == 1 else 503
    counted = Counter((error.model, type(error).__name__) for error in errors)
    tried = "; ".join(f"{model}: {n} x {kind}" for (model, kind), n in counted.items())
    message = f"all {len(errors)} attempt(s) failed ({tried})"
    if status == 400 and errors[-1].detail:
        message += f". {errors[-1].model} says: {errors[-1].detail}"
    waits = [error.retry_after_s for error in errors if error.retry_after_s is not None]
    return status, message, min(waits, default=None)


# A provider's 401 is not the client's: the client's own key is good.
_STATUSES: Mapping[str, int] = {
    "RateLimitedError": 429, "ProviderTimeoutError": 504, "ContextTooLongError": 400, "ContentRefusedError": 400,
    "CallRefusedError": 400,
}  # fmt: skip


def _status(error: ProviderError) -> int:
    return 503 if error.status == 503 else _STATUSES.get(type(error).__name__, 502)


def header(value: object) -> str:
    """The value as a response header: one line of printable ASCII, at most 200 characters."""
    return _UNPRINTABLE.sub("?", str(value))[:200]


def _get(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)


def _count(value: Any) -> int:
    return int(value) if isinstance(value, (int, float)) and value > 0 else 0
