"""README does what it says: its Python runs, its commands run, its tree is the real one."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]

from router_ml.cli import main
from router_ml.completion import FakeClient
from router_ml.failure_cost import FailureCost
from router_ml.pool import ModelPool
from router_ml.router import Router

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


COMMANDS = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("router-ml route")]


@pytest.mark.parametrize("source", blocks("python"))
def test_python_blocks_run(
    source: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    provider = FakeClient(lambda call: '{"capital": "Lima"}')
    monkeypatch.setattr("router_ml.cascade.LitellmClient", lambda cache: provider)
    exec(compile(source, "README.md", "exec"), {})
    out = capsys.readouterr().out
    if "complete(" in source:
        assert "Lima" in out and "True" in out and len(provider.calls) == 1
    elif "candidates" in source:
        assert all(f"{name} " in out for name in Router.load().models)
    else:
        assert "Sent to " in out


def test_readme_shows_python_and_commands() -> None:
    assert blocks("python") and COMMANDS


@pytest.mark.parametrize("line", COMMANDS)
def test_route_commands_decide(line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    arguments = shlex.split(line)[1:]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    if "--json" in arguments:
        assert {json.loads(decision)["model"] for decision in out.splitlines()} <= set(Router.load().models)
    else:
        assert "confidence" in out


def test_the_failure_costs_shown_are_those_of_the_default_pool() -> None:
    shown = [yaml.safe_load(block) for block in blocks("yaml") if block.startswith("failure_costs:")]
    assert [[FailureCost(**rule) for rule in one["failure_costs"]] for one in shown] == [
        list(ModelPool.default().failure_costs)
    ]


def test_every_module_has_a_line_in_the_tree() -> None:
    tree = README.partition("## Files")[2].partition("## Licence")[0]
    named = set(re.findall(r"^ +(\S+\.(?:py|yaml))  ", tree, flags=re.MULTILINE))
    found = [path for folder in ("router_ml", "training") for path in (ROOT / folder).glob("*") if path.stat().st_size]
    assert named == {path.name for path in found if path.suffix in (".py", ".yaml")}


def test_links_to_files_lead_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert links and all((ROOT / link).is_file() for link in links)
