"""The gateway's parts, without a server: what is read from clients, the front door, the configuration, the key."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click.testing
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tiny_router import STORED

from router_ml import gateway_wire as wire
from router_ml.attempt import Attempt, AttemptKind, Usage
from router_ml.errors import (
    CallRefusedError,
    CredentialsError,
    GatewayError,
    MissingExtraError,
    RateLimitedError,
    RequestError,
)
from router_ml.gateway import Gateway, UnknownModelError
from router_ml.gateway_door import Door
from router_ml.gateway_server import Settings, ensure_master_key, proxy_config, serve
from router_ml.live import LiveRouter
from router_ml.pool import Budgets, ModelPool, ModelSpec
from router_ml.request import RouteRequest
from router_ml.router import Router
from router_ml.verifiers import MinimumLength

KEY = "sk-0123456789"
DEPLOY = Path(__file__).resolve().parents[1] / "deploy"


# -- what clients say


def test_the_three_formats_say_the_same() -> None:
    hi = {"role": "user", "content": "Hi"}
    chat = {"messages": [{"role": "system", "content": "Be brief."}, hi], "max_tokens": 9}
    claude = {"system": "Be brief.", "messages": [hi], "max_tokens": 9}
    responses = {"instructions": "Be brief.", "input": "Hi", "max_output_tokens": 9}
    read = [
        wire.read_request(call, body, {"task": "code"})
        for call, body in (("acompletion", chat), ("anthropic_messages", claude), ("aresponses", responses))
    ]
    assert read[0] == read[1] == read[2] and read[0].task == "code" and read[0].max_output_tokens == 9


def test_items_of_responses_become_messages() -> None:
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "Add."}]},
        {"type": "reasoning", "summary": []},
        {"type": "function_call", "name": "add", "arguments": "{}", "call_id": "1"},
        {"type": "function_call_output", "call_id": "1", "output": "4"},
    ]
    read = wire.read_request("aresponses", {"input": items}, None)
    assert [m["role"] for m in read.messages] == ["user", "assistant", "tool"]  # type: ignore[index]


@pytest.mark.parametrize(
    ("body", "session"),
    [
        ({"prompt_cache_key": "k1"}, "k1"),
        ({"metadata": {"user_id": "user_1_session_2"}}, "user_1_session_2"),
        ({"metadata": {"user_id": "user_1"}}, None),
        ({"user": "somebody"}, None),  # a person has more than one conversation
    ],
)
def test_a_conversation_is_known_by_what_the_client_calls_it(body: Any, session: str | None) -> None:
    read = wire.read_request("acompletion", {"messages": "Hi"} | body, None)
    assert read.session_id == session
    assert wire.read_request("acompletion", {"messages": "Hi"} | body, None, session_id="h").session_id == "h"


@pytest.mark.parametrize(
    "body", [{}, {"input": None}, {"input": 7}, {"messages": "  "}, {"messages": {"role": "user"}}]
)
@pytest.mark.parametrize("call", wire.CALLS)
def test_a_body_that_asks_nothing_is_refused(call: str, body: Any) -> None:
    with pytest.raises(RequestError):
        wire.read_request(call, body, None)


@pytest.mark.parametrize(
    ("usage", "read"),
    [
        ({"prompt_tokens": 10, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}}, Usage(10, 3, 4)),
        ({"prompt_tokens": 10, "completion_tokens": 3}, Usage(10, 3, 0)),
        ({"input_tokens": 10, "output_tokens": 3, "input_tokens_details": {"cached_tokens": 4}}, Usage(10, 3, 4)),
        ({"input_tokens": 6, "output_tokens": 3, "cache_read_input_tokens": 4}, Usage(10, 3, 4)),
        ({"input_tokens": 5, "cache_creation_input_tokens": 5, "cache_read_input_tokens": None}, Usage(10, 0, 0)),
        ({"prompt_tokens": None}, Usage()),
        (None, Usage()),
    ],
)
def test_usage_is_read_in_every_format(usage: Any, read: Usage) -> None:
    assert wire.read_usage({"usage": usage}) == read
    parts = None if usage is None else SimpleNamespace(**usage)
    if usage is None or not any(isinstance(value, dict) for value in usage.values()):
        assert wire.read_usage(SimpleNamespace(usage=parts)) == read


def test_the_answer_is_read_in_every_format() -> None:
    chat = {"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}]}
    claude = {"content": [{"type": "thinking"}, {"type": "text", "text": "yes"}], "stop_reason": "end_turn"}
    responses = {"output": [{"content": [{"text": "yes"}]}, {"type": "reasoning"}], "status": "completed"}
    assert [wire.read_answer(one)[0] for one in (chat, claude, responses)] == ["yes"] * 3
    assert wire.read_answer({"choices": [{"message": {"content": None}}]}) == ("", None)


@given(st.text())
def test_no_text_can_break_out_of_a_header(text: str) -> None:
    value = wire.header(text)
    assert "\r" not in value and "\n" not in value and len(value) <= 200
    value.encode("latin-1")


# -- the front door


async def through(door: Door, path: str = "/v1/route", **request: Any) -> tuple[int, dict[str, Any]]:
    """Status and body of one request. :param pieces: of its body."""
    pieces = request.get("pieces", [b"{}"])
    waiting = [
        {"type": "http.request", "body": piece, "more_body": i < len(pieces) - 1} for i, piece in enumerate(pieces)
    ]
    sent: list[Any] = []

    async def receive() -> Any:
        return waiting.pop(0) if waiting else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = request.get("headers", [(b"authorization", b"Bearer " + KEY.encode())])
    kind, method = request.get("kind", "http"), request.get("method", "POST")
    scope = {"type": kind, "path": path, "headers": headers, "method": method}
    await door(scope, receive, send)
    if kind == "websocket":
        return sent[0]["code"], {}
    body = b"".join(message.get("body", b"") for message in sent[1:])
    return sent[0]["status"], json.loads(body)


def door(limit: int = 100, key: str | None = KEY, *, swallow: bool = False) -> Door:
    """A door before an application that tells how much it has read."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        size, more = 0, True
        try:
            while more:
                message = await receive()
                size, more = size + len(message.get("body", b"")), message.get("more_body", False)
        except Exception:
            if not swallow:
                raise
        names = [name.decode() for name, _ in scope["headers"]]
        body = json.dumps({"read": size, "headers": names}).encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    return Door(Gateway(LiveRouter(Router.load(STORED))), app, key, limit)


