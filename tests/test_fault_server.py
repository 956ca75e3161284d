"""The fake provider: what it answers, how it fails, and that real clients talk to it."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from training.fault_server import FAULTS, OK, Behaviour, FaultServer, scenario
from training.wire_format import PROBLEMS, words

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
MESSAGES = [{"role": "user", "content": "Say hello."}]
CHAT, ANTHROPIC = "/v1/chat/completions", "/v1/messages"


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer({"a": Behaviour(text="hello there, you")}, seed=1) as running:
        yield running


class Client:
    """One connection that is kept alive."""

    def __init__(self, server: FaultServer) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def ask(self, path: str = CHAT, body: Any = None, method: str = "POST") -> tuple[int, dict[str, str], bytes]:
        text = body if isinstance(body, (bytes, type(None))) else json.dumps(body)
        self.connection.request(method, path, text, {"content-type": "application/json"})
        response = self.connection.getresponse()
        return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()

    def chat(self, model: str = "a", **fields: Any) -> tuple[int, dict[str, str], bytes]:
        return self.ask(CHAT, {"model": model, "messages": MESSAGES} | fields)


def events(body: bytes) -> list[Any]:
    """The data of server-sent events; the end mark is left out."""
    lines = [line.removeprefix(b"data: ") for line in body.splitlines() if line.startswith(b"data: ")]
    return [json.loads(line) for line in lines if line != b"[DONE]"]


def test_a_connection_is_kept_for_many_answers(server: FaultServer) -> None:
    with Client(server) as client:
        sockets = set()
        for _ in range(3):
            status, _, body = client.chat()
            sockets.add(client.connection.sock)
            answer = json.loads(body)
            assert status == 200 and answer["model"] == "a"
            assert answer["choices"][0]["message"]["content"] == "hello there, you"
        assert len(sockets) == 1 and None not in sockets
    assert server.count("a", OK) == 3


def test_usage_is_estimated_or_as_described(server: FaultServer) -> None:
    with Client(server) as client:
        short = json.loads(client.chat()[2])["usage"]
        long = json.loads(client.chat(messages=[{"role": "user", "content": "x" * 4_000}])[2])["usage"]
        server.behave("a", Behaviour(input_tokens=100, output_tokens=7, cached_tokens=60))
        given = json.loads(client.chat()[2])["usage"]
        anthropic = json.loads(client.ask(ANTHROPIC, {"model": "a", "messages": MESSAGES})[2])["usage"]
    assert long["prompt_tokens"] - short["prompt_tokens"] == pytest.approx(1_000, abs=5)
    assert given == {
        "prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107,
        "prompt_tokens_details": {"cached_tokens": 60},
    }  # fmt: skip
    assert (anthropic["input_tokens"], anthropic["cache_read_input_tokens"], anthropic["output_tokens"]) == (40, 60, 7)


@pytest.mark.parametrize("counted", [False, True])
def test_a_stream_says_the_same_and_its_usage_where_asked(server: FaultServer, counted: bool) -> None:
    with Client(server) as client:
        _, headers, body = client.chat(stream=True, **({"stream_options": {"include_usage": True}} if counted else {}))
    assert headers["content-type"] == "text/event-stream" and body.endswith(b"data: [DONE]\n\n")
    chunks = events(body)
    choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    assert "".join(choice["delta"].get("content", "") for choice in choices) == "hello there, you"
    assert [choice["finish_reason"] for choice in choices][-1] == "stop"
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks if chunk.get("usage")] == [4] * counted


def test_the_text_may_depend_on_the_request_and_tools_are_called(server: FaultServer) -> None:
    server.behave("a", Behaviour(text=lambda asked: asked["messages"][-1]["content"].upper()))
    server.behave("b", Behaviour(text="", tool_calls=[{"name": "look_up", "arguments": {"word": "fish"}}]))
    with Client(server) as client:
        first = json.loads(client.chat("a")[2])["choices"][0]
        second = json.loads(client.chat("b")[2])["choices"][0]
    assert first["message"]["content"] == "SAY HELLO."
    assert second["finish_reason"] == "tool_calls" and second["message"]["content"] is None
    assert second["message"]["tool_calls"][0]["function"] == {"name": "look_up", "arguments": '{"word": "fish"}'}


def test_a_script_is_consumed_then_faults_are_drawn(server: FaultServer) -> None:
    server.behave("a", Behaviour(script=["500", OK, "429"], faults={"401": 1.0}))
    with Client(server) as client:
        assert [client.chat()[0] for _ in range(5)] == [500, 200, 429, 401, 401]
    assert server.counts() == {
        "requests": 5, "faults": {"401": 2, "429": 1, "500": 1, "ok": 1},
        "models": {"a": {"401": 2, "429": 1, "500": 1, "ok": 1}},
    }  # fmt: skip


def test_faults_come_at_their_rate_and_the_same_for_the_same_seed() -> None:
    def statuses(seed: int) -> list[int]:
        behaviour = Behaviour(faults={"429": 0.1, "500": 0.2})
        with FaultServer({"a": behaviour, "b": behaviour}, seed=seed) as server, Client(server) as client:
            return [client.chat("a")[0] for _ in range(400) if client.chat("b")]

    first = statuses(3)
    counted = Counter(first)
    assert first == statuses(3) != statuses(4)
    # within four standard deviations
    assert (
        abs(counted[429] - 40) <= 24
        and abs(counted[500] - 80) <= 32
        and counted[200] == 400 - sum(counted[status] for status in (429, 500))
    )


def test_a_limit_says_what_is_left_and_when_to_come_back(server: FaultServer) -> None:
    limits = {"x-ratelimit-limit-requests": "100", "x-ratelimit-remaining-requests": "3"}
    server.behave("a", Behaviour(script=["429"], headers=limits, retry_after_s=7))
    with Client(server) as client:
        status, refused, body = client.chat()
        _, answered, _ = client.chat()
    assert status == 429 and refused["retry-after"] == "7" and refused["x-ratelimit-remaining-requests"] == "3"
    assert json.loads(body)["error"]["code"] == "rate_limit_exceeded"
    assert answered["x-ratelimit-limit-requests"] == "100" and "retry-after" not in answered


def test_a_model_goes_down_and_comes_back_while_others_answer(server: FaultServer) -> None:
    with Client(server) as client:
        server.behave("a", Behaviour(down=True))
        assert [client.chat("a")[0], client.chat("b")[0]] == [503, 200]
        server.behave("a", Behaviour())
        assert client.chat("a")[0] == 200


@pytest.mark.parametrize("path", [CHAT, ANTHROPIC])
@pytest.mark.parametrize("fault", sorted(PROBLEMS))
def test_an_error_is_reported_as_the_provider_would(server: FaultServer, path: str, fault: str) -> None:
    server.behave("a", Behaviour(script=[fault]))
    with Client(server) as client:
        status, _, body = client.ask(path, {"model": "a", "messages": MESSAGES})
        assert client.ask(path, {"model": "a", "messages": MESSAGES})[0] == 200  # on the same connection
    error, problem = json.loads(body)["error"], PROBLEMS[fault]
    if path == CHAT:
        assert (status, error["code"], error["type"]) == (problem.status, problem.code, problem.kind)
    else:
        assert (status, error["type"]) == (problem.anthropic_status, problem.anthropic_kind)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("close", http.client.RemoteDisconnected), ("timeout", http.client.RemoteDisconnected),
        ("truncated", http.client.IncompleteRead), ("stream_break", http.client.IncompleteRead),
    ],
)  # fmt: skip
def test_a_connection_breaks_where_it_should(server: FaultServer, fault: str, error: type[Exception]) -> None:
    server.behave("a", Behaviour(script=[fault], stall_s=0.05))
    with Client(server) as client:
        with pytest.raises(error):
            client.chat()
        client.connection.close()
        assert client.chat()[0] == 200
    assert server.count("a", fault) == 1


def test_a_stream_breaks_after_some_events(server: FaultServer) -> None:
    server.behave("a", Behaviour(text="one two three four five", script=["stream_break"], break_after=3))
    with Client(server) as client, pytest.raises(http.client.IncompleteRead) as caught:
        client.chat(stream=True)
    assert [event["choices"][0]["delta"].get("content") for event in events(caught.value.partial)] == [
        "", "one", " two",
    ]  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_shorter_than_its_break_breaks_all_the_same(server: FaultServer, stream: bool) -> None:
    server.behave("a", Behaviour(text="yes", script=["stream_break"], break_after=1_000))
    with Client(server) as client, pytest.raises(http.client.IncompleteRead):
        client.chat(stream=stream)


@pytest.mark.parametrize("stream", [False, True])
def test_a_slow_answer_is_a_whole_one(server: FaultServer, stream: bool) -> None:
    server.behave("a", Behaviour(text="hello you", faults={"slow_stream": 1.0}, event_delay_s=0.01))
    with Client(server) as client:
        began = time.perf_counter()
        status, _, body = client.chat(stream=stream)
    assert status == 200 and b"hello" in body and time.perf_counter() - began >= 0.04


def test_an_answer_may_be_broken_or_empty(server: FaultServer) -> None:
    server.behave("a", Behaviour(script=["broken_json", "empty", "broken_json", "empty"]))
    with Client(server) as client:
        status, _, broken = client.chat()
        assert status == 200
        with pytest.raises(json.JSONDecodeError):
            json.loads(broken)
        assert json.loads(client.chat()[2])["choices"] == []
        with pytest.raises(json.JSONDecodeError):
            events(client.chat(stream=True)[2])
        chunks = events(client.chat(stream=True)[2])
    assert not any(chunk["choices"][0]["delta"].get("content") for chunk in chunks)


def test_a_timeout_lasts_until_the_client_goes_away(server: FaultServer) -> None:
    server.behave("a", Behaviour(script=["timeout"]))
    with Client(server) as client:
        client.connection.timeout = 0.1
        with pytest.raises(TimeoutError):
            client.chat()
    assert server.count("a", "timeout") == 1  # and leaving the server does not wait for the other 60 s


def test_requests_are_kept_up_to_a_bound() -> None:
    with FaultServer(record=2) as server, Client(server) as client:
        for model in ("a", "b", "c"):
            client.chat(model, temperature=0.5)
        assert [request["model"] for request in server.requests] == ["b", "c"]
        assert server.requests[-1]["temperature"] == 0.5 and server.requests[-1]["messages"] == MESSAGES
    with FaultServer(record=0) as server, Client(server) as client:
        client.chat()
        assert not server.requests and server.count() == 1


def test_behaviour_and_counts_over_http(server: FaultServer) -> None:
    with Client(server) as client:
        assert client.ask("/__behave", {"b": {"text": "as told", "script": ["500"]}})[0] == 200
        assert [client.chat("b")[0], client.chat("b")[0]] == [500, 200]
        assert json.loads(client.ask("/__counts", method="GET")[2])["models"] == {"b": {"500": 1, "ok": 1}}
        listed = json.loads(client.ask("/v1/models", method="GET")[2])["data"]
    assert {model["id"] for model in listed} == {"*", "a", "b"}


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        (CHAT, b"{not json", 400), (CHAT, {"messages": MESSAGES}, 400), (CHAT, [1], 400), ("/v1/other", {}, 404),
        ("/__behave", {"a": {"faults": {"burp": 0.1}}}, 400), ("/__behave", {"a": {"colour": "red"}}, 400),
        ("/__behave", b"[]", 400),
    ],
)  # fmt: skip
def test_what_it_cannot_read_is_refused_and_the_connection_stays(
    server: FaultServer, path: str, body: Any, status: int
) -> None:
    with Client(server) as client:
        assert client.ask(path, body)[0] == status
        assert client.chat()[0] == 200
    assert server.count() == 1


def test_unknown_faults_and_impossible_rates_are_named() -> None:
    with pytest.raises(ValueError, match=r"unknown fault.*burp.*stream_break"):
        Behaviour(script=["burp"])
    with pytest.raises(ValueError, match="add up to at most 1"):
        Behaviour(faults={"429": 0.7, "500": 0.4})
    with pytest.raises(ValueError, match="colour"):
        scenario('{"a": {"colour": "red"}}')
    with pytest.raises(ValueError, match="no-such-file"):
        scenario("no-such-file.json")


@pytest.mark.parametrize("text", ["", " ", "one", " two  words\n", "x\ty \n\n z "])
def test_words_join_to_the_text(text: str) -> None:
    assert "".join(words(text)) == text


def test_a_port_that_is_taken_is_an_error(server: FaultServer) -> None:
    with pytest.raises(OSError, match=r"in use"), FaultServer(port=server.port):
        pass


def test_many_connections_at_once_are_all_answered(server: FaultServer) -> None:
    def twenty(_: int) -> list[int]:
        with Client(server) as client:
            return [client.chat()[0] for _ in range(20)]

    with ThreadPoolExecutor(16) as pool:
        answered = [status for part in pool.map(twenty, range(32)) for status in part]
    assert answered == [200] * 640 and server.count("a", OK) == 640


def test_the_command_says_where_it_listens() -> None:
    command = [sys.executable, "-m", "training.fault_server", "--scenario", '{"a": {"text": "from afar"}}']
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            ready = json.loads(process.stdout.readline())
            assert re.fullmatch(r"http://127\.0\.0\.1:\d+", ready["url"])
            connection = http.client.HTTPConnection("127.0.0.1", ready["port"], timeout=10)
            connection.request("POST", CHAT, json.dumps({"model": "a", "messages": MESSAGES}))
            assert b"from afar" in connection.getresponse().read()
            connection.close()
        finally:
            process.terminate()


def test_nothing_listens_after_the_block() -> None:
    with FaultServer() as server:
        port = server.port
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


class TestLitellm:
    """litellm, unmodified, over HTTP."""

    @staticmethod
    def complete(server: FaultServer, provider: str = "openai", **fields: Any) -> Any:
        import litellm

        base = server.url + ("/v1" if provider == "openai" else "")
        known = {"api_base": base, "api_key": "k", "messages": MESSAGES, "max_retries": 0, "timeout": 5}
        return litellm.completion(model=f"{provider}/a", **(known | fields))

    @pytest.mark.parametrize("provider", ["openai", "anthropic"])
    def test_it_is_answered(self, server: FaultServer, provider: str) -> None:
        answer = self.complete(server, provider, temperature=0.25)
        assert answer.choices[0].message.content == "hello there, you" and answer.usage.completion_tokens == 4
        assert server.requests[-1]["temperature"] == 0.25 and server.count("a", OK) == 1

    @pytest.mark.parametrize("provider", ["openai", "anthropic"])
    def test_it_streams(self, server: FaultServer, provider: str) -> None:
        chunks = list(self.complete(server, provider, stream=True, stream_options={"include_usage": True}))
        said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert said == "hello there, you" and server.requests[-1]["stream"] is True
        assert [c.usage.completion_tokens for c in chunks if getattr(c, "usage", None)][-1] == 4

    @pytest.mark.parametrize("provider", ["openai", "anthropic"])
    def test_it_calls_a_tool(self, server: FaultServer, provider: str) -> None:
        server.behave("a", Behaviour(text="", tool_calls=[{"name": "look_up", "arguments": {"word": "fish"}}]))
        (call,) = self.complete(server, provider).choices[0].message.tool_calls
        assert call.function.name == "look_up" and json.loads(call.function.arguments) == {"word": "fish"}

    @pytest.mark.parametrize(
        ("fault", "error"),
        [
            ("400", "BadRequestError"), ("401", "AuthenticationError"), ("404", "NotFoundError"),
            ("429", "RateLimitError"), ("500", "InternalServerError"), ("503", "ServiceUnavailableError"),
            ("context", "ContextWindowExceededError"), ("content_policy", "ContentPolicyViolationError"),
            ("timeout", "Timeout"), ("close", "InternalServerError"), ("broken_json", "InternalServerError"),
            ("truncated", "InternalServerError"),
        ],
    )  # fmt: skip
    def test_a_fault_is_the_error_that_litellm_has_for_it(self, server: FaultServer, fault: str, error: str) -> None:
        server.behave("a", Behaviour(script=[fault]))
        with pytest.raises(Exception) as caught:  # noqa: PT011 - litellm's types differ; the name is asserted
            self.complete(server, timeout=0.3 if fault == "timeout" else 5)
        assert type(caught.value).__name__ == error
        assert server.count("a", fault) == 1 and fault in FAULTS

    def test_a_limits_headers_reach_the_error(self, server: FaultServer) -> None:
        server.behave("a", Behaviour(script=["429"], retry_after_s=7))
        with pytest.raises(Exception, match="Rate limit") as caught:
            self.complete(server)
        assert caught.value.litellm_response_headers["retry-after"] == "7"  # type: ignore[attr-defined]

    def test_a_stream_that_breaks_raises(self, server: FaultServer) -> None:
        server.behave("a", Behaviour(script=["stream_break"]))
        with pytest.raises(Exception, match="incomplete chunked read"):
            list(self.complete(server, stream=True))
