"""The outcome log: what is acknowledged is there, whole and once; nothing is changed, dropped or given away."""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from outcome_entries import CHEAP, DEAR, attempt, decision, entry, failed
from postgres_server import PASSWORD, PostgresServer, binaries, postgres_server

from router_ml import outcome_rows, outcome_schema, outcome_writer, outcomes
from router_ml.attempt import AttemptKind
from router_ml.errors import MissingExtraError, OutcomeLogError, RequestError
from router_ml.outcome_schema import COLUMNS, MIGRATIONS, VERSIONS, open_database
from router_ml.outcomes import Entry, LoggedDecision, OutcomeLog
from router_ml.reliability import verifier_name
from router_ml.request import Candidate, RouteRequest, VerifierSpec
from router_ml.verifiers import MinimumLength

HERE = Path(__file__).parent
OLDEST = HERE / "data" / "outcome_log_1.sql"
DATABASES = ("sqlite", "postgresql")


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    if binaries() is None:
        pytest.skip("PostgreSQL is not installed")
    with postgres_server() as running:
        yield running


@pytest.fixture(params=DATABASES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of a blank database, once of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'log.db'}"
    name = re.sub(r"\W", "_", request.node.name)[:40] + os.urandom(4).hex()
    return request.getfixturevalue("server").new_database(name)  # type: ignore[no-any-return]


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'log.db'}"


def only(log: OutcomeLog) -> LoggedDecision:
    log.flush(30)
    (found,) = log.decisions()
    return found


def rows_of(url: str, query: str) -> list[Any]:
    engine = open_database(url)
    try:
        with engine.connect() as connection:
            return list(connection.execute(sa.text(query)).all())
    finally:
        engine.dispose()


# What goes in comes out


def test_a_decision_is_read_back_with_attempts_and_feedback(url: str) -> None:
    request = RouteRequest(
        "What is 2+2?", task="math", segment="free", session_id="s1", tags=["team-a", "eu", "team-a"], deny=["x"],
        max_latency_s=3.0, min_quality="escalation", budget_usd=0.0, supervised=False, verifier=VerifierSpec(),
    )  # fmt: skip
    attempts = (
        attempt("cheap/zip", kind=AttemptKind.COMPRESSION), failed(CHEAP), attempt(DEAR, 0, accepted=False),
        attempt(DEAR, 1, accepted=True, cache_hit=True),
    )  # fmt: skip
    with OutcomeLog(url) as log:
        log.record(entry("d1", *attempts, request=request, labels={"arm": "b"}, created_at=5.0)).wait(30)
        log.feedback("d1", score=0.25, text="meh", source="user").wait(30)
        log.feedback("d1", verdict="failed", model=DEAR).wait(30)
        found = only(log)
    assert (found.decision_id, found.created_at, found.model, found.plan) == ("d1", 5.0, CHEAP, (CHEAP, DEAR))
    assert found.tags == ("team-a", "eu") and found.labels == {"arm": "b"} and found.session_id == "s1"
    assert found.limits == {
        "budget_usd": 0.0, "deny": ["x"], "max_latency_s": 3.0, "min_quality": "escalation", "supervised": False,
        "verifier": "VerifierSpec",
    }  # fmt: skip
    assert found.candidates == decision().candidates and isinstance(found.candidates[0], Candidate)
    assert found.candidates[1].excluded_by == "too slow"
    assert (found.propensity, found.confidence, found.plan_confidence) == (0.9, 0.8, 0.95)
    assert (found.escalated, found.degraded, found.reason_code) == (False, False, "cheapest_likely")
    assert (found.expected_baseline_usd, found.baseline_cost_usd, found.novelty) == (0.02, 0.03, 0.3)
    np.testing.assert_array_equal(found.features, np.arange(4, dtype=np.float32))  # type: ignore[arg-type]
    np.testing.assert_array_equal(found.embedding, np.arange(3, dtype=np.float32))  # type: ignore[arg-type]
    assert found.feature_set == outcome_rows.feature_set() and found.encoder == "e" * 64
    zipped, refused, rejected, cached = found.attempts
    assert zipped.kind == "compression" and refused.error_kind == "RateLimitedError"
    assert (refused.error_message, refused.accepted) == ("slow down", None)
    assert (rejected.accepted, rejected.verdict_detail, rejected.verdict_cost_usd) == (False, "no JSON", 0.0005)
    assert (cached.accepted, cached.cache_hit, cached.stage, cached.position) == (True, True, 1, 3)
    assert {one.verifier for one in found.attempts} == {None}  # a reliability alone has no name
    assert (cached.input_tokens, cached.output_tokens, cached.cached_tokens) == (12, 34, 5)
    assert [one.score for one in found.feedback] == [0.25, None]
    assert [(one.verdict, one.model, one.text) for one in found.feedback] == [
        (None, None, "meh"),
        ("failed", DEAR, None),
    ]


