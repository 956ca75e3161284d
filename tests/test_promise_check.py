"""Promises checked against a log whose truth is known: kept, broken, or not enough data yet."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from outcome_entries import CHEAP, DEAR, attempt, decision, entry, failed

from router_ml import artifact
from router_ml.outcomes import Entry, OutcomeLog
from router_ml.request import Candidate, Reason, ReasonCode, RouteRequest
from training import promise_check
from training.promise_check import (
    NO_LABEL,
    NOT_ELIGIBLE,
    OTHER_REASONS,
    OTHER_ROUTER,
    Seen,
    check,
    checks,
    main,
    read_log,
)

VERSION = "0.1.0+abc"
TRUE = {CHEAP: 0.75, DEAR: 0.85}


def traffic(
    n: int, *, cheap: float = TRUE[CHEAP], exploration: float = 0.2, p: float = 0.85, seed: int = 0, size: int = 1
) -> list[Seen]:
    """Half of the requests are easy and go to the cheap model, which succeeds with ``cheap``; half escalate.

    The escalation model succeeds in .85 of all. :param p: what is predicted of it. :param size: requests of a session,
    which all have the same outcome.
    """
    rng, out = np.random.default_rng(seed), []
    for i in range(n // size):
        easy, explored, random, luck = rng.random() < 0.5, rng.random() < exploration, rng.integers(2), rng.random()
        greedy = CHEAP if easy else DEAR
        model = (CHEAP, DEAR)[random] if explored else greedy
        propensity = exploration / 2 + (1 - exploration) * (model == greedy)
        score = float(luck < (cheap if model == CHEAP else TRUE[DEAR]))
        own = score if model == DEAR else None
        out += [Seen(str(i), None, score, p, own, propensity, model != greedy)] * size
    return out


# The estimate


@pytest.mark.parametrize("p", [0.85, 0.3, 1.0])
def test_where_the_router_explores_a_wrong_prediction_does_no_harm(p: float) -> None:
    found = check(traffic(40_000, p=p), 0.95, 0.9)
    assert found.basis == "measured" and found.note == "fixed-sample interval"
    assert found.escalation_quality == pytest.approx(0.85, abs=0.01)
    assert found.quality == pytest.approx((TRUE[CHEAP] + TRUE[DEAR]) / 2, abs=0.01)
    assert found.low is not None and found.gain is not None and found.high is not None
    assert found.low < found.gain < found.high
    assert found.gain == pytest.approx(found.quality - 0.95 * found.escalation_quality)


def test_exploration_itself_is_not_held_against_the_threshold() -> None:
    """Half of the choices are random and bad; the threshold's own are as good as the escalation model."""
    seen = traffic(20_000, cheap=0.0, exploration=0.5)
    easy = [one for one in seen if one.explored or one.escalation_score is not None]
    found = check(easy, 0.95, 0.9)
    assert np.mean([one.score for one in easy]) < 0.75
    assert found.quality == pytest.approx(0.85, abs=0.02)


def test_without_exploration_the_basis_is_the_prediction_and_it_is_said() -> None:
    found = check(traffic(20_000, exploration=0.0, p=0.6), 0.95, 0.9)
    assert found.basis == "predicted" and "predicted P(success) wherever it was not called" in found.note
    assert found.escalation_quality == pytest.approx((0.6 + 0.85) / 2, abs=0.01)  # wrong on half, measured on half


def test_the_estimates_are_those_worked_out_by_hand() -> None:
    seen = [
        Seen("a", None, 1.0, 0.5, None, 0.8, False), Seen("b", None, 0.0, 0.5, None, 0.8, False),
        Seen("c", None, 1.0, 0.5, 1.0, 0.2, True), Seen("d", None, 1.0, 0.75, 1.0, 0.8, False),
    ]  # fmt: skip
    quality, reference, per_row = promise_check._estimates(seen, 0.9)
    assert quality == pytest.approx(2 / 3)
    escalation = [0.5, 0.5, 0.5 + 0.5 / 0.2, 0.75 + 0.25 / 0.8]
    assert reference == pytest.approx(np.mean(escalation))
    weight = np.array([1.25, 1.25, 0.0, 1.25]) / (3 * 1.25 / 4)
    expected = weight * (np.array([1, 0, 1, 1]) - 2 / 3) - 0.9 * (np.array(escalation) - reference)
    np.testing.assert_allclose(per_row, expected)
    assert per_row.sum() == pytest.approx(0.0)


