"""Where a training run is recorded: in MLflow, or nowhere. This is the one file that imports mlflow.

A run gets its parameters, its metrics, the artifact folder and the pictures; the router is registered as a model that
``mlflow.pyfunc.load_model`` loads from the artifact itself, without a pickle::

    model = mlflow.pyfunc.load_model("models:/router@champion")
    model.predict(pandas.DataFrame({"prompt": ["What is 2+2?"]}))
"""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import router_ml
from router_ml.errors import MissingExtraError
from router_ml.router import Router

DEFAULT_URI = "sqlite:///mlflow.db"
EXPERIMENT = "router-ml"
REGISTERED_NAME = "router"
CHAMPION, CHALLENGER = "champion", "challenger"
_DECIDED = ("model", "confidence", "escalated", "expected_cost_usd", "decision_id")


@dataclass(frozen=True)
class TrainingRun:
    """What there is to record.

    :param metrics: what is not finite is left out.
    :param artifact: the saved router. :param report: a folder of reports and pictures.
    """

    params: Mapping[str, Any]
    metrics: Mapping[str, float | None]
    artifact: Path
    report: Path


@dataclass(frozen=True)
class Recorded:
    """Where a run was recorded: MLflow's run id, and the version and alias of the registered model."""

    uri: str
    run_id: str
    version: int
    alias: str


class Tracking(Protocol):
    """Records training runs."""

    def record(self, run: TrainingRun) -> Recorded | None:
        """:return: where it was recorded; None: nowhere."""
        ...


class NullTracking:
    """Records nothing."""

    def record(self, run: TrainingRun) -> None:
        """Do nothing."""


class MlflowTracking:
    """Records in an MLflow store.

    :param uri: tracking URI; a SQLite file by default.
    :param experiment: created where it does not exist.
    :raises MissingExtraError: if mlflow is not installed; before any training rather than after it.
    """

    def __init__(self, uri: str = DEFAULT_URI, experiment: str = EXPERIMENT) -> None:
        if importlib.util.find_spec("mlflow") is None:
            raise MissingExtraError("mlflow", "train")
        self.uri = uri
        self.experiment = experiment

    def record(self, run: TrainingRun) -> Recorded:
        """Record a run, register its router and name it.

        The first version is the champion. Every later one is the challenger: to replace a champion takes an honest
        comparison, not a training run.
        """
        mlflow = _imported()
        mlflow.set_tracking_uri(self.uri)
        mlflow.set_experiment(self.experiment)
        with mlflow.start_run() as active:
            mlflow.log_params(dict(run.params))
            mlflow.log_metrics({k: v for k, v in run.metrics.items() if v is not None and math.isfinite(v)})
            mlflow.log_artifacts(str(run.artifact), "artifact")
            mlflow.log_artifacts(str(run.report), "report")
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="(?s).*An input example was not provided")
                logged = mlflow.pyfunc.log_model(
                    name=REGISTERED_NAME, loader_module=__name__, data_path=str(run.artifact), signature=_signature(),
                    # named, because inferring them loads the model in a process of its own, which takes seconds
                    pip_requirements=[f"router-ml[train]=={router_ml.__version__}"],
                )  # fmt: skip
        run_id = active.info.run_id
        version, alias = _register(mlflow.MlflowClient(), logged.model_id, run_id)
        return Recorded(self.uri, run_id, version, alias)


def _register(client: Any, model_id: str, run_id: str) -> tuple[int, str]:
    """The new version of the registered model and its alias."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(REGISTERED_NAME)
    except MlflowException as exc:
        if exc.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    made = client.create_model_version(REGISTERED_NAME, f"models:/{model_id}", run_id, model_id=model_id)
    alias = CHALLENGER if CHAMPION in client.get_registered_model(REGISTERED_NAME).aliases else CHAMPION
    client.set_registered_model_alias(REGISTERED_NAME, alias, made.version)
    return int(made.version), alias


class RouterModel:
    """A router as MLflow calls it: a data frame of requests in, a data frame of decisions out."""

    def __init__(self, router: Router) -> None:
        self.router = router

    def predict(self, frame: Any, params: Mapping[str, Any] | None = None) -> Any:
        """Decide.

        :param frame: data frame with the column ``prompt`` and, if there is one, ``task``.
        :return: data frame of ``model``, ``confidence``, ``escalated``, ``expected_cost_usd``, ``decision_id``.
        """
        import pandas as pd  # type: ignore[import-untyped]  # mlflow brings it

        tasks = frame["task"] if "task" in frame else [None] * len(frame)
        requests = [
            {"prompt": prompt, "task": task if isinstance(task, str) else None}
            for prompt, task in zip(frame["prompt"], tasks, strict=True)
        ]
        decisions = self.router.predict_batch(requests)
        return pd.DataFrame([{name: getattr(d, name) for name in _DECIDED} for d in decisions], index=frame.index)


def _load_pyfunc(data_path: str) -> RouterModel:
    """MLflow's entry point: the saved router from its folder."""
    return RouterModel(Router.load(data_path))


def _signature() -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    kinds = ("string", "double", "boolean", "double", "string")
    return ModelSignature(
        inputs=Schema([ColSpec("string", "prompt"), ColSpec("string", "task", required=False)]),
        outputs=Schema([ColSpec(kind, name) for kind, name in zip(kinds, _DECIDED, strict=True)]),
    )


def _imported() -> Any:
    """mlflow, which neither calls home nor writes a line for each migration of a new store."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow

    for name in ("alembic", "mlflow"):  # after the import, which sets them
        logging.getLogger(name).setLevel(logging.ERROR)
    return mlflow
