"""How able a model is, from published results alone: one number per model on the scale of logit MMLU.

Published results of a model agree well with each other once each benchmark has its own level and slope, so one latent
ability per model explains them (a one-factor model: Spearman 1904). Where nothing was published, the model's relatives
speak for it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml  # type: ignore[import-untyped]
from numpy.typing import NDArray

from router_ml.classifier import logit
from router_ml.errors import PoolError

Array = NDArray[np.float64]

FACTS_PATH = Path(__file__).with_name("model_facts.yaml")
# The first one anchors the scale.
RESULT_KEYS = (
    "mmlu", "mmlu_pro", "gpqa_diamond", "humaneval", "math", "swe_bench_verified", "aime_2025", "whatmodel", "bfcl_v1",
)  # fmt: skip
# What a source is made of must not place models on that source (header of model_facts.yaml).
LEAKING_KEYS: Mapping[str, frozenset[str]] = {
    "mmlupro": frozenset({"mmlu_pro"}),
    "zeroeval": frozenset({"math", "whatmodel"}),
    "bfcl": frozenset({"bfcl_v1"}),
    "swebench_bash": frozenset({"swe_bench_verified", "whatmodel"}),
}
RELATIVES_PRECISION = 2.0  # of the mean ability of the relatives as a guess at a model's own; a spread of 0.7
NOISE_FLOOR = 0.02  # variance that no benchmark falls below: few points fit a line too well
MOST_STEPS = 200
EFFORTS_AT_MAXIMUM = frozenset({"high", "xhigh", "max"})


@dataclass(frozen=True)
class AbilityScale:
    """Abilities of all models of the facts.

    :param ability: canonical name -> ability. :param spread: its standard deviation.
    :param curves: result key -> (level, slope): logit(result) = level + slope * ability.
    """

    ability: Mapping[str, float]
    spread: Mapping[str, float]
    curves: Mapping[str, tuple[float, float]]

    def of_result(self, key: str, share: float) -> float:
        """:return: the ability of a model whose result on ``key`` is expected to be ``share``, in (0, 1)."""
        level, slope = self.curves[key]
        return float((logit(np.array(share)) - level) / slope)


def load_facts(path: Path = FACTS_PATH) -> dict[str, Any]:
    """Read model_facts.yaml."""
    facts: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return facts


def fit_abilities(facts: Mapping[str, Any], ignore: Collection[str] = ()) -> AbilityScale:
    """Abilities by alternating least squares over what was published.

    :param ignore: result keys that must not be looked at.
    """
    names = list(facts["models"])
    keys = [key for key in RESULT_KEYS if key not in ignore]
    results = _results(facts, names, keys)
    relatives = _relatives(facts, names)
    known = ~np.isnan(results)
    ability = np.where(known[:, 0], results[:, 0], np.nanmean(results[:, 0]))
    for _ in range(MOST_STEPS):
        before = ability
        level, slope, noise = _curves(results, ability)
        weight = np.where(known, slope / noise, 0.0)
        precision = RELATIVES_PRECISION + (known * slope**2 / noise).sum(axis=1)
        pull = np.where(known, weight * (results - level), 0.0).sum(axis=1)
        ability = (RELATIVES_PRECISION * (relatives @ ability) + pull) / precision
        ability = level[0] + slope[0] * ability  # the scale would drift otherwise
        if np.abs(ability - before).max() < 1e-6:
            break
    level, slope, _ = _curves(results, ability)
    return AbilityScale(
        dict(zip(names, ability.tolist(), strict=True)),
        dict(zip(names, (1.0 / np.sqrt(precision)).tolist(), strict=True)),
        {key: (float(a), float(b)) for key, a, b in zip(keys, level, slope, strict=True)},
    )


def canonical_names(facts: Mapping[str, Any], source: str, models: Collection[str]) -> list[str]:
    """Names of the facts for the names of an outcome table.

    :raises PoolError: if the facts do not hold one of them.
    """
    aliases = facts["aliases"].get(source, {})
    names = [aliases.get(model, model) for model in models]
    unknown = [model for model, name in zip(models, names, strict=True) if name not in facts["models"]]
    if unknown:
        raise PoolError(f"model_facts.yaml knows nothing of {unknown} ({source}); add them to aliases and models")
    return names


def _results(facts: Mapping[str, Any], names: list[str], keys: list[str]) -> Array:
    """(n_models, n_keys) in log odds, NaN where nothing was published."""
    published = [[facts["models"][name]["results"].get(key, np.nan) for key in keys] for name in names]
    shares = np.array(published, dtype=float) / 100.0
    return np.where(np.isnan(shares), np.nan, logit(shares))


def _relatives(facts: Mapping[str, Any], names: list[str]) -> Array:
    """(n_models, n_models): each row averages over a model's relatives, or over all where it has none."""
    position = {name: i for i, name in enumerate(names)}
    out = np.zeros((len(names), len(names)))
    for i, name in enumerate(names):
        related = [position[other] for other in facts["models"][name].get("relatives", ())]
        out[i, related or slice(None)] = 1.0
    means: Array = out / out.sum(axis=1, keepdims=True)
    return means


def _curves(results: Array, ability: Array) -> tuple[Array, Array, Array]:
    """Level, slope and noise variance of each key. Slopes are held near 1 by one pseudo-observation."""
    level, slope, noise = (np.zeros(results.shape[1]) for _ in range(3))
    for k, column in enumerate(results.T):
        rows = ~np.isnan(column)
        x, y = ability[rows], column[rows]
        if not rows.any():
            slope[k], noise[k] = 1.0, 1.0
            continue
        centred = x - x.mean()
        slope[k] = (centred @ (y - y.mean()) + 1.0) / (centred @ centred + 1.0)
        level[k] = y.mean() - slope[k] * x.mean()
        noise[k] = ((y - level[k] - slope[k] * x) ** 2).sum() / max(1, rows.sum() - 2) + NOISE_FLOOR
    return level, slope, noise
