"""How often promises are kept, and what they cost: many random draws of calibration and test rows of one table.

Each draw chooses a threshold on its calibration rows as ``train --target-quality`` does, and looks at the others. The
predictions are those of cross-validation, so no request is predicted by a model that was fitted on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from training.comparison import DefaultRule
from training.cost_quality import complete_grid
from training.judging import Judged
from training.metrics import BoolArray, FloatArray, IntArray
from training.prediction import Prediction
from training.promises import KEPT_SHARE, THRESHOLDS, Settings, Target, calibrate, group_cap, settings_of
from training.quality_rows import Row

N_DRAWS = 500
TARGETED = ("swebench_bash", "routerbench")
MAX_RATIO = 1.15


@dataclass(frozen=True, eq=False)
class Draws:
    """What became of each draw; all (n_draws,).

    :param kept: whether the test rows as they are kept the target. :param kept_on_all: whether all rows together did,
        which stand for the population that the rows of a draw are from.
    :param promised: whether a threshold was found. :param cost: mean USD of the choice on the test rows.
    :param hindsight: the same of the cheapest threshold that keeps the target on these very test rows.
    :param ratio_on_all: cost on all rows of the choice over that of the cheapest threshold that keeps it there.
    """

    n_calibration: int
    escalated_cost: float
    kept: BoolArray
    kept_on_all: BoolArray
    promised: BoolArray
    cost: FloatArray
    hindsight: FloatArray
    ratio_on_all: FloatArray


def draws_of(judged: Judged, target: Target, *, n_draws: int = N_DRAWS, seed: int = 0) -> Draws | None:
    """Promise on random draws of groups; None where the table has no complete priced rows, or too few groups.

    The escalation model is the best single one. The draws share rows, so their outcomes are not independent.
    """
    rows, priced = complete_grid(judged.score, judged.cost)
    if not rows.any():
        return None
    group = np.unique(judged.group[rows], return_inverse=True)[1]
    n_groups = int(group.max()) + 1
    settings = _settings(judged, rows, priced, target)
    n_calibration = round(KEPT_SHARE * n_groups)
    rng = np.random.default_rng(seed)
    out = [_draw(settings, group, rng.permutation(n_groups)[:n_calibration], target, seed + i) for i in range(n_draws)]
    kept, on_all, promised, cost, hindsight, ratio = (np.array(column) for column in zip(*out, strict=True))
    return Draws(
        n_calibration, float(settings.cost[:, 0].mean()), kept, on_all, promised, cost, hindsight, ratio
    )  # fmt: skip


def _settings(judged: Judged, rows: BoolArray, priced: BoolArray, target: Target) -> Settings:
    grid = np.ix_(rows, priced)
    score, cost, prediction = judged.score[grid], judged.cost[grid], Prediction(judged.p[grid], judged.c[grid])
    escalation = int(np.lexsort((cost.mean(axis=0), -score.mean(axis=0)))[0])
    names = [str(j) for j in range(score.shape[1])]
    choices = np.stack([DefaultRule(float(t), names[escalation]).choose(prediction, names) for t in THRESHOLDS])
    return settings_of(choices, THRESHOLDS, score, cost, escalation, target.quality)


def _draw(
    settings: Settings, group: IntArray, drawn: IntArray, target: Target, seed: int
) -> tuple[bool, bool, bool, float, float, float]:
    """One draw: kept on the test rows, kept on all, promised, cost, hindsight's cost, ratio of the two on all."""
    calibration = np.isin(group, drawn)
    codes = np.unique(group[calibration], return_inverse=True)[1]
    part = settings._replace(gain=settings.gain[calibration])
    chosen = calibrate(part, codes, target, 1.0 - target.confidence, group_cap(group), seed)
    test = ~calibration
    gain, cost = settings.gain[test].mean(axis=0), settings.cost[test].mean(axis=0)
    gain_all, cost_all = settings.gain.mean(axis=0), settings.cost.mean(axis=0)
    return (
        bool(gain[chosen] >= 0), bool(gain_all[chosen] >= 0), chosen > 0, float(cost[chosen]),
        float(cost[gain >= 0].min()), float(cost_all[chosen] / cost_all[gain_all >= 0].min()),
    )  # fmt: skip


def promise_rows(name: str, judged: Judged, *, n_draws: int = N_DRAWS, seed: int = 0) -> Iterator[Row]:
    """The lines of one table, for the target of 95 % at .9; none where nothing can be drawn."""
    target = Target(0.95, 0.9)
    found = draws_of(judged, target, n_draws=n_draws, seed=seed)
    if found is None:
        return
    targeted = name in TARGETED
    kept = float(found.kept.mean())
    yield Row(
        name, "promise of 95 % of the best model's quality at .9: kept on the test rows, of draws", kept,
        f">= {target.confidence:.3f}" if targeted else "", kept >= target.confidence if targeted else None,
        note=f"{n_draws} draws, {found.n_calibration:,} groups to calibrate; kept on all rows in "
        f"{found.kept_on_all.mean():.3f}; a threshold found in {found.promised.mean():.3f}",
    )  # fmt: skip
    ratio = float(np.median(found.cost / found.hindsight))
    yield Row(
        name, "the promise's cost over that of the cheapest threshold in hindsight, median of draws", ratio,
        f"<= {MAX_RATIO:.3f}" if targeted else "", ratio <= MAX_RATIO if targeted else None,
        note=f"ratio of means {found.cost.mean() / found.hindsight.mean():.3f}; to hindsight on all rows "
        f"{np.median(found.ratio_on_all):.3f}; of always escalating {found.cost.mean() / found.escalated_cost:.3f}",
    )  # fmt: skip
