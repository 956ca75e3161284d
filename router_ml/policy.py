"""Which model a request goes to, given the probability that each would succeed. Pure: no text, no clock, no network.

The steps, in order: guards remove candidates, each with a sentence; a pin decides; else the lowest expected loss, if a
failure has a price; else the cheapest candidate likely enough; else escalation. A request unlike the training data
escalates, if the pool says so. A budget may then force a weaker choice, which is marked as degraded, and exploration
may replace the choice with a known probability.

Where the answer will be checked, a plan of several models decides in place of the last three rules: the one of lowest
expected loss, or the cheapest that is likely enough as a whole.

Whether a person supervises the answer is a feature of the request, for the classifier. It moves no threshold here, but
the pool's rules may price a failure by it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from router_ml.cost import CostModel, cached_tokens
from router_ml.dependence import DEFAULT_LOADING, Dependence
from router_ml.errors import BudgetExceededError, NoEligibleModelError, RouterError
from router_ml.guards import Guards
from router_ml.plan import Plan
from router_ml.planning import Planned, Planner
from router_ml.pool import ModelPool
from router_ml.reliability import reliability_of
from router_ml.request import Objective, Reason, ReasonCode, RouteRequest, Trace, VerifierSpec
from router_ml.terms import Rulebook, Terms, smallest


class Choice(NamedTuple):
    """The decision; models by their index in the pool.

    :param excluded: for each model, the sentence that says why it was out, or None. Too dear for the budget is out.
    :param latency_s: expected seconds for each model, None where unknown.
    :param propensity: probability with which this policy takes this model on this request, in (0, 1].
    :param threshold: probability of success that was asked for; a pin or a failure cost decides without it.
    :param expected_cost_usd: for each model, less what the prompt cache of ``current_model`` saves.
    :param pinned: the request or a rule named the model, so no other may answer.
    :param objective: what the decision was made by.
    :param plan: models in the order of calling; ``model`` alone where nothing checks the answer.
    :param second: where a plan decided, the best that begins with another model.
    """

    model: int
    escalated: bool
    degraded: bool
    reason: Reason
    excluded: tuple[str | None, ...]
    latency_s: tuple[float | None, ...]
    propensity: float
    threshold: float
    expected_cost_usd: tuple[float, ...]
    pinned: bool
    objective: Objective
    plan: Plan
    second: Plan | None


class Cap(NamedTuple):
    """An amount that may be spent in a time, and what of it is spent or reserved. ``name`` as an error shows it."""

    name: str
    limit_usd: float
    spent_usd: float

    @property
    def left_usd(self) -> float:
        """What may still be spent, never below 0."""
        return max(0.0, self.limit_usd - self.spent_usd)


class Live(NamedTuple):
    """What is known of the models at this moment; each part may be empty.

    :param unavailable: model -> why it cannot be called now.
    :param latency_s: model -> (p50, p95) seconds of its recent calls; they replace what the pool says.
    :param cap: what this request may still cost, by the tightest of the caps.
    """

    unavailable: Mapping[str, str] = {}
    latency_s: Mapping[str, tuple[float, float]] = {}
    cap: Cap | None = None


NOTHING_LIVE = Live()


class _Pick(NamedTuple):
    model: int
    code: ReasonCode
    text: str
    escalated: bool = False
    degraded: bool = False
    planned: Planned | None = None


class _Options(NamedTuple):
    """What there is to choose from: models by index, numbers per model of the pool."""

    terms: Terms
    threshold: float
    p: Sequence[float]
    cost: Sequence[float]
    latency_s: Sequence[float | None]
    eligible: list[int]
    affordable: list[int]
    cap: Cap | None
    verifier: VerifierSpec | None
    unlike: bool = False


class Policy:
    """The decision rule of one pool; tables that a decision needs are made here, once.

    :param pool: its order of models is the order of every sequence here.
    :param dependence: how the successes of its models hang together; None: as it is for models of which nothing is
        known.
    :param costs: prices of the same pool; None: made from it.
    """

    def __init__(self, pool: ModelPool, dependence: Dependence | None = None, costs: CostModel | None = None) -> None:
        self.pool = pool
        self._planner = Planner(pool, dependence or Dependence([DEFAULT_LOADING] * len(pool.models)))
        self._costs = costs if costs is not None else CostModel(pool)
        self._names = pool.names
        self._index = {name: i for i, name in enumerate(self._names)}
        self._escalation = self._index[pool.escalation_model]
        self._guards = Guards(pool)
        self.terms = Rulebook(pool).terms

    def decide(
        self,
        request: RouteRequest,
        trace: Trace,
        p_success: Sequence[float],
        expected_cost: Sequence[float],
        expected_output_tokens: Sequence[float] | None = None,
        *,
        rng: random.Random | None = None,
        live: Live | None = None,
        unlike: bool = False,
    ) -> Choice:
        """Choose a model.

        :param p_success: P(success) of each model on this request, Python floats in [0, 1].
        :param expected_cost: US dollars that a call of each model is expected to cost, without any prompt cache.
        :param expected_output_tokens: tokens that each model is expected to write; None: 500 times its
            ``output_factor``, or the request's ``max_output_tokens`` if that is less.
        :param rng: draws the exploration; None: no exploration.
        :param live: what is known of the models at this moment; None: nothing.
        :param unlike: whether the request is unlike the training data, so that the probabilities say little.
        :raises NoEligibleModelError: if every model is excluded, or the pinned one is; with the reason for each.
        :raises BudgetExceededError: if ``live.cap`` allows no eligible model, or a budget that refuses is exceeded.
        :raises RequestError: if the request names a model that the pool does not have.
        :raises RouterError: if a probability or a cost is out of range or NaN: there is no choosing on NaN.
        """
        self._check_numbers(p_success, expected_cost)
        live = live or NOTHING_LIVE
        terms = self.terms(request, trace)
        cost = self._costs.less_cache(request, trace, expected_cost)
        latency = worst = self._guards.latency(request, expected_output_tokens)
        if live.latency_s:
            latency, worst = self._measured(latency, live.latency_s)
        excluded, note = self._guards.exclude(
            request, trace, barred=terms.barred, latency=worst, max_latency_s=terms.max_latency_s,
            output_tokens=expected_output_tokens, unavailable=live.unavailable,
        )  # fmt: skip
        if request.cached_tokens:
            self._bound_switch(request, trace, terms.pin, excluded)
        eligible = [i for i, why in enumerate(excluded) if why is None]
        cap = _tightest(terms.budget_usd, live.cap)
        affordable = eligible if cap is None else _afford(cap.left_usd, cost, eligible, excluded)
        if terms.pin is None and not affordable:
            if eligible and cap is not None and cap is live.cap:
                raise BudgetExceededError(*cap, min(cost[i] for i in eligible))
            raise NoEligibleModelError({name: why or "" for name, why in zip(self._names, excluded, strict=True)})
        threshold = p_success[self._escalation] if isinstance(terms.threshold, str) else float(terms.threshold)
        verifier = reliability_of(request, self.pool)
        options = _Options(terms, threshold, p_success, cost, worst, eligible, affordable, cap, verifier, unlike)
        propensity = 1.0
        if terms.pin is not None:
            pick = self._pinned(terms.pin, terms.pin_rule, excluded)
        else:
            pick = self._within_cap(options, self._wanted(options))
            if rng is not None and self.pool.exploration > 0.0:
                pick, propensity = self._explore(options, pick, rng)
        plans = pick.planned.plans if pick.planned is not None else None
        return Choice(
            pick.model, pick.escalated, pick.degraded, Reason(pick.code, pick.text + note), tuple(excluded), latency,
            propensity, threshold, cost, terms.pin is not None, self._objective(options, pick),
            plans.best if plans is not None else self._single(options, pick.model),
            plans.second if plans is not None else None,
        )  # fmt: skip

    def _wanted(self, options: _Options) -> _Pick:
        """The choice if money were no matter."""
        if options.verifier is not None and (planned := self._plan(options, options.eligible)) is not None:
            usual = self._of_plan(planned)
        else:
            usual = self._pick(options.terms, options.threshold, options.p, options.cost, options.eligible)
        return self._cautious(options, usual) if options.unlike and self.pool.unlike == "escalate" else usual

    def _plan(self, options: _Options, models: list[int], *, first: int | None = None) -> Planned | None:
        assert options.verifier is not None
        cap = options.cap
        budget = cap.left_usd if cap is not None and models is options.affordable else None
        return self._planner.plan(
            options.terms, options.verifier, options.p, options.cost, options.latency_s, models, budget_usd=budget,
            first=first,
        )  # fmt: skip

    def _of_plan(self, planned: Planned) -> _Pick:
        model = planned.plan.models[0]
        escalated = model == self._escalation and planned.code is not ReasonCode.LOWEST_EXPECTED_LOSS
        return _Pick(model, planned.code, planned.text, escalated, planned=planned)

    def _objective(self, options: _Options, pick: _Pick) -> Objective:
        if options.terms.pin is not None:
            return Objective("pinned", None)
        if options.terms.failure_cost_usd is not None:
            return Objective("failure_cost", options.terms.failure_cost_usd)
        if pick.planned is not None or (options.verifier is not None and pick.code is ReasonCode.UNLIKE):
            return Objective("min_quality", self._planner.goal(options.terms, options.p, None).min_quality)
        return Objective("threshold", options.threshold)

    def _single(self, options: _Options, model: int) -> Plan:
        check = 0.0 if options.verifier is None else options.verifier.cost_usd
        return Plan((model,), options.p[model], options.cost[model] + check, (1.0,), (options.p[model],))

    def _pinned(self, pin: str, rule: str | None, excluded: list[str | None]) -> _Pick:
        model = self._index[pin]
        who = rule or "the request"
        if excluded[model] is None:
            return _Pick(model, ReasonCode.RULE if rule else ReasonCode.PINNED, f"{who} pins {pin}")
        reasons = {name: why or f"{who} pins {pin}" for name, why in zip(self._names, excluded, strict=True)}
        reasons[pin] = f"pinned by {who}, but {reasons[pin]}"
        raise NoEligibleModelError(reasons)

    def _pick(
        self, terms: Terms, threshold: float, p: Sequence[float], cost: Sequence[float], eligible: list[int]
    ) -> _Pick:
        failure_cost = terms.failure_cost_usd
        if failure_cost is not None:
            loss = [c + (1.0 - q) * failure_cost for c, q in zip(cost, p, strict=True)]
            model = min(eligible, key=lambda i: (loss[i], -p[i]))
            return _Pick(
                model, ReasonCode.LOWEST_EXPECTED_LOSS,
                f"{self._names[model]} has the lowest expected loss, {loss[model]:.6g} USD, where a failure costs "
                f"{failure_cost:.6g} USD" + (f", by {terms.failure_cost_rule}" if terms.failure_cost_rule else ""),
            )  # fmt: skip
        model, escalated = self._cheapest_likely(threshold, p, cost, eligible)
        asked = f"{threshold:.3f}" + (f", asked by {terms.threshold_rule}" if terms.threshold_rule else "")
        name = self._names[model]
        if escalated:
            text = f"no eligible model reaches a probability of success of {asked}; escalated to {name}"
            if model != self._escalation:
                text += f", the likeliest, since {self._names[self._escalation]} is not eligible"
            return _Pick(model, ReasonCode.LOW_CONFIDENCE, text, escalated=True)
        code = ReasonCode.CHEAPEST_LIKELY
        if terms.threshold_rule:
            without, _ = self._cheapest_likely(self.pool.confidence_threshold, p, cost, eligible)
            code = code if without == model else ReasonCode.RULE
        return _Pick(
            model,
            code,
            f"{name} is the cheapest eligible model with a probability of success ({p[model]:.3f}) >= {asked}",
        )

    def _cheapest_likely(
        self, threshold: float, p: Sequence[float], cost: Sequence[float], eligible: list[int]
    ) -> tuple[int, bool]:
        """The cheapest model likely enough, or where to escalate to; and whether it escalates."""
        likely = [i for i in eligible if p[i] >= threshold]
        if likely:
            return min(likely, key=lambda i: (cost[i], -p[i])), False
        if self._escalation in eligible:
            return self._escalation, True
        return max(eligible, key=lambda i: (p[i], -cost[i])), True

    def _cautious(self, options: _Options, usual: _Pick) -> _Pick:
        """Escalation in place of a choice made on probabilities of requests unlike this one."""
        p, cost, failure_cost = options.p, options.cost, options.terms.failure_cost_usd
        safe, _ = self._cheapest_likely(math.inf, p, cost, options.eligible)
        sure_loss = math.inf if failure_cost is None else cost[usual.model] + failure_cost
        checked = usual.planned is not None and safe in usual.planned.plan.models
        # whatever the probabilities are, escalation cannot pay where it costs more than a sure failure
        if safe == usual.model or sure_loss <= cost[safe] or checked:
            return usual
        name = self._names[safe]
        text = f"the request is unlike the training data, so that probabilities say little; escalated to {name}"
        if safe != self._escalation:
            text += f", the likeliest, since {self._names[self._escalation]} is not eligible"
        return _Pick(safe, ReasonCode.UNLIKE, text, escalated=True)

    def _within_cap(self, options: _Options, wanted: _Pick) -> _Pick:
        """The wanted choice, or a weaker one where a cap forbids it: no plan may cost more if it comes to the worst."""
        cap, p, cost = options.cap, options.p, options.cost
        if cap is None or self._fits(options, wanted, cap):
            return wanted
        allowed = wanted.model in options.affordable
        if not allowed and self.pool.budgets.on_exceeded == "refuse":
            raise BudgetExceededError(*cap, cost[wanted.model])
        before = None if wanted.planned is None else wanted.planned.plan
        name = self._names[wanted.model] if before is None else self._planner.text(before)
        if options.verifier is not None and (planned := self._plan(options, options.affordable)) is not None:
            if before is not None and planned.plan.models == before.models:  # only the second went over
                return wanted._replace(planned=planned)
            text = f"{name} was wanted but may go over budget; within it {self._planner.text(planned.plan)} is best"
            return _Pick(planned.plan.models[0], ReasonCode.BUDGET, text, degraded=True, planned=planned)
        if allowed and before is not None and len(before.models) == 1:
            return wanted  # no model leaves enough for the check of its answer
        model = max(options.affordable, key=lambda i: (p[i], -cost[i]))
        text = (
            f"{name} was wanted but is over budget; of the models within it "
            f"{self._names[model]} is the likeliest to succeed ({p[model]:.3f})"
        )
        return _Pick(model, ReasonCode.BUDGET, text, degraded=True)

    def _fits(self, options: _Options, wanted: _Pick, cap: Cap) -> bool:
        """Whether the choice, and the plan that is told of as second, stay within the cap at their worst."""
        if wanted.planned is None or options.verifier is None:
            return wanted.model in options.affordable
        check = options.verifier.cost_usd
        plans = [plan for plan in wanted.planned.plans if plan is not None]
        return all(sum(options.cost[i] + check for i in plan.models) <= cap.left_usd for plan in plans)

    def _explore(self, options: _Options, greedy: _Pick, rng: random.Random) -> tuple[_Pick, float]:
        """Epsilon-greedy choice and its propensity: the mixture of the uniform and the greedy policy."""
        epsilon, affordable = self.pool.exploration, options.affordable
        chance = epsilon / len(affordable)
        model = rng.choice(affordable) if rng.random() < epsilon else greedy.model
        if model == greedy.model:
            return greedy, chance + (1.0 - epsilon)
        text = f"exploration took {self._names[model]} in place of {self._names[greedy.model]}"
        planned = None if options.verifier is None else self._plan(options, affordable, first=model)
        return _Pick(model, ReasonCode.EXPLORATION, text, degraded=greedy.degraded, planned=planned), chance

    def _bound_switch(self, request: RouteRequest, trace: Trace, pin: str | None, excluded: list[str | None]) -> None:
        """Exclude models to which switching costs more than the request or the pool allows, but for a pinned one.

        What a switch costs is the conversation so far, read again at the new model's full price.
        """
        limit = smallest(request.max_switch_usd, self.pool.max_switch_usd)
        current = self._index.get(request.current_model or "")
        if limit is None or current is None or excluded[current] is not None:
            return  # a conversation whose model cannot go on has to leave, whatever that costs
        cached = cached_tokens(request, trace)
        for i, usd in enumerate(self._costs.switch_cost(request, trace)):
            if i != current and self._names[i] != pin and excluded[i] is None and usd > limit:
                excluded[i] = (
                    f"switching to it reads {cached} cached tokens again for {usd:.6g} USD, "
                    f"the limit is {limit:.6g} USD"
                )

    def _measured(
        self, latency: tuple[float | None, ...], measured: Mapping[str, tuple[float, float]]
    ) -> tuple[tuple[float | None, ...], tuple[float | None, ...]]:
        """Expected latency, and the latency that a limit is held against: p50 and p95 where calls were measured."""
        pairs = [measured.get(name, (seconds, seconds)) for name, seconds in zip(self._names, latency, strict=True)]
        return tuple([pair[0] for pair in pairs]), tuple([pair[1] for pair in pairs])

    def _check_numbers(self, p_success: Sequence[float], cost: Sequence[float]) -> None:
        n = len(self._names)
        if len(p_success) != n or len(cost) != n:
            raise RouterError(f"{len(p_success)} probabilities and {len(cost)} costs came for a pool of {n} models")
        for i in range(n):
            # written so that NaN, which compares false with everything, fails
            if not (0.0 <= p_success[i] <= 1.0 and 0.0 <= cost[i] < math.inf):
                raise RouterError(
                    f"{self._names[i]}: P(success) is {p_success[i]!r} and expected cost {cost[i]!r} USD; expected a "
                    "probability in [0, 1] and a finite cost >= 0: what made these numbers is broken"
                )


def _tightest(budget: float | None, cap: Cap | None) -> Cap | None:
    """The smaller of the request's own budget and what a cap has left."""
    if budget is None or (cap is not None and cap.left_usd < budget):
        return cap
    return Cap("the budget of the request", budget, 0.0)


def _afford(budget: float, cost: Sequence[float], eligible: list[int], excluded: list[str | None]) -> list[int]:
    """Eligible models within the budget; the others get their sentence in ``excluded``."""
    for i in eligible:
        if cost[i] > budget:
            excluded[i] = f"over budget: expected to cost {cost[i]:.6g} USD, the budget is {budget:.6g} USD"
    return [i for i in eligible if cost[i] <= budget]
