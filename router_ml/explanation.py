"""Why a decision was taken, what was second, what would have changed it: numbers, and a paragraph made of them."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from router_ml.plan import TIE
from router_ml.request import Candidate, Objective, PlanOption, ReasonCode, RouteDecision


class Flip(NamedTuple):
    """What would have changed the decision.

    :param what: "threshold", "failure_cost_usd" (the price of a failure), or "expected_cost_usd" (of what was chosen;
        of a plan, if all plans that begin with its model cost as much more).
    :param value: of it, from which on the request would have gone elsewhere. :param to: to which model first.
    """

    what: str
    value: float
    to: str


class Explanation(NamedTuple):
    """One paragraph, and the numbers in it.

    :param second: the candidate that would answer if the chosen one could not; None where there is no other.
    :param flips: what would have changed the decision, each by itself.
    """

    text: str
    chosen: Candidate
    second: Candidate | None
    flips: tuple[Flip, ...]

    def __str__(self) -> str:
        return self.text

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        second = None if self.second is None else self.second._asdict()
        return {"text": self.text, "second": second, "flips": [flip._asdict() for flip in self.flips]}


def explain(decision: RouteDecision) -> Explanation:
    """Explain a decision from what it holds; nothing is predicted or decided again."""
    chosen = next(c for c in decision.candidates if c.model == decision.model)
    others = [c for c in decision.candidates if c.excluded_by is None and c.model != decision.model]
    second = _second(decision, others)
    flips = tuple(_flips(decision, chosen, others))
    parts = [
        _reason(decision), _plan_of(decision), _runner_up(decision, chosen, second),
        _changes(flips, decision.objective), _trust(decision),
    ]  # fmt: skip
    return Explanation(" ".join(part for part in parts if part), chosen, second, flips)


def _second(decision: RouteDecision, others: list[Candidate]) -> Candidate | None:
    """By the rule that decided: the next by loss, the next cheapest that is likely enough, or else the likeliest."""
    if not others:
        return None
    if decision.second_plan is not None:
        return next((c for c in others if c.model == decision.second_plan.models[0]), None)
    objective = decision.objective
    if objective is not None and objective.kind == "failure_cost" and objective.value is not None:
        price = objective.value
        return min(others, key=lambda c: c.expected_cost_usd + (1.0 - c.p_success) * price)
    wanted = objective.value if objective is not None and objective.value is not None else 0.0
    likely = [c for c in others if c.p_success >= wanted]
    if likely:
        return min(likely, key=lambda c: (c.expected_cost_usd, -c.p_success))
    return max(others, key=lambda c: (c.p_success, -c.expected_cost_usd))


def _flips(decision: RouteDecision, chosen: Candidate, others: list[Candidate]) -> list[Flip]:
    objective = decision.objective
    # what is unlike the training data escalates at every threshold, and at every price but the smallest; what was
    # drawn at random could have gone anywhere
    if objective is None or objective.value is None:
        return []
    if decision.reason.code in (ReasonCode.UNLIKE, ReasonCode.EXPLORATION):
        return []
    if decision.second_plan is not None:
        return _flips_of_plan(decision, decision.second_plan, objective)
    if objective.kind == "failure_cost":
        return _flips_of_price(chosen, others, objective.value)
    if objective.kind == "threshold":
        return _flips_of_threshold(decision, chosen, others, objective.value)
    return []


def _flips_of_plan(decision: RouteDecision, second: PlanOption, objective: Objective) -> list[Flip]:
    """From which expected cost on the second is better.

    A price of a failure at which the second is better is no flip: a third plan may be best there, and often is.
    """
    value, away = objective.value or 0.0, second.expected_cost_usd - decision.expected_cost_usd
    if objective.kind == "failure_cost":
        away += (decision.plan_confidence - second.p_success) * value
    elif second.p_success < value - TIE:  # not likely enough at any cost
        return []
    return [Flip("expected_cost_usd", decision.expected_cost_usd + away, second.models[0])] if away > 0.0 else []


def _flips_of_price(chosen: Candidate, others: list[Candidate], price: float) -> list[Flip]:
    """Prices of a failure at which another model has the lowest loss: c + (1 - p) L is a line in L for each model."""
    out = []
    crossings = [
        ((c.expected_cost_usd - chosen.expected_cost_usd) / (c.p_success - chosen.p_success), c)
        for c in others
        if c.p_success != chosen.p_success
    ]
    above = [(at, c) for at, c in crossings if at > price and c.p_success > chosen.p_success]
    below = [(at, c) for at, c in crossings if 0.0 < at < price and c.p_success < chosen.p_success]
    if above:
        at, c = min(above, key=lambda pair: pair[0])
        out.append(Flip("failure_cost_usd", at, c.model))
    if below:
        at, c = max(below, key=lambda pair: pair[0])
        out.append(Flip("failure_cost_usd", at, c.model))
    return out


def _flips_of_threshold(
    decision: RouteDecision, chosen: Candidate, others: list[Candidate], threshold: float
) -> list[Flip]:
    out = []
    cheaper = [c for c in others if c.expected_cost_usd < chosen.expected_cost_usd]
    if cheaper:  # each of them is below the threshold; the likeliest is the nearest to it
        nearest = max(cheaper, key=lambda c: c.p_success)
        if nearest.p_success < threshold:
            out.append(Flip("threshold", nearest.p_success, nearest.model))
    if not decision.escalated and chosen.p_success >= threshold:
        likelier = [c for c in others if c.p_success > chosen.p_success]
        if likelier:
            to = min(likelier, key=lambda c: (c.expected_cost_usd, -c.p_success))
            # just above its own probability the chosen one is out
            out.append(Flip("threshold", math.nextafter(chosen.p_success, 1.0), to.model))
    dearer = [c for c in others if c.p_success >= threshold and c.expected_cost_usd > chosen.expected_cost_usd]
    if dearer and not decision.escalated:
        to = min(dearer, key=lambda c: (c.expected_cost_usd, -c.p_success))
        out.append(Flip("expected_cost_usd", to.expected_cost_usd, to.model))
    return out


def _reason(decision: RouteDecision) -> str:
    return f"Sent to {decision.model}: {decision.reason.text}."


def _plan_of(decision: RouteDecision) -> str:
    if len(decision.stages) < 2:
        return ""
    calls = "; ".join(
        f"{stage.model} is called in {stage.p_reached:.0%} of such cases and is then right in {stage.p_success:.0%}"
        for stage in decision.stages
    )
    return (
        f"{calls}. In all, that is right in {decision.plan_confidence:.0%} for {usd(decision.expected_cost_usd)} "
        f"expected; the escalation model alone would cost {usd(decision.baseline_cost_usd)}."
    )


def _runner_up(decision: RouteDecision, chosen: Candidate, second: Candidate | None) -> str:
    if second is None:
        return "No other model is eligible."
    if decision.second_plan is not None:
        plan = decision.second_plan
        return (
            f"The best plan that begins with another model is {', then '.join(plan.models)}: {plan.p_success:.0%} for "
            f"{usd(plan.expected_cost_usd)}."
        )
    return (
        f"It is expected to succeed with probability {chosen.p_success:.2f}, for {usd(chosen.expected_cost_usd)}; "
        f"second is {second.model}, with {second.p_success:.2f} for {usd(second.expected_cost_usd)}."
    )


def _changes(flips: tuple[Flip, ...], objective: Objective | None) -> str:
    said = []
    for flip in flips:
        # rounded, the value alone may lie on the wrong side of the flip
        above = objective is not None and objective.value is not None and flip.value > objective.value
        what = {
            "failure_cost_usd": f"at {usd(flip.value)} for a failure",
            "threshold": f"at a threshold {'above' if above else 'below'} {flip.value:.3f}",
            "expected_cost_usd": f"if what was chosen cost {usd(flip.value)} or more",
        }[flip.what]
        said.append(f"{flip.to} {what}")
    return f"It would have been {', or '.join(said)}." if said else ""


def _trust(decision: RouteDecision) -> str:
    evidence = decision.evidence
    basis = (
        f"Behind the probability stand {evidence.n_outcomes:,} outcomes of this model"
        if evidence.kind == "measured"
        else "The probability is a prior, placed by relatives of this model and published results"
    )
    nearer = f"{evidence.novelty:.0%} of the training requests lie nearer to the training data"
    unlike = ", so it is unlike them" if evidence.unlike else ""
    return f"{basis}; {nearer}{unlike}."


def usd(amount: float) -> str:
    """An amount to three significant digits, never in exponent form."""
    if amount == 0.0 or not math.isfinite(amount):
        return f"${amount:.2f}"
    return f"${amount:.{max(2, 2 - math.floor(math.log10(abs(amount))))}f}"
