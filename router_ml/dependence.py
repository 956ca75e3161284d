"""How the successes of several models on one request hang together. Pure.

What one model fails at is hard for the others too. A single hidden difficulty ``z ~ N(0, 1)`` says how much (the
one-factor probit model; Ashford & Sowden, Biometrics 1970; as a copula, Li, J. Fixed Income 2000)::

    P(model m succeeds | z) = Phi(a_m + b_m z)

Some requests are beyond everybody besides: a share ``k`` of the failures of the strongest model, which no other model
makes up for. ``b_m``, the loading of the model, and ``k`` are learned by ``training.dependence``; ``a_m`` is set for
each request so that the mean over all that is the P(success) that the classifier gives. Given the difficulty models
succeed independently.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from router_ml.errors import ArtifactError

Array = NDArray[np.float64]

# Where no data say: half of the latent variance is shared. Fitted to tables, loadings lie around .5 to 2, the share of
# hopeless requests at .1 to .5 (docs/LOG.md).
DEFAULT_LOADING = 1.0
DEFAULT_HOPELESS = 0.2
MAX_LOADING = 10.0
# Of z. Against the exact integral, P(success) of the plans of random problems errs by 4e-6 in the median and .001 at
# worst, P(two models fail) by up to .0025, for loadings up to 3.5.
N_NODES = 7
_CELLS = 256  # of the table over P(success)
_REACH = 8.0  # Phi is 0 or 1 beyond, to double precision

_GRID = np.linspace(-_REACH, _REACH, 4_001)
_CDF = np.array([0.5 * math.erfc(-x / math.sqrt(2.0)) for x in _GRID.tolist()])


def normal_cdf(x: Array) -> Array:
    """Phi, to 1e-6, without SciPy, which takes longer to import than this package."""
    out: Array = np.interp(x, _GRID, _CDF)
    return out


def difficulty_nodes(n: int = N_NODES) -> tuple[Array, Array]:
    """Nodes of N(0, 1) and their weights, which add up to 1: Gauss-Legendre over its quantiles.

    Gauss-Hermite would put half of its nodes where hardly a request is, and errs by .01 where loadings are above 2.
    """
    at, weights = np.polynomial.legendre.leggauss(n)
    quantile = NormalDist().inv_cdf
    return np.array([quantile((x + 1.0) / 2.0) for x in at.tolist()]), weights / 2.0


class Dependence:
    """How the successes of the models of a pool hang together.

    :param loadings: b_m >= 0 of each model, in pool order; 0: given that it is not hopeless, a request fails each
        independently.
    :param hopeless: the share k, in [0, 1], of the strongest model's failures that are everybody's.
    :raises ArtifactError: if a number is outside its range.
    """

    def __init__(self, loadings: Sequence[float], hopeless: float = DEFAULT_HOPELESS) -> None:
        self.loadings = np.array(loadings, dtype=np.float64)
        # written so that NaN fails
        if not ((self.loadings >= 0.0) & (self.loadings <= MAX_LOADING)).all():
            raise ArtifactError(f"loadings of the dependence are {list(loadings)}; expected numbers in [0, 10]")
        if not 0.0 <= hopeless <= 1.0:
            raise ArtifactError(f"the hopeless share of the dependence is {hopeless}; expected a number in [0, 1]")
        self.hopeless = hopeless
        self.nodes, self.weights = difficulty_nodes()

    def given_difficulty(
        self, models: Sequence[int], p: Array, strongest: float | None = None
    ) -> tuple[Array, Array]:  # fmt: skip
        """P(success) at each node of difficulty.

        :param models: indices of n models. :param p: (n,) their P(success).
        :param strongest: P(success) of the strongest model of the pool; None: that of the n.
        :return: (n, N_NODES + 1), the last node hopeless, and the weights (N_NODES + 1,) of the nodes. The weighted
            mean is ``p``, to 1e-7.
        """
        hopeless = self.hopeless * (1.0 - (float(p.max()) if strongest is None else strongest))
        right = np.zeros((len(p), N_NODES + 1))
        right[:, :-1] = self._given_difficulty(models, np.minimum(p / max(1.0 - hopeless, 1e-12), 1.0))
        return right, np.append(self.weights * (1.0 - hopeless), hopeless)

    def _given_difficulty(self, models: Sequence[int], p: Array) -> Array:
        position = p * _CELLS
        cell = np.minimum(position.astype(np.intp), _CELLS - 1)
        share = (position - cell)[:, None]
        # linear between cells, which are linear in p: so the mean stays exact
        low, high = self._table[models, cell], self._table[models, cell + 1]
        out: Array = low + share * (high - low)
        return out

    @cached_property
    def _table(self) -> Array:
        """(n_models, _CELLS + 1, N_NODES): P(success) at each node where the mean is cell / _CELLS."""
        out = np.empty((len(self.loadings), _CELLS + 1, N_NODES))
        wanted = np.arange(1, _CELLS) / _CELLS
        for m, loading in enumerate(self.loadings.tolist()):
            shift = loading * self.nodes
            reach = _REACH + loading * float(self.nodes[-1])
            offsets = np.linspace(-reach, reach, 2_001)
            mean = normal_cdf(offsets[:, None] + shift) @ self.weights
            at = normal_cdf(np.interp(wanted, mean, offsets)[:, None] + shift)
            # the small error of interpolation goes where there is room for it, so that the mean is what it should be
            room = at * (1.0 - at)
            error = (wanted - at @ self.weights) / np.maximum(room @ self.weights, 1e-12)
            out[m, 1:-1] = np.clip(at + error[:, None] * room, 0.0, 1.0)
            out[m, 0], out[m, -1] = 0.0, 1.0
        return out
