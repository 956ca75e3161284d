"""The parts of a call's cost that an outcome table teaches: tokens of an answer, of a prompt, turns still to come.

A pool of token prices is applied to the tokens of one call, so rows of several turns are taken by the turn. A pool of
prices per request is left as it is: what a request costs then holds all its turns already.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import theilslopes  # type: ignore[import-untyped]

from router_ml.guards import TYPICAL_OUTPUT_TOKENS
from router_ml.pool import ModelPool, ModelSpec
from router_ml.request import RouteRequest, read_trace
from training.outcome_columns import Prompt
from training.outcome_table import OutcomeTable

Array = NDArray[np.float64]

SAMPLE = 20_000  # requests whose prompts are counted
LINE_SAMPLE = 500  # prompts that a slope is taken from: it looks at every pair of them
FEWEST_PROMPTS = 30  # that a model must have read before its tokens are taken from them
WIDEST_INTERVAL = 0.2  # of a slope, as a share of it
FACTORS = (1 / 3, 3.0)  # no tokenizer is farther from the common estimate: it was not this prompt that was counted
FEWEST_RUNS = 10  # of agents, before turns to come are learned
FEWEST_TASK_RUNS = 30
PRIOR_RUNS = 10.0  # weight of what is expected one turn earlier, or of all tasks
MOST_TURNS = 200  # entries of a curve; the last holds beyond


class CostParts(NamedTuple):
    """What the cost estimator learns, and what stands beside it.

    :param pool: with the token factors that the table shows.
    :param target: (n_requests, n_models), columns in pool order, NaN where unknown.
    :param unit: of ``target``: "usd" of a request, or "output_tokens" of a call, of a model with output factor 1.
    :param turns: entry of the manifest, see ``router_ml.cost.TurnsToCome``; None: not known, or not needed.
    """

    pool: ModelPool
    target: Array
    unit: str
    turns: dict[str, Any] | None
    notes: tuple[str, ...]


def cost_parts(table: OutcomeTable, pool: ModelPool) -> CostParts:
    """Learn the parts for a pool; what had to be assumed is in the notes."""
    cost, tokens = in_pool_order(table, "cost_usd", pool), in_pool_order(table, "output_tokens", pool)
    if any(spec.cost_per_request_usd is not None for spec in pool.models):
        dollars, notes = _dollars(table, pool, cost)
        return CostParts(pool, dollars, "usd", None, notes)
    pool, learned = with_token_factors(table, pool)
    if np.isnan(tokens).all() and not np.isnan(cost).all():
        dollars, notes = _dollars(table, pool, cost)
        return CostParts(pool, dollars, "usd", None, learned + notes)
    if np.isnan(tokens).all():
        target = np.full(tokens.shape, float(TYPICAL_OUTPUT_TOKENS))
        note = (
            f"neither cost nor output tokens in the table; every answer is taken to be {TYPICAL_OUTPUT_TOKENS} tokens "
            "times the model's output_factor"
        )
        return CostParts(pool, target, "output_tokens", turns_to_come(table), (*learned, note))
    factors = np.array([spec.output_factor for spec in pool.models])
    a_call = tokens / np.fmax(in_pool_order(table, "turns", pool), 1.0)  # unknown turns: one
    return CostParts(
        pool, _typical_where_unknown(a_call / factors), "output_tokens", turns_to_come(table), learned
    )  # fmt: skip


def in_pool_order(table: OutcomeTable, column: str, pool: ModelPool) -> Array:
    """A numeric column as (n_requests, n_models) in the pool's order; NaN for a model that the table does not have."""
    position = {name: j for j, name in enumerate(table.models)}
    dense = table.dense(column)
    out = np.full((len(dense), len(pool.models)), np.nan)
    for j, name in enumerate(pool.names):
        if name in position:
            out[:, j] = dense[:, position[name]]
    return out