def test_sessions_are_the_independent_units() -> None:
    single, sessions = check(traffic(8_000), 0.95, 0.9), check(traffic(8_000, size=10), 0.95, 0.9)
    assert single.high is not None and single.low is not None and sessions.high is not None
    assert sessions.low is not None and sessions.n_groups == 800
    assert sessions.high - sessions.low > 2.5 * (single.high - single.low)  # sqrt(10), less noise


# The verdict


def test_a_kept_a_broken_and_an_open_promise() -> None:
    assert check(traffic(8_000, cheap=0.86), 0.95, 0.9).state == "kept"
    assert check(traffic(8_000, cheap=0.6), 0.95, 0.9).state == "broken"
    edge = check(traffic(8_000, cheap=0.85 * 0.9), 0.95, 0.9)  # exactly at the target
    assert edge.state == "not enough data yet" and edge.gain is not None
    assert "against" in edge.line() and "n = 8,000" in edge.line()


@pytest.mark.parametrize("exploration", [0.3, 0.0])
def test_a_verdict_on_the_very_target_is_wrong_no_more_often_than_the_level_says(exploration: float) -> None:
    states = [
        check(traffic(400, cheap=0.85 * 0.9, exploration=exploration, seed=seed), 0.95, 0.9).state
        for seed in range(120)
    ]
    for state in ("kept", "broken"):
        assert states.count(state) / 120 <= 0.1 + 3 * math.sqrt(0.1 * 0.9 / 120)


def test_few_rows_give_no_verdict() -> None:
    assert "29 labelled groups; at least 30" in check(traffic(29, exploration=0.0), 0.95, 0.9).note
    assert "0 labelled groups" in check([one._replace(explored=True) for one in traffic(100)], 0.95, 0.9).note
    rare = [one for one in traffic(2_000) if not (one.explored and one.escalation_score is not None)]
    found = check(rare, 0.95, 0.9)
    assert found.state == "not enough data yet" and "took the escalation model 0 times" in found.note
    assert check([], 0.95, 0.9).line().startswith("not enough data yet: all traffic")


def test_each_task_is_held_to_its_own_promise() -> None:
    good, bad = traffic(4_000, cheap=0.86), traffic(4_000, cheap=0.5, seed=1)
    seen = [one._replace(task="good") for one in good] + [one._replace(task="bad") for one in bad]
    promise = {
        "target_quality": 0.95, "confidence": 0.9, "threshold": 1.0, "reason": "they escalate",
        "by_task": {
            name: {"threshold": 0.7, "level": 0.05, "reason": "chosen"} for name in ("good", "bad")
        } | {"none": {"threshold": 1.0, "reason": "no threshold"}},
    }  # fmt: skip
    found = {one.task: one for one in checks(promise, seen)}
    assert {task: one.state for task, one in found.items()} == {
        None: "nothing promised", "good": "kept", "bad": "broken", "none": "nothing promised",
    }  # fmt: skip
    assert found["good"].n == 4_000 and found["good"].confidence == pytest.approx(0.95)
    assert found["none"].note == "no threshold" and found[None].note == "they escalate"


# The log and the command


def made(i: int, model: str, **changes: Any) -> Entry:
    candidates = changes.pop(
        "candidates", (Candidate(CHEAP, 0.8, 0.001, 0.4, None), Candidate(DEAR, 0.9, 0.02, 1, None))
    )
    code = changes.pop("code", ReasonCode.CHEAPEST_LIKELY)
    chosen = decision(
        f"d{i}", model=model, candidates=candidates, reason=Reason(code, ""), propensity=changes.pop("propensity", 1.0),
        router_version=changes.pop("version", VERSION), degraded=changes.pop("degraded", False),
    )  # fmt: skip
    request = RouteRequest("What is 2+2?", **changes.pop("limits", {}))
    attempts = changes.pop("attempts", None) or [attempt(model)]
    return entry(f"d{i}", *attempts, decision=chosen, request=request)


def logged(path: Path, entries: Sequence[tuple[Entry, float | None]]) -> str:
    url = f"sqlite:///{path / 'log.db'}"
    with OutcomeLog(url) as log:
        for one, score in entries:
            log.record(one)
            if score is not None:
                log.feedback(one.decision.decision_id, score=score)
        log.flush(30)
    return url


