"""The gateway: official clients talk to a real server, whose providers are all one fault server."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
from postgres_server import postgres_server
from redis_server import redis_server
from tiny_router import STORED

from router_ml.outcomes import LoggedDecision, OutcomeLog
from router_ml.pool import Breaker, Budgets, ModelPool, Rule
from router_ml.router import Router
from training.fault_server import Behaviour, FaultServer

MASTER, PROVIDER = "sk-master-4f1b6c0d9e", "sk-provider-8a7d2e5c1b"
SECRET_PROMPT = "the tulips are under the third stone"
ASK = [{"role": "user", "content": "What is 2+2?"}]
SERVE = "from router_ml.cli import run; from router_ml.gateway_server import serve; raise SystemExit(run(serve))"
TOOL = {"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {}}}
NO_BREAKER = Breaker(min_requests=100_000)  # one test's faults are not the next test's


def pool_at(url: str, **changes: Any) -> ModelPool:
    """The stored router's pool; the fault server plays OpenAI for one half of it and Anthropic for the other."""
    windows = {"acme/small": 8_000, "acme/medium": 32_000}
    specs = []
    for spec in Router.load(STORED).pool.models:
        kind, base = ("anthropic", url) if spec.name.startswith("other/") else ("openai", f"{url}/v1")
        specs.append(dataclasses.replace(
            spec, call_as=f"{kind}/{wire_name(spec.name)}", api_base=base, api_key_env="FAULT_SERVER_KEY",
            max_input_tokens=windows.get(spec.name, 200_000),
        ))  # fmt: skip
    return dataclasses.replace(Router.load(STORED).pool, models=tuple(specs), breaker=NO_BREAKER, **changes)


def wire_name(name: str) -> str:
    return name.replace("/", "-")


class Running:
    """A gateway in a process of its own."""

    def __init__(self, folder: Path, provider: FaultServer, pool: ModelPool, *arguments: str) -> None:
        self.provider, self.pool, self.folder = provider, pool, folder
        pool.to_yaml(folder / "pool.yaml")
        self.log_url = f"sqlite:///{folder / 'log.db'}"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url, self.output = f"http://127.0.0.1:{self.port}", folder / "output.txt"
        known = {name: value for name, value in os.environ.items() if not name.startswith(("LITELLM_", "ROUTER_ML_"))}
        known |= {"FAULT_SERVER_KEY": PROVIDER, "LITELLM_MASTER_KEY": MASTER, "TMPDIR": str(folder)}
        options = ["--config", "pool.yaml", "--router", str(STORED), "--port", str(self.port), "--log", self.log_url]
        with self.output.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-c", SERVE, *options, *arguments], cwd=folder, env=known, stdout=out, stderr=out
            )
        self.client = httpx.Client(base_url=self.url, headers={"authorization": f"Bearer {MASTER}"}, timeout=60)

    def wait_until_ready(self) -> None:
        end = time.monotonic() + 120
        while time.monotonic() < end and self.process.poll() is None:
            with contextlib.suppress(httpx.HTTPError):
                if self.client.get("/health/liveliness").status_code == 200:
                    return
            time.sleep(0.1)
        raise AssertionError(f"the gateway did not start: {self.output.read_text()[-3000:]}")

    def stop(self) -> int:
        self.client.close()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def chat(self, **body: Any) -> httpx.Response:
        return self.client.post("/v1/chat/completions", json={"model": "auto", "messages": ASK} | body)

    def logged(self, decision_id: str) -> LoggedDecision:
        """The entry of a decision, which comes to the log a moment after the answer."""
        return self.all_logged({decision_id})[decision_id]

    def all_logged(self, ids: set[str], *, seconds: float = 15.0) -> dict[str, LoggedDecision]:
        end = time.monotonic() + seconds
        with OutcomeLog(self.log_url) as log:
            while True:
                found = {one.decision_id: one for one in log.decisions() if one.decision_id in ids}
                if len(found) == len(ids) or time.monotonic() > end:
                    assert set(found) == ids
                    return found
                time.sleep(0.05)


