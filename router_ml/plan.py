"""Plans: which model first, which next if the verifier rejects its answer. Pure: takes probabilities and costs.

A plan of two stages, the chosen model and then the escalation model, is what a verifier makes possible at the least.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from router_ml.request import VerifierSpec


class Plan(NamedTuple):
    """Models by their index in the pool, in the order of calling.

    :param p_success: probability that the answer that the plan ends with is right.
    :param expected_cost_usd: expected cost of all calls and checks.
    """

    models: tuple[int, ...]
    p_success: float
    expected_cost_usd: float


def escalation_plan(
    first: int, escalation: int, p: Sequence[float], cost: Sequence[float], verifier: VerifierSpec
) -> Plan:
    """The chosen model, then the escalation model if the answer is rejected.

    Successes of two models on one request go together: what one model fails at is hard for the other too. How much
    is not known here, so ``p_success`` takes them to go together as far as their probabilities allow (the
    comonotone coupling, the upper Frechet bound of P(both right)), which is the cautious end for a cascade.

    :param p: P(success) of each model. :param cost: expected USD of a call of each model.
    """
    right, check = p[first], verifier.cost_usd
    if first == escalation:
        return Plan((first,), right, cost[first] + check)
    true_accept, false_accept = verifier.true_accept, verifier.false_accept
    both_right, rescued = min(right, p[escalation]), max(0.0, p[escalation] - right)
    rejected = right * (1.0 - true_accept) + (1.0 - right) * (1.0 - false_accept)
    return Plan(
        (first, escalation),
        right * true_accept + (1.0 - true_accept) * both_right + (1.0 - false_accept) * rescued,
        cost[first] + check + rejected * (cost[escalation] + check),
    )
