"""Guards: hard limits that take a model out of a decision, each with a sentence that says why.

A limit that is not known excludes nobody. Token counts of a request are estimates; ``token_factor`` makes them a
model's own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from router_ml.pool import ModelPool, ModelSpec, Rule
from router_ml.request import RouteRequest, Trace

TYPICAL_OUTPUT_TOKENS = 500  # for the latency of a request whose output nobody has estimated


class Limits(NamedTuple):
    """A ModelSpec as the guards read it: numbers that are not known are infinite."""

    name: str
    window: float
    reliable: float
    max_output: float
    token_factor: float
    output_factor: float
    first_token_s: float | None
    output_tokens_per_s: float | None
    abilities: frozenset[str]
    local: bool


class Guards:
    """The guards of one pool.

    :param pool: its order of models is the order of every sequence here.
    """

    def __init__(self, pool: ModelPool) -> None:
        self._limits = tuple(_limits(spec, pool.reliable_tokens(spec)) for spec in pool.models)
        self._speeds = tuple(
            None if limits.first_token_s is None or limits.output_tokens_per_s is None
            else (limits.first_token_s, limits.output_tokens_per_s)
            for limits in self._limits
        )  # fmt: skip
        self._least_window = min(limits.window for limits in self._limits)
        self._least_reliable = min(limits.reliable for limits in self._limits)
        self._most_tokens = max(limits.token_factor for limits in self._limits)

    def latency(self, request: RouteRequest, output_tokens: Sequence[float] | None) -> tuple[float | None, ...]:
        """Expected seconds of a call of each model, None where its speed is unknown.

        :param output_tokens: tokens that each model is expected to write; None: 500 times its ``output_factor``, or
            the request's ``max_output_tokens`` if that is less.
        """
        if not output_tokens:
            most = request.max_output_tokens or math.inf
            output_tokens = [min(TYPICAL_OUTPUT_TOKENS * limits.output_factor, most) for limits in self._limits]
        # a list first: a generator costs a step of the interpreter for each model
        return tuple(
            [
                None if speed is None else speed[0] + tokens / speed[1]
                for speed, tokens in zip(self._speeds, output_tokens, strict=True)
            ]
        )

    def exclude(
        self,
        request: RouteRequest,
        trace: Trace,
        *,
        barred: Sequence[str | None],
        latency: Sequence[float | None],
        max_latency_s: float | None = None,
        output_tokens: Sequence[float] | None = None,
        unavailable: Mapping[str, str] | None = None,
    ) -> tuple[list[str | None], str]:
        """Apply every guard but the budget.

        :param barred: what the pool's rules say of each model already.
        :param output_tokens: expected output of each model, for the window where the request sets no limit.
        :param unavailable: model -> why it cannot be called now.
        :return: for each model the sentence that excludes it or None; and a note on doubtful length, mostly empty.
        """
        excluded = list(barred)
        if not unavailable and max_latency_s is None and self._all_can(request, trace, output_tokens):
            return excluded, ""
        unreliable: list[int] = []
        any_left = False
        for i, limits in enumerate(self._limits):
            if excluded[i] is not None:
                continue
            output = request.max_output_tokens or (output_tokens[i] if output_tokens else 0)
            why = _forbidden(limits, request) or _incapable(limits, trace, request.max_output_tokens, output)
            seconds = latency[i]
            if why is None and max_latency_s is not None and seconds is not None and seconds > max_latency_s:
                why = f"it takes about {seconds:.3g} s, the limit is {max_latency_s:.3g} s"
            if why is None and unavailable and limits.name in unavailable:
                why = f"unavailable: {unavailable[limits.name]}"
            if why is None:
                if trace.input_tokens * limits.token_factor > limits.reliable:
                    unreliable.append(i)
                else:
                    any_left = True
            excluded[i] = why
        return excluded, self._doubt(unreliable, any_left, trace, excluded) if unreliable else ""

    def _all_can(self, request: RouteRequest, trace: Trace, output_tokens: Sequence[float] | None) -> bool:
        """Whether the request asks for nothing special and is short enough for every model, as most are."""
        if request.deny or request.allow or request.local_only or request.max_output_tokens or trace.needs:
            return False
        tokens = trace.input_tokens * self._most_tokens
        longest = max(output_tokens) if output_tokens else 0
        return tokens + longest <= self._least_window and tokens <= self._least_reliable

    def _doubt(self, unreliable: list[int], any_left: bool, trace: Trace, excluded: list[str | None]) -> str:
        """Exclude models that fit the request but are not reliable at its length.

        If nothing else is left, those with the largest reliable window stay: an answer to doubt is better than none.
        """
        best = math.inf if any_left else max(self._limits[i].reliable for i in unreliable)
        for i in unreliable:
            limits = self._limits[i]
            if limits.reliable < best:
                tokens = trace.input_tokens * limits.token_factor
                excluded[i] = f"{tokens:.0f} input tokens exceed the {limits.reliable:.0f} up to which it is reliable"
        if any_left:
            return ""
        return (
            f"; about {trace.input_tokens} input tokens are more than any eligible model is reliable for, "
            f"so the largest reliable window, {best:.0f} tokens, was accepted"
        )


def barred_by(rule: Rule, who: str, spec: ModelSpec) -> str | None:
    """Why a rule bars a model whatever the request says, or None. :param who: names the rule in the sentence."""
    if spec.name in rule.deny:
        return f"{who} denies it"
    if rule.allow and spec.name not in rule.allow:
        return f"{who} does not allow it"
    if rule.local_only and not spec.local:
        return f"{who} takes local models only"
    if not rule.require <= spec.abilities:
        return f"{who} requires {_listed(rule.require - spec.abilities)}, which it lacks"
    return None


def _limits(spec: ModelSpec, reliable: float) -> Limits:
    return Limits(
        name=spec.name,
        window=spec.max_input_tokens or math.inf,
        reliable=reliable,
        max_output=spec.max_output_tokens or math.inf,
        token_factor=spec.token_factor,
        output_factor=spec.output_factor,
        first_token_s=spec.first_token_s,
        output_tokens_per_s=spec.output_tokens_per_s,
        abilities=spec.abilities,
        local=spec.local,
    )


def _forbidden(limits: Limits, request: RouteRequest) -> str | None:
    if limits.name in request.deny:
        return "the request denies it"
    if request.allow and limits.name not in request.allow:
        return "the request does not allow it"
    if request.local_only and not limits.local:
        return "the request takes local models only"
    return None


def _incapable(limits: Limits, trace: Trace, asked_output: int | None, output: float) -> str | None:
    if not trace.needs <= limits.abilities:
        return f"the request needs {_listed(trace.needs - limits.abilities)}, which it lacks"
    if asked_output is not None and asked_output > limits.max_output:
        return f"{asked_output} output tokens were asked, it writes at most {limits.max_output:.0f}"
    tokens = trace.input_tokens * limits.token_factor
    if tokens + output > limits.window:
        return f"{tokens:.0f} input and {output:.0f} output tokens exceed its window of {limits.window:.0f}"
    return None


def _listed(abilities: frozenset[str]) -> str:
    return ", ".join(sorted(abilities))