@pytest.fixture(scope="module")
def provider() -> Iterator[FaultServer]:
    with FaultServer(seed=1, record=5_000) as server:
        yield server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, provider: FaultServer) -> Iterator[Running]:
    rules = {"shouted": Rule(verifier={"regex": "^[A-Z!]+$"}), "unchecked": Rule()}
    budgets = Budgets(per_tag_day_usd={"broke": 1e-9})
    pool = pool_at(provider.url, tasks=rules, budgets=budgets)
    running = Running(tmp_path_factory.mktemp("gateway"), provider, pool, "--metrics")
    try:
        running.wait_until_ready()
        yield running
    finally:
        assert running.stop() == 0


@pytest.fixture
def gateway(server: Running) -> Running:
    """The running gateway, its providers well-behaved again."""
    for name in server.pool.names:
        server.provider.behave(wire_name(name), Behaviour())
    return server


def misbehave(gateway: Running, names: Any, **what: Any) -> None:
    for name in names:
        gateway.provider.behave(wire_name(name), Behaviour(**what))


# -- the official clients


def test_the_openai_client_gets_an_answer_that_names_the_routed_model(gateway: Running) -> None:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=MASTER, max_retries=0) as client:
        raw = client.chat.completions.with_raw_response.create(model="auto", messages=ASK)  # type: ignore[arg-type]
    answer = raw.parse()
    expected = Router.load(STORED, pool=gateway.pool).predict({"messages": ASK})
    assert answer.model == raw.headers["x-router-ml-model"] == expected.model
    assert answer.choices[0].message.content == "It works."
    assert answer.usage is not None and answer.usage.completion_tokens > 0
    assert float(raw.headers["x-router-ml-confidence"]) == pytest.approx(expected.confidence, abs=1e-3)
    assert raw.headers["x-router-ml-reason"] == expected.reason.code.value
    entry = gateway.logged(raw.headers["x-router-ml-decision-id"])
    assert entry.source == "gateway" and entry.model == expected.model
    assert [(a.model, a.error_kind, a.output_tokens) for a in entry.attempts] == [
        (expected.model, None, answer.usage.completion_tokens)
    ]


def test_the_openai_client_streams_and_every_chunk_names_the_routed_model(gateway: Running) -> None:
    with (
        openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=MASTER, max_retries=0) as client,
        client.chat.completions.with_streaming_response.create(  # the headers are wanted too
            model="router_ml/auto", messages=ASK, stream=True,  # type: ignore[arg-type]
        ) as raw,
    ):  # fmt: skip
        chunks = list(raw.parse())
    routed = raw.headers["x-router-ml-model"]
    assert {chunk.model for chunk in chunks} == {routed} and routed in gateway.pool.names
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "It works."
    (attempt,) = gateway.logged(raw.headers["x-router-ml-decision-id"]).attempts
    assert attempt.model == routed and attempt.error_kind is None and attempt.output_tokens


def test_the_async_openai_client_works_too(gateway: Running) -> None:
    async def ask() -> tuple[str, set[str]]:
        async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=MASTER, max_retries=0) as client:
            whole = await client.chat.completions.create(model="auto", messages=ASK)  # type: ignore[arg-type]
            stream = await client.chat.completions.create(model="auto", messages=ASK, stream=True)  # type: ignore[arg-type]
            return whole.model, {chunk.model async for chunk in stream}

    model, of_chunks = asyncio.run(ask())
    assert {model} == of_chunks <= set(gateway.pool.names)


def test_the_responses_of_openai_are_routed_too(gateway: Running) -> None:
    # the fault server has no such endpoint, so the models that it plays OpenAI for fail, and an Anthropic one answers
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=MASTER, max_retries=0) as client:
        raw = client.responses.with_raw_response.create(model="auto", instructions="Be brief.", input="What is 2+2?")
        events = list(client.responses.create(model="auto", input=[{"role": "user", "content": "Hi"}], stream=True))
    answer = raw.parse()
    assert answer.output_text == "It works." and answer.model == raw.headers["x-router-ml-model"]
    assert answer.model.startswith("other/")
    named = {event.response.model for event in events if hasattr(event, "response")}
    assert len(named) == 1 and named <= set(gateway.pool.names)


