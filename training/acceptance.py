"""True and false acceptance of one verifier, from verdicts of which only some have a label.

Whether an answer gets a label depends on its verdict: accepted answers are delivered and talked about, rejected ones
seldom are. The share of accepted answers among the labelled right ones is therefore too high (verification bias). The
correction of Begg & Greenes (Biometrics 1983) goes the other way round: P(right | verdict) is taken from the labelled
answers of that verdict, P(verdict) from all of them, and Bayes' rule gives P(accepted | right). It holds if labels
depend on nothing but verdict, task and model; which answers get one *within* such a cell must not depend on how good
they are.

Intervals come from posterior draws, not from the bootstrap: where no rejected answer has a label, or all that have one
are wrong, a resample knows no other case and its interval has no width, while a Beta posterior stays as wide as the
ignorance is. Answers of one decision go together, so counts are divided by their design effect (Rao & Scott, Journal of
the American Statistical Association 1981).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaln  # type: ignore[import-untyped]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.intp]
BoolArray = NDArray[np.bool_]

DRAWS = 4_000
_LEAST = 1e-9  # a Beta with a parameter of 0 is none
# Grid of a hierarchy's mean, and of its strength: how many outcomes the likeness of its members is worth
_MEANS = (np.arange(60) + 0.5) / 60.0
_STRENGTHS = np.geomspace(0.5, 1_000.0, 40)
_A, _B = np.outer(_STRENGTHS, _MEANS).ravel(), np.outer(_STRENGTHS, 1.0 - _MEANS).ravel()
_NO_DATA = betaln(_A, _B)


class Verdicts(NamedTuple):
    """Verdicts of one verifier; arrays of one length, an element per answer.

    :param task, model, decision: integer codes from 0. :param accepted: the verdict.
    :param right: 1 right, 0 wrong, -1 no label.
    """

    task: IntArray
    model: IntArray
    decision: IntArray
    accepted: BoolArray
    right: IntArray


class Rate(NamedTuple):
    """A rate with its interval and the labelled answers of its kind, right or wrong ones, that stand behind it."""

    value: float
    low: float
    high: float
    n: int


class Acceptance(NamedTuple):
    """P(accepted | right) and P(accepted | wrong)."""

    true_accept: Rate
    false_accept: Rate


def acceptance(
    verdicts: Verdicts, level: float = 0.9, *, draws: int = DRAWS, seed: int = 0
) -> tuple[Acceptance, list[Acceptance]]:
    """Estimate a verifier's acceptances.

    A cell of task and model with few labels is drawn to the others, the more so the more alike these are (``_alike``).

    :param level: of the two-sided intervals. :param draws: from the posterior, of which they are quantiles.
    :return: over all answers, in the mix of tasks that they have; and for each task code.
    """
    rng = np.random.default_rng(seed)
    cells, index = np.unique(np.stack([verdicts.task, verdicts.model]), axis=1, return_inverse=True)
    right, wrong = _joint(verdicts, index.reshape(-1), cells.shape[1], draws, rng)
    n_tasks = int(verdicts.task.max()) + 1
    of_task = np.arange(n_tasks)[:, None] == cells[0]  # (tasks, cells)
    n_right, n_wrong = (
        np.bincount(verdicts.task[verdicts.right == said], minlength=n_tasks).tolist() for said in (1, 0)
    )
    parts = []
    for joint, n in ((right, n_right), (wrong, n_wrong)):
        whole = _share(joint.sum(axis=2))
        tasks = np.stack([_share(joint[:, :, mine].sum(axis=2)) for mine in of_task])
        parts.append((_rate(whole, level, sum(n)), [_rate(t, level, k) for t, k in zip(tasks, n, strict=True)]))
    (true, true_by_task), (false, false_by_task) = parts
    return Acceptance(true, false), [Acceptance(*pair) for pair in zip(true_by_task, false_by_task, strict=True)]


def _joint(
    verdicts: Verdicts, cell: IntArray, n_cells: int, draws: int, rng: np.random.Generator
) -> tuple[FloatArray, FloatArray]:
    """Draws of P(verdict, right, cell) and P(verdict, wrong, cell), up to a factor.

    A cell without labels is as uncertain as the cells that have some are different.

    :return: two arrays (2 verdicts: rejected, accepted; draws; cells).
    """
    n = np.bincount(cell, minlength=n_cells)
    accepted = _by_cell(verdicts.accepted, cell, verdicts.decision, n_cells, draws, rng)
    of_verdict = np.stack([1.0 - accepted, accepted]) * rng.standard_gamma(n, (draws, n_cells))  # Rubin 1981
    share_right = np.empty_like(of_verdict)
    for verdict in (0, 1):
        held = (verdicts.accepted == verdict) & (verdicts.right >= 0)
        labels = verdicts.right[held], cell[held], verdicts.decision[held]
        share_right[verdict] = _by_cell(*labels, n_cells, draws, rng)
    return of_verdict * share_right, of_verdict * (1.0 - share_right)


def _by_cell(
    y: NDArray[np.generic], cell: IntArray, decision: IntArray, n_cells: int, draws: int, rng: np.random.Generator
) -> FloatArray:
    """(draws, cells) of P(y = 1) in each cell."""
    effect = _design_effect(y, cell, decision)
    n = np.bincount(cell, minlength=n_cells) / effect
    x = np.bincount(cell, weights=y, minlength=n_cells) / effect
    return _alike(x, n, draws, rng).T


def _share(joint: FloatArray) -> FloatArray:
    """(2 verdicts, draws) of P(verdict, truth) to (draws,) of P(accepted | truth)."""
    return _inside(joint[1] / joint.sum(axis=0))


def _design_effect(y: NDArray[np.generic], cell: IntArray, decision: IntArray) -> float:
    """Variance of a mean of ``y`` with answers of one decision taken together, over that of independent ones; >= 1.

    :param y: (n,) of 0 and 1. :param cell: (n,) whose means are subtracted first: that cells differ is no dependence.
    """
    if not y.size or np.unique(decision).size == y.size:
        return 1.0
    mean = np.bincount(cell, weights=y) / np.maximum(np.bincount(cell), 1)
    residual = y.astype(np.float64) - mean[cell]
    alone = float(np.square(residual).sum())
    return max(1.0, float(np.square(np.bincount(decision, weights=residual)).sum()) / alone) if alone > 0.0 else 1.0


def _alike(x: FloatArray, n: FloatArray, draws: int, rng: np.random.Generator) -> FloatArray:
    """Posterior draws of rates that are alike, but not equal: a Beta-binomial hierarchy.

    Its mean and strength are drawn from a grid, under the prior p(strength) ~ strength^(-3/2) of Gelman et al.
    (Bayesian Data Analysis, 5.3): a few members are not thought alike because they cannot show that they differ.

    :param x: (members,) successes. :param n: (members,) trials; neither need be whole.
    :return: (members, draws).
    """
    log_weight = -0.5 * np.log(_A + _B)  # the prior, on a grid that is even in log(strength)
    pairs, times = np.unique(np.stack([x, n], axis=1), axis=0, return_counts=True)
    for (successes, trials), k in zip(pairs, times, strict=True):
        log_weight += k * (betaln(_A + successes, _B + trials - successes) - _NO_DATA)
    weight = np.exp(log_weight - log_weight.max())
    drawn = rng.choice(weight.size, draws, p=weight / weight.sum())
    return _inside(rng.beta(_A[drawn] + x[:, None], _B[drawn] + (n - x)[:, None]))


def _inside(rates: FloatArray) -> FloatArray:
    return np.clip(rates, _LEAST, 1.0 - _LEAST)


def _rate(drawn: FloatArray, level: float, n: int) -> Rate:
    low, high = np.quantile(drawn, [0.5 - level / 2.0, 0.5 + level / 2.0])
    return Rate(float(drawn.mean()), float(low), float(high), n)
