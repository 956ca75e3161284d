"""Calls of models: with ``parameters`` the seam to litellm, which is imported at the first call.

``Client`` is the seam. ``LitellmClient`` talks to providers; ``FakeClient`` answers from a function, for tests.
Every error leaves as a ``ProviderError``, and what a call cost is counted from real usage.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple, Protocol

from router_ml.attempt import Usage
from router_ml.cost import usage_cost
from router_ml.errors import (
    CallRefusedError,
    ContentRefusedError,
    ContextTooLongError,
    CredentialsError,
    ModelGoneError,
    ProviderError,
    ProviderTimeoutError,
    ProviderUnavailableError,
    RateLimitedError,
)
from router_ml.parameters import accepted, import_litellm
from router_ml.pool import ModelSpec
from router_ml.rate_limits import retry_after_s

TIMEOUT_S = 30.0
Message = Mapping[str, Any]


class Call(NamedTuple):
    """One call of one candidate. ``params`` are the caller's, in OpenAI's names; those of the pool entry win."""

    spec: ModelSpec
    messages: Sequence[Message]
    params: Mapping[str, Any] = {}
    timeout_s: float = TIMEOUT_S


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer.

    :param text: what the model wrote; empty if it only called tools.
    :param headers: the provider's response headers, names in lower case.
    :param response: the whole response as litellm gives it, with ``model`` set to the candidate's name.
    """

    text: str
    usage: Usage
    finish_reason: str | None = None
    cache_hit: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)
    response: Any = None


class Chunk(NamedTuple):
    """A piece of a streamed answer. ``raw`` is what goes to the caller; None: only of use here, such as late usage.

    :param headers: of the response, as in ``Reply``. :param cache_hit: the stream comes from the response cache.
    """

    text: str
    raw: Any
    usage: Usage | None = None
    finish_reason: str | None = None
    headers: Mapping[str, str] = {}
    cache_hit: bool = False


class Client(Protocol):
    """Carries calls out. All four raise ``ProviderError`` and nothing else when a call fails."""

    def complete(self, call: Call) -> Reply:
        """The whole answer."""
        ...

    async def acomplete(self, call: Call) -> Reply:
        """The whole answer."""
        ...

    def stream(self, call: Call) -> Iterator[Chunk]:
        """The answer in pieces. The call is made when the first is asked for."""
        ...

    def astream(self, call: Call) -> AsyncIterator[Chunk]:
        """The answer in pieces. The call is made when the first is asked for."""
        ...


class LitellmClient:
    """Providers through litellm (extra ``llm``).

    :param cache: arguments of ``litellm.Cache``, such as ``{"type": "local"}``; None: no response cache. litellm has
        one cache a process: the last client that was given one sets it.
    :raises MissingExtraError: if litellm is not installed.
    """

    def __init__(self, cache: Mapping[str, Any] | None = None) -> None:
        self._litellm = import_litellm()
        self._caching = cache is not None
        if cache is not None:
            self._litellm.cache = self._litellm.Cache(**cache)

    def complete(self, call: Call) -> Reply:
        try:
            return read_reply(self._litellm.completion(**self._arguments(call)), call.spec)
        except Exception as exc:
            raise translate(exc, call.spec) from exc

    async def acomplete(self, call: Call) -> Reply:
        try:
            # litellm's time-out is that of a silence; here a whole answer can be held to it
            async with asyncio.timeout(call.timeout_s):
                return read_reply(await self._litellm.acompletion(**self._arguments(call)), call.spec)
        except TimeoutError as exc:
            message = f"{call.spec.name} gave no whole answer within {call.timeout_s:g} s"
            raise ProviderTimeoutError(message, model=call.spec.name) from exc
        except Exception as exc:
            raise translate(exc, call.spec) from exc

    def stream(self, call: Call) -> Iterator[Chunk]:
        response: Any = None
        try:
            wants_usage, arguments = self._streaming(call)
            response = self._litellm.completion(**arguments)
            cache_hit, headers = read_hidden(response)
            for raw in response:
                yield read_chunk(raw, call.spec, wants_usage)._replace(headers=headers, cache_hit=cache_hit)
        except Exception as exc:
            raise translate(exc, call.spec) from exc
        finally:  # a stream left early would keep its connection, and its provider writing, until it is collected
            close = getattr(getattr(response, "completion_stream", None), "close", None)
            if close is not None:
                with contextlib.suppress(Exception):
                    close()

    async def astream(self, call: Call) -> AsyncIterator[Chunk]:
        response: Any = None
        try:
            wants_usage, arguments = self._streaming(call)
            response = await self._litellm.acompletion(**arguments)
            cache_hit, headers = read_hidden(response)
            async for raw in response:
                yield read_chunk(raw, call.spec, wants_usage)._replace(headers=headers, cache_hit=cache_hit)
        except Exception as exc:
            raise translate(exc, call.spec) from exc
        finally:
            if response is not None:
                await response.aclose()

    def _streaming(self, call: Call) -> tuple[bool, dict[str, Any]]:
        arguments = self._arguments(call)
        wants_usage = bool((call.params.get("stream_options") or {}).get("include_usage"))
        return wants_usage, arguments | {"stream": True, "stream_options": {"include_usage": True}}

    def _arguments(self, call: Call) -> dict[str, Any]:
        messages, params = accepted(call.spec, call.messages, {**call.params, **call.spec.params})
        return {
            "model": call.spec.call_name, "messages": messages, "timeout": call.timeout_s,
            **params, **address(call.spec),
            # the cascade retries, and knows when not to; litellm and the providers' clients must not multiply that
            "max_retries": 0, "num_retries": 0,
            # what accepted() cannot foresee, such as a parameter that only this value of another rules out
            "drop_params": True,
            "caching": self._caching,  # said in both cases: a cache that another client set would answer unasked
        }  # fmt: skip