def test_the_anthropic_client_gets_an_answer_that_names_the_routed_model(gateway: Running) -> None:
    with anthropic.Anthropic(base_url=gateway.url, api_key=MASTER, max_retries=0) as client:
        raw = client.messages.with_raw_response.create(
            model="auto", max_tokens=100, system="Be brief.", messages=ASK,  # type: ignore[arg-type]
        )  # fmt: skip
    answer = raw.parse()
    assert answer.model == raw.headers["x-router-ml-model"] and answer.model in gateway.pool.names
    assert [block.text for block in answer.content if block.type == "text"] == ["It works."]
    assert gateway.logged(raw.headers["x-router-ml-decision-id"]).attempts[0].input_tokens == answer.usage.input_tokens


@pytest.mark.parametrize("model", ["auto", "acme/medium", "other/mini"])
def test_the_anthropic_client_streams_whoever_the_provider_is(gateway: Running, model: str) -> None:
    with (
        anthropic.Anthropic(base_url=gateway.url, api_key=MASTER, max_retries=0) as client,
        client.messages.stream(model=model, max_tokens=100, messages=ASK) as stream,  # type: ignore[arg-type]
    ):
        answer = stream.get_final_message()
        decision_id = stream.response.headers["x-router-ml-decision-id"]
    assert [block.text for block in answer.content if block.type == "text"] == ["It works."]
    (attempt,) = gateway.logged(decision_id).attempts
    assert answer.model == attempt.model and model in (attempt.model, "auto")


def test_the_async_anthropic_client_works_too(gateway: Running) -> None:
    async def ask() -> str:
        async with anthropic.AsyncAnthropic(base_url=gateway.url, api_key=MASTER, max_retries=0) as client:
            answer = await client.messages.create(model="auto", max_tokens=9, messages=ASK)  # type: ignore[arg-type]
            return answer.model

    assert asyncio.run(ask()) in gateway.pool.names


@pytest.mark.parametrize("model", ["acme/medium", "other/max"])
def test_tools_reach_the_provider_and_their_calls_come_back(gateway: Running, model: str) -> None:
    misbehave(gateway, [model], tool_calls=[{"name": "add", "arguments": {"a": 2}}], finish_reason="tool_calls")
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=MASTER, max_retries=0) as client:
        answer = client.chat.completions.create(
            model=model, messages=ASK, tools=[{"type": "function", "function": TOOL}],  # type: ignore[arg-type]
        )  # fmt: skip
    with anthropic.Anthropic(base_url=gateway.url, api_key=MASTER, max_retries=0) as other_client:
        tool = {"name": "add", "input_schema": TOOL["parameters"]}
        message = other_client.messages.create(
            model=model, max_tokens=100, messages=ASK, tools=[tool],  # type: ignore[arg-type,list-item]
        )  # fmt: skip
    (call,) = answer.choices[0].message.tool_calls or ()
    assert call.type == "function" and (call.function.name, json.loads(call.function.arguments)) == ("add", {"a": 2})
    assert [(b.name, b.input) for b in message.content if b.type == "tool_use"] == [("add", {"a": 2})]
    assert all(body["tools"] for body in list(gateway.provider.requests)[-2:])


# -- what is asked for


def test_a_client_that_names_a_candidate_gets_that_candidate(gateway: Running) -> None:
    answer = gateway.chat(model="acme/small")
    assert answer.json()["model"] == "acme/small" and answer.headers["x-router-ml-reason"] == "pinned"
    assert gateway.logged(answer.headers["x-router-ml-decision-id"]).reason_code == "pinned"


def test_a_candidate_that_was_named_is_replaced_by_no_other(gateway: Running) -> None:
    misbehave(gateway, ["acme/small"], down=True)
    before = gateway.provider.count()
    answer = gateway.chat(model="acme/small")
    assert answer.status_code == 503 and "acme/small" in answer.json()["error"]["message"]
    assert gateway.provider.count() - before == 1 + gateway.pool.fallback.max_retries


def test_a_model_that_the_pool_does_not_have_is_not_found(gateway: Running) -> None:
    with (
        openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=MASTER, max_retries=0) as client,
        pytest.raises(openai.NotFoundError, match="acme/medium"),
    ):
        client.chat.completions.create(model="gpt-nonsense", messages=ASK)  # type: ignore[arg-type]
    with (
        anthropic.Anthropic(base_url=gateway.url, api_key=MASTER, max_retries=0) as other_client,
        pytest.raises(anthropic.NotFoundError, match="acme/medium"),
    ):
        other_client.messages.create(model="claude-nonsense", max_tokens=9, messages=ASK)  # type: ignore[arg-type]


