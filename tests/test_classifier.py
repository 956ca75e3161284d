from __future__ import annotations

import numpy as np
import pytest

from router_ml.classifier import SuccessClassifier
from router_ml.errors import ArtifactError
from training.fitting import Fitted, Representation, default_encoder, fit, represent
from training.simulate import World

TOLERANCE = 1e-9


@pytest.fixture(scope="module")
def fitted() -> tuple[Fitted, Representation, list[str | None]]:
    table = World(3).sample(300).table
    representation = represent(table.prompts, default_encoder())
    return (
        fit(representation, table.dense("score"), table.dense("cost_usd"), table.task, table.group),
        representation, table.task,
    )  # fmt: skip


@pytest.mark.parametrize("task", ["own", "none", "unseen"])
def test_plain_arrays_equal_the_scikit_learn_estimators(fitted, task: str) -> None:
    model, representation, tasks = fitted
    names = {"own": tasks, "none": [None] * len(tasks), "unseen": ["never seen"] * len(tasks)}[task]
    p, cost = model.predict(representation, names)
    p_arrays, cost_arrays, novelty = model.classifier().predict(*representation, names)
    np.testing.assert_allclose(p_arrays, np.clip(p, 1e-4, 1 - 1e-4), rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(cost_arrays, cost, rtol=TOLERANCE)
    assert ((novelty >= 0) & (novelty <= 1)).all()


@pytest.mark.parametrize("named", [True, False])
def test_one_request_equals_its_row_of_the_batch(fitted, named: bool) -> None:
    model, representation, tasks = fitted
    classifier = model.classifier()
    for i in range(20):
        task = tasks[i] if named else None
        p, cost, novelty = classifier.predict_one(representation.features[i], representation.embedding[i], task)
        row = classifier.predict(representation.features[i : i + 1], representation.embedding[i : i + 1], [task])
        np.testing.assert_allclose(p, row[0][0], rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(cost, row[1][0], rtol=TOLERANCE)
        assert novelty == pytest.approx(row[2][0])


def test_a_request_unlike_any_other_is_novel(fitted) -> None:
    model, representation, _ = fitted
    classifier = model.classifier()
    far = classifier.predict_one(np.full(representation.features.shape[1], 50.0), representation.embedding[0] * 0, None)
    assert far[2] > 0.95
    assert all(0 < p < 1 for p in far[0])


def test_arrays_round_trip(fitted) -> None:
    model, representation, tasks = fitted
    first = model.classifier()
    second = SuccessClassifier.from_arrays(first.to_arrays())
    for a, b in zip(first.predict(*representation, tasks), second.predict(*representation, tasks), strict=True):
        np.testing.assert_array_equal(a, b)


def test_missing_misshapen_and_nan_arrays_are_refused(fitted) -> None:
    arrays = fitted[0].classifier().to_arrays()
    with pytest.raises(ArtifactError, match="lacks the arrays"):
        SuccessClassifier.from_arrays({k: v for k, v in arrays.items() if k != "landmarks"})
    with pytest.raises(ArtifactError, match="has shape"):
        SuccessClassifier.from_arrays({**arrays, "success_weights": arrays["success_weights"][:-1]})
    poisoned = arrays["success_weights"].copy()
    poisoned[0, 0] = np.nan
    with pytest.raises(ArtifactError, match="NaN"):
        SuccessClassifier.from_arrays({**arrays, "success_weights": poisoned})


def test_training_again_gives_the_same_arrays(fitted) -> None:
    table = World(3).sample(300).table
    representation = represent(table.prompts, default_encoder())
    again = fit(representation, table.dense("score"), table.dense("cost_usd"), table.task, table.group)
    for name, array in fitted[0].classifier().to_arrays().items():
        np.testing.assert_array_equal(array, again.classifier().to_arrays()[name], err_msg=name)
