"""What binds one request: its own limits, then the rules of its segment, of its task and of the pool. Pure."""

from __future__ import annotations

from typing import Literal, NamedTuple

from router_ml.errors import RequestError
from router_ml.failure_cost import first_fit
from router_ml.guards import barred_by
from router_ml.pool import ModelPool, Rule
from router_ml.request import RouteRequest, Trace


class Terms(NamedTuple):
    """What binds one request: its own limits, then the rules of its segment, of its task and of the pool.

    The nearest level wins for single values; allow lists intersect, deny lists and abilities unite, the smallest
    budget counts. A threshold at a nearer level overrides a failure cost further away, since each says how to choose:
    the request's ``failure_cost_usd``, else its ``min_quality``, else what its segment and task say, else the first
    of the pool's ``failure_costs`` that fits, else the pool's threshold.

    :param barred: for each model, the sentence of the rule that bars it whatever the request says, or None.
    :param threshold: probability of success wanted, in [0, 1], or "escalation".
    :param threshold_rule: the rule that the threshold is from; None: the request or the pool.
    :param pin_rule: the rule that the pin is from; None: the request.
    :param min_quality: probability of success wanted of a whole plan, or "escalation".
    :param failure_cost_rule: the rule that the failure cost is from, with what in the request it goes by; None: the
        request, or there is none.
    """

    barred: tuple[str | None, ...]
    threshold: float | Literal["escalation"]
    threshold_rule: str | None
    failure_cost_usd: float | None
    max_latency_s: float | None
    budget_usd: float | None
    pin: str | None
    pin_rule: str | None
    min_quality: float | Literal["escalation"] = "escalation"
    failure_cost_rule: str | None = None


class Rulebook:
    """The rules of one pool, merged for every task and segment that has any."""

    def __init__(self, pool: ModelPool) -> None:
        self.pool = pool
        self._names = pool.names
        self._terms = {
            (task, segment): _merge(pool, task, segment)
            for task in (None, *pool.tasks)
            for segment in (None, *pool.segments)
        }

    def terms(self, request: RouteRequest, trace: Trace) -> Terms:
        """What binds the request: its own limits, the rules of its task and segment, and those of the pool.

        :raises RequestError: if ``pin``, ``allow`` or ``deny`` names a model that the pool does not have.
        """
        pool = self.pool
        task = request.task if request.task in pool.tasks else None
        terms = self._terms[task, request.segment if request.segment in pool.segments else None]
        if request.allow or request.deny or request.pin is not None:
            self._check_known(request)
        if request.pin is not None:
            terms = terms._replace(pin=request.pin, pin_rule=None)
        if request.failure_cost_usd is not None:
            terms = terms._replace(failure_cost_usd=request.failure_cost_usd, failure_cost_rule=None)
        elif request.min_quality is not None:
            terms = terms._replace(failure_cost_usd=None, failure_cost_rule=None)
        elif terms.failure_cost_usd is None and terms.threshold_rule is None:
            price = first_fit(pool.failure_costs, request, trace)
            if price is not None:
                terms = terms._replace(failure_cost_usd=price[0], failure_cost_rule=price[1])
        if request.min_quality is not None:
            wanted = request.min_quality
            terms = terms._replace(threshold=wanted, threshold_rule=None, min_quality=wanted)
        if request.max_latency_s is not None:
            terms = terms._replace(max_latency_s=request.max_latency_s)
        if request.budget_usd is not None:
            terms = terms._replace(budget_usd=smallest(request.budget_usd, terms.budget_usd))
        return terms

    def _check_known(self, request: RouteRequest) -> None:
        pins = () if request.pin is None else (request.pin,)
        for part, names in (("pin", pins), ("allow", request.allow), ("deny", request.deny)):
            unknown = [name for name in names if name not in self._names]
            if unknown:
                raise RequestError(f"{part} names {unknown}, not in the pool; expected of {list(self._names)}")


def _merge(pool: ModelPool, task: str | None, segment: str | None) -> Terms:
    """Rules of a task and a segment, nearest level first, as one."""
    rules: list[tuple[str, Rule]] = []
    if segment is not None:
        rules.append((f"the rule of segment {segment!r}", pool.segments[segment]))
    if task is not None:
        rules.append((f"the rule of task {task!r}", pool.tasks[task]))
    barred = [[why for who, rule in rules if (why := barred_by(rule, who, spec))] for spec in pool.models]
    terms = Terms(
        barred=tuple(whys[0] if whys else None for whys in barred),
        threshold=pool.confidence_threshold, threshold_rule=None, failure_cost_usd=None, max_latency_s=None,
        budget_usd=pool.budgets.per_request_usd, pin=None, pin_rule=None,
    )  # fmt: skip
    for who, rule in reversed(rules):  # from far to near, so that the nearest is written last
        threshold = rule.confidence_threshold if rule.min_quality is None else rule.min_quality
        if threshold is not None:
            wanted = "escalation" if rule.min_quality is None else rule.min_quality
            terms = terms._replace(
                threshold=threshold, threshold_rule=who, min_quality=wanted, failure_cost_usd=None,
                failure_cost_rule=None,
            )  # fmt: skip
        if rule.failure_cost_usd is not None:
            terms = terms._replace(failure_cost_usd=rule.failure_cost_usd, failure_cost_rule=who)
        if rule.max_latency_s is not None:
            terms = terms._replace(max_latency_s=rule.max_latency_s)
        if rule.pin is not None:
            terms = terms._replace(pin=rule.pin, pin_rule=who)
        terms = terms._replace(budget_usd=smallest(rule.budget_usd, terms.budget_usd))
    return terms


def smallest(a: float | None, b: float | None) -> float | None:
    if a is None or b is None:
        return b if a is None else a
    return min(a, b)