def test_propensity_belongs_to_the_first_stage_s_model_alone(sqlite_url: str) -> None:
    with OutcomeLog(sqlite_url) as log:
        log.record(entry("d1", failed(CHEAP), attempt(DEAR, 0), attempt(CHEAP, 1), attempt(CHEAP, 0)))
        assert [one.propensity for one in only(log).attempts] == [0.9, None, None, 0.9]


def test_prompts_are_kept_as_asked_and_never_otherwise(url: str) -> None:
    chat = [{"role": "user", "content": "my secret plan"}, {"role": "assistant", "content": "go"}]
    hashes = []
    for mode in ("none", "hash", "text"):
        with OutcomeLog(url, log_prompts=mode) as log:
            for name, messages in (("text", "my secret plan"), ("chat", chat), ("one", chat[:1])):
                log.record(entry(f"{mode}-{name}", request=RouteRequest(messages)))
    with OutcomeLog(url) as log:
        found = {one.decision_id: one for one in log.decisions()}
    for mode in ("none", "hash"):
        assert all(found[f"{mode}-{name}"].prompt is None for name in ("text", "chat", "one"))
    assert found["text-text"].prompt == "my secret plan" and found["text-chat"].prompt == chat
    hashes = [found[f"hash-{name}"].prompt_hash for name in ("text", "chat", "one")]
    assert hashes[0] == hashes[2] != hashes[1] and all(str(one).startswith("sha256-1:") for one in hashes)
    assert found["none-text"].prompt_hash is None and found["text-text"].prompt_hash == hashes[0]


def test_no_text_of_a_request_reaches_the_file_unless_asked(tmp_path: Path) -> None:
    with OutcomeLog(f"sqlite:///{tmp_path / 'log.db'}") as log:
        log.record(entry(request=RouteRequest("my secret plan", metadata={"note": "my secret plan"})))
    assert b"secret plan" not in b"".join(path.read_bytes() for path in tmp_path.iterdir())


def test_what_the_caller_changes_after_record_does_not_change_the_log(sqlite_url: str) -> None:
    with OutcomeLog(sqlite_url, log_prompts="text") as log:
        hold = threading.Event()
        log.add(lambda: hold.wait(30) and outcome_rows.Rows())  # type: ignore[arg-type,return-value]
        features, embedding = np.zeros(4), np.zeros(3, np.float32)
        chat = [{"role": "user", "content": "first"}]
        log.record(entry(request=RouteRequest(chat), features=features, embedding=embedding))
        chat[0]["content"] = "other"
        chat.append({"role": "user", "content": "second"})
        features += 1
        embedding += 1
        hold.set()
        found = only(log)
    assert found.prompt == [{"role": "user", "content": "first"}]
    assert found.features is not None and not found.features.any()
    assert found.embedding is not None and not found.embedding.any()


