"""What a log says of its verifiers: which answer a label is of, what is written, and that the router plans with it."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from outcome_entries import CHEAP, DEAR, attempt, entry, failed

from router_ml.outcomes import Entry, OutcomeLog
from router_ml.pool import ModelPool
from router_ml.reliability import reliability_of, verifier_name
from router_ml.request import RouteRequest, VerifierSpec
from router_ml.router import Router
from router_ml.verifiers import Judge, MinimumLength
from training.outcome_log import main
from training.verifiers import Checked, Reliability, checked_answers, reliability

JUDGE, LENGTH = Judge("acme/large"), MinimumLength(10)
TRUE, FALSE = 0.9, 0.2


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'log.db'}"


def checked(decision_id: str, *attempts: Any, verifier: Any = JUDGE, task: str | None = "math") -> Entry:
    return entry(decision_id, *attempts, request=RouteRequest("What is 2+2?", task=task, verifier=verifier))


def answers(url: str, one: Entry, *feedback: dict[str, Any]) -> list[Checked | None]:
    with OutcomeLog(url) as log:
        log.record(one)
        for said in feedback:
            log.feedback(one.decision.decision_id, **said).wait(30)
        log.flush(30)
        (decision,) = log.decisions()
    return checked_answers(decision)


def labels(url: str, one: Entry, *feedback: dict[str, Any]) -> list[tuple[str, bool, bool | None]]:
    return [(a.model, a.accepted, a.right) for a in answers(url, one, *feedback) if a is not None]


# -- reading


def test_feedback_labels_the_answer_that_was_delivered_and_no_other(url: str) -> None:
    cascade = checked("d1", attempt(CHEAP, accepted=False), failed(DEAR, 1), attempt(DEAR, 1, accepted=True))
    assert labels(url, cascade, {"score": 0.75}) == [(CHEAP, False, None), (DEAR, True, True)]


def test_feedback_that_names_a_model_labels_its_answer(url: str) -> None:
    cascade = checked("d1", attempt(CHEAP, accepted=False), attempt(DEAR, 1, accepted=True))
    said = {"verdict": "good_fit", "model": CHEAP}, {"verdict": "failed"}
    assert labels(url, cascade, *said) == [(CHEAP, False, True), (DEAR, True, False)]


def test_of_a_model_that_answered_twice_the_last_answer_is_labelled(url: str) -> None:
    cascade = checked("d1", attempt(CHEAP, accepted=False), attempt(CHEAP, 1, accepted=True))
    assert labels(url, cascade, {"score": 0.4}, {"score": 0.5}) == [(CHEAP, False, None), (CHEAP, True, True)]


def test_an_answer_that_nobody_checked_is_no_verdict(url: str) -> None:
    assert answers(url, checked("d1", failed(), attempt(DEAR)), {"score": 1.0}) == []


def test_a_verdict_carries_verifier_task_price_and_time(url: str) -> None:
    (found,) = answers(url, checked("d1", attempt(accepted=True)))
    assert found == Checked(verifier_name(JUDGE), "math", CHEAP, "d1", True, None, 0.0005, 0.1)


def test_a_verdict_of_an_unknown_verifier_is_counted_and_left_out(url: str) -> None:
    with OutcomeLog(url) as log:
        log.record(checked("d1", attempt(accepted=True), verifier=VerifierSpec())).wait(30)
        found = reliability(log.decisions())
    assert (found.rows, found.n_unnamed) == ((), 1)
    assert found.notes() == ["1 verdicts left out: logged before the log named its verifiers"]


# -- estimating


def write_log(url: str, n: int = 600, *, labelled: tuple[float, float] = (0.3, 0.6)) -> None:
    """Two verifiers on two tasks and on none; labels by verdict, as (rejected, accepted)."""
    rng = random.Random(0)
    with OutcomeLog(url) as log:
        for i in range(n):
            right = rng.random() < 0.6
            accepted = rng.random() < (TRUE if right else FALSE)
            task = rng.choice(["math", "prose", None])
            log.record(
                checked(f"d{i}", attempt(accepted=accepted), verifier=LENGTH if i % 5 == 0 else JUDGE, task=task)
            )
            if rng.random() < labelled[accepted]:
                log.feedback(f"d{i}", score=float(right))


def learned(url: str) -> Reliability:
    with OutcomeLog(url) as log:
        return reliability(log.decisions())


def test_each_verifier_has_a_row_over_all_and_one_for_each_task(url: str) -> None:
    write_log(url)
    found = learned(url)
    judge, length = verifier_name(JUDGE), verifier_name(LENGTH)
    assert [(row.verifier, row.task) for row in found.rows] == [
        (name, task) for name in (judge, length) for task in (None, "math", "prose")
    ]
    whole = found.rows[0]
    assert whole.true_accept is not None and whole.true_accept.low <= TRUE <= whole.true_accept.high
    assert whole.false_accept is not None and whole.false_accept.low <= FALSE <= whole.false_accept.high
    assert whole.n_accepted + whole.n_rejected == 480 and whole.cost_usd == pytest.approx(0.0005)
    assert whole.n_accepted_labelled + whole.n_rejected_labelled == whole.true_accept.n + whole.false_accept.n
    assert whole.true_accept.n > found.rows[1].true_accept.n + found.rows[2].true_accept.n  # type: ignore[union-attr]


def test_what_is_written_is_the_cautious_end_of_what_has_enough_labels(url: str) -> None:
    write_log(url)
    found = learned(url)
    whole, rates = found.rows[0], found.measured(20)[verifier_name(JUDGE)]
    assert whole.true_accept is not None and whole.false_accept is not None
    assert rates.true_accept == pytest.approx(whole.true_accept.low, abs=1e-4)
    assert rates.false_accept == pytest.approx(whole.false_accept.high, abs=1e-4)
    assert (rates.n_right, rates.n_wrong) == (whole.true_accept.n, whole.false_accept.n)
    enough = found.measured(whole.false_accept.n + 1)[verifier_name(JUDGE)]
    assert enough.true_accept == rates.true_accept and enough.false_accept is None


def test_without_labels_only_price_and_time_are_measured(url: str) -> None:
    write_log(url, labelled=(0.0, 0.0))
    found = learned(url)
    assert all(row.true_accept is None and row.false_accept is None for row in found.rows)
    rates = found.measured()[verifier_name(JUDGE)]
    assert (rates.true_accept, rates.false_accept, rates.tasks) == (None, None, {})
    assert rates.over(JUDGE.spec) == dataclasses.replace(JUDGE.spec, cost_usd=0.0005, latency_s=0.1)


def test_rejected_answers_that_nobody_labels_are_pointed_out(url: str) -> None:
    write_log(url, labelled=(0.0, 0.6))
    notes = learned(url).notes()
    assert len(notes) == 2 and all("has a label" in note and "model=" in note for note in notes)


# -- the command


def test_the_file_that_is_written_is_what_the_router_plans_with(
    url: str, router_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_log(url)
    router = Router.load(router_path)
    router.pool.to_yaml(tmp_path / "pool.yaml")
    for name in ("measured.yaml", "measured.json"):
        assert main(["verifiers", "--log", url, "--out", str(tmp_path / name)]) == 0
        assert "2 verifiers" in capsys.readouterr().out
        pool = ModelPool.from_dict(router.pool.to_dict() | yaml.safe_load((tmp_path / name).read_text("utf-8")))
        assert pool.verifiers == learned(url).measured()
    with (tmp_path / "pool.yaml").open("a", encoding="utf-8") as file:
        file.write("verifiers: measured.yaml\n")
    informed = router.with_pool(ModelPool.from_yaml(tmp_path / "pool.yaml"))
    request = RouteRequest("What is 2+2?", task="math", verifier=JUDGE)
    spec = reliability_of(request, informed.pool)
    assert spec is not None
    assert 0.7 < spec.true_accept < TRUE and FALSE < spec.false_accept < 0.4 and spec.cost_usd == 0.0005
    said = router.predict(dataclasses.replace(request, verifier=spec))
    assert informed.predict(request).expected_cost_usd == said.expected_cost_usd
    assert informed.predict(request).expected_cost_usd != router.predict(request).expected_cost_usd


def test_the_command_prints_a_table_or_json(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_log(url, 120)
    assert main(["verifiers", "--log", url]) == 0
    assert verifier_name(JUDGE) in capsys.readouterr().out
    assert main(["verifiers", "--log", url, "--json", "--level", "0.8", "--since", "2000-01-01"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["level"] == 0.8 and found["rows"][0]["true_accept"].keys() == {"value", "low", "high", "n"}


def test_an_empty_log_is_no_error_and_a_missing_one_is(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    OutcomeLog(url).close()
    assert main(["verifiers", "--log", url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == []
    assert main(["verifiers", "--log", url, "--level", "nan"]) == 2
    assert "nan is not a finite number" in capsys.readouterr().err
    assert main(["verifiers", "--log", "sqlite:///none/there.db"]) == 1
