"""What a second stage is worth: exact where successes go together as far as they can, cautious elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_ml.plan import escalation_plan
from router_ml.request import VerifierSpec

SHARE = st.floats(0.0, 1.0)


def simulated(
    p: tuple[float, float], cost: tuple[float, float], spec: VerifierSpec, together: bool, n: int = 200_000
) -> tuple[float, float]:
    """Success rate and mean cost of the cascade in a world where successes are comonotone, or independent."""
    rng = np.random.default_rng(0)
    luck = rng.random(n)
    first = luck < p[0]
    second = (luck if together else rng.random(n)) < p[1]
    accepted = rng.random(n) < np.where(first, spec.true_accept, spec.false_accept)
    right = np.where(accepted, first, second)
    spent = cost[0] + spec.cost_usd + ~accepted * (cost[1] + spec.cost_usd)
    return float(right.mean()), float(spent.mean())


@pytest.mark.parametrize("p", [(0.3, 0.8), (0.6, 0.6), (0.9, 0.5)])
@pytest.mark.parametrize("accept", [(1.0, 0.0), (0.95, 0.05), (0.9, 0.2)])
def test_it_is_what_a_simulated_world_shows(p: tuple[float, float], accept: tuple[float, float]) -> None:
    spec, cost = VerifierSpec(*accept, cost_usd=0.1), (1.0, 10.0)
    plan = escalation_plan(0, 1, p, cost, spec)
    success, spent = simulated(p, cost, spec, together=True)
    assert plan.p_success == pytest.approx(success, abs=0.005) and plan.expected_cost_usd == pytest.approx(
        spent, abs=0.05
    )
    assert plan.p_success <= simulated(p, cost, spec, together=False)[0] + 0.005  # the cautious end


@given(SHARE, SHARE, st.floats(0.01, 1.0), st.floats(0.0, 0.99))
def test_it_is_a_probability_and_costs_at_least_the_first_call(p: float, q: float, true: float, false: float) -> None:
    plan = escalation_plan(0, 1, (p, q), (1.0, 5.0), VerifierSpec(true, false))
    assert 0.0 <= plan.p_success <= 1.0 + 1e-12 and 1.0 <= plan.expected_cost_usd <= 6.0 + 1e-9


@given(SHARE, SHARE)
def test_a_perfect_verifier_gives_the_better_of_the_two(p: float, q: float) -> None:
    assert escalation_plan(0, 1, (p, q), (1.0, 5.0), VerifierSpec(1.0, 0.0)).p_success == pytest.approx(max(p, q))


def test_the_escalation_model_itself_has_no_second_stage() -> None:
    assert escalation_plan(1, 1, (0.3, 0.8), (1.0, 5.0), VerifierSpec(cost_usd=0.5)) == ((1,), 0.8, 5.5)
