"""Plans found by trying everything, one by one: what the planner is held against.

Nothing is shared with it but the nodes of difficulty, which are part of the problem here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from router_ml.dependence import Dependence, difficulty_nodes
from router_ml.plan import Candidates, Goal, best_plans
from router_ml.request import VerifierSpec

PRICES = (0.01, 0.3, 10.0)  # of a failure, where calls cost .001 to 1


@dataclass
class Problem:
    """A pool: P(success), USD and loading of each model, and a verifier."""

    p: list[float]
    cost: list[float]
    loadings: list[float]
    hopeless: float
    verifier: VerifierSpec

    @classmethod
    def random(cls, rng: np.random.Generator, n: int) -> Problem:
        """Prices over three orders of magnitude, dearer models likelier on the whole."""
        p = np.clip(np.sort(rng.uniform(0.1, 0.97, n)) + rng.normal(0.0, 0.1, n), 0.02, 0.98)
        cost = np.sort(10.0 ** rng.uniform(-3.0, 0.0, n))
        check = float(rng.choice([0.0, 0.001]))
        verifier = VerifierSpec(float(rng.uniform(0.8, 1.0)), float(rng.uniform(0.0, 0.3)), check)
        loadings, hopeless = rng.uniform(0.0, 2.5, n).tolist(), float(rng.uniform(0.0, 0.6))
        return cls(p.tolist(), cost.tolist(), loadings, hopeless, verifier)

    @property
    def dependence(self) -> Dependence:
        """As the planner takes it."""
        return Dependence(self.loadings, self.hopeless)

    def candidates(self, **more: Any) -> Candidates:
        """For the planner. :param more: its further arguments."""
        return Candidates(range(len(self.p)), self.p, self.cost, self.verifier, self.dependence, **more)

    def every_plan(self) -> dict[tuple[int, ...], tuple[float, float]]:
        """Sequence -> its cost and P(success)."""
        nodes, weights = (array.tolist() for array in difficulty_nodes())
        beyond = self.hopeless * (1.0 - max(self.p))
        right = [
            [*right_given_difficulty(p / (1.0 - beyond), b, nodes, weights), 0.0]
            for p, b in zip(self.p, self.loadings, strict=True)
        ]
        weights = [*(w * (1.0 - beyond) for w in weights), beyond]
        n = len(self.p)
        return {order: evaluate(order, right, weights, self.cost, self.verifier) for order in sequences(n, n)}


def excess_loss(problem: Problem) -> float:
    """How much more the planner's sequence loses than the best one, as a share, at the worst of ``PRICES``; or costs,
    where it has to be as likely as the best single model."""
    truth, candidates = problem.every_plan(), problem.candidates()
    worst = 0.0
    for price in PRICES:
        loss = {order: cost + (1.0 - p) * price for order, (cost, p) in truth.items()}
        chosen = best_plans(candidates, Goal(failure_cost_usd=price)).best
        worst = max(worst, loss[chosen.models] / min(loss.values()) - 1.0)
    wanted = max(problem.p)
    chosen = best_plans(candidates, Goal(min_quality=wanted)).best
    least = min(cost for cost, p in truth.values() if p >= wanted - 1e-9)
    return max(worst, truth[chosen.models][0] / least - 1.0)


def right_given_difficulty(p: float, loading: float, nodes: Sequence[float], weights: Sequence[float]) -> list[float]:
    """Phi(a + b z) at each node, a found by bisection so that the mean is p."""
    low, high = -200.0, 200.0
    for _ in range(200):
        a = (low + high) / 2
        mean = sum(w * _phi(a + loading * z) for z, w in zip(nodes, weights, strict=True))
        low, high = (a, high) if mean < p else (low, a)
    return [_phi(a + loading * z) for z in nodes]


def _phi(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2.0))


def evaluate(
    sequence: Sequence[int], right: Sequence[Sequence[float]], weights: Sequence[float], cost: Sequence[float],
    verifier: VerifierSpec,
) -> tuple[float, float]:  # fmt: skip
    """Expected cost and P(success): over every difficulty, every stage right or wrong, accepted or not."""
    total_cost = total_right = 0.0
    for k, weight in enumerate(weights):
        stack = [(0, weight)]
        while stack:
            stage, mass = stack.pop()
            model = sequence[stage]
            total_cost += mass * (cost[model] + verifier.cost_usd)
            for is_right, chance in ((True, right[model][k]), (False, 1.0 - right[model][k])):
                accept = verifier.true_accept if is_right else verifier.false_accept
                if stage == len(sequence) - 1:
                    total_right += mass * chance * is_right
                    continue
                total_right += mass * chance * accept * is_right
                if chance * (1.0 - accept) > 0.0:
                    stack.append((stage + 1, mass * chance * (1.0 - accept)))
    return total_cost, total_right


def sequences(n: int, longest: int) -> Iterator[tuple[int, ...]]:
    """Every order of every subset."""
    for length in range(1, longest + 1):
        yield from itertools.permutations(range(n), length)


def least_loss(
    right: Sequence[Sequence[float]], weights: Sequence[float], cost: Sequence[float], accept: tuple[float, float],
    price: float,
) -> float:  # fmt: skip
    """The least expected cost with failures priced, over sequences of any length, by dynamic programming on the set of
    models that were rejected. :param cost: with the check."""
    n, nodes = len(right), range(len(weights))
    true_accept, false_accept = accept

    @cache
    def reached(tried: frozenset[int]) -> tuple[float, ...]:
        mass = list(weights)
        for model in sorted(tried):
            for k in nodes:
                s = right[model][k]
                mass[k] *= s * (1.0 - true_accept) + (1.0 - s) * (1.0 - false_accept)
        return tuple(mass)

    @cache
    def gain(tried: frozenset[int]) -> float:
        mass = reached(tried)
        best = -math.inf
        for model in set(range(n)) - tried:
            hit = sum(mass[k] * right[model][k] for k in nodes)
            spent = sum(mass) * cost[model]
            best = max(best, price * hit - spent)
            if len(tried) < n - 1:
                best = max(best, price * true_accept * hit - spent + gain(tried | {model}))
        return best

    return price - gain(frozenset())
