"""The command line: what it prints, where, and with which exit code."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import re
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from acting import KEY, acting_pool, wire_name
from hypothesis import given
from hypothesis import strategies as st

import router_ml.price_map
from router_ml.cli import main
from router_ml.errors import MissingExtraError
from router_ml.explanation import usd
from router_ml.outcomes import OutcomeLog
from router_ml.pool import ModelPool
from router_ml.router import Router
from training.fault_server import Behaviour, FaultServer

QUESTION = "How many seconds are there in a week?"
MODELS = ["acme/large", "acme/medium", "acme/small", "other/max", "other/mini"]


class Ran:
    """One run of the command."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def decisions(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    def run_command(*arguments: str) -> Ran:
        code = main(arguments)
        out, err = capsys.readouterr()
        return Ran(code, out, err)

    return run_command


@pytest.fixture
def route(run: Any, router_path: Path) -> Any:
    return lambda *arguments: run("route", "--router", str(router_path), *arguments)


@pytest.fixture
def plug(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Writes a module and plugs its ``command`` in under the name ``extra``."""

    def plug_module(name: str, source: str) -> None:
        (tmp_path / f"{name}.py").write_text(source, encoding="utf-8")
        entry = EntryPoint("extra", f"{name}:command", "router_ml.commands")
        monkeypatch.setattr("router_ml.cli.entry_points", lambda group: [entry] if group == entry.group else [])

    monkeypatch.syspath_prepend(str(tmp_path))
    return plug_module


def lines_file(path: Path, *requests: Any) -> str:
    path.write_text("".join(json.dumps(request) + "\n" for request in requests), encoding="utf-8")
    return str(path)


def assert_refused(ran: Ran, *words: str) -> None:
    assert ran.code == 1 and ran.out == ""
    assert ran.err.startswith("router-ml: ") and ran.err.count("\n") == 1
    for word in words:
        assert word in ran.err


def assert_wrong_usage(ran: Ran, *words: str) -> None:
    assert ran.code == 2 and ran.out == ""
    assert "Traceback" not in ran.err
    for word in words:
        assert word in ran.err


# -- route


def test_json_is_the_decision_of_the_library(route: Any, router_path: Path) -> None:
    ran = route(QUESTION, "--json")
    expected = Router.load(router_path).predict(QUESTION).to_dict()
    (got,) = ran.decisions
    assert ran.code == 0
    assert {k: v for k, v in got.items() if k != "decision_id"} == {
        k: v for k, v in expected.items() if k != "decision_id"
    }


def test_a_file_gives_one_decision_a_line_in_its_order(route: Any, router_path: Path, tmp_path: Path) -> None:
    requests = [QUESTION, [{"role": "user", "content": "Prove that 7 is prime."}], {"prompt": "hi", "pin": "other/max"}]
    ran = route("--file", lines_file(tmp_path / "requests.jsonl", *requests), "--json")
    expected = Router.load(router_path).predict_batch(requests)
    assert [(d["model"], pytest.approx(d["confidence"])) for d in ran.decisions] == [
        (d.model, d.confidence) for d in expected
    ]


def test_blank_lines_of_a_file_are_no_requests(route: Any, tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    path.write_text('\n"one"\n  \n"two"\n\n', encoding="utf-8")
    assert len(route("--file", str(path), "--json").decisions) == 2


@pytest.mark.parametrize(
    ("arguments", "stdin"), [(["-"], QUESTION), (["--file", "-"], json.dumps({"prompt": QUESTION}))]
)
def test_a_dash_reads_standard_input(
    route: Any, monkeypatch: pytest.MonkeyPatch, arguments: list[str], stdin: str
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode()), encoding="utf-8"))
    piped = route(*arguments, "--json").decisions[0]
    assert piped["candidates"] == route(QUESTION, "--json").decisions[0]["candidates"]


@pytest.mark.parametrize(
    ("options", "model"),
    [
        (["--pin", "other/max"], "other/max"),
        (["--allow", "acme/large"], "acme/large"),
        ([word for name in MODELS[1:] for word in ("--deny", name)], "acme/large"),
        (["--failure-cost-usd", "0"], "acme/small"),
        (["--min-quality", "0.000001"], "acme/small"),
    ],
)
def test_options_narrow_the_request(route: Any, options: list[str], model: str) -> None:
    assert route(QUESTION, "--json", *options).decisions[0]["model"] == model


def test_options_win_over_the_fields_of_a_file(route: Any, tmp_path: Path) -> None:
    path = lines_file(tmp_path / "requests.jsonl", {"prompt": "hi", "pin": "other/max"}, {"prompt": "hi"})
    models = [d["model"] for d in route("--file", path, "--json", "--pin", "acme/medium").decisions]
    assert models == ["acme/medium"] * 2


def test_a_budget_of_nothing_is_a_limit(route: Any) -> None:
    assert_refused(route(QUESTION, "--budget-usd", "0"), "over budget", *MODELS)


def test_the_table_shows_the_choice_and_why_the_others_were_out(route: Any) -> None:
    out = route(QUESTION, "--deny", "acme/small", "--deny", "other/mini").out
    for word in ("model", "confidence", "reason", "expected cost", "saving", "measured", *MODELS):
        assert word in out
    assert out.count("the request denies it") == 2 and out.count("<- chosen") == 1


def test_the_table_of_a_file_has_a_row_for_each_request(route: Any, tmp_path: Path) -> None:
    titled = {"prompt": "hi", "metadata": {"title": "A greeting [bold]"}}
    out = route("--file", lines_file(tmp_path / "requests.jsonl", titled, QUESTION)).out
    assert "A greeting [bold]" in out and f"2: {QUESTION}" in out
    assert "is the cheapest eligible model" in out  # on one line: the table is wide where there is no terminal


def test_tables_are_printed_where_only_ascii_can_be(route: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii", errors="strict")
    monkeypatch.setattr(sys, "stdout", stream)
    assert route(QUESTION).code == 0
    stream.flush()
    assert b"acme/small" in raw.getvalue()


def test_an_empty_text_is_refused(route: Any) -> None:
    assert_refused(route(""), "empty")


def test_an_unknown_model_is_refused_with_the_known_ones(route: Any) -> None:
    assert_refused(route(QUESTION, "--pin", "acme/huge"), "acme/huge", *MODELS)


def test_a_folder_without_a_router_is_refused(run: Any, tmp_path: Path) -> None:
    assert_refused(run("route", "--router", str(tmp_path), QUESTION), str(tmp_path), "manifest.json")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'"fine"\n{"prompt": \n', ("line 2",)),
        (b'"fine"\n{"prompt": ""}\n', ("line 2", "empty")),
        (b'{"prompt": "hi", "colour": "red"}\n', ("line 1", "colour")),
        (b"7\n", ("line 1", "int")),
        (b'"\xff\xfe"\n', ("UTF-8",)),
        (b"[" * 100_000 + b"\n", ("line 1",)),
    ],
)
def test_a_bad_line_is_named(route: Any, tmp_path: Path, content: bytes, words: tuple[str, ...]) -> None:
    path = tmp_path / "requests.jsonl"
    path.write_bytes(content)
    assert_refused(route("--file", str(path)), str(path), *words)


def test_a_missing_file_is_named(route: Any, tmp_path: Path) -> None:
    assert_refused(route("--file", str(tmp_path / "none.jsonl")), "none.jsonl")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        [QUESTION, "--file", "x.jsonl"],
        [QUESTION, "--min-quality", "high"],
        [QUESTION, "--budget-usd", "much"],
        [QUESTION, "--require", "flying"],
        [QUESTION, "--colour", "red"],
    ],
)
def test_wrong_usage_of_route(route: Any, arguments: list[str]) -> None:
    assert_wrong_usage(route(*arguments), "route --help")


def test_min_quality_takes_the_escalation_models_own(route: Any) -> None:
    assert route(QUESTION, "--min-quality", "escalation", "--json").decisions[0]["model"] in MODELS


def test_whether_anybody_watches_sets_the_price_of_a_failure(run: Any) -> None:
    said = {
        flag: run("route", QUESTION, "--json", *flag).decisions[0]
        for flag in ((), ("--supervised",), ("--unsupervised",))
    }
    assert [decision["reason"]["code"] for decision in said.values()] == [
        "cheapest_likely", "lowest_expected_loss", "lowest_expected_loss",
    ]  # fmt: skip
    assert "a failure costs 0.02 USD" in said["--supervised",]["reason"]["text"]
    assert "a failure costs 0.5 USD" in said["--unsupervised",]["reason"]["text"]


# -- pool


def test_the_default_pool_is_shown(run: Any) -> None:
    ran = run("pool", "show")
    for name in ModelPool.default().names:
        assert name in ran.out
    assert ran.code == 0 and "escalation model anthropic/claude-opus-4-7" in ran.out
    assert "openai/gpt-5.5: 10 in, 45 out above 272,000 input tokens" in ran.out


def test_show_and_validate_say_what_a_failure_costs(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "pool.yaml"
    ModelPool.default().to_yaml(path)
    for arguments in (("show",), ("validate", str(path))):
        out = run("pool", *arguments).out
        assert "$0.0200 where supervised, at most 3 turns" in out
        assert "$5.00 where unsupervised, at least 10 turns, at least 0.5 tool calls a turn" in out
    dataclasses.replace(ModelPool.default(), failure_costs=()).to_yaml(path)
    assert "failure" not in run("pool", "validate", str(path)).out


def test_a_pool_as_json_reads_back_as_the_same_pool(run: Any) -> None:
    assert ModelPool.from_dict(json.loads(run("pool", "show", "--json").out)) == ModelPool.default()


def test_a_valid_pool_is_told_so(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "pool.yaml"
    ModelPool.default().to_yaml(path)
    ran = run("pool", "validate", str(path))
    assert ran.code == 0 and "valid, 9 models" in ran.out


def test_a_mistake_in_a_pool_is_named(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "pool.yaml"
    ModelPool.default().to_yaml(path)
    path.write_text(path.read_text(encoding="utf-8") + "confidence: 0.7\n", encoding="utf-8")
    assert_refused(run("pool", "validate", str(path)), str(path), "confidence")


def test_refresh_rewrites_prices_and_says_what_changed(
    run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    prices = {"claude-opus-4-7": {"litellm_provider": "anthropic", "input_cost_per_token": 4e-6}}
    monkeypatch.setattr(router_ml.price_map, "_litellm_prices", lambda: prices)
    path = tmp_path / "pool.yaml"
    ModelPool.default().to_yaml(path)
    ran = run("pool", "refresh", "--pool", str(path))
    assert ran.code == 0 and "changed anthropic/claude-opus-4-7\n" in ran.out and "ollama/llama4" in ran.out
    assert ModelPool.from_yaml(path).spec("anthropic/claude-opus-4-7").input_usd_per_mtok == 4.0


def test_refresh_of_the_default_pool_needs_a_place_to_write(run: Any) -> None:
    assert_wrong_usage(run("pool", "refresh"), "--out")


def test_refresh_without_litellm_names_the_extra(run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing() -> Any:
        raise MissingExtraError("litellm", "llm")

    monkeypatch.setattr(router_ml.price_map, "_litellm_prices", missing)
    assert_refused(run("pool", "refresh", "--out", str(tmp_path / "pool.yaml")), "pip install 'router-ml[llm]'")


# -- commands that plug in

PLUGGED = '''"""Do something extra.

More about it.
"""
import sys
import click
sys.extra_was_imported = True

@click.command("extra")
@click.option("--code", type=int, default=0)
@click.pass_context
def command(ctx, code):
    click.echo("did it")
    ctx.exit(code)
'''


def test_a_plugged_command_is_listed_without_being_imported(run: Any, plug: Any) -> None:
    plug("plugged_listed", PLUGGED)
    assert re.search(r"extra +Do something extra\.\n", run("--help").out)
    assert "plugged_listed" not in sys.modules


@pytest.mark.parametrize("code", [0, 1])
def test_a_plugged_command_runs_and_its_exit_code_counts(run: Any, plug: Any, code: int) -> None:
    plug(f"plugged_run_{code}", PLUGGED)
    ran = run("extra", "--code", str(code))
    assert (ran.code, ran.out) == (code, "did it\n")


def test_a_plugged_command_without_its_library_names_the_extra(run: Any, plug: Any) -> None:
    plug("plugged_missing", '"""Needs more."""\nimport no_such_library\n')
    assert "Needs more." in run("--help").out
    assert_refused(run("extra"), "no_such_library", "pip install 'router-ml[train]'")


def test_a_plugged_command_whose_module_is_gone_is_no_missing_library(run: Any, plug: Any, tmp_path: Path) -> None:
    plug("plugged_gone", PLUGGED)
    (tmp_path / "plugged_gone.py").unlink()
    ran = run("extra")
    assert_refused(ran, "plugged_gone", "reinstall")
    assert "pip install" not in ran.err


def test_something_else_than_a_command_is_refused(run: Any, plug: Any) -> None:
    plug("plugged_wrong", "command = 7\n")
    assert_refused(run("extra"), "plugged_wrong:command")


def test_an_error_of_many_lines_is_told_in_one(run: Any, plug: Any) -> None:
    source = (
        "import click\nfrom router_ml.errors import TableError\n"
        "@click.command()\ndef command():\n    raise TableError('t.csv', ['row 2: score is 7', 'row 3: no model'])\n"
    )
    plug("plugged_table", source)
    assert_refused(run("extra"), "t.csv: 2 problem(s); row 2: score is 7; row 3: no model")


def test_a_file_that_cannot_be_written_is_told_in_one_line(run: Any, plug: Any, tmp_path: Path) -> None:
    source = f"import click\n@click.command()\ndef command():\n    open({str(tmp_path / 'no' / 'x')!r}, 'w')\n"
    plug("plugged_write", source)
    assert_refused(run("extra"), "No such file")


def test_an_unknown_command_is_wrong_usage(run: Any) -> None:
    assert_wrong_usage(run("levitate"), "levitate")


@pytest.mark.parametrize("arguments", [["--help"], ["route", "--help"], ["pool", "--help"], ["pool", "show", "-h"]])
def test_help_is_there_and_no_error(run: Any, arguments: list[str]) -> None:
    ran = run(*arguments)
    assert ran.code == 0 and ran.out.startswith("Usage: router-ml")


# -- amounts


@given(st.floats(min_value=1e-12, max_value=1e9))
def test_an_amount_keeps_three_digits_and_has_no_exponent(amount: float) -> None:
    text = usd(amount)
    assert re.fullmatch(r"\$\d+\.\d{2,}", text)
    assert math.isclose(float(text[1:]), amount, rel_tol=0.006)


def test_no_amount_is_nothing() -> None:
    assert usd(0.0) == "$0.00"


# -- complete


@pytest.fixture
def provider() -> Iterator[FaultServer]:
    with FaultServer({"*": Behaviour(text="It is four.")}) as server:
        yield server


def acting(router_path: Path, tmp_path: Path, provider: FaultServer) -> list[str]:
    """Options for a router whose models answer from the fault server."""
    pool = tmp_path / "pool.yaml"
    acting_pool(router_path, provider.url).to_yaml(pool)
    return ["--router", str(router_path), "--pool", str(pool)]


def test_complete_prints_the_answer_and_says_apart_what_it_took(
    router_path: Path, tmp_path: Path, provider: FaultServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["complete", "What is 2 + 2?", *acting(router_path, tmp_path, provider)]) == 0
    out, err = capsys.readouterr()
    assert out == "It is four.\n" and "not checked" in err and "saved $" in err


def test_complete_streams(
    router_path: Path, tmp_path: Path, provider: FaultServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["complete", "What is 2 + 2?", "--stream", *acting(router_path, tmp_path, provider)]) == 0
    assert capsys.readouterr().out == "It is four.\n"


def test_complete_checks_escalates_and_logs(
    router_path: Path, tmp_path: Path, provider: FaultServer, capsys: pytest.CaptureFixture[str]
) -> None:
    provider.behave(wire_name("other/max"), Behaviour(text="It is four, as 2 + 2 always is."))
    url = f"sqlite:///{tmp_path / 'log.db'}"
    check = ["--verify", '{"min_length": 20}', "--min-quality", "0.01", "--log", url, "--json"]
    assert main(["complete", "What is 2 + 2?", *check, *acting(router_path, tmp_path, provider)]) == 0
    done = json.loads(capsys.readouterr().out)
    assert done["model"] == "other/max" and done["accepted"] is True
    *rejected, last = [attempt["verdict"]["accepted"] for attempt in done["attempts"]]
    assert last is True and rejected and not any(rejected)
    assert [attempt["model"] for attempt in done["attempts"]] == done["decision"]["plan"]
    with OutcomeLog(url) as log:
        (logged,) = log.decisions()
    assert logged.decision_id == done["decision"]["decision_id"] and len(logged.attempts) == len(rejected) + 1


def test_complete_fails_in_one_line_without_the_key(
    router_path: Path, tmp_path: Path, provider: FaultServer, capsys: pytest.CaptureFixture[str]
) -> None:
    provider.behave("*", Behaviour(faults={"401": 1.0}))
    assert main(["complete", "my dearest secret", *acting(router_path, tmp_path, provider)]) == 1
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and "CredentialsError" not in out
    assert "AuthenticationError" in err and KEY not in err and "secret" not in err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--verify", "{"], "not JSON"),
        (["--verify", '{"no_such": 1}'], "no_such"),
        (["--stream", "--json"], "either"),
        (["--log", "sqlite:////no/such/folder/log.db"], "log.db"),
        (["--log", "postgresql://me:hush@127.0.0.1:1/x"], "127.0.0.1"),
    ],
)
def test_complete_says_what_is_wrong_before_any_call(
    router_path: Path, tmp_path: Path, provider: FaultServer, capsys: pytest.CaptureFixture[str], options: list[str],
    said: str,
) -> None:  # fmt: skip
    assert main(["complete", "hi", *options, *acting(router_path, tmp_path, provider)]) in (1, 2)
    err = capsys.readouterr().err
    assert said in err and "hush" not in err and provider.count() == 0
