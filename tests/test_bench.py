"""What the benchmark measures on, and how it judges. No clock is asserted."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from router_ml.artifact import ENCODER
from router_ml.cli import run
from router_ml.router import bundled_router_path
from training import bench
from training.bench import Figure, command, report, starts, texts_of, tokenizer_of


def ends_of_words(text: str) -> list[int]:
    return [word.end() for word in re.finditer(r"\S+", text)]


@pytest.mark.parametrize("words", [1, 20, 300])
def test_texts_have_the_size_asked_for_and_differ(words: int) -> None:
    texts = texts_of(50, words, ends_of_words)
    assert [len(text.split()) for text in texts] == [words] * 50
    assert len(set(texts)) > (40 if words > 1 else 1)


def test_texts_have_the_tokens_asked_for() -> None:
    tokenizer = tokenizer_of(bundled_router_path())
    texts = texts_of(20, 200, lambda text: [end for _, end in tokenizer.encode(text, add_special_tokens=False).offsets])
    assert {len(tokenizer.encode(text, add_special_tokens=False).ids) for text in texts} == {200}


@pytest.mark.parametrize(("value", "target", "reached"), [(1.0, 1.0, True), (1.1, 1.0, False), (5.0, None, None)])
def test_a_target_is_the_most_that_is_allowed(value: float, target: float | None, reached: bool | None) -> None:
    assert Figure("size", value, "MB", target).reached is reached


def test_the_report_says_what_was_missed(capsys: pytest.CaptureFixture[str]) -> None:
    report([Figure("a", 1.0, "s", 2.0), Figure("b", 12_345.0, "us", 2.0), Figure("c", 0.5, "x")])
    rows = {line.split("│")[1].strip(): line for line in capsys.readouterr().out.splitlines() if "│" in line}
    assert "reached" in rows["a"] and "MISSED" in rows["b"] and "12,345 us" in rows["b"]
    assert "reached" not in rows["c"] and "MISSED" not in rows["c"]


def test_a_fresh_start_is_measured_whole(router_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "STARTS", 1)
    figures = starts(router_path)
    assert all(figure.value > 0 for figure in figures[:4])
    assert figures[-1].value == 0 and figures[-1].what.endswith("none")


def test_figures_are_written_with_target_and_machine(
    router_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "STARTS", 1)
    monkeypatch.setattr(bench, "in_own_process", lambda *_: [Figure("decision", 90.0, "us", 100.0)])
    out = tmp_path / "bench.json"
    assert run(command, ["--router", str(router_path), "--train-rows", "0", "--json", str(out)]) == 0
    written = json.loads(out.read_text(encoding="utf-8"))
    assert written["figures"][0] == {"what": "decision", "value": 90.0, "unit": "us", "target": 100.0, "reached": True}
    assert "Python" in written["machine"] and "decision" in capsys.readouterr().out


def test_a_router_without_a_static_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(bench.RouterError, match=ENCODER):
        tokenizer_of(tmp_path)
