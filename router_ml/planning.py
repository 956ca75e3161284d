"""The plan for one request, by what binds it: from terms to a goal, from a plan to a sentence. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from router_ml.dependence import Dependence
from router_ml.plan import TIE, Candidates, Goal, NothingFitsError, Plan, Plans, best_plans
from router_ml.pool import ModelPool
from router_ml.request import ReasonCode, VerifierSpec
from router_ml.terms import Terms


class Planned(NamedTuple):
    """Plans, and why the best one is."""

    plans: Plans
    code: ReasonCode
    text: str

    @property
    def plan(self) -> Plan:
        """The best."""
        return self.plans.best


class Planner:
    """Plans over one pool.

    :param dependence: how the successes of its models hang together.
    """

    def __init__(self, pool: ModelPool, dependence: Dependence) -> None:
        self.pool, self.dependence = pool, dependence
        self._names = pool.names
        self._escalation = self._names.index(pool.escalation_model)

    def plan(
        self, terms: Terms, verifier: VerifierSpec, p: Sequence[float], cost: Sequence[float],
        latency_s: Sequence[float | None], models: Sequence[int], *, budget_usd: float | None = None,
        first: int | None = None,
    ) -> Planned | None:  # fmt: skip
        """The best plan of some of the models.

        :param p: P(success), ``cost`` in USD and ``latency_s`` of each model of the pool.
        :param models: indices of those that may be called. :param first: the one that must be called first.
        :return: None if not even one model, with the check of its answer, is within the budget and the time.
        """
        goal = self.goal(terms, p, budget_usd)
        candidates = Candidates(
            models, [p[i] for i in models], [cost[i] for i in models], verifier, self.dependence,
            strongest=max(p), latency_s=[latency_s[i] for i in models],
            retry_correlation=self.pool.plan.retry_correlation,
        )  # fmt: skip
        try:
            plans = best_plans(candidates, goal, first=first, max_stages=self.pool.plan.max_stages)
        except NothingFitsError:
            return None
        return Planned(plans, *self._why(terms, goal, plans.best))

    def goal(self, terms: Terms, p: Sequence[float], budget_usd: float | None) -> Goal:
        """What a plan under these terms is for."""
        wanted = p[self._escalation] if isinstance(terms.min_quality, str) else terms.min_quality
        # where a failure has a price it may be cheaper to let a rejected answer go; else nobody asked for that
        last = self._escalation if terms.failure_cost_usd is None and self.pool.plan.last_resort else None
        return Goal(terms.failure_cost_usd, wanted, budget_usd, terms.max_latency_s, last)

    def _why(self, terms: Terms, goal: Goal, plan: Plan) -> tuple[ReasonCode, str]:
        name = self.text(plan)
        if goal.failure_cost_usd is not None:
            return ReasonCode.LOWEST_EXPECTED_LOSS, (
                f"{name} has the lowest expected loss, {plan.loss(goal.failure_cost_usd):.6g} USD, where a failure "
                f"costs {goal.failure_cost_usd:.6g} USD"
                + (f", by {terms.failure_cost_rule}" if terms.failure_cost_rule else "")
            )
        asked = f"{goal.min_quality:.3f}"
        if isinstance(terms.min_quality, str):
            asked += f", that of {self.pool.escalation_model} alone"
        elif terms.threshold_rule:
            asked += f", asked by {terms.threshold_rule}"
        if plan.p_success < goal.min_quality - TIE:
            return ReasonCode.LOW_CONFIDENCE, (
                f"no plan reaches a probability of success of {asked}; {name} is the likeliest ({plan.p_success:.3f})"
            )
        return ReasonCode.CHEAPEST_PLAN, (
            f"{name} is the cheapest plan with a probability of success ({plan.p_success:.3f}) >= {asked}"
        )

    def text(self, plan: Plan) -> str:
        """The plan in words; of a single model, that it is to be called alone."""
        names = [self._names[i] for i in plan.models]
        return f"{names[0]} alone" if len(names) == 1 else ", then ".join(names)