def passed(one: Door, path: str = "/v1/route", **request: Any) -> tuple[int, dict[str, Any]]:
    return asyncio.run(through(one, path, **request))


def test_what_is_served_passes_and_the_rest_is_not_found() -> None:
    assert passed(door())[0] == 200
    assert passed(door(), "/health/liveliness", headers=[], method="GET", pieces=[b""])[0] == 200
    for path in ("/", "/docs", "/v1/route/", "/v1//route", "/V1/ROUTE", "/key/generate"):
        assert passed(door(), path)[0] == 404
    assert passed(door(), kind="websocket")[0] == 1008


@pytest.mark.parametrize(
    ("name", "value", "enters"),
    [
        (b"authorization", b"Bearer " + KEY.encode(), True),
        (b"x-api-key", KEY.encode(), True),
        (b"authorization", KEY.encode()[:-1], False),
        (b"authorization", b"Bearer ", False),
        (b"cookie", KEY.encode(), False),
        (b"x-api-key", "schlüssel".encode(), False),
    ],
)
def test_only_the_key_opens(name: bytes, value: bytes, enters: bool) -> None:
    assert passed(door(), headers=[(name, value)])[0] == (200 if enters else 401)


def test_where_keys_are_in_a_database_any_key_gets_to_the_proxy_and_none_does_not() -> None:
    assert passed(door(key=None), headers=[(b"x-api-key", b"sk-virtual")])[0] == 200
    assert passed(door(key=None), headers=[])[0] == 401