pieces = ["a", "\x00", "\ud800", "\udfff", "é", "'", "\\", "\\u0000", "\n", "🤖"]
nasty = st.lists(st.sampled_from(pieces), max_size=6).map("".join)
numbers = st.floats() | st.sampled_from([float("nan"), float("inf"), -0.0, 1e308])


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=nasty, number=numbers)
def test_no_text_and_no_number_breaks_the_log(url: str, text: str, number: float) -> None:
    decision_id = os.urandom(8).hex()
    chat = [{"role": "user", "content": "x" + text, "name": {text: [number, b"bytes", {1: text}]}}]
    odd = decision(decision_id, confidence=number, candidates=(Candidate(text, number, number, None, text),))
    request = RouteRequest(chat, task=text, session_id=text, tags=[text], segment=text)
    call = attempt("m" + text, cost_usd=number, accepted=True)
    with OutcomeLog(url, log_prompts="text") as log:
        log.record(Entry(odd, request, None, None, (call,), text, text, 1, number, text, {text: text})).wait(30)
        log.feedback(decision_id, text=text, source=text).wait(30)
        (found,) = [one for one in log.decisions() if one.decision_id == decision_id]
    shown = re.sub("[\x00\ud800-\udfff]", "\ufffd", text)
    assert found.task == found.segment == found.feedback[0].text == shown and found.tags == (shown,)
    assert found.confidence == found.attempts[0].cost_usd == (number if np.isfinite(number) else None)
    assert isinstance(found.prompt, list) and found.prompt[0]["content"] == "x" + shown


# Append-only, and its tables


@pytest.mark.parametrize("prompts", ["hash", "text"])
@pytest.mark.parametrize("odd", [10**5_000, "\0"], ids=["a huge number", "too deep"])
def test_messages_that_cannot_be_written_take_no_decision_with_them(sqlite_url: str, prompts: Any, odd: Any) -> None:
    for _ in range(700 if odd == "\0" else 0):
        odd = [odd]
    request = RouteRequest([{"role": "user", "content": "Hi", "extra": odd}])
    with OutcomeLog(sqlite_url, log_prompts=prompts) as log:
        log.record(entry("d1", attempt(), request=request)).wait(30)
        found = only(log)
    assert found.prompt is None and found.prompt_hash is None and len(found.attempts) == 1


def test_nothing_is_ever_changed_or_removed() -> None:
    for module in (outcome_rows, outcome_schema, outcome_writer, outcomes):
        source = Path(str(module.__file__)).read_text(encoding="utf-8")
        assert not re.search(
            r"\b(UPDATE|DELETE|DROP|TRUNCATE|REPLACE INTO)\b|sa\.(update|delete)|\.(update|delete)\(", source
        )


def test_a_user_who_may_only_read_and_add_can_log(server: PostgresServer) -> None:
    url = server.new_database("rights")
    OutcomeLog(url).close()
    engine = open_database(url)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE ROLE adder LOGIN PASSWORD 'adder'")
        connection.exec_driver_sql("GRANT SELECT, INSERT ON ALL TABLES IN SCHEMA public TO adder")
    engine.dispose()
    with OutcomeLog(url.replace(f"router:{PASSWORD}", "adder:adder")) as log:
        log.record(entry("d1", attempt())).wait(30)
        log.record(entry("d1", attempt())).wait(30)
        log.feedback("d1", score=1.0).wait(30)
        assert len(only(log).feedback) == 1


def test_a_verdict_is_kept_with_the_name_of_the_verifier_that_gave_it(url: str) -> None:
    request = RouteRequest("What is 2+2?", verifier=MinimumLength(3))
    attempts = failed(CHEAP), attempt(CHEAP, accepted=False), attempt(DEAR, 1, accepted=True)
    with OutcomeLog(url) as log:
        log.record(entry("d1", *attempts, request=request)).wait(30)
        found = only(log)
    name = verifier_name(MinimumLength(3))
    assert name.startswith("min_length-") and [one.verifier for one in found.attempts] == [None, name, name]


def test_a_decision_that_is_recorded_twice_is_kept_as_it_was_first(url: str) -> None:
    with OutcomeLog(url) as log:
        log.record(entry("d1", attempt(), policy="first")).wait(30)
        log.record(entry("d1", attempt(DEAR), policy="second")).wait(30)
        found = only(log)
    assert found.policy == "first" and [one.model for one in found.attempts] == [CHEAP]


