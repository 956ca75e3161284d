"""The log as a table and back: what is labelled comes out, what is not is counted, and retraining needs no text."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from outcome_entries import CHEAP, DEAR, attempt, entry, failed

from router_ml.errors import EncoderMismatchError, OutcomeLogError, TableError
from router_ml.features import FEATURE_NAMES
from router_ml.outcomes import Entry, OutcomeLog
from router_ml.request import RouteRequest
from router_ml.router import Router
from training import outcome_log
from training.evaluate import main as evaluate
from training.evaluation import evaluate_router
from training.fitting import default_encoder, represent_table, train_router
from training.outcome_log import import_table, main, table_of_log
from training.outcome_stored import Stored
from training.outcome_table import OutcomeTable, from_columns, read_table, write_table
from training.simulate import World
from training.train import main as train

FORMATS = ("parquet", "csv", "jsonl")


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'log.db'}"


def rows(table: OutcomeTable) -> dict[tuple[str, str], dict[str, Any]]:
    """Each row by request id and model, without what is null."""
    out = {}
    for r in range(table.n_rows):
        i = int(table.request[r])
        row: dict[str, Any] = {"prompt": table.prompts[i] or None, "task": table.task[i], "group": table.group[i]}
        row |= {"segment": table.segment[i], "source": table.source[i]}
        for name in ("score", "cost_usd", "input_tokens", "output_tokens", "latency_s", "timestamp", "propensity",
                     "turns", "tool_calls"):  # fmt: skip
            value = float(getattr(table, name)[r])
            row[name] = None if np.isnan(value) else value
        out[table.request_ids[i], table.models[table.model[r]]] = {k: v for k, v in row.items() if v is not None}
    return out


def exported(
    url: str, *entries: Entry, feedback: Sequence[dict[str, Any]] = ()
) -> tuple[dict[Any, Any], dict[str, int]]:
    with OutcomeLog(url, log_prompts="text") as log:
        for one in entries:
            log.record(one)
        for said in feedback:
            log.feedback(**said).wait(30)
        log.flush(30)
        table, found = table_of_log(log)
    assert found.n_rows == table.n_rows
    return rows(table), found.left_out


# What is exported


@pytest.mark.parametrize("odd", [np.nan, np.inf, 1e300])
def test_an_embedding_that_is_no_number_spoils_no_export(url: str, odd: float) -> None:
    with OutcomeLog(url, log_prompts="none") as log:
        log.record(entry("good", attempt(accepted=True)))
        log.record(entry("odd", attempt(accepted=True), embedding=np.array([odd, 0.0, 0.0])))
        log.flush(30)
        table, found = table_of_log(log)
    assert list(table.request_ids) == ["good"]
    assert found.left_out == {outcome_log.NO_CONTENT: 1}


def test_a_row_holds_what_the_attempt_cost_with_its_check_and_how_it_came_to_be(url: str) -> None:
    found, left_out = exported(url, entry("d1", attempt(CHEAP, 0, accepted=False), attempt(DEAR, 1, accepted=True)))
    shared = {
        "prompt": "What is 2+2?", "task": "math", "group": "s", "source": "complete", "cost_usd": 0.0025,
        "input_tokens": 12.0, "output_tokens": 34.0, "latency_s": 0.5,
    }  # fmt: skip
    assert found == {
        ("d1", CHEAP): {**shared, "score": 0.0, "propensity": 0.9, "timestamp": 1_700_000_000.0},
        ("d1", DEAR): {**shared, "score": 1.0, "timestamp": 1_700_000_001.0},
    }
    assert left_out == {}


def test_a_score_wins_over_a_verdict_and_a_verdict_over_the_check_and_later_over_earlier(url: str) -> None:
    entries = [entry(f"d{i}", attempt(accepted=False)) for i in range(6)]
    feedback = [
        {"decision_id": "d1", "verdict": "overprovisioned"},
        {"decision_id": "d2", "score": 0.25}, {"decision_id": "d2", "verdict": "good_fit"},
        {"decision_id": "d3", "score": 0.25}, {"decision_id": "d3", "score": 0.75},
        {"decision_id": "d4", "verdict": "good_fit"}, {"decision_id": "d4", "verdict": "underpowered"},
        {"decision_id": "d5", "text": "nice"},
    ]  # fmt: skip
    found, _ = exported(url, *entries, feedback=feedback)
    assert [found[f"d{i}", CHEAP]["score"] for i in range(6)] == [0.0, 1.0, 0.25, 0.75, 0.0, 0.0]


def test_feedback_is_about_the_answer_that_was_given_or_the_model_it_names(url: str) -> None:
    entries = [
        entry("d1", attempt(CHEAP, 0, accepted=False), attempt(DEAR, 1)),
        entry("d2", attempt(CHEAP, 0), attempt(DEAR, 1)), entry("d3", source="route"),
    ]  # fmt: skip
    feedback = [
        {"decision_id": "d1", "score": 0.5}, {"decision_id": "d2", "score": 0.25, "model": CHEAP},
        {"decision_id": "d2", "score": 0.5, "model": "other/max"}, {"decision_id": "d3", "verdict": "good_fit"},
    ]  # fmt: skip
    found, left_out = exported(url, *entries, feedback=feedback)
    assert {key: row["score"] for key, row in found.items()} == {
        ("d1", CHEAP): 0.0, ("d1", DEAR): 0.5, ("d2", CHEAP): 0.25, ("d2", "other/max"): 0.5, ("d3", CHEAP): 1.0,
    }  # fmt: skip
    assert "cost_usd" not in found["d2", "other/max"] and "propensity" not in found["d2", "other/max"]
    assert found["d3", CHEAP]["propensity"] == 0.9
    assert left_out == {outcome_log.NO_LABEL: 1}


def test_what_gives_no_row_is_counted_by_reason(url: str) -> None:
    entries = [
        entry("d1", attempt(accepted=True)), entry("d2", attempt()), entry("d3"), entry("d4", failed(), failed(DEAR)),
        entry("d5", failed(), attempt(DEAR, accepted=True)), entry("d6", failed(), attempt(CHEAP, accepted=True)),
    ]  # fmt: skip
    feedback = [{"decision_id": "d4", "verdict": "failed"}, {"decision_id": "gone", "score": 1.0}]
    found, left_out = exported(url, *entries, feedback=feedback)
    assert set(found) == {("d1", CHEAP), ("d5", DEAR), ("d6", CHEAP)}
    assert left_out == {outcome_log.NO_LABEL: 1, outcome_log.NO_ANSWER: 2, outcome_log.CALL_FAILED: 3}
    with OutcomeLog(url) as log:
        assert table_of_log(log)[1].unmatched_feedback == 1


def test_a_cached_answer_says_how_good_the_model_is_not_what_it_costs(url: str) -> None:
    found, _ = exported(url, entry("d1", attempt(accepted=True, cache_hit=True, cost_usd=0.0)))
    assert found["d1", CHEAP]["score"] == 1.0 and not found["d1", CHEAP].keys() & {"cost_usd", "latency_s"}


def test_without_text_the_newest_encoder_s_rows_are_taken_and_the_others_counted(url: str) -> None:
    wide = {"features": np.zeros(len(FEATURE_NAMES)), "embedding": np.ones(3, np.float32)}
    with OutcomeLog(url, log_prompts="none") as log:
        log.record(entry("d1", attempt(accepted=True), **wide, encoder="old", created_at=1.0))
        log.record(entry("d2", attempt(accepted=True), **wide, encoder="new", created_at=2.0))
        log.record(entry("d3", attempt(accepted=True), features=None, embedding=None, created_at=3.0))
        log.flush(30)
        table, found = table_of_log(log)
    assert table.request_ids == ["d2"] and table.stored is not None and table.stored.encoder == "new"
    assert found.left_out == {outcome_log.OTHER_ENCODER: 1, outcome_log.NO_CONTENT: 1}


def test_features_of_another_version_are_not_mixed_in(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with OutcomeLog(url, log_prompts="none") as log:
        log.record(entry("d1", attempt(accepted=True)))
        log.flush(30)
        monkeypatch.setattr(outcome_log, "feature_set", lambda: "another")
        with pytest.raises(TableError, match=outcome_log.OTHER_FEATURES):
            table_of_log(log)


# Import and export


words = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1).filter(str.strip)
amounts = st.none() | st.floats(0, 1e12)
chats = st.just([{"role": "user", "content": "Good day 你好"}, {"role": "assistant", "content": None}])


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    made=st.lists(
        st.tuples(words, words | chats, st.sampled_from(["a/x", "b/y", "c/z"]), st.floats(0, 1), amounts, amounts,
                  st.none() | words, st.none() | words, st.none() | st.floats(0, 1, exclude_min=True)),
        min_size=1, max_size=6, unique_by=lambda row: row[0],
    )
)  # fmt: skip
def test_an_imported_table_is_exported_as_it_was(tmp_path: Path, made: list[tuple[Any, ...]]) -> None:
    ids, asked, models, score, cost, stamp, task, group, propensity = (
        list(column) for column in zip(*made, strict=True)
    )
    table = from_columns({
        "request_id": ids, "prompt": [p if isinstance(p, str) else None for p in asked],
        "messages": [None if isinstance(p, str) else p for p in asked], "model": models, "score": score,
        "cost_usd": cost, "timestamp": stamp, "task": task, "group": group, "propensity": propensity, "turns": cost,
        "segment": task, "source": group,
    })  # fmt: skip
    path = tmp_path / "log.db"
    for old in tmp_path.glob("log.db*"):
        old.unlink()
    with OutcomeLog(f"sqlite:///{path}", log_prompts="text") as log:
        import_table(log, table)
        back, found = table_of_log(log)
    assert rows(back) == rows(table) and found.left_out == {}


def test_importing_twice_adds_nothing_and_a_corrected_score_wins(url: str) -> None:
    table = World(3).sample(40, 2).table
    with OutcomeLog(url, log_prompts="text") as log:
        assert import_table(log, table).n_new == 40
        before = [(one.decision_id, len(one.attempts), len(one.feedback)) for one in log.decisions()]
        assert import_table(log, table).n_new == 0
        assert [(one.decision_id, len(one.attempts), len(one.feedback)) for one in log.decisions()] == before
        assert table_of_log(log)[0].fingerprint() == table.fingerprint()
        corrected = dataclasses.replace(table, score=1.0 - table.score)
        import_table(log, corrected)
        assert table_of_log(log)[0].fingerprint() == corrected.fingerprint()
        assert log.spent(0.0) == {None: 0.0}


def test_a_second_table_may_add_models_but_not_another_prompt(url: str) -> None:
    one = from_columns({"request_id": ["a"], "prompt": ["hi"], "model": ["m"], "score": [1.0]})
    two = from_columns({"request_id": ["a"], "prompt": ["hi"], "model": ["n"], "score": [0.0]})
    other = from_columns({"request_id": ["a"], "prompt": ["ho"], "model": ["o"], "score": [0.0]})
    with OutcomeLog(url) as log:
        import_table(log, one)
        import_table(log, two)
        with pytest.raises(TableError, match="another prompt"):
            import_table(log, other)
        table, _ = table_of_log(log)
    assert table.models == ("m", "n") and table.n_requests == 1


def test_an_export_is_not_imported_over_the_decisions_it_came_from(url: str) -> None:
    with OutcomeLog(url, log_prompts="text") as log:
        log.record(entry("d1", attempt(accepted=True))).wait(30)
        table, _ = table_of_log(log)
        done = import_table(log, table)
        assert (done.n_new, done.n_known) == (0, 1)
        (found,) = log.decisions()
    assert len(found.attempts) == 1 and found.feedback == ()


def test_names_that_cannot_be_keys_are_refused_before_anything_is_written(url: str) -> None:
    table = from_columns({"request_id": ["a", "x" * 2_000], "prompt": ["p", "q"], "model": ["m", "m"], "score": [1, 0]})
    with OutcomeLog(url) as log:
        with pytest.raises(TableError, match="longer than"):
            import_table(log, table)
        assert list(log.decisions()) == []


# Tables without prompts


def without_prompts(table: OutcomeTable, requests: Sequence[int] | None = None) -> OutcomeTable:
    """The table as a log without text would hold it."""
    chosen = range(table.n_requests) if requests is None else requests
    seen = represent_table(table, default_encoder())
    row = np.full(table.n_requests, -1, dtype=np.int32)
    row[list(chosen)] = np.arange(len(chosen))
    stored = Stored(seen.features[row >= 0], seen.embedding[row >= 0], default_encoder().fingerprint, row)
    prompts = ["" if row[i] >= 0 else prompt for i, prompt in enumerate(table.prompts)]
    return dataclasses.replace(table, prompts=prompts, stored=stored)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("stored", [None, [0, 2, 5]])
def test_a_stored_representation_is_read_as_it_was_written(tmp_path: Path, suffix: str, stored: Any) -> None:
    table = without_prompts(World(3).sample(12, 2).table, stored)
    write_table(table, tmp_path / f"t.{suffix}")
    back = read_table(tmp_path / f"t.{suffix}")
    assert back.fingerprint() == table.fingerprint() and back.prompts == table.prompts
    assert back.stored is not None and table.stored is not None
    for found, expected in zip(back.stored[:2], table.stored[:2], strict=True):
        held, wanted = back.stored.row[back.stored.row >= 0], table.stored.row[table.stored.row >= 0]
        np.testing.assert_array_equal(found[held], expected[wanted])


def test_requests_with_and_without_prompts_are_joined_and_divided() -> None:
    full = World(3).sample(12, 2).table
    stored, written = without_prompts(full.select_requests(range(6))), full.select_requests(range(6, 12))
    joined = OutcomeTable.concat([stored, written])
    np.testing.assert_array_equal(
        represent_table(joined, default_encoder()).joined, represent_table(full, default_encoder()).joined
    )
    part = joined.select_requests([8, 1])
    np.testing.assert_array_equal(
        represent_table(part, default_encoder()).joined, represent_table(full, default_encoder()).joined[[8, 1]]
    )
    assert joined.select_requests([8, 9]).stored is None


def problems(columns: dict[str, Any]) -> str:
    base: dict[str, Any] = {"request_id": ["a", "b"], "model": ["m", "m"], "score": [1.0, 0.0]}
    with pytest.raises(TableError) as caught:
        from_columns(base | columns)
    return str(caught.value)


def test_a_representation_that_cannot_be_used_is_named_by_row() -> None:
    good: dict[str, Any] = {"features": [[1.0, 2.0], [3.0, 4.0]], "embedding": [[1.0], "[2.0]"], "encoder": ["e", "e"]}
    base: dict[str, Any] = {"request_id": ["a", "b"], "model": ["m", "m"], "score": [1.0, 0.0]}
    assert from_columns(base | good).stored is not None
    assert "prompt (or messages) is missing" in problems({})
    assert "row 2, prompt: is missing" in problems(good | {"embedding": [[1.0], None]})
    assert "row 2, features: has 1 numbers; expected 2" in problems(good | {"features": [[1.0, 2.0], [3.0]]})
    assert "row 2, features: holds a number that is not finite" in problems(good | {"features": [[1, 2], [3, np.inf]]})
    assert "row 1, embedding: is not a list of numbers" in problems(good | {"embedding": ["{}", [1.0]]})
    assert "row 2, encoder: is other; expected one encoder, e" in problems(good | {"encoder": ["e", "other"]})
    same = {"request_id": ["a", "a"], "model": ["m", "n"]}
    assert "row 2, features: is not that of the same request_id" in problems(good | same)


def test_columns_of_those_names_are_left_out_unless_all_are_there() -> None:
    table = from_columns({
        "request_id": ["a"], "model": ["m"], "score": [1.0], "prompt": ["hi"], "features": ["fast, cheap"],
        "encoder": [7],
    })  # fmt: skip
    assert table.stored is None and table.prompts == ["hi"]


def test_a_prompt_is_preferred_to_what_was_stored_of_it() -> None:
    table = from_columns({
        "request_id": ["a"], "model": ["m"], "score": [1.0], "prompt": ["hi"], "features": [[1.0]],
        "embedding": [[1.0]], "encoder": ["unknown"],
    })  # fmt: skip
    assert table.stored is None and table.prompts == ["hi"]


# Training and judging


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One table as exported from a log with text, and from one without."""
    folder = tmp_path_factory.mktemp("logs")
    write_table(World(7).sample(120).table, folder / "made.parquet")
    for mode in ("text", "none"):
        url = f"sqlite:///{folder / mode}.db"
        table = ["--table", str(folder / "made.parquet"), "--log-prompts", mode]
        assert main(["import", "--log", url, *table]) == 0
        assert main(["export", "--log", url, "--out", str(folder / f"{mode}.parquet")]) == 0
    return folder / "text.parquet", folder / "none.parquet"


