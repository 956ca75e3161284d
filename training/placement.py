"""Place models that no table holds: an unfitted pool becomes a SuccessEstimator and a CostEstimator.

A placed model is described by the very attributes that fitting would have learned, so that one serving code reads
both. It counts no outcomes: a prior is not a measurement. Its probabilities are averaged over what is not known, the
model's own ability and how far a new source lies from those learned from, which draws them towards one half.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from router_ml.classifier import sigmoid
from router_ml.errors import PoolError
from router_ml.pool import ModelPool, ModelSpec
from training.ability import EFFORTS_AT_MAXIMUM, AbilityScale
from training.answer_length import AnswerLength
from training.estimator import CostEstimator, SuccessEstimator
from training.transfer import FIELDS, REFERENCE, TransferModel

Array = NDArray[np.float64]

PLACEMENT_KEY = "mmlu_pro"  # placements are stated as shares of MMLU-Pro
NORMAL_80 = 1.2816  # a normal variable lies within so many standard deviations four times out of five
UNPLACED_FACTOR = (0.5, 1.0, 3.0)  # low, estimate, high: output tokens of a model without a placement


@dataclass(frozen=True)
class Placement:
    """Where one model is expected to stand.

    :param ability: on the scale of ``AbilityScale``. :param spread: its standard deviation.
    :param profile: (len(FIELDS),) ability in each field, less ``ability``.
    :param output_factor: (low, estimate, high) output tokens over those of the reference model.
    """

    ability: float
    spread: float
    profile: Array
    output_factor: tuple[float, float, float]


def placement_of(spec: ModelSpec, facts: Mapping[str, Any], scale: AbilityScale) -> Placement:
    """Read one candidate's placement off the facts; without one, its published results and relatives place it.

    :raises PoolError: if the facts do not know the model.
    """
    name = facts["aliases"]["pool"].get(spec.base_name, spec.base_name.rpartition("/")[2])
    if name not in facts["models"]:
        raise PoolError(
            f"nothing is known of {spec.name}: expected an entry in training/model_facts.yaml; add it to aliases.pool "
            "and models, or train on outcomes of it"
        )
    stated = facts["models"][name].get("placement")
    if stated is None:
        return Placement(scale.ability[name], scale.spread[name], np.zeros(len(FIELDS)), UNPLACED_FACTOR)
    usual = stated["general"]
    general = stated["at_max_effort"]["general"] if _at_maximum(spec) else usual
    ability = scale.of_result(PLACEMENT_KEY, general["estimate"])
    width = scale.of_result(PLACEMENT_KEY, general["high"]) - scale.of_result(PLACEMENT_KEY, general["low"])
    center = scale.of_result(PLACEMENT_KEY, usual["estimate"])
    profile = [scale.of_result(PLACEMENT_KEY, stated[f]["estimate"]) - center if f in stated else 0.0 for f in FIELDS]
    profile[FIELDS.index("general")] = 0.0
    # a variant's own output_factor stands in the pool and is applied there
    factor = stated["output_tokens_factor"]
    return Placement(
        ability, width / (2.0 * NORMAL_80), np.array(profile), (factor["low"], factor["estimate"], factor["high"])
    )  # fmt: skip


def place(pool: ModelPool, model: TransferModel, placements: Sequence[Placement], shift: float) -> SuccessEstimator:
    """The success model of a pool, as if it had been fitted.

    :param placements: one per model of the pool, in its order.
    :param shift: variance between sources of the log odds, beyond what their requests explain.
    :return: an estimator with the attributes that ``SuccessEstimator.fit`` sets, and no outcomes.
    """
    m = len(pool.models)
    ability = np.array([p.ability for p in placements])
    profile = np.array([p.profile for p in placements])  # (m, fields)
    spread = np.array([p.spread for p in placements])
    # the mean profile is in the base rate, what the request's field adds is in the correction
    x = ability + profile @ model.field_shares - REFERENCE
    base = model.level[0] + model.slope[0] * x
    correction = np.outer(model.slope[1:], x) + model.slope[0] * (model.field_weights @ profile.T)
    attenuation = attenuate(model.slope[0] ** 2 * spread**2 + shift)
    estimator = SuccessEstimator()
    estimator.tasks_ = ()
    estimator.n_outcomes_ = np.zeros(m, dtype=np.int64)
    estimator.base_ = sigmoid(base)
    estimator.shift_ = estimator.rate_ = estimator.base_[None]
    estimator.center_ = model.center
    estimator.difficulty_, estimator.difficulty_scale_ = model.level[1:], 1.0
    estimator.correction_, estimator.correction_scale_ = correction, 1.0
    estimator.task_from_text_ = np.zeros((len(model.center), 2 * m))
    zero = np.zeros(m)
    estimator.coef_ = np.column_stack([zero, attenuation, zero, zero, attenuation, attenuation])
    return estimator


def place_length(length: AnswerLength, placements: Sequence[Placement]) -> CostEstimator:
    """Expected output tokens of each model: those of the reference model times the model's own factor."""
    low, estimate, high = np.log(np.array([p.output_factor for p in placements])).T
    estimator = CostEstimator()
    estimator.n_outcomes_ = np.zeros(len(placements), dtype=np.int64)
    estimator.center_ = length.center
    estimator.base_ = length.base + estimate
    estimator.coef_ = np.repeat(length.weights[:, None], len(placements), axis=1)
    estimator.low_, estimator.high_ = length.low + estimate, length.high + estimate
    # mean of a lognormal: exp(variance / 2) above its median; the factor is no better known than the length
    variance = length.variance + ((high - low) / (2.0 * NORMAL_80)) ** 2
    estimator.smearing_ = np.exp(variance / 2.0)
    return estimator


def attenuate(variance: Array) -> Array:
    """What averaging over normal log odds of this variance leaves of them: 1 / sqrt(1 + pi s^2 / 8), MacKay 1992."""
    return 1.0 / np.sqrt(1.0 + np.pi * variance / 8.0)


def _at_maximum(spec: ModelSpec) -> bool:
    return spec.params.get("reasoning_effort") in EFFORTS_AT_MAXIMUM