def test_the_steps_lead_to_the_tables_that_are_written(url: str) -> None:
    engine = open_database(url)
    try:
        inspector = sa.inspect(engine)
        found = {name: {c["name"] for c in inspector.get_columns(name)} for name in COLUMNS}
    finally:
        engine.dispose()
    assert found == {name: set(columns) for name, columns in COLUMNS.items()}
    assert rows_of(url, f"SELECT version FROM {VERSIONS} ORDER BY version") == [
        (n + 1,) for n in range(len(MIGRATIONS))
    ]


def test_a_log_of_the_first_version_is_brought_up_to_date_and_keeps_its_rows(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "log.db") as old:
        old.executescript(OLDEST.read_text(encoding="utf-8"))
    old.close()
    url = f"sqlite:///{tmp_path / 'log.db'}"
    with OutcomeLog(url) as log:
        (found,) = log.decisions()
        assert (found.decision_id, found.prompt_hash is None, found.labels) == ("d1", False, {})
        assert [one.model for one in found.attempts] == [CHEAP, DEAR] and found.feedback[0].score == 0.5
        assert [(one.accepted, one.verifier) for one in found.attempts] == [(None, None), (True, None)]
        log.record(entry("d2", labels={"arm": "b"})).wait(30)
        assert [one.labels for one in log.decisions()] == [{}, {"arm": "b"}]
    assert rows_of(url, f"SELECT MAX(version) FROM {VERSIONS}") == [(len(MIGRATIONS),)]


def test_every_older_version_upgrades(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for version in range(1, len(MIGRATIONS) + 1):
        monkeypatch.setattr(outcome_schema, "MIGRATIONS", MIGRATIONS[:version])
        open_database(url).dispose()
        assert rows_of(url, f"SELECT COUNT(*) FROM {VERSIONS}") == [(version,)]
    with OutcomeLog(url) as log:
        log.record(entry("d1", attempt())).wait(30)


def test_a_log_of_a_newer_version_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcome_schema, "MIGRATIONS", (*MIGRATIONS, lambda connection: None))
    open_database(url).dispose()
    monkeypatch.undo()
    with pytest.raises(OutcomeLogError, match=r"newer version .*upgrade router-ml"):
        OutcomeLog(url)


def test_a_step_that_fails_leaves_the_log_as_it_was(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(connection: sa.Connection) -> None:
        connection.exec_driver_sql("CREATE TABLE half_done (x INTEGER)")
        raise RuntimeError("no")

    monkeypatch.setattr(outcome_schema, "MIGRATIONS", (*MIGRATIONS, broken))
    with pytest.raises(OutcomeLogError):
        OutcomeLog(url)
    monkeypatch.undo()
    with OutcomeLog(url) as log:
        log.record(entry()).wait(30)
    with pytest.raises(sa.exc.DBAPIError):
        rows_of(url, "SELECT * FROM half_done")


# Several processes, and death


def start(url: str, name: str, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, str(HERE / "outcome_entries.py"), url, name, str(count)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(HERE.parent)}
    )


def check_whole(log: OutcomeLog, expected: set[str]) -> int:
    """Every expected decision is there once, and every decision with both its attempts. :return: how many there are."""
    seen = [one.decision_id for one in log.decisions()]
    assert len(seen) == len(set(seen)) and expected <= set(seen)
    assert all(len(one.attempts) == 2 for one in log.decisions())
    return len(seen)


def test_a_killed_process_loses_no_acknowledged_row(url: str) -> None:
    with start(url, "k", 10_000) as process:
        assert process.stdout is not None
        acknowledged = [process.stdout.readline().strip() for _ in range(3_000)]
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read().split("\n")
        acknowledged += rest[:-1]  # the last line may be cut
    assert process.returncode == -signal.SIGKILL and len(set(acknowledged)) == len(acknowledged) < 10_000
    with OutcomeLog(url) as log:
        assert 3_000 <= check_whole(log, set(acknowledged)) < 10_000
        log.record(entry("after", failed(), attempt())).wait(30)
        check_whole(log, {"after"})