@pytest.mark.parametrize("swallow", [False, True])
def test_a_body_over_the_limit_is_refused_however_it_comes(swallow: bool) -> None:
    told = [(b"authorization", b"Bearer " + KEY.encode()), (b"content-length", b"101")]
    assert passed(door(swallow=swallow), headers=told, pieces=[b"{" + b" " * 100])[0] == 413
    status, body = passed(door(swallow=swallow), "/v1/messages", pieces=[b"{" + b" " * 49, b" " * 50, b" "])
    assert status == 413 and body["error"]["type"] == "request_too_large"
    status, body = passed(door(swallow=swallow), pieces=[b"{" + b" " * 49, b" " * 50])
    assert (status, body["read"]) == (200, 100)


def test_the_client_does_not_choose_the_proxys_id_of_its_call() -> None:
    headers = [(b"authorization", b"Bearer " + KEY.encode()), (b"x-litellm-call-id", b"another's")]
    assert passed(door(), headers=headers)[1]["headers"] == ["authorization"]


@pytest.mark.parametrize("pieces", [[b""], [b"[]"], [b'"x"'], [b"\xff"], [b"1", b"{}"]])
def test_what_is_no_object_does_not_reach_the_proxy(pieces: list[bytes]) -> None:
    assert passed(door(), pieces=pieces)[0] == 400


# -- how failures are told


def failed(*errors: Any) -> list[Attempt]:
    return [Attempt(e.model, AttemptKind.ANSWER, 0, 0.0, 0.1, error=e) for e in errors]


def test_a_failure_has_the_status_that_its_attempts_agree_on() -> None:
    limited = [RateLimitedError("", model="a", retry_after_s=s) for s in (9.0, 4.0)]
    assert wire.failure_of(failed(*limited)) == (429, "all 2 attempt(s) failed (a: 2 x RateLimitedError)", 4.0)
    told = wire.failure_of(failed(limited[0], CredentialsError("", model="b", status=401)))
    assert told is not None and told[0] == 503
    told = wire.failure_of(failed(CredentialsError("", model="b", status=401)))
    assert told is not None and told[0] == 502


def test_only_where_the_request_is_at_fault_the_providers_words_are_told() -> None:
    refused, locked = CallRefusedError("", model="a"), CredentialsError("", model="a")
    refused.detail = locked.detail = "temperature must be at most 1"
    assert "temperature" in wire.failure_of(failed(refused))[1]  # type: ignore[index]
    assert "temperature" not in wire.failure_of(failed(locked))[1]  # type: ignore[index]


def test_a_failure_without_a_failed_attempt_is_told_as_it_is() -> None:
    assert wire.failure_of(failed()) is None


# -- deciding


def test_a_model_that_the_pool_does_not_have_is_named() -> None:
    gateway = Gateway(LiveRouter(Router.load(STORED)))
    with pytest.raises(UnknownModelError, match="acme/medium"):
        gateway.decide("acompletion", {"model": "gpt", "messages": "Hi"}, None)
    with pytest.raises(RequestError, match="model is None"):
        gateway.decide("acompletion", {"messages": "Hi"}, None)


def test_parameters_that_make_a_candidate_are_not_the_clients_to_change() -> None:
    pool = Router.load(STORED).pool
    high = tuple(dataclasses.replace(spec, params={"reasoning_effort": "high"}) for spec in pool.models)
    pool = dataclasses.replace(pool, models=high)
    gateway = Gateway(LiveRouter(Router.load(STORED, pool=pool)))
    body: dict[str, Any] = {"model": "auto", "messages": "Hi", "reasoning_effort": "low", "temperature": 0.5}
    exchange = gateway.begin("acompletion", body, None)
    assert "reasoning_effort" not in body and body["temperature"] == 0.5 and body["model"] == exchange.calling


# -- the configuration


