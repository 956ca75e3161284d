"""The command that trains: what it writes, what it says, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from router_ml.artifact import read_manifest
from router_ml.router import Router
from training.outcome_table import write_table
from training.simulate import World
from training.train import main


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("outcomes") / "march.csv"
    write_table(World(7).sample(120).table, path)
    return path


def test_a_trained_router_carries_metrics_of_held_out_rows_with_their_n(
    outcomes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--outcomes", str(outcomes), "--out", str(tmp_path / "a"), "--no-tracking"]
    assert main([*arguments, "--json", "--report", str(tmp_path / "report")]) == 0
    said = json.loads(capsys.readouterr().out)
    metrics = read_manifest(tmp_path / "a")["metrics"]
    assert said["metrics"] == metrics and said["tracking"] is None
    assert metrics["held_out"].startswith("5-fold cross-validation over 120 requests")
    shares = ("under_routed_share", "over_routed_share", "unavoidable_share")
    for name in ("ece", "brier", "brier_skill", "auc", "area", "cost_at_quality_0.95", *shares):
        assert metrics[name]["n"] in (120, 600)
    assert {path.name for path in (tmp_path / "report").iterdir()} == {
        "evaluation.json", "evaluation.html", "reliability.png", "cost_quality.png", "tasks.png",
    }  # fmt: skip
    router = Router.load(tmp_path / "a")
    assert router.predict("What is 2+2?").model in router.models


def test_the_same_seed_trains_the_same_router(outcomes: Path, tmp_path: Path) -> None:
    routers = []
    for name in ("first", "second"):
        assert main(["--outcomes", str(outcomes), "--out", str(tmp_path / name), "--no-tracking", "--seed", "3"]) == 0
        routers.append(Router.load(tmp_path / name))
    requests = ["Sum up this note: the meeting is at noon.", "Prove that there are infinitely many primes."]
    np.testing.assert_array_equal(*(router.predict_proba(requests) for router in routers))
    assert routers[0].manifest["metrics"] == routers[1].manifest["metrics"]


def test_several_tables_train_one_router_with_a_given_pool(outcomes: Path, tmp_path: Path) -> None:
    more = tmp_path / "april.jsonl"
    write_table(World(7).sample(60, models_per_request=2, seed=9).table, more)
    names = ["acme/large", "other/mini"]
    models = [{"name": name, "cost_per_request_usd": cost} for name, cost in zip(names, (0.02, 0.001), strict=True)]
    pool = tmp_path / "pool.yaml"
    pool.write_text(yaml.safe_dump({"models": models, "escalation_model": "acme/large", "confidence_threshold": 0.8}))
    out = tmp_path / "router"
    arguments = ["--outcomes", str(outcomes), "--outcomes", str(more), "--pool", str(pool), "--out", str(out)]
    assert main([*arguments, "--no-tracking"]) == 0
    router = Router.load(out)
    assert router.models == tuple(names) and router.pool.confidence_threshold == 0.8
    assert router.manifest["training"]["n_requests"] == 180


def test_bad_input_is_refused_in_one_line_and_nothing_is_written(
    outcomes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.csv"
    bad.write_text("request_id,prompt,model,score\na,hello,m,1.7\n", encoding="utf-8")
    out = tmp_path / "router"
    few = tmp_path / "few.csv"
    write_table(World(7).sample(4).table, few)
    for arguments, reason in (
        (["--outcomes", str(bad)], "1.7"),
        (["--outcomes", str(few)], "expected at least 10"),
        (["--outcomes", str(outcomes), "--pool", str(tmp_path / "none.yaml")], "none.yaml"),
    ):
        assert main([*arguments, "--out", str(out), "--no-tracking"]) == 1
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and reason in lines[0]
    assert not out.exists()


def test_contradictory_flags_are_wrong_usage(outcomes: Path, tmp_path: Path) -> None:
    flags = ["--no-tracking", "--tracking-uri", "sqlite:///x.db"]
    assert main(["--outcomes", str(outcomes), "--out", str(tmp_path / "a"), *flags]) == 2
    assert main(["--out", str(tmp_path / "a")]) == 2