def with_token_factors(table: OutcomeTable, pool: ModelPool) -> tuple[ModelPool, tuple[str, ...]]:
    """The pool with each model's tokens for a text against the common estimate, from the prompts that it read.

    The factor is the slope of its input tokens over the estimate, and not their ratio: what a harness puts before every
    prompt and the table does not hold, such as a system prompt, would pass for the tokenizer's. The slope is the
    median over pairs of prompts, and its interval must be narrow (Theil 1950, Sen 1968). A factor that the pool states
    is left. Rows of several turns do not count: their input was read several times.

    :return: the pool, and notes on what was learned, or was not.
    """
    if np.isnan(table.input_tokens).all():
        return pool, ()
    estimate = prompt_tokens(table)
    read = in_pool_order(table, "input_tokens", pool)
    turns, calls = in_pool_order(table, "turns", pool), in_pool_order(table, "tool_calls", pool)
    single = np.where(np.isnan(turns), ~(calls > 0), turns == 1)
    usable = single & (read > 0) & (estimate > 0)[:, None]
    specs, notes = [], []
    for j, spec in enumerate(pool.models):
        rows = _spread(np.flatnonzero(usable[:, j]), LINE_SAMPLE)
        factor, note = _factor(spec, estimate[rows], read[rows, j])
        specs.append(dataclasses.replace(spec, token_factor=factor))
        notes += [f"{spec.name}: {note} (n = {rows.size} prompts)"] if note else []
    return dataclasses.replace(pool, models=tuple(specs)), tuple(notes)


def _factor(spec: ModelSpec, estimate: Array, read: Array) -> tuple[float, str]:
    """The token factor to use, and what to say of it. ``estimate`` and ``read`` are (n_prompts,) tokens."""
    if read.size < FEWEST_PROMPTS:
        return spec.token_factor, ""
    if np.ptp(estimate) == 0.0:
        return spec.token_factor, f"token_factor stays {spec.token_factor:g}: all prompts are of one length"
    slope, _, low, high = theilslopes(read, estimate)
    shown = f"{slope:.3g} [{low:.3g}, {high:.3g}]"
    if spec.token_factor != 1.0:
        return spec.token_factor, f"token_factor {spec.token_factor:g} is the pool's own; the table shows {shown}"
    if not (FACTORS[0] <= slope <= FACTORS[1] and high - low <= WIDEST_INTERVAL * slope):
        return spec.token_factor, f"token_factor stays {spec.token_factor:g}: the table shows {shown}"
    return round(float(slope), 3), f"token_factor {shown} from the table"


def prompt_tokens(table: OutcomeTable) -> Array:
    """(n_requests,) common estimate of each prompt's tokens, of a sample of a large table; NaN where not counted."""
    out = np.full(table.n_requests, np.nan)
    for i in _spread(np.arange(table.n_requests), SAMPLE).tolist():
        if table.prompts[i]:
            out[i] = read_trace(RouteRequest(table.prompts[i])).input_tokens
    return out


def _spread(rows: NDArray[np.intp], most: int) -> NDArray[np.intp]:
    """At most so many of the rows, evenly spread."""
    return rows if rows.size <= most else rows[np.linspace(0, rows.size - 1, most).astype(int)]


