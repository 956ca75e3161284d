"""What MLflow holds after training, and that a router can be loaded from there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import training
from router_ml.errors import MissingExtraError
from router_ml.router import Router
from training import tracking
from training.tracking import MlflowTracking, NullTracking, Recorded, RouterModel, Tracking, TrainingRun

# mlflow and what it imports warn of each other's deprecations
pytestmark = pytest.mark.filterwarnings("default")


def some_run(artifact: Path, folder: Path) -> TrainingRun:
    report = folder / "report"
    report.mkdir(exist_ok=True)
    (report / "reliability.png").write_bytes(b"not really a picture")
    metrics = {"ece": 0.01, "auc": None, "cost_at_quality_1.0": float("inf")}
    return TrainingRun({"seed": 3, "n_requests": 300}, metrics, artifact, report)


@pytest.fixture(scope="module")
def recorded(router_path: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Recorded]:
    """Three runs recorded in one new store."""
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        store = MlflowTracking(f"sqlite:///{folder}/mlflow.db", "tests")
        return [store.record(some_run(router_path, folder)) for _ in range(3)]


def test_the_first_version_is_champion_and_later_ones_challenge_it(recorded: list[Recorded]) -> None:
    import mlflow

    assert [(run.version, run.alias) for run in recorded] == [(1, "champion"), (2, "challenger"), (3, "challenger")]
    client = mlflow.MlflowClient(recorded[0].uri)
    assert {k: int(v) for k, v in client.get_registered_model("router").aliases.items()} == {
        "champion": 1, "challenger": 3,
    }  # fmt: skip


def test_a_run_holds_parameters_finite_metrics_the_artifact_and_the_pictures(recorded: list[Recorded]) -> None:
    import mlflow

    client = mlflow.MlflowClient(recorded[0].uri)
    run = client.get_run(recorded[0].run_id)
    assert run.data.params == {"seed": "3", "n_requests": "300"} and run.data.metrics == {"ece": 0.01}
    assert run.info.status == "FINISHED"
    held = {item.path for folder in ("artifact", "report") for item in client.list_artifacts(run.info.run_id, folder)}
    assert {"artifact/manifest.json", "artifact/classifier.npz", "report/reliability.png"} <= held


def test_the_registered_model_decides_as_the_router_does(recorded: list[Recorded], router_path: Path) -> None:
    import mlflow
    import pandas as pd

    mlflow.set_tracking_uri(recorded[0].uri)
    model = mlflow.pyfunc.load_model("models:/router@champion")
    frame = pd.DataFrame({"prompt": ["What is 2+2?", "Plan a move to Lima."], "task": ["mathematics", None]})
    found = model.predict(frame)
    router = Router.load(router_path)
    expected = [
        router.predict({"prompt": p, "task": t}) for p, t in zip(frame.prompt, ("mathematics", None), strict=True)
    ]
    assert found.model.tolist() == [d.model for d in expected]
    assert found.confidence.tolist() == pytest.approx([d.confidence for d in expected])


def test_no_task_column_is_needed(router_path: Path) -> None:
    import pandas as pd

    found = RouterModel(Router.load(router_path)).predict(pd.DataFrame({"prompt": ["hi", "hello"]}, index=[5, 9]))
    assert found.index.tolist() == [5, 9] and found.confidence.between(0, 1).all()


def test_the_null_twin_records_nothing(router_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    silent: Tracking = NullTracking()
    assert silent.record(some_run(router_path, tmp_path)) is None
    assert {path.name for path in tmp_path.iterdir()} == {"report"}


def test_a_missing_mlflow_is_said_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'router-ml\[train\]'"):
        MlflowTracking()


def test_mlflow_is_imported_in_one_file() -> None:
    folder = Path(training.__file__).parent
    files = [*folder.glob("*.py"), *(folder.parent / "router_ml").glob("*.py")]
    importing = {f.name for f in files if re.search(r"^\s*(?:import|from) mlflow\b", f.read_text("utf-8"), re.M)}
    assert importing == {"tracking.py"}
