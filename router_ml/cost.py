"""What a call costs, from its parts. Pure: no text, no clock, no network.

input        estimate of the prompt's tokens * ``token_factor``, at the full price or, where cached, at the cached one
output       tokens of a typical model, predicted for the request, * ``output_factor``
later turns  in an agent trace, what is written now is read again, from the cache, at every turn still to come

A provider may ask more for a long prompt. The whole call is then at that tariff, not only the tokens above the mark.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from router_ml.configuration import AMOUNT, COUNT, Checked, is_number, of
from router_ml.request import RouteRequest, Trace

if TYPE_CHECKING:
    from router_ml.pool import ModelPool, ModelSpec


@dataclass(frozen=True, slots=True)
class LongContext(Checked):
    """The tariff of long prompts, in US dollars per million tokens.

    :param above_input_tokens: prompts of more tokens, as the model counts them, are at this tariff as a whole.
    :param cached_input_usd_per_mtok: None: no discount.
    :raises PoolError: if a value is outside its range.
    """

    above_input_tokens: int = of(COUNT)
    input_usd_per_mtok: float = of(AMOUNT)
    output_usd_per_mtok: float = of(AMOUNT)
    cached_input_usd_per_mtok: float | None = of(AMOUNT, None)


class Tariff(NamedTuple):
    """US dollars per million tokens, as the model counts them."""

    input: float
    cached: float
    output: float


def tariff(spec: ModelSpec, input_tokens: float) -> Tariff:
    """What the candidate's tokens cost in a call of that length.

    :param input_tokens: of the whole prompt, cached or not, as the model counts them.
    """
    long = spec.long_context
    if long is not None and input_tokens > long.above_input_tokens:
        return _tariff(long)
    return _tariff(spec)


def usage_cost(spec: ModelSpec, input_tokens: int, output_tokens: int, cached_tokens: int = 0) -> float:
    """US dollars of a call that was made.

    :param input_tokens: of the whole prompt. :param cached_tokens: how many of them the provider had cached.
    """
    if spec.cost_per_request_usd is not None and not (spec.input_usd_per_mtok or spec.output_usd_per_mtok):
        return spec.cost_per_request_usd
    price = tariff(spec, input_tokens)
    cached = min(cached_tokens, input_tokens)
    read = (input_tokens - cached) * price.input + cached * price.cached
    return (read + output_tokens * price.output) / 1e6


@dataclass(frozen=True)
class TurnsToCome:
    """Turns that an agent is expected to take after the present one: mean residual life, by turns so far.

    :param overall: entry k is for a trace of k assistant turns; the last entry holds beyond. Empty: not known.
    :param by_task: the same for tasks with enough runs of their own.
    """

    overall: tuple[float, ...] = ()
    by_task: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    @classmethod
    def from_manifest(cls, entry: Mapping[str, Any] | None) -> TurnsToCome:
        """:param entry: what ``is_turns_entry`` accepts, or None."""
        if entry is None:
            return cls()
        return cls(tuple(entry["overall"]), {task: tuple(curve) for task, curve in entry["by_task"].items()})

    def after(self, task: str | None, trace: Trace) -> float:
        """Expected turns after the answer to this request; 0 where no tool is offered or was called, or none is known.

        :param task: of the request; None or unknown: all tasks.
        """
        if not (self.overall and (trace.tools_offered or trace.tool_calls or trace.tool_results)):
            return 0.0
        curve = self.overall if task is None else self.by_task.get(task, self.overall)
        return curve[min(trace.assistant_turns, len(curve) - 1)]


def is_turns_entry(entry: Any) -> bool:
    """Whether an entry of a manifest holds turns to come: ``{"overall": [...], "by_task": {task: [...]}}``."""
    if not (isinstance(entry, dict) and isinstance(entry.get("by_task"), dict)):
        return False
    curves = [entry.get("overall"), *entry["by_task"].values()]
    return all(isinstance(c, list) and c and all(is_number(turns) and turns >= 0 for turns in c) for c in curves)


class CostModel:
    """Expected cost of a call of each model of a pool.

    :param pool: its order of models is the order of every sequence here.
    :param by_tokens: whether predictions are output tokens of a typical model, to be priced here; else they are USD.
    :param turns: of agents, where known. What is predicted in USD holds them already.
    """

    def __init__(self, pool: ModelPool, *, by_tokens: bool = False, turns: TurnsToCome | None = None) -> None:
        self._by_tokens = by_tokens
        self._turns = turns if turns is not None and turns.overall else None
        self._index = {name: i for i, name in enumerate(pool.names)}
        self._output_factors = [spec.output_factor for spec in pool.models]
        self._usual = [_rates(spec, _tariff(spec)) for spec in pool.models]
        longs = [spec.long_context for spec in pool.models]
        self._long = [
            None if long is None else _rates(spec, _tariff(long)) for spec, long in zip(pool.models, longs, strict=True)
        ]
        # by the common estimate of tokens
        self._marks = [
            math.inf if long is None else long.above_input_tokens / spec.token_factor
            for spec, long in zip(pool.models, longs, strict=True)
        ]
        self._first_mark = min(self._marks)

    def expected(
        self, request: RouteRequest, trace: Trace, predicted: list[float]
    ) -> tuple[list[float], list[float] | None]:
        """Price a call of each model, without any prompt cache.

        :param predicted: per model, in the unit of ``by_tokens``.
        :return: USD per model; and expected output tokens per model, None where they are not predicted.
        """
        if not self._by_tokens:
            return predicted, None
        read, rates = trace.input_tokens, self._rates(trace)
        tokens = [n * factor for n, factor in zip(predicted, self._output_factors, strict=True)]
        costs = [read * rate[0] + n * rate[1] for n, rate in zip(tokens, rates, strict=True)]
        turns = 0.0 if self._turns is None else self._turns.after(request.task, trace)
        if turns:
            costs = [c + turns * n * rate.again for c, n, rate in zip(costs, tokens, rates, strict=True)]
        return costs, tokens

    def less_cache(self, request: RouteRequest, trace: Trace, cost: Sequence[float]) -> tuple[float, ...]:
        """Expected cost of each model, less what the prompt cache of ``current_model`` saves.

        :param cost: USD per model, without any prompt cache.
        """
        if not request.cached_tokens or request.current_model not in self._index:
            return tuple(cost)
        out = list(cost)
        current = self._index[request.current_model]
        out[current] = max(0.0, out[current] - cached_tokens(request, trace) * self._rates(trace)[current].saving)
        return tuple(out)

    def switch_cost(self, request: RouteRequest, trace: Trace) -> list[float]:
        """USD that each model would ask to read again what ``current_model`` has cached."""
        cached = cached_tokens(request, trace)
        return [cached * rate.input for rate in self._rates(trace)]

    def _rates(self, trace: Trace) -> list[_Rates]:
        tokens = trace.input_tokens
        if tokens <= self._first_mark:
            return self._usual
        return [
            usual if long is None or tokens <= mark else long
            for usual, long, mark in zip(self._usual, self._long, self._marks, strict=True)
        ]


def cached_tokens(request: RouteRequest, trace: Trace) -> int:
    """Tokens of this prompt that ``current_model`` has cached."""
    # a caller may count the tokens of an answer or of an older, longer prompt as cached: only this prompt's count
    return min(request.cached_tokens, trace.input_tokens)


class _Rates(NamedTuple):
    """US dollars for one token: ``input`` and ``saving`` by the common estimate, the others as the model counts."""

    input: float
    output: float
    saving: float  # if the token is cached
    again: float  # for a token written now, each time that it is read


def _rates(spec: ModelSpec, price: Tariff) -> _Rates:
    saving = max(0.0, price.input - price.cached) * spec.token_factor / 1e6
    return _Rates(price.input * spec.token_factor / 1e6, price.output / 1e6, saving, price.cached / 1e6)


def _tariff(prices: ModelSpec | LongContext) -> Tariff:
    cached = prices.cached_input_usd_per_mtok
    return Tariff(
        prices.input_usd_per_mtok, prices.input_usd_per_mtok if cached is None else cached, prices.output_usd_per_mtok
    )
