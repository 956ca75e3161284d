"""Which settings of a policy can be promised to keep a limit: Learn-then-Test (Angelopoulos et al. 2021, 2110.01052).

Each setting has a hypothesis, "its expected gain is not above 0", and is promised once that is rejected. Two parts:

- ``gains_shown`` tests one hypothesis by betting (Waudby-Smith, Ramdas 2010.09686) with stakes that are worked out anew
  before each bet so as to reach the goal with the last row (STaR-Bets, Voracek, Orabona 2505.22422). Valid at every
  sample size for gains bounded from below, whatever their distribution, and nearly as sharp as the t-test, which is
  not valid: where policy and reference seldom differ, it was wrong in up to .32 of simulated draws at level .1.
- ``first_failure`` goes through settings in an order fixed beforehand and stops at the first that fails. The
  probability that any setting before it is wrong stays below the level, however many settings there are.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from router_ml.errors import TableError
from training.metrics import BoolArray, FloatArray

LARGEST_STAKE = 0.9  # of the stake at which one worst row would lose everything
FIRST_VARIANCE = 0.25  # one made-up row before the first, as in 2010.09686; in units of the bound, squared


def gains_shown(gain: FloatArray, bound: float, level: float) -> BoolArray:
    """Reject "the expected gain is <= 0", for k gains measured on the same rows.

    :param gain: (n, k), n independent rows, none below ``-bound``, in an order that does not depend on their values.
    :param bound: largest loss of one row, above 0.
    :param level: probability at most with which a gain whose expectation is <= 0 is taken for one, in (0, 1).
    :return: (k,) whether each gain is shown to be above 0.
    :raises TableError: if a loss is larger than the bound: the test would not be valid.
    """
    if gain.size and float(gain.min()) < -bound * (1 + 1e-9):
        raise TableError("gains_shown", [f"a row loses {-gain.min():.6g}; expected at most {bound:.6g}"])
    n, k = gain.shape
    goal = math.log(1.0 / level)  # log wealth that a worthless gain reaches with probability <= level (Ville 1939)
    wealth, squares = np.zeros(k), np.full(k, FIRST_VARIANCE)
    open_ = np.arange(k)  # who has reached the goal keeps what it has
    for i in range(n):
        row = gain[i, open_] / bound
        missing, left = goal - wealth[open_], n - i
        stake = np.sqrt(2.0 * missing * (i + 1) / (left * squares[open_]))
        wealth[open_] += np.log1p(np.minimum(stake, LARGEST_STAKE) * row)
        squares[open_] += row * row
        open_ = open_[wealth[open_] < goal]
    return np.asarray(wealth >= goal)


def first_failure(shown: npt.ArrayLike) -> int:
    """Fixed-sequence testing: how many hypotheses in a row are rejected before the first that is not."""
    failed = np.flatnonzero(~np.asarray(shown, dtype=bool))
    return int(failed[0]) if failed.size else int(np.size(shown))


def rows_needed(gain: FloatArray, bound: float, level: float, power: float = 0.8) -> float:
    """Roughly how many rows like these would show the gain with the given probability; infinity if none would.

    :param gain: (n,) of one setting.
    """
    mean, variance = float(gain.mean()), float(gain.var())
    if mean <= 0.0:
        return math.inf
    by_noise = variance * (NormalDist().inv_cdf(1.0 - level) + NormalDist().inv_cdf(power)) ** 2 / mean**2
    by_stake = math.log(1.0 / level) / math.log1p(LARGEST_STAKE * mean / bound)  # every row wins, none loses
    return math.ceil(max(by_noise, by_stake))