def test_eight_processes_open_a_blank_log_and_write_at_once(url: str) -> None:
    processes = [start(url, f"p{i}", 250) for i in range(8)]
    printed = [process.communicate(timeout=120)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0] * 8
    assert [len(ids) for ids in printed] == [250] * 8
    with OutcomeLog(url) as log:
        assert check_whole(log, {one for ids in printed for one in ids}) == 2_000


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_writes_its_own_and_leaves_its_parent_s(url: str) -> None:
    with OutcomeLog(url) as log:
        log.record(entry("before")).wait(30)
        log.add(lambda: time.sleep(0.3) or outcome_rows.Rows())  # type: ignore[func-returns-value]
        for i in range(20):
            log.record(entry(f"parent-{i}"))
        child = os.fork()
        if child == 0:  # pragma: no cover
            status = 1
            try:
                assert log.pending == 0
                log.record(entry("child")).wait(30)
                log.close(30)
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        log.record(entry("after")).wait(30)
        log.flush(30)
        seen = [one.decision_id for one in log.decisions()]
    assert len(seen) == len(set(seen)) == 23 and {"before", "child", "after", "parent-19"} <= set(seen)


def in_child(work: Callable[[], None]) -> int:
    """Fork, and do it there. :return: the child's process id; its status is 0 if nothing was raised."""
    child = os.fork()
    if child == 0:  # pragma: no cover
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return child


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_what_a_forked_process_writes_outlives_its_parent_s_log(url: str) -> None:
    log = OutcomeLog(url)
    log.record(entry("parent")).wait(30)
    ours, theirs = socket.socketpair()

    def work() -> None:
        log.record(entry("child-0")).wait(30)
        theirs.send(b"written")
        theirs.recv(10)
        log.record(entry("child-1")).wait(30)

    with ours, theirs:
        child = in_child(work)
        assert ours.recv(10) == b"written"
        log.close()  # SQLite: removes its write-ahead file if no other process seems to use it
        ours.send(b"closed")
        assert os.waitpid(child, 0)[1] == 0
    with OutcomeLog(url) as again:
        assert {one.decision_id for one in again.decisions()} == {"parent", "child-0", "child-1"}


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_process_that_is_forked_while_its_parent_writes_and_reads_can_write(sqlite_url: str) -> None:
    over = threading.Event()

    def traffic(log: OutcomeLog) -> None:
        for i in itertools.takewhile(lambda _: not over.is_set(), itertools.count()):
            log.record(entry(f"parent-{i}"))
            if i % 200 == 0:
                log.unmatched_feedback()

    with OutcomeLog(sqlite_url, queue_size=1_000) as log:
        busy = threading.Thread(target=traffic, args=(log,))
        busy.start()
        try:
            for i in range(15):
                child = in_child(lambda i=i: log.record(entry(f"child-{i}")).wait(5))  # type: ignore[misc]
                assert os.waitpid(child, 0)[1] == 0
        finally:
            over.set()
            busy.join()
        log.flush(30)
        assert {f"child-{i}" for i in range(15)} <= {one.decision_id for one in log.decisions()}


