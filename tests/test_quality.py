"""The quality table: verdicts, what stands beside them, and the command."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from router_ml.embedding import Encoder
from training import quality
from training.bundled import SourceRow
from training.fitting import default_encoder
from training.outcome_table import write_table
from training.quality import LABELS, TARGET_FIGURES, Measured, main, measure, quality_rows
from training.quality_rows import Row
from training.simulate import World


@pytest.fixture(scope="module")
def measured() -> Measured:
    return measure("routerbench", World(7).sample(400).table, default_encoder(), n_boot=40)


def by_figure(rows: list[Row]) -> dict[str, Row]:
    return {row.what: row for row in rows}


def test_every_target_of_a_table_gets_a_verdict_that_follows_from_its_value(measured: Measured) -> None:
    rows = by_figure(list(quality_rows(measured)))
    for figure, target in TARGET_FIGURES["routerbench"].items():
        row = rows[LABELS[figure]]
        assert row.value is not None
        below = figure.startswith("cost")
        assert row.reached == (row.value <= target if below else row.value >= target)
        assert row.target == f"{'<=' if below else '>='} {target:.3f}"
    ece = rows[LABELS["ece"]]
    assert ece.value is not None and ece.reached == (ece.value <= 0.010)
    assert "2,000 outcomes" in ece.note


def test_a_lead_counts_only_where_the_whole_interval_does(measured: Measured) -> None:
    rows = [row for row in quality_rows(measured) if "lead over" in row.what]
    assert len(rows) == 5  # two baselines by two figures, and the mixture
    for row in rows:
        assert row.low is not None and row.high is not None and row.value is not None
        expected = {"< 0, whole interval": row.high < 0, "> 0, whole interval": row.low > 0, ">= 0": row.value >= 0}
        assert row.reached == expected[row.target]


def test_the_per_task_table_stands_beside_the_router(measured: Measured) -> None:
    rows = by_figure(list(quality_rows(measured)))
    assert rows[LABELS["auc"]].note == f"per-task table {measured.per_task['auc']:.3f}"
    assert rows[LABELS["auc"]].target == "" and rows[LABELS["auc"]].reached is None
    assert measured.per_task["auc_within_task"] == pytest.approx(0.5)  # it knows the task and nothing else


def test_a_table_without_targets_or_costs_is_shown_for_information() -> None:
    table = World(7).sample(120).table
    free = dataclasses.replace(table, cost_usd=np.full(table.n_rows, np.nan))
    rows = list(quality_rows(measure("something else", free, default_encoder(), n_boot=5)))
    assert rows and all(row.reached is None and row.target == "" for row in rows)
    assert not any("area" in row.what for row in rows)


def test_day_0_compares_means_over_counted_sources_and_shows_each(monkeypatch: pytest.MonkeyPatch) -> None:
    judged = [
        SourceRow("a", 10, 2, auc=0.70, ece=0.02, predicted=0.5, observed=0.5, shift=0.0, counted=True),
        SourceRow("b", 10, 2, auc=0.60, ece=0.20, predicted=0.5, observed=0.7, shift=0.5, counted=True),
        SourceRow("c", 10, 2, auc=0.10, ece=0.90, predicted=0.5, observed=0.1, shift=-3.0, counted=False),
    ]

    def nothing(*_: object, **__: object) -> list[object]:
        return []

    monkeypatch.setattr(quality, "read_public_tables", nothing)
    monkeypatch.setattr(quality, "leave_one_source_out", lambda *_, **__: judged)
    rows = list(quality.day_0_rows(Path("unused"), default_encoder()))
    assert [(row.value, row.reached) for row in rows[:2]] == [(pytest.approx(0.65), True), (pytest.approx(0.11), False)]
    assert len(rows) == 5 and "not counted" in rows[-1].note


def test_without_the_tables_the_example_is_measured_and_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    example = tmp_path / "example.csv"
    write_table(World(7).sample(100).table, example)
    monkeypatch.setattr(quality, "EXAMPLE_TABLE", example)

    def never(*_: object) -> None:
        raise AssertionError("day 0 needs the public tables")

    monkeypatch.setattr(quality, "day_0_rows", never)
    out = tmp_path / "quality.json"
    assert main(["--data", str(tmp_path / "nowhere"), "--json", str(out), "--resamples", "10"]) == 0
    said = capsys.readouterr()
    assert "no evaluation tables in" in said.err and "random_mixture" in said.out
    report = json.loads(out.read_text(encoding="utf-8"))
    assert list(report["tables"]) == ["example"] and {row["table"] for row in report["rows"]} == {"example"}


def test_an_unknown_table_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", str(tmp_path), "--only", "nope"]) == 1
    assert "nope" in capsys.readouterr().err


def test_the_bundled_encoder_is_what_is_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    used: list[Encoder] = []

    def seen(name: str, table: object, encoder: Encoder, **_: object) -> Measured:
        used.append(encoder)
        raise RuntimeError("enough")

    example = tmp_path / "example.csv"
    write_table(World(7).sample(20).table, example)
    monkeypatch.setattr(quality, "EXAMPLE_TABLE", example)
    monkeypatch.setattr(quality, "measure", seen)
    with pytest.raises(RuntimeError, match="enough"):
        main(["--data", str(tmp_path / "nowhere")])
    assert used[0].fingerprint == default_encoder().fingerprint