def test_a_log_without_text_trains_the_router_that_its_text_would(logs: tuple[Path, Path], tmp_path: Path) -> None:
    assert not any(read_table(logs[1]).prompts)
    routers = []
    for path in logs:
        out = tmp_path / path.stem
        assert (
            train(["--outcomes", str(path), "--out", str(out), "--no-tracking", "--report", str(out) + "-report"]) == 0
        )
        routers.append(Router.load(out))
    requests = ["Sum up this note: the meeting is at noon.", "Prove that there are infinitely many primes."]
    np.testing.assert_array_equal(*(router.predict_proba(requests) for router in routers))
    # what is stored is float32, and what a router reads of a text is float64
    first, second = (
        {k: v["value"] for k, v in router.manifest["metrics"].items() if k != "held_out"} for router in routers
    )
    assert first == pytest.approx(second, abs=1e-6) and 0.5 < first["auc"] < 1


def test_a_log_without_text_judges_a_router_as_its_text_would(
    logs: tuple[Path, Path], tmp_path: Path, router_path: Path
) -> None:
    reports = []
    for path in logs:
        out = tmp_path / f"{path.stem}.json"
        assert evaluate(["--router", str(router_path), "--outcomes", str(path), "--json", str(out)]) == 0
        reports.append(json.loads(out.read_text()))
    assert reports[0]["router"] == reports[1]["router"] and reports[0]["router"]["area"] > 0
    assert reports[0]["calibration"]["brier"] == pytest.approx(reports[1]["calibration"]["brier"], abs=1e-6)
    length = [report["baselines"]["prompt_length"]["area"] for report in reports]
    assert length[0] == pytest.approx(length[1], abs=1e-3)