def test_a_process_that_forgets_to_close_writes_all_the_same(sqlite_url: str) -> None:
    code = (
        "import sys; sys.path.insert(0, 'tests'); from outcome_entries import entry; from router_ml import OutcomeLog\n"
        f"log = OutcomeLog({sqlite_url!r})\nfor i in range(500): log.record(entry(f'd{{i}}'))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=HERE.parent, timeout=60)
    assert rows_of(sqlite_url, "SELECT COUNT(*) FROM router_decisions") == [(500,)]


# The queue


def blocked(log: OutcomeLog) -> threading.Event:
    """Keep the writer busy until the event is set."""
    hold, started = threading.Event(), threading.Event()

    def make() -> outcome_rows.Rows:
        started.set()
        assert hold.wait(30)
        return outcome_rows.Rows()

    log.add(make)
    assert started.wait(30)
    return hold


def test_a_full_queue_makes_the_caller_wait_and_drops_nothing(sqlite_url: str) -> None:
    with OutcomeLog(sqlite_url, queue_size=5) as log:
        hold = blocked(log)
        for i in range(5):
            log.record(entry(f"d{i}"))
        late = threading.Thread(target=lambda: log.record(entry("late")))
        late.start()
        late.join(0.2)
        assert late.is_alive() and log.pending == 6
        with pytest.raises(OutcomeLogError, match="6 entries"):
            log.flush(0.01)
        hold.set()
        late.join(30)
        log.flush(30)
        assert [one.decision_id for one in log.decisions()] == [*(f"d{i}" for i in range(5)), "late"]


def test_one_bad_row_takes_no_other_with_it(url: str, caplog: pytest.LogCaptureFixture) -> None:
    with OutcomeLog(url) as log:
        hold = blocked(log)
        good = [log.record(entry(f"d{i}", attempt())) for i in range(3)]
        bad = log.record(entry("bad", dataclasses.replace(attempt(), stage="x" * 20)))  # type: ignore[arg-type]
        unmakeable = log.record(entry("worse", labels=5))
        refused = log.add(lambda: outcome_rows.Rows([{"decision_id": None}]))
        good.append(log.record(entry("d3")))
        hold.set()
        for receipt in good:
            receipt.wait(30)
        for receipt in (unmakeable, refused):
            with pytest.raises(OutcomeLogError, match="not written"):
                receipt.wait(30)
        if url.startswith("postgresql"):  # SQLite stores a text in a column of numbers
            with pytest.raises(OutcomeLogError, match="refuses it"):
                bad.wait(30)
        log.flush(30)
        assert log.refused == (3 if url.startswith("postgresql") else 2)
        assert {"d0", "d1", "d2", "d3"} <= {one.decision_id for one in log.decisions()}
    assert "What is 2+2?" not in caplog.text


def test_a_receipt_says_when_it_is_not_written_yet(sqlite_url: str) -> None:
    with OutcomeLog(sqlite_url) as log:
        hold = blocked(log)
        receipt = log.record(entry())
        with pytest.raises(OutcomeLogError, match=r"not written after 0\.01 s"):
            receipt.wait(0.01)
        assert not receipt.done
        hold.set()
        receipt.wait(30)
        assert receipt.done


def test_a_closed_log_takes_nothing_more(sqlite_url: str) -> None:
    log = OutcomeLog(sqlite_url)
    log.record(entry())
    log.close()
    log.close()
    with pytest.raises(OutcomeLogError, match="closed"):
        log.record(entry("d2"))
    with OutcomeLog(sqlite_url) as again:
        assert len(list(again.decisions())) == 1


@pytest.mark.slow
def test_memory_stays_flat(sqlite_url: str) -> None:
    import tracemalloc

    with OutcomeLog(sqlite_url, queue_size=200) as log:
        sizes = []
        tracemalloc.start()
        try:
            for i in range(20_000):
                log.record(entry(f"d{i}", attempt()))
                if i % 5_000 == 4_999:
                    log.flush(60)
                    sizes.append(tracemalloc.get_traced_memory()[0])
            tracemalloc.reset_peak()
            assert sum(1 for _ in log.decisions()) == 20_000
            peak = tracemalloc.get_traced_memory()[1] - sizes[-1]
        finally:
            tracemalloc.stop()
    assert max(sizes[1:]) - min(sizes[1:]) < 300_000 and peak < 20_000_000


# A database that is away


def test_entries_wait_for_a_database_that_is_away_and_nothing_is_lost(
    server: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    with OutcomeLog(server.new_database("outage")) as log:
        log.record(entry("d0", attempt())).wait(30)
        server.stop("immediate")
        try:
            receipts = [log.record(entry(f"d{i}", attempt())) for i in range(1, 200)]
            with pytest.raises(OutcomeLogError):
                log.flush(0.5)
            with pytest.raises(OutcomeLogError, match="cannot be read"):
                list(log.decisions())
            assert log.pending == 199 and not receipts[0].done
        finally:
            server.start()
        for receipt in receipts:
            receipt.wait(30)
        assert len(list(log.decisions())) == 200
    warnings = [record for record in caplog.records if "cannot be written" in record.message]
    assert len(warnings) == 1 and PASSWORD not in caplog.text


def test_close_says_how_much_is_not_written(server: PostgresServer, caplog: pytest.LogCaptureFixture) -> None:
    log = OutcomeLog(server.new_database("lost"))
    log.record(entry("d0")).wait(30)
    server.stop("fast")
    try:
        receipts = [log.record(entry(f"d{i}")) for i in range(1, 8)]
        with pytest.raises(OutcomeLogError, match="7 entries of the outcome log are not written") as caught:
            log.close(0.3)
        with pytest.raises(OutcomeLogError, match="closed before"):
            receipts[-1].wait(30)
    finally:
        server.start()
    assert PASSWORD not in str(caught.value) + caplog.text


def test_a_full_disk_loses_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with OutcomeLog(f"sqlite:///{tmp_path / 'log.db'}") as log:
        log.record(entry("d0")).wait(30)
        limit = {"pages": 1}  # SQLite never goes below what is used

        @sa.event.listens_for(log._engine, "begin")
        def fill(connection: sa.Connection) -> None:
            connection.exec_driver_sql(f"PRAGMA max_page_count = {limit['pages']}").close()

        big = [log.record(entry(f"d{i}", embedding=np.ones(50_000, np.float32))) for i in range(1, 4)]
        with pytest.raises(OutcomeLogError, match="3 entries"):
            log.flush(0.5)
        limit["pages"] = 1_000_000
        for receipt in big:
            receipt.wait(30)
        assert len(list(log.decisions())) == 4
    assert "full" in caplog.text and sum("cannot be written" in one.message for one in caplog.records) == 1


def test_a_sqlite_file_that_another_process_locks_is_waited_for(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outcome_schema, "BUSY_S", 0.05)
    with OutcomeLog(sqlite_url) as log:
        other = sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None)
        try:
            other.execute("BEGIN IMMEDIATE")
            receipt = log.record(entry())
            with pytest.raises(OutcomeLogError):
                receipt.wait(0.4)
            other.execute("ROLLBACK")
            receipt.wait(30)
        finally:
            other.close()


def test_sqlite_writes_ahead(sqlite_url: str) -> None:
    with OutcomeLog(sqlite_url):
        with sqlite3.connect(sqlite_url.removeprefix("sqlite:///")) as other:
            assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        other.close()


# Bad input


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("postgresql://u:pg-secret-4711@127.0.0.1:1/x", "cannot be opened"),
        ("postgresql://u:pg-secret-4711@127.0.0.1:1/x?password=pg-secret-4711", "cannot be opened"),
        ("postgresql://u:pg-secret-4711@127.0.0.1:nonsense/x", "cannot be read"),
        ("mysql://u:pg-secret-4711@h/x", "begins with mysql"),
        ("sqlite://", "needs a file"),
        ("sqlite:///:memory:", "needs a file"),
        ("sqlite:////no/such/folder/log.db", "folder does not exist"),
        ("pg-secret-4711", "cannot be read"),
    ],
)
def test_a_log_that_cannot_be_opened_says_why_without_its_password(bad: str, reason: str) -> None:
    with pytest.raises(OutcomeLogError, match=reason) as caught:
        OutcomeLog(bad)
    assert "pg-secret-4711" not in str(caught.value) and caught.value.__cause__ is None


