"""What a provider's answers look like on the wire: OpenAI's chat completions and Anthropic's messages. Pure.

The formats are those of the two public HTTP references; ``fault_server`` serves them. A ``Reply`` is what is said, a
``Format`` turns it into bytes.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

Json = dict[str, Any]
CREATED = 1_700_000_000  # one moment for all, so that equal requests get equal bytes
BYTES_PER_TOKEN = 4
_WORD = re.compile(r"\s*\S+|\s+")
_ids = itertools.count(1)


class Reply(NamedTuple):
    """What the fake model says.

    :param tool_calls: each with ``name`` and ``arguments``, a mapping or JSON text.
    :param input_tokens: with those of ``cached_tokens``.
    """

    model: str
    text: str
    tool_calls: Sequence[Mapping[str, Any]]
    finish_reason: str
    input_tokens: int
    output_tokens: int
    cached_tokens: int


class Problem(NamedTuple):
    """An error as both providers report it. ``kind`` is what they call the error's type."""

    status: int
    kind: str
    code: str | None
    message: str
    anthropic_status: int
    anthropic_kind: str
    anthropic_message: str


PROBLEMS: Mapping[str, Problem] = {
    "400": Problem(
        400, "invalid_request_error", None, "Unsupported parameter for this model.",
        400, "invalid_request_error", "Unsupported parameter for this model.",
    ),
    "401": Problem(
        401, "invalid_request_error", "invalid_api_key", "Incorrect API key provided.",
        401, "authentication_error", "invalid x-api-key",
    ),
    "404": Problem(
        404, "invalid_request_error", "model_not_found", "The model does not exist or you do not have access to it.",
        404, "not_found_error", "model not found",
    ),
    "429": Problem(
        429, "requests", "rate_limit_exceeded", "Rate limit reached on requests per min.",
        429, "rate_limit_error", "This request would exceed your organization's rate limit.",
    ),
    "500": Problem(
        500, "server_error", None, "The server had an error while processing your request.",
        500, "api_error", "Internal server error",
    ),
    "503": Problem(
        503, "server_error", None, "The engine is currently overloaded, please try again later.",
        529, "overloaded_error", "Overloaded",
    ),
    "context": Problem(
        400, "invalid_request_error", "context_length_exceeded",
        "This model's maximum context length is 128000 tokens. However, your messages resulted in 130000 tokens. "
        "Please reduce the length of the messages.",
        400, "invalid_request_error", "prompt is too long: 210000 tokens > 200000 maximum",
    ),
    "content_policy": Problem(
        400, "invalid_request_error", "content_policy_violation",
        "Your request was rejected as a result of our safety system.",
        400, "invalid_request_error", "Output blocked by content filtering policy",
    ),
}  # fmt: skip


class Format(Protocol):
    """A provider's format."""

    def body(self, reply: Reply) -> Json:
        """The whole answer."""

    def empty(self, reply: Reply) -> Json:
        """An answer that holds none."""

    def events(self, reply: Reply, request: Json) -> Iterator[bytes]:
        """The answer as server-sent events."""

    def problem(self, problem: Problem) -> tuple[int, Json]:
        """HTTP status and body of an error."""


class OpenAI:
    """POST /v1/chat/completions."""

    def body(self, reply: Reply) -> Json:
        message: Json = {"role": "assistant", "content": reply.text or None}
        if reply.tool_calls:
            message["tool_calls"] = [
                {"id": f"call_{i}", "type": "function", "function": call} for i, call in _calls(reply)
            ]
        choice = {"index": 0, "message": message, "finish_reason": _openai_reason(reply), "logprobs": None}
        return self._envelope(reply, "chat.completion", [choice]) | {"usage": self._usage(reply)}

    def empty(self, reply: Reply) -> Json:
        return self._envelope(reply, "chat.completion", []) | {"usage": self._usage(reply)}

    def events(self, reply: Reply, request: Json) -> Iterator[bytes]:
        envelope = self._envelope(reply, "chat.completion.chunk", [])
        counted = bool((request.get("stream_options") or {}).get("include_usage"))
        deltas: list[Json] = [{"role": "assistant", "content": ""}]
        deltas += [{"content": word} for word in words(reply.text)]
        deltas += [
            {"tool_calls": [{"index": i, "id": f"call_{i}", "type": "function", "function": call}]}
            for i, call in _calls(reply)
        ]
        ends = [None] * len(deltas) + [_openai_reason(reply)]
        for delta, end in zip([*deltas, {}], ends, strict=True):
            choice = {"index": 0, "delta": delta, "finish_reason": end}
            yield _event(envelope | {"choices": [choice]} | ({"usage": None} if counted else {}))
        if counted:
            yield _event(envelope | {"usage": self._usage(reply)})
        yield b"data: [DONE]\n\n"

    def problem(self, problem: Problem) -> tuple[int, Json]:
        error = {"message": problem.message, "type": problem.kind, "param": None, "code": problem.code}
        return problem.status, {"error": error}

    @staticmethod
    def _envelope(reply: Reply, kind: str, choices: list[Json]) -> Json:
        name = f"chatcmpl-{next(_ids)}"
        return {"id": name, "object": kind, "created": CREATED, "model": reply.model, "choices": choices}

    @staticmethod
    def _usage(reply: Reply) -> Json:
        return {
            "prompt_tokens": reply.input_tokens,
            "completion_tokens": reply.output_tokens,
            "total_tokens": reply.input_tokens + reply.output_tokens,
            "prompt_tokens_details": {"cached_tokens": reply.cached_tokens},
        }