def test_a_pool_with_token_prices_is_judged_without_text(logs: tuple[Path, Path], tmp_path: Path) -> None:
    router = Router.load()
    table = read_table(logs[1])
    known = dataclasses.replace(table, models=tuple(sorted(router.models[: len(table.models)])))
    found = evaluate_router(router, known, n_boot=20)
    assert found.judged.c.shape[0] == known.n_requests and (found.judged.c > 0).all()


def test_another_encoder_is_refused(logs: tuple[Path, Path], tmp_path: Path) -> None:
    table = read_table(logs[1])
    assert table.stored is not None
    foreign = dataclasses.replace(table, stored=table.stored._replace(encoder="f" * 64))
    with pytest.raises(EncoderMismatchError, match="ffffffffffff"):
        train_router(foreign, tmp_path / "router")
    narrow = dataclasses.replace(table, stored=table.stored._replace(features=table.stored.features[:, 1:]))
    with pytest.raises(TableError, match="features has"):
        train_router(narrow, tmp_path / "router")
    assert not (tmp_path / "router").exists()


def test_a_router_s_own_traffic_can_retrain_it_without_text(url: str, tmp_path: Path, router_path: Path) -> None:
    router = Router.load(router_path)
    sample = World(7).sample(60, seed=5)
    score = sample.table.dense("score")
    with OutcomeLog(url, log_prompts="none") as log:
        for prompt, task, scores in zip(sample.table.prompts, sample.table.task, score, strict=True):
            reading = router.read(RouteRequest(prompt, task=task))
            made = router.decide(reading)
            log.record(Entry(
                made, reading.request, reading.features, reading.embedding, (attempt(made.model),),
                encoder=router.encoder.fingerprint,
            ))  # fmt: skip
            log.feedback(made.decision_id, score=float(scores[router.models.index(made.model)]))
        log.flush(30)
        table, found = table_of_log(log)
    assert found.n_rows == 60 and found.left_out == {} and table.stored is not None
    trained = train_router(table, tmp_path / "router", pool=router.pool)
    assert trained.models == router.models and 0 < trained.predict("What is 2+2?").confidence < 1