def test_limits_of_the_body_are_obeyed_and_never_sent_to_the_provider(gateway: Running) -> None:
    answer = gateway.chat(router={"allow": ["acme/large"], "task": "unchecked", "tags": ["team-a"]})
    assert answer.headers["x-router-ml-model"] == "acme/large"
    sent = gateway.provider.requests[-1]
    assert sent["model"] == "acme-large" and "router" not in sent and "tags" not in json.dumps(sent)
    entry = gateway.logged(answer.headers["x-router-ml-decision-id"])
    assert (entry.task, entry.tags) == ("unchecked", ("team-a",))


@pytest.mark.parametrize(
    ("knobs", "told"),
    [
        ({"alow": []}, "alow"),
        ({"messages": ASK}, "messages"),
        ({"min_quality": 7}, "min_quality"),
        ({"verifier": {"command": ["touch", "/tmp/pwned"]}}, "command"),
        ({"allow": ["acme/medium"], "deny": ["acme/medium"]}, "the request denies it"),
        ("fast", "expected an object"),
    ],
)
def test_limits_that_cannot_be_obeyed_are_refused(gateway: Running, knobs: Any, told: str) -> None:
    before = gateway.provider.count()
    answer = gateway.chat(router=knobs)
    assert answer.status_code == 400 and told in answer.json()["error"]["message"]
    assert gateway.provider.count() == before


def test_a_cap_that_is_reached_is_a_429(gateway: Running) -> None:
    answer = gateway.chat(router={"tags": ["broke"]})
    assert answer.status_code == 429 and "broke" in answer.json()["error"]["message"]


def test_a_conversation_is_recognised_by_its_header(gateway: Running) -> None:
    long = [{"role": "user", "content": "word " * 6_000}]
    headers = {"x-router-ml-session": "s1"}
    body = {"model": "auto", "messages": long, "router": {"allow": ["acme/large", "acme/medium"]}}
    first = gateway.client.post("/v1/chat/completions", json=body, headers=headers)
    second = gateway.client.post("/v1/chat/completions", json=body, headers=headers)
    entry = gateway.logged(second.headers["x-router-ml-decision-id"])
    assert entry.session_id == "s1" and entry.limits["current_model"] == first.headers["x-router-ml-model"]
    assert entry.limits["cached_tokens"] > 1_000


def test_a_client_cannot_take_over_the_proxys_own_controls(gateway: Running) -> None:
    for stray in ({"mock_response": "free"}, {"fallbacks": ["acme/large"]}, {"num_retries": 50}):
        answer = gateway.chat(router={"allow": ["acme/medium"]}, **stray)
        assert answer.json()["choices"][0]["message"]["content"] == "It works.", stray
        assert answer.json()["model"] == "acme/medium"
    assert gateway.chat(api_base="http://127.0.0.1:9", api_key="x").status_code in (400, 401, 403)
    assert gateway.chat(user_config={"model_list": []}).status_code in (400, 401, 403)


# -- errors of providers


def test_a_model_that_is_down_is_replaced_and_every_attempt_logged(gateway: Running) -> None:
    first = gateway.chat().headers["x-router-ml-model"]
    misbehave(gateway, [first], down=True)
    for stream in (False, True):
        answer = gateway.chat(stream=stream)
        other = answer.headers["x-router-ml-model"]
        assert other != first and f'"model":"{other}"' in answer.text and first not in answer.text
        entry = gateway.logged(answer.headers["x-router-ml-decision-id"])
        retries = gateway.pool.fallback.max_retries
        assert [a.model for a in entry.attempts] == [first] * (1 + retries) + [other]
        assert [a.error_kind for a in entry.attempts] == ["ProviderUnavailableError"] * (1 + retries) + [None]
        assert entry.model == first