def test_a_wrong_password_is_not_repeated(server: PostgresServer) -> None:
    with pytest.raises(OutcomeLogError, match="authentication failed") as caught:
        OutcomeLog(server.url.replace(PASSWORD, "wr0ng-guess"))
    assert "wr0ng-guess" not in str(caught.value)


def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("these are notes\n" * 100)
    with pytest.raises(OutcomeLogError, match="not a database"):
        OutcomeLog(f"sqlite:///{path}")
    assert path.read_text() == "these are notes\n" * 100


def test_a_missing_library_is_named_with_the_line_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(MissingExtraError, match=r"router-ml\[postgres\]"):
        OutcomeLog("postgresql://u@127.0.0.1:1/x")
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)
    with pytest.raises(MissingExtraError, match=r"router-ml\[log\]"):
        OutcomeLog(f"sqlite:///{tmp_path / 'log.db'}")


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({}, "says nothing"),
        ({"score": 1.5}, "from 0 to 1"),
        ({"score": float("nan")}, "from 0 to 1"),
        ({"score": True}, "from 0 to 1"),
        ({"score": "1"}, "from 0 to 1"),
        ({"verdict": "great"}, "good_fit"),
        ({"verdict": ["failed"]}, "good_fit"),
        ({"text": 5}, "text must be"),
        ({"text": "x" * 30_000}, "at most"),
        ({"score": 1.0, "model": "m" * 300}, "model must be"),
        ({"score": 1.0, "model": " "}, "model is blank"),
        ({"score": 1.0, "decision_id": ""}, "decision_id"),
        ({"score": 1.0, "decision_id": "x" * 300}, "decision_id"),
        ({"score": 1.0, "decision_id": None}, "decision_id"),
    ],
)
def test_feedback_is_checked_when_it_is_given(sqlite_url: str, said: dict[str, Any], reason: str) -> None:
    with OutcomeLog(sqlite_url) as log, pytest.raises(RequestError, match=reason):
        log.feedback(**{"decision_id": "d1", **said})