def test_the_configuration_holds_no_key_and_a_deployment_for_each_candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    pool = ModelPool(
        (
            ModelSpec(
                "openai/a", 1.0, 2.0, api_key_env="MY_KEY", api_base="http://h/v1", params={"reasoning_effort": "low"},
            ),
            ModelSpec("openai/a@high", 1.0, 2.0, abilities=frozenset({"tools"})),
        ),
        "openai/a@high", budgets=Budgets(),
    )  # fmt: skip
    made = proxy_config(pool)
    assert "sk-very-secret" not in json.dumps(made)
    assert [one["model_name"] for one in made["model_list"]] == ["openai/a", "openai/a@high", "auto"]
    first, second, alias = (one["litellm_params"] for one in made["model_list"])
    assert first == {
        "model": "openai/a", "reasoning_effort": "low", "api_base": "http://h/v1", "api_key": "os.environ/MY_KEY",
    }  # fmt: skip
    assert second["model"] == alias["model"] == "openai/a" and "tools" in second["allowed_openai_params"]
    assert "custom_auth" in made["general_settings"]
    assert "custom_auth" not in proxy_config(pool, alone=False)["general_settings"]


def test_settings_survive_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ROUTER_ML_GATEWAY", raising=False)
    with pytest.raises(GatewayError, match="router-ml serve"):
        Settings.from_environment()
    monkeypatch.setenv("ROUTER_ML_GATEWAY", "")  # so that it is taken back at the end
    given_ = Settings("pool.yaml", None, "sqlite:///x", None, "/p", 5, True)
    given_.to_environment()
    assert Settings.from_environment() == given_


# -- the key


