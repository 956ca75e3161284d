"""The demo's parts: long requests, what is printed, what happens without the data."""

from __future__ import annotations

from pathlib import Path

import pytest

from router_ml.cli import run
from router_ml.request import RouteRequest, read_trace
from router_ml.router import Router
from training.demo import DATA, command, lengthened, read_requests, use_trained
from training.simulate import World


@pytest.mark.parametrize("tokens", [100, 5_000, 700_000])
def test_a_request_is_lengthened_to_its_tokens(tokens: int) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Read this log. " * 3},
        {"role": "assistant", "content": "I will."},
    ]
    long = lengthened(RouteRequest(messages, metadata={"repeat_to_tokens": tokens}))
    assert tokens <= read_trace(long).input_tokens <= tokens + 60
    assert long.messages[0] == messages[0] and long.messages[2] == messages[2]


def test_other_requests_stay_as_they_are() -> None:
    request = RouteRequest("hi", metadata={"title": "A greeting"})
    assert lengthened(request) is request


def test_every_request_of_the_demo_is_titled_and_can_be_read() -> None:
    requests = read_requests(DATA / "demo_requests.jsonl")
    assert all(isinstance(request.metadata["title"], str) for request in requests)
    assert max(read_trace(request).input_tokens for request in requests) > 600_000


def test_the_trained_router_is_shown_beside_the_truth(router_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    router = Router.load(router_path)
    use_trained(router, World(7).sample(400, seed=1))
    out = capsys.readouterr().out
    assert "mean confidence" in out and "true P(success)" in out
    assert f"Always calling {router.pool.escalation_model} would succeed on" in out


def test_without_its_data_the_demo_says_where_it_looked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, ["--data", str(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert str(tmp_path / "demo_requests.jsonl") in err and err.count("\n") == 1


@pytest.mark.slow
def test_the_whole_demo_runs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(command, ["--out", str(tmp_path / "router")]) == 0
    out = capfd.readouterr().out
    for title in ("A picture", "More than 600K tokens", "Must stay on our machines"):
        assert title in out
    assert (tmp_path / "router" / "manifest.json").is_file()