def test_an_error_that_passes_is_tried_again_on_the_same_model(gateway: Running) -> None:
    misbehave(gateway, ["acme/medium"], script=["500", "429", "ok"])
    answer = gateway.chat(router={"allow": ["acme/medium"]})
    assert answer.headers["x-router-ml-model"] == "acme/medium"
    kinds = [a.error_kind for a in gateway.logged(answer.headers["x-router-ml-decision-id"]).attempts]
    assert kinds == ["ProviderUnavailableError", "RateLimitedError", None]


def test_a_prompt_too_long_for_a_model_goes_to_a_larger_window_at_once(gateway: Running) -> None:
    misbehave(gateway, ["acme/medium"], script=["context"] * 9)
    answer = gateway.chat(router={"allow": ["acme/small", "acme/medium", "acme/large"], "deny": []})
    entry = gateway.logged(answer.headers["x-router-ml-decision-id"])
    assert [(a.model, a.error_kind) for a in entry.attempts] == [
        ("acme/medium", "ContextTooLongError"), ("acme/large", None),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("fault", "status", "openai_error", "anthropic_error"),
    [
        ("401", 502, openai.InternalServerError, anthropic.InternalServerError),
        ("429", 429, openai.RateLimitError, anthropic.RateLimitError),
        ("400", 400, openai.BadRequestError, anthropic.BadRequestError),
        ("context", 400, openai.BadRequestError, anthropic.BadRequestError),
        ("close", 502, openai.InternalServerError, anthropic.InternalServerError),
    ],
)
def test_the_client_learns_why_every_model_failed(
    gateway: Running, fault: str, status: int, openai_error: Any, anthropic_error: Any
) -> None:
    misbehave(gateway, gateway.pool.names, faults={fault: 1.0})
    knobs = {"router": {"allow": ["acme/small", "other/mini"]}}
    with (
        openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=MASTER, max_retries=0) as client,
        pytest.raises(openai_error, match="attempt") as told,
    ):
        client.chat.completions.create(model="auto", messages=ASK, extra_body=knobs)  # type: ignore[arg-type]
    with (
        anthropic.Anthropic(base_url=gateway.url, api_key=MASTER, max_retries=0) as other_client,
        pytest.raises(anthropic_error, match="attempt") as told_too,
    ):
        other_client.messages.create(model="auto", max_tokens=9, messages=ASK, extra_body=knobs)  # type: ignore[arg-type]
    assert told.value.status_code == told_too.value.status_code == status
    body = json.dumps([told.value.body, told_too.value.body])
    assert "other/mini" in body and PROVIDER not in body and MASTER not in body
    entry = gateway.logged(told.value.response.headers["x-router-ml-decision-id"])
    assert entry.attempts and all(a.error_kind for a in entry.attempts)


def test_a_rate_limit_tells_when_to_come_again(gateway: Running) -> None:
    misbehave(gateway, gateway.pool.names, faults={"429": 1.0}, retry_after_s=45)
    answer = gateway.chat(router={"allow": ["acme/small", "acme/medium"]})
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "45")


def test_a_stream_that_breaks_off_ends_in_an_error_and_is_logged_as_one(gateway: Running) -> None:
    misbehave(gateway, gateway.pool.names, text="one two three four five", script=["stream_break"], break_after=3)
    with gateway.client.stream("POST", "/v1/chat/completions", json={
        "model": "acme/medium", "messages": ASK, "stream": True,
    }) as answer:  # fmt: skip
        text = answer.read().decode()
    assert '"error"' in text and '"finish_reason":"stop"' not in text
    entry = gateway.logged(answer.headers["x-router-ml-decision-id"])
    assert [a.error_kind is not None for a in entry.attempts] == [True]


def test_a_client_that_hangs_up_leaves_an_entry(gateway: Running) -> None:
    misbehave(gateway, gateway.pool.names, text="word " * 400, script=["slow_stream"], event_delay_s=0.05)
    with gateway.client.stream("POST", "/v1/chat/completions", json={
        "model": "acme/medium", "messages": ASK, "stream": True,
    }) as answer:  # fmt: skip
        next(answer.iter_bytes())
    entry = gateway.logged(answer.headers["x-router-ml-decision-id"])
    assert [a.model for a in entry.attempts] == ["acme/medium"]