def test_what_the_pool_did_not_decide_is_left_out_by_reason(tmp_path: Path) -> None:
    barred = (Candidate(CHEAP, 0.8, 0.001, 0.4, None), Candidate(DEAR, 0.9, 0.02, 1, "window too small"))
    entries = [
        (made(0, CHEAP), 1.0),
        (made(1, DEAR, propensity=0.1, code=ReasonCode.EXPLORATION), 0.5),
        (made(2, CHEAP), None),
        (made(3, CHEAP, version="another"), 1.0),
        (made(4, CHEAP, limits={"min_quality": 0.2}), 1.0),
        (made(5, CHEAP, limits={"failure_cost_usd": 0.0}), 1.0),
        (made(6, CHEAP, degraded=True), 1.0),
        (made(10, CHEAP, code=ReasonCode.CHEAPEST_PLAN), 1.0),
        (made(11, CHEAP, code=ReasonCode.LOWEST_EXPECTED_LOSS), 1.0),  # by the pool's own failure_costs
        (made(12, DEAR, code=ReasonCode.UNLIKE), 1.0),
        (made(7, CHEAP, candidates=barred), 1.0),
        (made(8, CHEAP, attempts=[failed(CHEAP), attempt(DEAR)]), 0.25),
        (made(9, CHEAP, limits={"session_id": "s", "task": "math"}, attempts=[attempt(CHEAP, accepted=True)]), None),
    ]  # fmt: skip
    with OutcomeLog(logged(tmp_path, entries)) as log:
        seen, left_out = read_log(log, VERSION, DEAR)
    assert left_out == {NO_LABEL: 1, OTHER_ROUTER: 1, OTHER_REASONS: 4, NOT_ELIGIBLE: 1}
    assert {"d11", "d12"} <= {one.group for one in seen}  # the promise was made on such requests too
    assert [one for one in seen if one.group not in ("d11", "d12")] == [
        Seen("d0", None, 1.0, 0.9, None, 1.0, False), Seen("d1", None, 0.5, 0.9, 0.5, 0.1, True),
        Seen("d8", None, 0.25, 0.9, None, 1.0, False),  # the answer that the caller got
        Seen("s", "math", 1.0, 0.9, None, 1.0, False),
    ]  # fmt: skip


@pytest.fixture
def promising(router_path: Path, tmp_path: Path) -> Path:
    """A saved router of that version that promises 95 % of the dear model's quality."""
    promise = {
        "target_quality": 0.95, "confidence": 0.9, "threshold": 0.7, "escalation_model": DEAR, "promised": True,
        "level": 0.1, "reason": "",
    }  # fmt: skip
    parts = artifact.load(router_path)
    return artifact.save(
        tmp_path / "router", pool=parts.pool, classifier=parts.classifier, encoder=parts.encoder, cost_unit="usd",
        router_version=VERSION, extra={"promise": promise},
    )  # fmt: skip


@pytest.mark.parametrize(("quality", "state", "code"), [(1.0, "kept", 0), (0.5, "broken", 1)])
def test_a_broken_promise_fails_the_command(
    promising: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], quality: float, state: str, code: int
) -> None:
    rng = np.random.default_rng(0)
    url = logged(tmp_path, [(made(i, CHEAP), float(rng.random() < quality)) for i in range(60)])
    assert main(["--router", str(promising), "--log", url, "--json"]) == code
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert report["router_version"] == VERSION and report["left_out"] == {}
    (found,) = report["checks"]
    assert (found["state"], found["n"], found["n_groups"], found["basis"]) == (state, 60, 60, "predicted")
    assert len(err.splitlines()) == code and (not code or "promises: 1 broken" in err)
    assert main(["--router", str(promising), "--log", url]) == code
    assert capsys.readouterr().out.startswith(f"{state}: all traffic, 95% of the escalation model's quality; n = 60")


def test_too_little_is_no_failure_and_no_promise_is_one(
    promising: Path, router_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = logged(tmp_path, [(made(0, CHEAP), 1.0), (made(1, CHEAP), None)])
    assert main(["--router", str(promising), "--log", url]) == 0
    out = capsys.readouterr().out
    assert out.startswith("not enough data yet") and f"left out 1: {NO_LABEL}" in out
    assert main(["--router", str(promising), "--log", url, "--since", "2100-01-01", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["checks"][0]["n"] == 0
    assert main(["--router", str(router_path), "--log", url]) == 1
    assert "promises nothing; train it with --target-quality" in capsys.readouterr().err
    assert main(["--router", str(promising), "--log", f"sqlite:///{tmp_path / 'none.db'}"]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