@pytest.fixture
def no_key(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("LITELLM_MASTER_KEY", "ROUTER_ML_MASTER_KEY"):
        monkeypatch.setenv(name, "")  # set, so that what the code sets is taken back at the end
    return monkeypatch


def test_a_key_is_made_once_for_its_owner_alone(no_key: Any, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "gateway.key"
    old = os.umask(0)  # the most permissive
    try:
        assert ensure_master_key(path) == path
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    key = os.environ["LITELLM_MASTER_KEY"]
    assert key.startswith("sk-") and len(key) > 40 and path.read_text().strip() == key
    os.environ["LITELLM_MASTER_KEY"] = ""
    ensure_master_key(path)
    assert os.environ["LITELLM_MASTER_KEY"] == key


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_key_that_others_may_use_is_refused(no_key: Any, tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    path.write_text("sk-0123456789")
    path.chmod(mode)
    with pytest.raises(GatewayError, match="chmod 600"):
        ensure_master_key(path)


def test_a_link_in_the_keys_place_is_not_followed(no_key: Any, tmp_path: Path) -> None:
    target, path = tmp_path / "target", tmp_path / "key"
    target.write_text("sk-0123456789")
    target.chmod(0o600)
    path.symlink_to(target)
    with pytest.raises(OSError, match="key"):
        ensure_master_key(path)


def test_a_key_in_the_environment_wins_and_must_be_long_enough(no_key: Any, tmp_path: Path) -> None:
    no_key.setenv("ROUTER_ML_MASTER_KEY", "sk-given-0123")
    assert ensure_master_key(tmp_path / "key") is None and not (tmp_path / "key").exists()
    assert os.environ["LITELLM_MASTER_KEY"] == "sk-given-0123"
    no_key.setenv("ROUTER_ML_MASTER_KEY", "short")
    with pytest.raises(GatewayError, match="5 characters"):
        ensure_master_key(tmp_path / "key")


# -- the command


def test_without_its_extra_the_command_says_what_to_install(no_key: pytest.MonkeyPatch, tmp_path: Path) -> None:
    no_key.setitem(sys.modules, "uvicorn", None)
    pool = tmp_path / "pool.yaml"
    ModelPool.default().to_yaml(pool)
    result = click.testing.CliRunner().invoke(serve, ["--config", str(pool)])
    assert isinstance(result.exception, MissingExtraError) and "router-ml[gateway]" in str(result.exception)


def test_the_command_needs_a_pool_that_can_be_read(no_key: Any, tmp_path: Path) -> None:
    run = click.testing.CliRunner().invoke
    assert run(serve, []).exit_code == 2 and run(serve, ["--config", "nowhere.yaml"]).exit_code == 2
    (tmp_path / "pool.yaml").write_text("models: []")
    broken = run(serve, ["--config", str(tmp_path / "pool.yaml"), "--key-file", str(tmp_path / "key")])
    assert broken.exception is not None and "models" in str(broken.exception)
    assert "127.0.0.1" in run(serve, ["--help"]).output


# -- garbage

CRASHES = """
import asyncio, contextvars, gc
from router_ml.gateway_garbage import collect_between_steps

variables = [contextvars.ContextVar(str(i)) for i in range(40)]
ended = 0

class Stream:
    def __init__(self):
        self.cycle = self
    def __del__(self):
        global ended
        ended += 1
        for one in variables[:10]:
            one.set(object())

async def main():
    gc.set_threshold(3, 2, 2)
    collect_between_steps(asyncio.get_running_loop())
    for i in range(100_000):
        Stream()
        variables[i % 40].set([i])
        if i % 1_000 == 0:
            await asyncio.sleep(0.002)
    await asyncio.sleep(0.1)

asyncio.run(main())
print(ended)
"""


def test_a_finalizer_that_sets_a_context_variable_crashes_nothing() -> None:
    # without collect_between_steps, Python 3.11 ends this within a second by a segmentation fault
    done = subprocess.run([sys.executable, "-c", CRASHES], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and int(done.stdout) > 90_000


# -- several machines


def test_the_compose_file_opens_nothing_and_holds_no_secret() -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    assert set(services) == {"gateway", "postgres", "redis"}
    for service in services.values():
        assert all(re.match(r"\$\{\w+:-127\.0\.0\.1\}:", port) for port in service["ports"])
        for name, value in service["environment"].items():
            assert "${" in value or not re.search("KEY|PASSWORD|URL", name), name
    options = [option.partition("=")[0] for option in services["gateway"]["command"][1:]]
    known = {option for parameter in serve.params for option in parameter.opts}
    assert set(options) <= known
    variables = {parameter.envvar for parameter in serve.params if parameter.envvar}
    assert variables | {"LITELLM_MASTER_KEY"} <= set(services["gateway"]["environment"])


def test_the_example_pool_is_one_that_the_bundled_router_can_serve() -> None:
    pool = ModelPool.from_yaml(DEPLOY / "pool.example.yaml")
    LiveRouter(Router.load(pool=pool))
    variables = {spec.api_key_env for spec in pool.models}
    environment = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["gateway"]["environment"]
    assert variables <= set(environment)
    bundled = {spec.name: spec for spec in ModelPool.default().models}
    for spec in pool.models:
        assert spec.input_usd_per_mtok == bundled[spec.name].input_usd_per_mtok
        assert spec.output_usd_per_mtok == bundled[spec.name].output_usd_per_mtok


@pytest.mark.parametrize(
    ("places", "called"),
    [((0, 0, 1), [0, 1]), ((0, 1), [1]), ((0, 1, 0), [1, 0]), ((0, 1, 2), [1, 2])],  # of the models, in the plan
)
def test_each_stage_of_a_plan_is_called_in_turn_a_model_twice_if_the_plan_says_so(
    places: tuple[int, ...], called: list[int]
) -> None:
    live = LiveRouter(Router.load(STORED))
    models, gateway, verifier = live.router.models, Gateway(live), MinimumLength(99)
    read = live.read(RouteRequest("Hi", verifier=verifier))
    decision = dataclasses.replace(live.router.decide(read), plan=tuple(models[i] for i in places), model=models[0])
    gateway.decide = lambda *_: (read, decision)  # type: ignore[method-assign]
    exchange = gateway.begin("acompletion", {"model": "auto", "messages": "Hi"}, None)
    short = {"choices": [{"message": {"content": "short"}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 9}}
    gateway.started(exchange, exchange.calling)
    asked = []

    async def call(model: str) -> tuple[Any, dict[str, Any]]:
        asked.append(models.index(model))
        gateway.started(exchange, model)
        return short, {}

    asyncio.run(gateway.answered(exchange, short, {}, call))
    assert asked == called and [a.stage for a in exchange.attempts] == list(range(len(exchange.attempts)))
    assert all(a.verdict is not None and not a.verdict.accepted for a in exchange.attempts)
