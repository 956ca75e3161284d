"""The name of a verifier, and what was measured under it in place of what it declares."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from router_ml.answer import Answer
from router_ml.attempt import Verdict
from router_ml.errors import PoolError
from router_ml.pool import ModelPool, ModelSpec
from router_ml.reliability import MeasuredRates, MeasuredVerifier, reliability_of, verifier_name
from router_ml.request import RouteRequest, VerifierSpec
from router_ml.router import Router
from router_ml.verifiers import (
    AllOf,
    AnyOf,
    Check,
    Command,
    Isolated,
    JsonSchema,
    Judge,
    Matches,
    MinimumLength,
    NotRefusal,
    verifier_of,
)

ROOT = Path(__file__).resolve().parents[1]
JUDGE = Judge("a/small", "Is it four? The secret is 4711.", 7)
DECLARED = JUDGE.spec
NAME = verifier_name(JUDGE)


def is_short(text: str) -> bool:
    return len(text) < 9


def planned(measured: MeasuredVerifier, task: str | None = None, verifier: Any = JUDGE) -> VerifierSpec:
    pool = ModelPool((ModelSpec("a/small", 1.0, 2.0),), "a/small", verifiers={NAME: measured})
    found = reliability_of(RouteRequest("What is 2+2?", task=task, verifier=verifier), pool)
    assert found is not None
    return found


# -- names


@pytest.mark.parametrize(
    ("one", "same"),
    [
        (Judge("m"), Judge("m", spec=VerifierSpec(0.5, 0.4))),
        (JsonSchema({"type": "object", "required": ["a"]}), JsonSchema({"required": ["a"], "type": "object"})),
        (Matches("a+"), verifier_of({"regex": "a+"})),
        (AllOf(NotRefusal(), Judge("m")), AllOf(NotRefusal(), Judge("m"), spec=VerifierSpec())),
        (AllOf(Matches("a+")), verifier_of({"all": [{"regex": "a+"}]})),
        (Command(["t"], env={"KEY": "one"}), Command(["t"], env={"KEY": "another"})),
    ],
)
def test_what_changes_no_verdict_changes_no_name(one: Any, same: Any) -> None:
    assert verifier_name(one) == verifier_name(same)


def test_what_checks_differently_has_another_name() -> None:
    verifiers = [
        Judge("m"), Judge("n"), Judge("m", "Is it four?"), Judge("m", threshold=5), MinimumLength(3), MinimumLength(4),
        Matches("a"), Matches("a", 2), NotRefusal(), AllOf(NotRefusal()), AnyOf(NotRefusal()),
        AllOf(NotRefusal(), Judge("m")), AllOf(Judge("m"), NotRefusal()), Command(["a"]), Command(["a"], env={"K": ""}),
        Check(is_short), Check(is_short, "another"), Check(lambda text: True), Check(str.isdigit), Check(str.isalpha),
        Check(partial(is_short)), Check(partial(max, 3)), JsonSchema({"enum": [1]}), JsonSchema({"enum": [2]}),
        JsonSchema({"enum": [True]}),
    ]  # fmt: skip
    assert len({verifier_name(one) for one in verifiers}) == len(verifiers)


def test_a_name_begins_with_the_kind_and_shows_nothing_of_the_configuration() -> None:
    assert NAME.rpartition("-")[0] == "judge"
    for verifier in (JUDGE, Command(["run", "--token=4711"], env={"KEY": "4711"}), Matches("4711")):
        assert "4711" not in verifier_name(verifier).rpartition("-")[0]


def test_a_name_is_the_same_in_every_process() -> None:
    code = (
        "from router_ml.verifiers import *; from router_ml.reliability import verifier_name;"
        "schema, command = JsonSchema({'b': 1, 'a': 2}), Command(['x'], env={'P': '', 'K': ''});"
        "print(verifier_name(AllOf(NotRefusal(), schema, command)))"
    )
    env = {**os.environ, "PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, env=env)
    here = AllOf(NotRefusal(), JsonSchema({"a": 2, "b": 1}), Command(["x"], env={"K": "", "P": ""}))
    assert done.stdout.strip() == verifier_name(here)


def test_a_verifier_of_the_callers_own_is_told_by_its_class_and_fields() -> None:
    @dataclasses.dataclass(frozen=True)
    class Own:
        words: frozenset[str] = frozenset()
        name: str = "own"
        spec: VerifierSpec = dataclasses.field(default_factory=VerifierSpec)

        def verify(self, answer: Answer) -> Verdict:
            return Verdict(True)

    class Broken:
        @property
        def name(self) -> str:
            raise RuntimeError("no name")

    a, b = Own(frozenset({"x", "y"})), Own(frozenset({"y", "x"}))
    assert verifier_name(a) == verifier_name(b) != verifier_name(Own())
    assert verifier_name(Broken()).startswith("Broken-")


def test_where_a_check_runs_changes_no_name() -> None:
    assert isinstance(inner := verifier_of({"json_schema": {"type": "object"}}), Isolated)
    assert verifier_name(inner) == verifier_name(JsonSchema({"type": "object"}))


# -- what a decision is planned with


def test_what_was_measured_on_the_task_comes_before_the_whole_and_the_whole_before_what_is_declared() -> None:
    measured = MeasuredVerifier(
        true_accept=0.7, cost_usd=0.01, tasks={"math": MeasuredRates(true_accept=0.8, false_accept=0.1)}
    )
    assert planned(measured) == dataclasses.replace(DECLARED, true_accept=0.7, cost_usd=0.01)
    assert planned(measured, "prose") == planned(measured)
    assert planned(measured, "math") == VerifierSpec(0.8, 0.1, 0.01, DECLARED.latency_s)


def test_a_reliability_in_the_request_is_the_callers_own_word() -> None:
    own = VerifierSpec(0.6, 0.3)
    assert planned(MeasuredVerifier(true_accept=0.99), verifier=own) is own


def test_a_verifier_that_was_not_measured_keeps_what_it_declares() -> None:
    assert planned(MeasuredVerifier(true_accept=0.7), verifier=Judge("b/large")) == Judge("b/large").spec


def test_the_router_plans_with_what_was_measured(router_path: Path) -> None:
    router = Router.load(router_path)
    rates = VerifierSpec(0.5, 0.4, 0.25, 2.0)
    values = {entry.name: getattr(rates, entry.name) for entry in dataclasses.fields(rates)}
    informed = router.with_pool(dataclasses.replace(router.pool, verifiers={NAME: MeasuredVerifier(**values)}))
    declared, measured, said = (
        one.predict(RouteRequest("What is 2+2?", verifier=verifier))
        for one, verifier in ((router, JUDGE), (informed, JUDGE), (router, rates))
    )
    assert (measured.plan_confidence, measured.expected_cost_usd) == (said.plan_confidence, said.expected_cost_usd)
    assert measured.expected_cost_usd > declared.expected_cost_usd


# -- in pool.yaml

POOL: dict[str, Any] = {
    "models": [{"name": "a/small", "input_usd_per_mtok": 1, "output_usd_per_mtok": 2}], "escalation_model": "a/small",
}  # fmt: skip


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ([], r"verifiers is \[\]; expected a mapping"),
        ({"j": 3}, r"verifiers\.j is 3; expected a mapping"),
        ({"j": {"true_acept": 1}}, r"verifiers\.j has unknown key\(s\) \['true_acept'\]"),
        ({"j": {"true_accept": 0}}, r"verifiers\.j\.true_accept is 0; expected a number in \(0, 1\]"),
        ({"j": {"false_accept": 1}}, r"verifiers\.j\.false_accept is 1; expected a number in \[0, 1\)"),
        ({"j": {"n_right": -1}}, r"verifiers\.j\.n_right is -1; expected a whole number >= 0"),
        ({"j": {"tasks": [1]}}, r"verifiers\.j\.tasks is \[1\]; expected a mapping"),
        ({"j": {"tasks": {"math": {"cost_usd": -1}}}}, r"verifiers\.j\.tasks\.math\.cost_usd is -1"),
        ({"j": {"tasks": {"math": {"tasks": {}}}}}, r"verifiers\.j\.tasks\.math has unknown key\(s\) \['tasks'\]"),
    ],
)
def test_a_bad_section_is_refused_by_key_value_and_expectation(section: Any, message: str) -> None:
    with pytest.raises(PoolError, match=message):
        ModelPool.from_dict({**POOL, "verifiers": section})


@pytest.mark.parametrize("dump", [json.dumps, lambda content: f"# measured\n{json.dumps(content)}"])
def test_the_section_may_be_the_name_of_another_file_beside_the_pool(tmp_path: Path, dump: Callable[..., str]) -> None:
    section = {"j": {"true_accept": 0.9, "n_right": 30, "tasks": {"math": {"false_accept": 0.2}}}}
    (tmp_path / "measured.yaml").write_text(dump({"verifiers": section}), encoding="utf-8")
    (tmp_path / "pool.yaml").write_text(json.dumps({**POOL, "verifiers": "measured.yaml"}), encoding="utf-8")
    loaded = ModelPool.from_yaml(tmp_path / "pool.yaml")
    assert loaded == ModelPool.from_dict({**POOL, "verifiers": section})
    assert loaded.to_dict()["verifiers"] == section


@pytest.mark.parametrize("content", [None, "[1, 2]", "verifiers: again.yaml", "verifiers: {j: {true_accept: 2}}", "{}"])
def test_another_file_that_cannot_be_read_is_named(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "measured.yaml").write_text(content, encoding="utf-8")
    (tmp_path / "pool.yaml").write_text(json.dumps({**POOL, "verifiers": "measured.yaml"}), encoding="utf-8")
    with pytest.raises(PoolError, match=r"measured\.yaml|true_accept is 2"):
        ModelPool.from_yaml(tmp_path / "pool.yaml")