def turns_to_come(table: OutcomeTable) -> dict[str, Any] | None:
    """Expected further turns of an agent by turns so far: mean residual life (Cox, Renewal Theory, 1962).

    Runs are the rows of requests that any model took several turns for or called a tool in, each request counting
    once. A prompt that holds turns already joins at its own (left truncation). Where runs get few, an entry leans on
    that of one turn earlier, and a task on all tasks.

    :return: entry of the manifest; None with fewer than ``FEWEST_RUNS`` requests.
    """
    several = (table.turns > 1) | (table.tool_calls > 0)
    before = np.array([_assistant_turns(prompt) for prompt in table.prompts])
    is_agent = np.bincount(table.request[several], minlength=table.n_requests) > 0
    rows = ~np.isnan(table.turns) & is_agent[table.request]
    request = table.request[rows]
    n_runs = np.bincount(request, minlength=table.n_requests)
    if (n_runs > 0).sum() < FEWEST_RUNS:
        return None
    start = before[request]
    end = start + np.maximum(1, np.round(table.turns[rows])).astype(np.int64)
    weight = 1.0 / n_runs[request]
    overall = _residual_life(start, end, weight, None)
    by_task: dict[str, list[float]] = {}
    size = Counter(task for task, n in zip(table.task, n_runs.tolist(), strict=True) if n and task is not None)
    for task in sorted(name for name, n in size.items() if n >= FEWEST_TASK_RUNS):
        own = np.array([name == task for name in table.task])[request]
        by_task[task] = _rounded(_residual_life(start[own], end[own], weight[own], overall))
    return {"overall": _rounded(overall), "by_task": by_task, "n_requests": int((n_runs > 0).sum())}


def _assistant_turns(prompt: Prompt) -> int:
    return 0 if isinstance(prompt, str) else sum(message.get("role") == "assistant" for message in prompt)


def _residual_life(start: NDArray[np.int64], end: NDArray[np.int64], weight: Array, prior: Array | None) -> Array:
    """Entry k: mean of end - (k + 1) over runs with start <= k < end. :param prior: the same of all tasks."""
    size = int(min(end.max(), MOST_TURNS)) if prior is None else len(prior)

    def at_risk(values: Array) -> Array:
        begun = np.bincount(np.minimum(start, size), values, size + 1)
        over = np.bincount(np.minimum(end, size), values, size + 1)
        return np.cumsum(begun - over)[:size]

    runs = np.maximum(at_risk(weight), 0.0)
    left = np.maximum(at_risk(weight * end) - runs * np.arange(1, size + 1), 0.0)
    out = np.empty(size)
    earlier = float(weight @ (end - start - 1) / weight.sum())
    for k in range(size):
        lean = earlier if prior is None else prior[k]
        out[k] = earlier = (left[k] + PRIOR_RUNS * lean) / (runs[k] + PRIOR_RUNS)
    return out


def _rounded(curve: Array) -> list[float]:
    return [round(turns, 3) for turns in curve.tolist()]


def _typical_where_unknown(tokens: Array) -> Array:
    """A model without token counts writes as much as the others do on the same request."""
    known = ~np.isnan(tokens)
    mean = np.where(known, tokens, 0.0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    mean = np.where(known.any(axis=1), mean, np.nan)
    return np.where(known.any(axis=0), tokens, mean[:, None])


def _dollars(table: OutcomeTable, pool: ModelPool, cost: Array) -> tuple[Array, tuple[str, ...]]:
    """Cost per request; for a model without any in the table a constant: the price is all there is to know."""
    cost, notes = cost.copy(), []
    known = cost[~np.isnan(cost)]
    read: float | None = None
    for j, spec in enumerate(pool.models):
        if not np.isnan(cost[:, j]).all():
            continue
        if spec.cost_per_request_usd is not None:
            cost[:, j] = spec.cost_per_request_usd
        elif known.size:
            cost[:, j] = known.mean()
        else:
            read = _mean_prompt(table) if read is None else read
            cost[:, j] = typical_call(spec, read)
        notes.append(f"{spec.name}: no cost in the table; costed at {cost[0, j]:.3g} USD a request")
    return cost, tuple(notes)


def typical_call(spec: ModelSpec, input_tokens: float) -> float:
    """USD of a call of which only the prompt's estimated tokens are known."""
    written = TYPICAL_OUTPUT_TOKENS * spec.output_factor * spec.output_usd_per_mtok
    return (input_tokens * spec.token_factor * spec.input_usd_per_mtok + written) / 1e6


def _mean_prompt(table: OutcomeTable) -> float:
    found = prompt_tokens(table)
    return 0.0 if np.isnan(found).all() else float(np.nanmean(found))