# The command


def test_the_command_says_what_it_did(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with OutcomeLog(url) as log:
        for i in range(4):
            log.record(
                entry(f"d{i}", attempt(accepted=True), created_at=1_767_225_600.0 + i, request=RouteRequest("x"))
            )
        log.record(entry("d9", attempt(), created_at=1_767_225_600.0))
        log.feedback("gone", score=1.0)
    out = tmp_path / "t.jsonl"
    limits = ["--since", "2026-01-01T00:00:00Z", "--until", "1767225603"]
    assert main(["export", "--log", url, "--out", str(out), *limits]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said == [
        f"{out}: 3 rows of 3 requests, from 4 decisions", f"left out 1: {outcome_log.NO_LABEL}",
        "1 feedback on decisions that this log does not hold",
    ]  # fmt: skip
    assert main(["export", "--log", url, "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "out": str(out), "n_decisions": 5, "n_rows": 4, "left_out": {outcome_log.NO_LABEL: 1}, "unmatched_feedback": 1,
    }  # fmt: skip
    again = f"sqlite:///{tmp_path / 'again.db'}"
    assert main(["import", "--log", again, "--table", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n_new"] == 4
    assert main(["import", "--log", again, "--table", str(out)]) == 0
    assert "0 requests added, 4 were there already" in capsys.readouterr().out


def test_bad_input_is_refused_in_one_line(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "t.parquet")
    assert main(["export", "--log", url, "--out", out]) == 1
    assert "is not there" in capsys.readouterr().err and not (tmp_path / "log.db").exists()
    with pytest.raises(OutcomeLogError):
        OutcomeLog(url, create=False)
    OutcomeLog(url).close()
    assert main(["export", "--log", url, "--out", out]) == 1
    assert "0 decisions give no row" in capsys.readouterr().err
    assert main(["export", "--log", url, "--out", out, "--since", "yesterday"]) == 2
    assert main(["export", "--log", url]) == 2
    assert main(["import", "--log", url, "--table", str(tmp_path / "none.csv")]) == 1
