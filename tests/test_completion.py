"""The litellm seam: errors translated, parameters translated, cost from usage; litellm really talks HTTP here."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import inspect
import json
import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis_server import redis_server

from router_ml.attempt import Usage
from router_ml.completion import (
    Call,
    LitellmClient,
    cost_of,
    read_reply,
    read_usage,
    redact,
    translate,
)
from router_ml.errors import (
    CallRefusedError,
    ContentRefusedError,
    ContextTooLongError,
    CredentialsError,
    ProviderError,
    ProviderTimeoutError,
    ProviderUnavailableError,
    RateLimitedError,
)
from router_ml.parameters import accepted, import_litellm
from router_ml.pool import Cache, ModelSpec
from training.fault_server import Behaviour, FaultServer

litellm = import_litellm()

KEY = "sk-test-0123456789abcdef"
ASK = ({"role": "user", "content": "What is 2 + 2?"},)


@pytest.fixture(scope="module")
def server() -> Iterator[FaultServer]:
    os.environ["ROUTER_ML_TEST_KEY"] = KEY
    with FaultServer({"*": Behaviour(text="four")}, seed=0) as running:
        yield running


@pytest.fixture(scope="module")
def client() -> LitellmClient:
    return LitellmClient()


def spec_of(server: FaultServer, name: str = "acme/small", **fields: Any) -> ModelSpec:
    return ModelSpec(
        name, 1.0, 4.0, call_as=f"openai/{name.partition('/')[2]}", api_base=f"{server.url}/v1",
        api_key_env="ROUTER_ML_TEST_KEY", **fields,
    )  # fmt: skip


SPEC = ModelSpec("openai/sim-a", 1.0, 4.0)


# -- errors


def exceptions_of_litellm() -> list[type[Exception]]:
    """Every exception that litellm publishes or defines."""
    found = {cls for _, cls in inspect.getmembers(litellm.exceptions, inspect.isclass) if issubclass(cls, Exception)}
    found = {cls for cls in found if cls.__module__ == "litellm.exceptions"}
    return sorted(found | set(litellm.exceptions.LITELLM_EXCEPTION_TYPES), key=lambda cls: cls.__name__)


def bare(cls: type[Exception]) -> Exception:
    exc = cls.__new__(cls)  # their constructors take a dozen different arguments
    exc.__dict__.update(message="it failed", num_retries=None, max_retries=None, original_exception=None)
    return exc


@pytest.mark.parametrize("cls", exceptions_of_litellm(), ids=lambda cls: cls.__name__)
def test_every_exception_of_litellm_is_mapped(cls: type[Exception]) -> None:
    error = translate(bare(cls), SPEC)
    assert type(error) is not ProviderError, f"{cls.__name__} is not in completion._error_map()"
    assert error.model == SPEC.name and SPEC.name in str(error)


def test_the_nearest_class_decides() -> None:
    # both are kinds of BadRequestError, which is the caller's fault; they are not
    assert isinstance(translate(bare(litellm.ContextWindowExceededError), SPEC), ContextTooLongError)
    assert isinstance(translate(bare(litellm.ContentPolicyViolationError), SPEC), ContentRefusedError)

    class Newer(litellm.RateLimitError):  # type: ignore[misc, name-defined]
        """A class of a later version."""

    assert isinstance(translate(bare(Newer), SPEC), RateLimitedError)


@pytest.mark.parametrize(
    ("status", "kind"), [(429, RateLimitedError), (401, CredentialsError), (503, ProviderUnavailableError)]
)
def test_an_exception_that_nobody_mapped_is_read_by_its_status(status: int, kind: type[ProviderError]) -> None:
    class Strange(Exception):
        status_code = status

    assert type(translate(Strange(), SPEC)) is kind
    assert type(translate(KeyError("x"), SPEC)) is ProviderError


@pytest.mark.parametrize(
    ("fault", "kind", "status"),
    [
        ("429", RateLimitedError, 429), ("500", ProviderUnavailableError, 500), ("503", ProviderUnavailableError, 503),
        ("401", CredentialsError, 401), ("400", CallRefusedError, 400), ("context", ContextTooLongError, 400),
        ("content_policy", ContentRefusedError, 400), ("broken_json", ProviderUnavailableError, None),
        ("close", ProviderUnavailableError, None), ("truncated", ProviderUnavailableError, None),
        ("empty", ProviderUnavailableError, None), ("timeout", ProviderTimeoutError, None),
    ],
)  # fmt: skip
def test_a_fault_over_http_is_the_error_it_should_be(
    server: FaultServer, client: LitellmClient, fault: str, kind: type[ProviderError], status: int | None
) -> None:
    server.behave(f"bad-{fault}", Behaviour(faults={fault: 1.0}, retry_after_s=3))
    call = Call(spec_of(server, f"acme/bad-{fault}"), ASK, timeout_s=0.5 if fault == "timeout" else 5.0)
    before = server.count(f"bad-{fault}")
    with pytest.raises(kind) as caught:
        client.complete(call)
    assert status is None or caught.value.status == status
    assert server.count(f"bad-{fault}") == before + 1  # nobody below retried
    assert (caught.value.retry_after_s == 3.0) == (fault == "429")
    with pytest.raises(kind):
        asyncio.run(client.acomplete(call))
    assert KEY not in str(caught.value) and KEY not in caught.value.detail


def test_a_key_that_is_not_set_is_named(server: FaultServer, client: LitellmClient) -> None:
    spec = dataclasses.replace(spec_of(server), api_key_env="NO_SUCH_VARIABLE")
    with pytest.raises(CredentialsError, match="NO_SUCH_VARIABLE"):
        client.complete(Call(spec, ASK))


def test_no_key_is_left_in_what_a_provider_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "very-private-value")
    said = "Incorrect API key provided: sk-abcdef123. Bearer xyz.123 api_key='shh' very-private-value. " + "x" * 900
    told = redact(said, dataclasses.replace(SPEC, api_key_env="SOME_KEY"))
    assert (
        not any(secret in told for secret in ("abcdef123", "xyz.123", "shh", "very-private-value")) and len(told) <= 500
    )


# -- answers


def test_an_answer_over_http(server: FaultServer, client: LitellmClient) -> None:
    server.behave(
        "plain",
        Behaviour(text="four", input_tokens=100, cached_tokens=64, headers={"x-ratelimit-remaining-requests": "7"}),
    )
    for reply in (
        client.complete(Call(spec_of(server, "acme/plain"), ASK)),
        asyncio.run(client.acomplete(Call(spec_of(server, "acme/plain"), ASK))),
    ):
        assert reply.text == "four" and reply.response.model == "acme/plain" and reply.finish_reason == "stop"
        assert (reply.usage.input_tokens, reply.usage.cached_tokens) == (100, 64) and reply.usage.output_tokens > 0
        assert reply.headers["x-ratelimit-remaining-requests"] == "7"


def test_a_stream_over_http_names_the_candidate_and_tells_its_usage(server: FaultServer, client: LitellmClient) -> None:
    server.behave("plain", Behaviour(text="one two three", input_tokens=100))

    async def read() -> list[Any]:
        return [chunk async for chunk in client.astream(Call(spec_of(server, "acme/plain"), ASK))]

    for chunks in (list(client.stream(Call(spec_of(server, "acme/plain"), ASK))), asyncio.run(read())):
        assert "".join(chunk.text for chunk in chunks) == "one two three"
        assert {chunk.raw.model for chunk in chunks if chunk.raw is not None} == {"acme/plain"}
        assert [chunk.usage.input_tokens for chunk in chunks if chunk.usage is not None][-1] == 100
        assert all(getattr(chunk.raw, "usage", None) is None for chunk in chunks if chunk.raw is not None)


def test_usage_in_a_stream_reaches_the_caller_who_asked_for_it(server: FaultServer, client: LitellmClient) -> None:
    params = {"stream_options": {"include_usage": True}}
    chunks = list(client.stream(Call(spec_of(server, "acme/plain"), ASK, params)))
    assert any(getattr(chunk.raw, "usage", None) is not None for chunk in chunks)


def test_a_stream_over_http_tells_its_headers(server: FaultServer, client: LitellmClient) -> None:
    server.behave("told", Behaviour(headers={"x-ratelimit-remaining-requests": "7"}))
    call = Call(spec_of(server, "acme/told"), ASK)

    async def read() -> list[Any]:
        return [chunk async for chunk in client.astream(call)]

    for chunks in (list(client.stream(call)), asyncio.run(read())):
        assert chunks[0].headers["x-ratelimit-remaining-requests"] == "7" and not chunks[0].cache_hit


def test_a_stream_left_early_gives_its_connection_back(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[str] = []

    class Endless:
        completion_stream = SimpleNamespace(close=lambda: closed.append("blocking"))

        def __iter__(self) -> Iterator[Any]:
            while True:
                yield SimpleNamespace(choices=[], usage=None)

        async def __aiter__(self) -> AsyncIterator[Any]:
            while True:
                yield SimpleNamespace(choices=[], usage=None)

        async def aclose(self) -> None:
            closed.append("asyncio")

    async def acompletion(**arguments: Any) -> Endless:
        return Endless()

    async def leave() -> None:
        stream = LitellmClient().astream(Call(SPEC, ASK))
        await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]

    monkeypatch.setattr(litellm, "completion", lambda **arguments: Endless())
    monkeypatch.setattr(litellm, "acompletion", acompletion)
    stream = LitellmClient().stream(Call(SPEC, ASK))
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    asyncio.run(leave())
    assert closed == ["blocking", "asyncio"]


def test_a_stream_too_raises_errors_of_providers_only(client: LitellmClient) -> None:
    with pytest.raises(ProviderError):
        next(client.stream(Call(SPEC, ASK, {"stream_options": 5})))


def test_a_stream_that_breaks_raises_after_what_came(server: FaultServer, client: LitellmClient) -> None:
    server.behave(
        "breaking", Behaviour(text="one two three four five six", faults={"stream_break": 1.0}, break_after=3)
    )
    seen: list[str] = []
    chunks = client.stream(Call(spec_of(server, "acme/breaking"), ASK))
    with pytest.raises(ProviderUnavailableError):
        seen.extend(chunk.text for chunk in chunks)
    assert "".join(seen)


def test_tool_calls_come_through(server: FaultServer, client: LitellmClient) -> None:
    server.behave("tools", Behaviour(text="", tool_calls=[{"name": "add", "arguments": "{}"}]))
    tools = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]
    reply = client.complete(Call(spec_of(server, "acme/tools"), ASK, {"tools": tools}))
    assert reply.response.choices[0].message.tool_calls[0].function.name == "add" and reply.text == ""


def test_params_of_the_pool_win_and_those_of_the_caller_go_through() -> None:
    os.environ["ROUTER_ML_TEST_KEY"] = KEY
    with FaultServer({"*": Behaviour()}, record=10) as server:
        spec = spec_of(server, params={"seed": 7})
        LitellmClient().complete(Call(spec, ASK, {"temperature": 0.25, "max_tokens": 9, "seed": 1}))
        body = server.requests[-1]
    assert (body["temperature"], body["max_tokens"], body["seed"]) == (0.25, 9, 7)


# litellm opens an event loop for its cache and leaves it open
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_response_cache_answers_equal_calls_for_nothing(server: FaultServer) -> None:
    caching = LitellmClient({"type": "local"})
    try:
        server.behave("cached", Behaviour(text="four"))
        call = Call(spec_of(server, "acme/cached"), ASK)
        first, second = caching.complete(call), caching.complete(call)
        assert (first.cache_hit, second.cache_hit) == (False, True) and second.text == "four"
        assert server.count("cached") == 1
        assert not LitellmClient().complete(call).cache_hit  # off by default
        tries = (list(caching.stream(call)) for _ in range(100))  # litellm keeps a stream some time after its end
        assert any(chunks[0].cache_hit or time.sleep(0.02) for chunks in tries)
    finally:
        litellm.cache = None


# -- cost


@given(st.integers(0, 10**7), st.integers(0, 10**6), st.integers(0, 10**7))
def test_cost_grows_with_tokens_and_falls_with_cached_ones(read: int, written: int, cached: int) -> None:
    spec = dataclasses.replace(SPEC, cached_input_usd_per_mtok=0.1)
    cost = cost_of(spec, Usage(read, written, cached))
    assert 0.0 <= cost <= cost_of(spec, Usage(read, written)) <= cost_of(spec, Usage(read + 1, written + 1))
    assert cost_of(SPEC, Usage(read, written, cached)) == cost_of(SPEC, Usage(read, written))


def test_a_model_priced_by_the_request_costs_that() -> None:
    assert cost_of(ModelSpec("a/b", cost_per_request_usd=0.02), Usage(9, 9)) == 0.02


@pytest.mark.parametrize("usage", [None, SimpleNamespace(), SimpleNamespace(prompt_tokens=None, completion_tokens="x")])
def test_usage_that_is_not_there_counts_as_nothing(usage: Any) -> None:
    assert read_usage(usage) == (0, 0, 0)


def test_a_response_without_an_answer_is_no_answer() -> None:
    with pytest.raises(ProviderUnavailableError, match="without any choice"):
        read_reply(SimpleNamespace(choices=[]), SPEC)


# -- parameters

SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}


@pytest.mark.parametrize(
    ("model", "params", "expected"),
    [
        ("openai/gpt-5.5", {"temperature": 0.2}, {}),
        ("openai/gpt-5.5", {"temperature": 0.2, "reasoning_effort": "none"}, None),
        ("openai/gpt-5.5", {"thinking": {"type": "enabled", "budget_tokens": 2_000}}, {"reasoning_effort": "medium"}),
        ("openai/gpt-5.5", {"thinking": {"type": "enabled", "budget_tokens": 9_000}}, {"reasoning_effort": "high"}),
        ("openai/gpt-5.5", {"thinking": {"type": "enabled", "budget_tokens": None}}, {"reasoning_effort": "low"}),
        ("anthropic/claude-haiku-4-5", {"seed": 1, "max_tokens": 5}, {"max_tokens": 5}),
        ("anthropic/claude-haiku-4-5", {"reasoning_effort": "high"}, None),
        ("ollama/llama4", {"tool_choice": "auto"}, {}),
        ("openai/sim-a", {"max_completion_tokens": 5, "user": "u", "made_up": 1}, None),
    ],
)  # fmt: skip
def test_what_a_provider_does_not_take_is_translated_or_dropped(
    model: str, params: dict[str, Any], expected: dict[str, Any] | None
) -> None:
    assert accepted(ModelSpec(model), ASK, params) == (list(ASK), params if expected is None else expected)


def test_a_schema_that_a_provider_does_not_take_becomes_an_instruction(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ModelSpec("openai/no-schema")
    monkeypatch.setattr("router_ml.parameters._untaken", lambda spec, params: tuple({"response_format"} & set(params)))
    messages, params = accepted(spec, ASK, {"response_format": SCHEMA, "temperature": 1.0})
    assert params == {"temperature": 1.0} and messages[1:] == list(ASK)
    assert messages[0]["role"] == "system" and json.dumps({"type": "object"}) in messages[0]["content"]
    # one system message, at the beginning: chat templates refuse another form
    system = {"role": "system", "content": "Be brief."}
    messages, _ = accepted(spec, [system, *ASK], {"response_format": SCHEMA})
    assert [message["role"] for message in messages] == ["system", "user"]
    assert messages[0]["content"].startswith("Be brief.\n") and "JSON schema" in messages[0]["content"]


def test_tools_are_kept_where_the_pool_says_that_the_model_can_use_them() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    spec = ModelSpec("ollama/llama4", abilities=frozenset({"tools"}))
    assert accepted(spec, ASK, {"tools": tools})[1]["tools"] == tools


def test_a_warning_is_given_once(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        accepted(ModelSpec("anthropic/claude-opus-4-7"), ASK, {"logprobs": True})
    assert caplog.text.count("logprobs") == 1


def test_known_answers_are_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    params = {"temperature": 0.3, "user": "one"}
    accepted(SPEC, ASK, params)
    monkeypatch.setattr("router_ml.parameters._try_params", lambda *a: pytest.fail("asked litellm again"))
    accepted(SPEC, ASK, params)
    accepted(SPEC, ASK, params | {"user": "another"})


@pytest.mark.parametrize(
    "call", [("half \ud800",), ("fine", {"temperature": float("nan")}), ("fine", {"seed": object()})]
)
def test_what_cannot_be_sent_is_the_callers_fault_not_the_models(
    server: FaultServer, client: LitellmClient, call: tuple[Any, ...]
) -> None:
    text, params = call[0], call[1] if len(call) > 1 else {}
    before = server.count()
    with pytest.raises(ProviderError) as caught:
        client.complete(Call(spec_of(server), ({"role": "user", "content": text},), params))
    assert not caught.value.is_fault and not caught.value.transient and server.count() == before


def test_in_asyncio_a_whole_answer_must_be_there_in_time(server: FaultServer, client: LitellmClient) -> None:
    server.behave("dripping", Behaviour(text="word " * 50, faults={"slow_stream": 1.0}, event_delay_s=0.1))
    with pytest.raises(ProviderTimeoutError, match="within"):
        asyncio.run(client.acomplete(Call(spec_of(server, "acme/dripping"), ASK, timeout_s=0.3)))


# litellm leaves the event loop and the connections of its caches open
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("kind", ["memory", "disk", "redis"])
def test_each_kind_of_cache_that_a_pool_may_ask_for_answers(
    server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    with redis_server() if kind == "redis" else contextlib.nullcontext() as redis:
        if redis is not None:
            monkeypatch.setenv("REDIS_URL", redis.url)
        try:
            client = LitellmClient(Cache(type=kind, directory=str(tmp_path)).arguments())
            call = Call(spec_of(server, f"acme/kept-{kind}"), ASK)
            assert not client.complete(call).cache_hit
            until = time.monotonic() + 10.0  # litellm writes its cache after it has answered
            while not (again := client.complete(call)).cache_hit and time.monotonic() < until:
                time.sleep(0.02)
            assert again.cache_hit and again.text == "four"
        finally:
            litellm.cache = None
