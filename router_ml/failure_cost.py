"""What a failure costs where the request does not say: rules of pool.yaml by who watches and how long it has gone on.

A person who reads one answer sees a miss at once and asks again. A miss of an agent that nobody watches is found late,
after other steps were built on it. The first rule that fits sets the price.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from router_ml.configuration import AMOUNT, COUNT_OR_ZERO, FLAG, Checked, Kind, build, of
from router_ml.errors import PoolError, brief
from router_ml.request import RouteRequest, Trace


@dataclass(frozen=True, slots=True)
class FailureCost(Checked):
    """The price of a failure for the requests that it fits: those for which every condition that is given holds.

    :param usd: what a failure costs, US dollars.
    :param supervised: what the request must say of itself. One that does not say fits no rule that asks.
    :param min_turns: fewest turns of the assistant so far; a fresh request has 0. :param max_turns: most.
    :param min_tool_calls_per_turn: fewest tool calls per turn of the assistant so far, on average; where it had no
        turn, 0. :param max_tool_calls_per_turn: most.
    :raises PoolError: if a value is outside its range, or a smallest value above its largest.
    """

    usd: float = of(AMOUNT)
    supervised: bool | None = of(FLAG, None)
    min_turns: int | None = of(COUNT_OR_ZERO, None)
    max_turns: int | None = of(COUNT_OR_ZERO, None)
    min_tool_calls_per_turn: float | None = of(AMOUNT, None)
    max_tool_calls_per_turn: float | None = of(AMOUNT, None)

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        for name, (low, high) in (("turns", self._turns), ("tool_calls_per_turn", self._density)):
            if low > high:
                raise PoolError(f"min_{name} is {low:g}; expected at most max_{name}, {high:g}")

    @property
    def _turns(self) -> tuple[float, float]:
        return _range(self.min_turns, self.max_turns)

    @property
    def _density(self) -> tuple[float, float]:
        return _range(self.min_tool_calls_per_turn, self.max_tool_calls_per_turn)

    def fits(self, request: RouteRequest, trace: Trace) -> bool:
        """Whether every condition holds."""
        if self.supervised is not None and request.supervised is not self.supervised:
            return False  # asked first: most requests do not say, and the rest need not be looked at
        turns, density = self._turns, self._density
        return turns[0] <= trace.assistant_turns <= turns[1] and density[0] <= tool_calls_per_turn(trace) <= density[1]

    def covers(self, other: FailureCost) -> bool:
        """Whether this rule fits every request that the other one fits."""
        return self.supervised in (None, other.supervised) and all(
            mine[0] <= theirs[0] and theirs[1] <= mine[1]
            for mine, theirs in ((self._turns, other._turns), (self._density, other._density))
        )

    def why(self, trace: Trace) -> str:
        """What in a request that fits made it fit, in words."""
        found = [_SUPERVISED[self.supervised]] if self.supervised is not None else []
        if self._turns != _ANY:
            found.append(f"{_count(trace.assistant_turns, 'turn')} so far")
        if self._density != _ANY:
            found.append(f"{_count(tool_calls_per_turn(trace), 'tool call')} a turn")
        return ", ".join(found) or "any request"

    def conditions(self) -> str:
        """What it asks for, in words."""
        asked = [_SUPERVISED[self.supervised]] if self.supervised is not None else []
        for unit, (low, high) in (("turns", self._turns), ("tool calls a turn", self._density)):
            if (low, high) != _ANY:
                asked.append(f"{_span(low, high)} {unit}")
        return ", ".join(asked) or "any request"


_ANY = (0.0, math.inf)
_SUPERVISED = {True: "supervised", False: "unsupervised"}

FAILURE_COSTS = Kind(
    "a list of rules, each with `usd`",
    lambda v: isinstance(v, (list, tuple)) and all(isinstance(rule, FailureCost) for rule in v),
    tuple,
)


def tool_calls_per_turn(trace: Trace) -> float:
    """Tool calls per turn of the assistant so far; 0 where it had no turn."""
    return trace.tool_calls / trace.assistant_turns if trace.assistant_turns else 0.0


def first_fit(rules: Iterable[FailureCost], request: RouteRequest, trace: Trace) -> tuple[float, str] | None:
    """:return: what a failure of this request costs, USD, and the rule that says so, with what made it fit."""
    for place, rule in enumerate(rules):
        if rule.fits(request, trace):
            return rule.usd, f"failure_costs[{place}] ({rule.why(trace)})"
    return None


def read_failure_costs(value: Any) -> tuple[FailureCost, ...]:
    """The rules from the section of pool.yaml; an empty one reads as None.

    :raises PoolError: naming the rule and the key.
    """
    items = () if value is None else value
    if not isinstance(items, (list, tuple)):
        raise PoolError(f"failure_costs is {brief(items)}; expected {FAILURE_COSTS.expected}")
    return tuple(build(FailureCost, item, f"failure_costs[{place}]") for place, item in enumerate(items))


def check_order(rules: Sequence[FailureCost]) -> None:
    """:raises PoolError: if a rule can never be reached, since one before it fits all that it fits."""
    for place, rule in enumerate(rules):
        for before, earlier in enumerate(rules[:place]):
            if earlier.covers(rule):
                raise PoolError(
                    f"failure_costs[{place}] is never reached: failure_costs[{before}] fits every request that it "
                    "fits; put the narrower rule first"
                )


def _count(number: float, unit: str) -> str:
    return f"{number:.3g} {unit}{'' if number == 1 else 's'}"


def _span(low: float, high: float) -> str:
    if high == math.inf:
        return f"at least {low:g}"
    return f"at most {high:g}" if low == 0.0 else f"{low:g} to {high:g}"


def _range(low: float | None, high: float | None) -> tuple[float, float]:
    return (0.0 if low is None else low, math.inf if high is None else high)