def test_a_rejected_answer_goes_to_the_next_stage_of_the_plan(gateway: Running) -> None:
    misbehave(gateway, gateway.pool.names, text="nope")
    misbehave(gateway, [gateway.pool.escalation_model], text="YES!")
    answer = gateway.chat(router={"task": "shouted", "deny": ["acme/large"], "min_quality": 0.01})
    entry = gateway.logged(answer.headers["x-router-ml-decision-id"])
    assert len(entry.plan) > 1 and [(a.stage, a.accepted) for a in entry.attempts] == [(0, False), (1, True)]
    assert answer.json()["choices"][0]["message"]["content"] == "YES!"
    assert answer.json()["model"] == entry.attempts[-1].model == gateway.pool.escalation_model


def test_the_last_answer_is_given_if_all_are_rejected(gateway: Running) -> None:
    answer = gateway.chat(router={"verifier": {"min_length": 500}, "min_quality": 0.01})
    entry = gateway.logged(answer.headers["x-router-ml-decision-id"])
    assert answer.status_code == 200 and answer.json()["choices"][0]["message"]["content"] == "It works."
    assert [a.accepted for a in entry.attempts] == [False] * len(entry.plan)


# -- the other routes


def test_route_decides_without_calling_anybody(gateway: Running) -> None:
    before = gateway.provider.count()
    expected = Router.load(STORED, pool=gateway.pool).predict("What is 2+2?").to_dict()
    for body in ({"prompt": "What is 2+2?"}, {"model": "auto", "messages": ASK}, {"input": "What is 2+2?"}):
        decision = gateway.client.post("/v1/route", json=body).json()
        # not its model: what another test's rate limit leaves of the pool is known to this process alone
        assert [c["p_success"] for c in decision["candidates"]] == [c["p_success"] for c in expected["candidates"]]
        assert set(decision) == set(expected)
        assert len(decision["candidates"]) == len(gateway.pool.models)
    assert gateway.provider.count() == before
    assert gateway.logged(decision["decision_id"]).source == "route"
    refused = gateway.client.post("/v1/route", json={"prompt": ""})
    assert refused.status_code == 400 and "empty" in refused.json()["error"]["message"]


def test_feedback_is_taken_and_logged(gateway: Running) -> None:
    decision_id = gateway.chat().headers["x-router-ml-decision-id"]
    gateway.logged(decision_id)
    body = {"decision_id": decision_id, "score": 0.25, "verdict": "underpowered", "text": "too short"}
    assert gateway.client.post("/v1/feedback", json=body).status_code == 202
    end = time.monotonic() + 10
    while not (feedback := gateway.logged(decision_id).feedback) and time.monotonic() < end:
        time.sleep(0.05)
    assert [(f.score, f.verdict, f.text) for f in feedback] == [(0.25, "underpowered", "too short")]


@pytest.mark.parametrize(
    "body", [{}, {"decision_id": "x"}, {"decision_id": "x", "score": 7}, {"decision_id": "x", "stars": 5}, {"score": 1}]
)
def test_feedback_that_says_nothing_is_refused(gateway: Running, body: Any) -> None:
    answer = gateway.client.post("/v1/feedback", json=body)
    assert answer.status_code == 400 and answer.json()["error"]["message"]


def test_models_are_listed_with_the_alias(gateway: Running) -> None:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=MASTER, max_retries=0) as client:
        assert {"auto", *gateway.pool.names} <= {model.id for model in client.models.list()}


def test_metrics_count_what_was_decided(gateway: Running) -> None:
    gateway.chat(model="acme/small")
    text = gateway.client.get("/metrics").text
    assert re.search(r'router_ml_decisions_total\{model="acme/small",reason="pinned"\} [1-9]', text)
    assert "router_ml_routing_seconds_bucket" in text and "router_ml_breaker_state" in text


# -- who may enter, with what


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/completions", "/v1/messages", "/v1/responses", "/v1/models", "/v1/route", "/v1/feedback", "/metrics",
    ],
)  # fmt: skip
def test_nothing_is_served_without_the_key(gateway: Running, path: str) -> None:
    method = "GET" if path in ("/v1/models", "/metrics") else "POST"
    for headers in ({}, {"authorization": "Bearer sk-wrong"}, {"x-api-key": ""}, {"x-api-key": MASTER[:-1]}):
        answer = httpx.request(method, gateway.url + path, headers=headers, json={"model": "auto", "messages": ASK})
        assert answer.status_code == 401 and "key" in answer.text, headers
        assert MASTER not in answer.text