class Anthropic:
    """POST /v1/messages."""

    def body(self, reply: Reply) -> Json:
        blocks: list[Json] = [{"type": "text", "text": reply.text}] if reply.text else []
        blocks += [
            {"type": "tool_use", "id": f"toolu_{i}", "name": call["name"], "input": json.loads(call["arguments"])}
            for i, call in _calls(reply)
        ]
        return self.empty(reply) | {"content": blocks}

    def empty(self, reply: Reply) -> Json:
        return {
            "id": f"msg_{next(_ids)}", "type": "message", "role": "assistant", "model": reply.model, "content": [],
            "stop_reason": _anthropic_reason(reply), "stop_sequence": None, "usage": self._usage(reply),
        }  # fmt: skip

    def events(self, reply: Reply, request: Json) -> Iterator[bytes]:
        opened = self.empty(reply) | {"stop_reason": None, "usage": self._usage(reply) | {"output_tokens": 1}}
        yield _named_event("message_start", message=opened)
        for index, block in enumerate(self.body(reply)["content"]):
            is_text = block["type"] == "text"
            blank: Json = {"text": ""} if is_text else {"input": {}}
            yield _named_event("content_block_start", index=index, content_block=block | blank)
            if is_text:
                deltas: list[Json] = [{"type": "text_delta", "text": word} for word in words(reply.text)]
            else:
                deltas = [{"type": "input_json_delta", "partial_json": json.dumps(block["input"])}]
            yield from (_named_event("content_block_delta", index=index, delta=delta) for delta in deltas)
            yield _named_event("content_block_stop", index=index)
        ended = {"stop_reason": _anthropic_reason(reply), "stop_sequence": None}
        yield _named_event("message_delta", delta=ended, usage={"output_tokens": reply.output_tokens})
        yield _named_event("message_stop")

    def problem(self, problem: Problem) -> tuple[int, Json]:
        error = {"type": problem.anthropic_kind, "message": problem.anthropic_message}
        return problem.anthropic_status, {"type": "error", "error": error}

    @staticmethod
    def _usage(reply: Reply) -> Json:
        return {
            # unlike OpenAI's, without the cached ones
            "input_tokens": reply.input_tokens - reply.cached_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": reply.cached_tokens,
            "output_tokens": reply.output_tokens,
        }


def words(text: str) -> list[str]:
    """The text in pieces of a word; joined, they are the text again."""
    return _WORD.findall(text)


def prompt_tokens(request: Json) -> int:
    """A rough count of the input: what the messages, the system prompt and the tools hold."""
    parts = [request.get("messages"), request.get("system"), request.get("tools")]
    size = sum(len(json.dumps(part, ensure_ascii=False)) for part in parts if part)
    return max(1, size // BYTES_PER_TOKEN)


def _calls(reply: Reply) -> Iterator[tuple[int, Json]]:
    for index, call in enumerate(reply.tool_calls):
        arguments = call["arguments"]
        text = arguments if isinstance(arguments, str) else json.dumps(arguments)
        yield index, {"name": call["name"], "arguments": text}


def _openai_reason(reply: Reply) -> str:
    return "tool_calls" if reply.tool_calls else reply.finish_reason


def _anthropic_reason(reply: Reply) -> str:
    if reply.tool_calls:
        return "tool_use"
    return {"stop": "end_turn", "length": "max_tokens", "content_filter": "refusal"}.get(
        reply.finish_reason, "end_turn"
    )


def _event(data: Json) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def _named_event(kind: str, **data: Any) -> bytes:
    return f"event: {kind}\n".encode() + _event({"type": kind} | data)
