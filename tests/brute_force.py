"""Plans found by trying everything, written without the planner: by walking the tree of every sequence's outcomes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from functools import cache

from router_ml.request import VerifierSpec


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