@pytest.mark.parametrize(
    "path",
    [
        "/", "/docs", "/redoc", "/openapi.json", "/ui", "/ui/", "/login", "/sso/key/generate", "/routes", "/get_image",
        "/public/model_hub", "/key/generate", "/config/yaml", "/model/info", "/mcp", "/health", "/.well-known/x",
        "/swagger", "/v1/embeddings", "/v1/files", "/openai/v1/chat/completions", "/engines/auto/chat/completions",
    ],
)  # fmt: skip
def test_the_proxys_other_routes_do_not_exist_with_or_without_the_key(gateway: Running, path: str) -> None:
    for headers in ({}, {"authorization": f"Bearer {MASTER}"}):
        for method in ("GET", "POST"):
            assert httpx.request(method, gateway.url + path, headers=headers).status_code == 404


def test_health_is_told_to_anybody_and_tells_nothing_else(gateway: Running) -> None:
    assert httpx.get(f"{gateway.url}/health/liveliness").status_code == 200
    assert set(httpx.get(f"{gateway.url}/health/readiness").json()) <= {"status", "db"}


@pytest.mark.parametrize("told", [True, False], ids=["length told", "chunked"])
def test_a_body_of_50_mb_is_refused_and_not_held(gateway: Running, told: bool) -> None:
    before = peak_kb(gateway.process.pid)
    piece = b'{"model": "auto", "messages": "' + b"x" * 1_000_000
    content: Any = piece * 50 if told else (piece for _ in range(50))
    begin = time.monotonic()
    answer = gateway.client.post("/v1/messages", content=content)
    assert answer.status_code == 413 and answer.json()["error"]["type"] == "request_too_large"
    assert time.monotonic() - begin < 20
    if before is not None:
        after = peak_kb(gateway.process.pid)
        assert after is not None and after - before < 30_000


def peak_kb(pid: int) -> int | None:
    with contextlib.suppress(OSError):
        found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
        return int(found[1]) if found else None
    return None


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/route", "/v1/feedback"])
@pytest.mark.parametrize("content", [b'{"model": "auto", ', b"\xff\xfe", b'"text"', b"[1]", b""])
def test_a_body_that_is_no_json_object_is_a_400(gateway: Running, path: str, content: bytes) -> None:
    answer = gateway.client.post(path, content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 400 and "error" in answer.json()


def test_a_header_with_line_breaks_is_refused(gateway: Running) -> None:
    for bad in (b"x-router-ml-session: a\r\n b\r\n", b"x-router-ml-session: a\rb\r\n", b"x-a: \x00\r\n"):
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as raw:
            body = json.dumps({"model": "auto", "messages": ASK}).encode()
            raw.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\nconnection: close\r\n"
                b"authorization: Bearer " + MASTER.encode() + b"\r\n" + bad
                + b"content-length: %d\r\n\r\n" % len(body) + body
            )  # fmt: skip
            answer = b"".join(iter(lambda: raw.recv(65_536), b""))
        # a folded header is one value to HTTP/1.1's old grammar, never two headers
        assert answer.split()[1] in (b"400", b"200") and answer.count(b"x-router-ml-decision-id") <= 1


def test_many_at_once_with_faults_are_all_answered_and_all_logged(gateway: Running) -> None:
    answered_and_logged(gateway, 60)


@pytest.mark.slow
def test_two_thousand_with_faults_are_all_answered_and_all_logged(gateway: Running) -> None:
    answered_and_logged(gateway, 2_000)


def answered_and_logged(gateway: Running, n: int) -> None:
    shares = {"429": 0.05, "500": 0.05, "close": 0.05, "broken_json": 0.05}
    misbehave(gateway, gateway.pool.names, faults=shares)
    before = gateway.provider.count()
    rng = random.Random(3)
    asks = [[{"role": "user", "content": f"Number {i}?"}] for i in range(n)]
    bodies = [{"messages": ask, "stream": rng.random() < 0.3} for ask in asks]
    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda body: gateway.chat(**body), bodies))
    assert {a.status_code for a in answers} <= {200, 429, 502, 503}
    assert sum(a.status_code == 200 for a in answers) >= 0.98 * n
    entries = gateway.all_logged({a.headers["x-router-ml-decision-id"] for a in answers}, seconds=60)
    assert len(entries) == n
    assert sum(len(entry.attempts) for entry in entries.values()) == gateway.provider.count() - before