class FakeClient:
    """Answers from a function, for tests and dry runs.

    :param answer: call -> the text, a whole ``Reply``, or a ``ProviderError``, which is raised.
    """

    def __init__(self, answer: Callable[[Call], str | Reply | ProviderError]) -> None:
        self._answer = answer
        self.calls: list[Call] = []

    def complete(self, call: Call) -> Reply:
        self.calls.append(call)
        found = self._answer(call)
        if isinstance(found, ProviderError):
            raise found
        if isinstance(found, Reply):
            return found
        words = sum(len(str(message.get("content", ""))) for message in call.messages)
        return Reply(found, Usage(words // 4 + 1, len(found) // 4 + 1), "stop")

    async def acomplete(self, call: Call) -> Reply:
        return self.complete(call)

    def stream(self, call: Call) -> Iterator[Chunk]:
        reply = self.complete(call)
        for word in re.findall(r"\S+\s*", reply.text):
            yield Chunk(word, word)
        yield Chunk("", None, reply.usage, reply.finish_reason)

    async def astream(self, call: Call) -> AsyncIterator[Chunk]:
        for chunk in self.stream(call):
            yield chunk


def address(spec: ModelSpec) -> dict[str, str]:
    """Where the candidate's server is and the key for it, as litellm's arguments; empty: the provider's usual ones.

    :raises CredentialsError: if the variable that should hold the key is not set.
    """
    out: dict[str, str] = {}
    if spec.api_base is not None:
        out["api_base"] = spec.api_base
    if spec.api_key_env is not None:
        key = os.environ.get(spec.api_key_env, "")
        if not key:
            message = f"the variable {spec.api_key_env} is not set; it should hold the key of {spec.name}"
            raise CredentialsError(message, model=spec.name)
        out["api_key"] = key
    return out


# -- what comes back


def cost_of(spec: ModelSpec, usage: Usage) -> float:
    """US dollars of a call, from real usage and the pool's prices."""
    return usage_cost(spec, usage.input_tokens, usage.output_tokens, usage.cached_tokens)


def read_reply(response: Any, spec: ModelSpec) -> Reply:
    """Read litellm's response; its ``model`` becomes the candidate's name.

    :raises ProviderUnavailableError: if there is no answer in it.
    """
    choices: Any = getattr(response, "choices", None) or ()
    message = getattr(choices[0], "message", None) if choices else None
    if message is None:
        raise ProviderUnavailableError(f"{spec.name} answered without any choice", model=spec.name, status=200)
    response.model = spec.name
    cache_hit, headers = read_hidden(response)
    content = message.content
    text = content if isinstance(content, str) else "" if content is None else json.dumps(content, default=str)
    return Reply(
        text, read_usage(getattr(response, "usage", None)), choices[0].finish_reason, cache_hit, headers, response
    )


def read_hidden(response: Any) -> tuple[bool, dict[str, str]]:
    """Whether litellm's response or stream comes from the response cache, and its headers."""
    hidden = getattr(response, "_hidden_params", None) or {}
    return bool(hidden.get("cache_hit")), read_headers(hidden.get("additional_headers"))


def read_chunk(raw: Any, spec: ModelSpec, wants_usage: bool) -> Chunk:
    """Read a piece of a stream. Usage that the caller did not ask for is read and kept from him."""
    raw.model = spec.name
    usage = getattr(raw, "usage", None)
    found = None if usage is None else read_usage(usage)
    if not raw.choices:
        return Chunk("", raw if wants_usage else None, found)
    choice = raw.choices[0]
    if found is not None and not wants_usage:
        raw.usage = None
    return Chunk(getattr(choice.delta, "content", None) or "", raw, found, choice.finish_reason)


def read_usage(usage: Any) -> Usage:
    """Tokens from litellm's usage object; what is missing counts as 0."""
    details = getattr(usage, "prompt_tokens_details", None)
    numbers = (
        getattr(usage, "prompt_tokens", 0), getattr(usage, "completion_tokens", 0),
        getattr(details, "cached_tokens", 0),
    )  # fmt: skip
    return Usage(*(int(n) if isinstance(n, (int, float)) and n > 0 else 0 for n in numbers))


def read_headers(headers: Any) -> dict[str, str]:
    """Response headers as the provider named them: litellm puts a prefix before those that it does not know."""
    if not isinstance(headers, Mapping) and not hasattr(headers, "items"):
        return {}
    return {str(k).lower().removeprefix("llm_provider-"): str(v) for k, v in headers.items()}


# -- errors


@cache
def _error_map() -> dict[str, type[ProviderError]]:
    groups: dict[type[ProviderError], str] = {
        RateLimitedError: "RateLimitError",
        ProviderTimeoutError: "Timeout",
        ContextTooLongError: "ContextWindowExceededError",
        ContentRefusedError: (
            "ContentPolicyViolationError RejectedRequestError GuardrailRaisedException BlockedPiiEntityError "
            "ModifyResponseException SensitiveDataRouteException"
        ),
        CredentialsError: "AuthenticationError PermissionDeniedError PaymentRequiredError BudgetExceededError",
        ModelGoneError: "NotFoundError ModelNotMappedError LiteLLMUnknownProvider",
        ProviderUnavailableError: (
            "ServiceUnavailableError BadGatewayError InternalServerError APIError APIConnectionError "
            "APIResponseValidationError JSONSchemaValidationError OpenAIError MidStreamFallbackError MockException"
        ),
        CallRefusedError: (
            "BadRequestError UnprocessableEntityError UnsupportedParamsError InvalidRequestError ImageFetchError "
            "VectorStoreSearchError"
        ),
    }
    return {name: ours for ours, names in groups.items() for name in names.split()}


_BY_STATUS: dict[int, type[ProviderError]] = {
    400: CallRefusedError, 401: CredentialsError, 402: CredentialsError, 403: CredentialsError, 404: ModelGoneError,
    408: ProviderTimeoutError, 413: ContextTooLongError, 422: CallRefusedError, 429: RateLimitedError,
}  # fmt: skip


def translate(exc: Exception, spec: ModelSpec) -> ProviderError:
    """What litellm or a provider's client raised, as one of ours.

    The nearest class of litellm's that is mapped decides, then the HTTP status; what neither knows is a plain
    ``ProviderError``. The provider's own words are in ``detail``, not in the message: they may quote the prompt.
    """
    if isinstance(exc, ProviderError):
        return exc
    status = getattr(exc, "status_code", None)
    status = status if isinstance(status, int) else None
    known = _error_map()
    kind = next((known[cls.__name__] for cls in type(exc).__mro__ if cls.__name__ in known), None)
    if _was_never_sent(exc):
        kind = CallRefusedError
    if kind is None and status is not None:
        kind = _BY_STATUS.get(status, ProviderUnavailableError if status >= 500 else None)
    headers = _error_headers(exc)
    error = (kind or ProviderError)(
        f"{spec.name} failed: {type(exc).__name__}" + (f", status {status}" if status is not None else ""),
        model=spec.name, status=status, retry_after_s=retry_after_s(headers, time.time()),
    )  # fmt: skip
    error.headers, error.detail = headers, redact(str(exc), spec)
    return error


def _was_never_sent(exc: BaseException | None) -> bool:
    """Whether the request could not be written: litellm calls that a failure of the server, and no server saw it."""
    for _ in range(10):  # a chain of causes may be a ring
        if exc is None:
            return False
        if isinstance(exc, UnicodeEncodeError) or (
            isinstance(exc, (TypeError, ValueError))
            and "JSON" in str(exc)
            and not isinstance(exc, json.JSONDecodeError)
        ):
            return True
        exc = exc.__cause__ or exc.__context__
    return False


def _error_headers(exc: Exception) -> dict[str, str]:
    found = getattr(exc, "litellm_response_headers", None) or getattr(getattr(exc, "response", None), "headers", None)
    return read_headers(found)


_SECRETS = re.compile(r"(?i)(bearer\s+|sk-|api[-_ ]?key[\"']?\s*[:=]\s*[\"']?)[^\s\"',}]+")


def redact(text: str, spec: ModelSpec) -> str:
    """A provider's message, at most 500 characters of it, without anything that looks like a key."""
    key = os.environ.get(spec.api_key_env or "", "")
    if key:
        text = text.replace(key, "[key]")
    return _SECRETS.sub("[key]", text)[:500]