@pytest.mark.parametrize("wrong", [{"log_prompts": "all"}, {"queue_size": 0}, {"queue_size": "many"}])
def test_settings_are_checked(sqlite_url: str, wrong: dict[str, Any]) -> None:
    with pytest.raises(OutcomeLogError, match=next(iter(wrong))):
        OutcomeLog(sqlite_url, **wrong)


# Reading


def test_feedback_may_come_before_its_decision_or_for_none(url: str) -> None:
    with OutcomeLog(url) as log:
        log.feedback("d1", score=1.0).wait(30)
        log.feedback("elsewhere", score=0.0).wait(30)
        assert log.unmatched_feedback() == 2
        log.record(entry("d1"))
        assert [one.score for one in only(log).feedback] == [1.0]
        assert log.unmatched_feedback() == 1


def test_decisions_stream_in_order_within_their_time(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcomes, "CHUNK", 3)
    with OutcomeLog(url) as log:
        for i in reversed(range(10)):
            log.record(entry(f"d{i}", attempt(), created_at=float(i // 4)))  # several at one moment, across chunks
        log.feedback("d5", score=0.5)
        log.flush(30)
        found = list(log.decisions())
        assert [one.decision_id for one in found] == [f"d{i}" for i in range(10)]
        assert [len(one.feedback) for one in found] == [int(i == 5) for i in range(10)]
        assert [one.decision_id for one in log.decisions(1.0, 2.0)] == ["d4", "d5", "d6", "d7"]
        assert list(log.decisions(3.0)) == []


def test_spending_is_told_in_total_and_per_tag(url: str) -> None:
    with OutcomeLog(url) as log:
        assert log.spent(0.0) == {None: 0.0}
        asked = [("d1", ["a", "b"]), ("d2", ["a", "b"]), ("d3", []), ("d4", ["b"])]
        for decision_id, tags in asked:
            calls = attempt(CHEAP, 0, cost_usd=1.0, started_at=100.0), attempt(DEAR, 1, cost_usd=2.0, started_at=200.0)
            log.record(entry(decision_id, *calls, request=RouteRequest("x", tags=tags)))
        log.record(entry("d5", attempt(accepted=True, cost_usd=0.0, started_at=200.0), request=RouteRequest("x")))
        log.flush(30)
        assert log.spent(50.0) == pytest.approx({None: 12.0005, "a": 6.0, "b": 9.0})
        assert log.spent(200.0) == pytest.approx({None: 8.0005, "a": 4.0, "b": 6.0})
        assert log.spent(201.0) == {None: 0.0}


def test_rows_are_made_by_the_writer_not_by_the_caller(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []
    make = outcomes.entry_rows

    def noted(*arguments: Any) -> outcome_rows.Rows:
        threads.append(threading.current_thread())
        return make(*arguments)

    monkeypatch.setattr(outcomes, "entry_rows", noted)
    with OutcomeLog(sqlite_url) as log:
        log.record(entry()).wait(30)
    assert len(threads) == 1 and threads[0] is not threading.current_thread()