def test_no_log_line_holds_a_key_a_prompt_or_an_answer(gateway: Running) -> None:
    faults = {"400": 0.3, "401": 0.3, "broken_json": 0.2}
    misbehave(gateway, gateway.pool.names, text="the secret answer", faults=faults)
    for i in range(6):
        gateway.chat(messages=[{"role": "user", "content": f"{i} {SECRET_PROMPT}"}], stream=i % 2 == 0)
    gateway.chat(model=SECRET_PROMPT)
    gateway.client.post("/v1/messages", json={"model": "auto", "max_tokens": "x", "messages": SECRET_PROMPT})
    time.sleep(0.5)
    output = gateway.output.read_text()
    assert "attempt(s) failed" in output  # it does say something
    for secret in (MASTER, PROVIDER, SECRET_PROMPT, "secret answer", "It works."):
        assert secret not in output


# -- other ways to start


@pytest.mark.slow
def test_workers_share_a_cap_in_redis_and_a_log_in_postgresql(tmp_path: Path, provider: FaultServer) -> None:
    price = 0.0035  # of one call of acme/medium
    pool = pool_at(provider.url, budgets=Budgets(per_day_usd=20.5 * price))
    for name in pool.names:
        provider.behave(wire_name(name), Behaviour())
    with postgres_server() as database, redis_server(password="hush-9b3e") as shared:
        url = database.new_database("gateway")
        running = Running(tmp_path, provider, pool, "--workers", "2", "--redis", shared.url, "--log", url)
        running.log_url = url
        try:
            running.wait_until_ready()
            ask = {"router": {"allow": ["acme/medium"]}}
            with ThreadPoolExecutor(8) as threads:
                answers = list(threads.map(lambda _: running.chat(**ask), range(40)))
            good = [answer for answer in answers if answer.status_code == 200]
            assert {a.status_code for a in answers} == {200, 429} and 15 <= len(good) <= 21
            running.all_logged({a.headers["x-router-ml-decision-id"] for a in good})
        finally:
            running.stop()
    assert "hush-9b3e" not in running.output.read_text()
    assert not list(tmp_path.glob("router_ml-*"))  # what was generated is gone


@pytest.mark.slow
def test_the_key_is_made_and_kept_and_equal_calls_come_from_the_cache(tmp_path: Path, provider: FaultServer) -> None:
    from router_ml.pool import Cache

    provider.behave("acme-medium", Behaviour())
    pool = pool_at(provider.url, cache=Cache(type="memory"))
    running = Running(tmp_path, provider, pool)
    running.stop()  # it was started with a key in the environment; this one is started without
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("LITELLM_", "ROUTER_ML_"))}
    environment["FAULT_SERVER_KEY"] = PROVIDER
    options = ["--config", "pool.yaml", "--router", str(STORED), "--port", str(running.port), "--log", running.log_url]
    with running.output.open("w") as out:
        running.process = subprocess.Popen(
            [sys.executable, "-c", SERVE, *options, "--key-file", "new/key"], cwd=tmp_path, env=environment,
            stdout=out, stderr=out,
        )  # fmt: skip
    running.client = httpx.Client(base_url=running.url, timeout=60)
    try:
        running.wait_until_ready()
        key = (tmp_path / "new" / "key").read_text().strip()
        running.client.headers["authorization"] = f"Bearer {key}"
        before = provider.count()
        answers = [running.chat(model="acme/medium") for _ in range(2)]
        entries = running.all_logged({a.headers["x-router-ml-decision-id"] for a in answers})
        assert provider.count() - before == 1
        last = entries[answers[1].headers["x-router-ml-decision-id"]].attempts[0]
        assert last.cache_hit and last.cost_usd == 0.0
        output = running.output.read_text()
        assert "new/key" in output and key not in output
    finally:
        running.stop()
