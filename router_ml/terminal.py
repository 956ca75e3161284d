"""What people read in a terminal: tables of decisions, candidates and pools."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from router_ml.explanation import usd
from router_ml.failure_cost import FailureCost
from router_ml.pool import ModelSpec
from router_ml.request import RouteDecision

if TYPE_CHECKING:
    from router_ml.attempt import Completion

WIDTH = 160  # columns where no terminal says how many there are; rich would take 80 and fold every sentence


def print_decision(decision: RouteDecision) -> None:
    """Show one decision and all its candidates."""
    out = console()
    facts = Table.grid(padding=(0, 2))
    for name, value in (
        ("model", decision.model),
        ("confidence", f"{decision.confidence:.3f} ({_evidence(decision)})"),
        ("reason", f"{decision.reason.text} [{decision.reason.code.value}]"),
        *_plan_lines(decision),
        ("expected cost", usd(decision.expected_cost_usd)),
        ("saving", f"{_saving(decision)} against always calling the escalation model"),
    ):
        facts.add_row(Text(name, style="dim"), Text(value, style="bold" if name == "model" else ""))
    out.print(facts)
    table = table_of("candidate", ">P(success)", ">expected cost", ">latency", "excluded because")
    for candidate in decision.candidates:
        latency = candidate.expected_latency_s
        chosen = candidate.model == decision.model
        table.add_row(
            Text(candidate.model),
            f"{candidate.p_success:.3f}",
            usd(candidate.expected_cost_usd),
            "unknown" if latency is None else f"{latency:.1f} s",
            Text(candidate.excluded_by or ("<- chosen" if chosen else "")),
            style="bold" if chosen else "dim" if candidate.excluded_by else "",
        )
    out.print(table)


def completion_line(done: Completion) -> str:
    """What an answer took, on one line."""
    tried = ", ".join(a.model + ("" if a.error is None else f" ({type(a.error).__name__})") for a in done.attempts)
    checked = {None: "not checked", True: "accepted", False: "REJECTED by the verifier"}[done.accepted]
    seconds = sum(attempt.latency_s for attempt in done.attempts)
    cost = f"{usd(done.cost_usd)}, saved {usd(done.saving_usd)}, {seconds:.1f} s"
    return f"[{done.model}; tried {tried}; {checked}; {cost}]"


def decisions_table(decided: Iterable[tuple[str, RouteDecision]]) -> Table:
    """A row per decision: (title, decision) pairs in."""
    table = table_of("request", "model", ">confidence", ">expected cost", ">saving", "reason")
    for title, decision in decided:
        table.add_row(
            Text(title),
            Text(decision.model, style="yellow" if decision.escalated or decision.degraded else "green"),
            f"{decision.confidence:.2f}",
            usd(decision.expected_cost_usd),
            _saving(decision),
            Text(decision.reason.text),
        )
    return table


def _saving(decision: RouteDecision) -> str:
    if decision.baseline_cost_usd <= 0.0:
        return usd(decision.saving_usd)
    return f"{decision.saving_usd / decision.baseline_cost_usd:.0%}"


def _plan_lines(decision: RouteDecision) -> list[tuple[str, str]]:
    """A line per stage of a plan of several."""
    if len(decision.stages) < 2:
        return []
    lines = [
        f"{stage.model}, called in {stage.p_reached:.0%}, then right in {stage.p_success:.0%}"
        for stage in decision.stages
    ]
    return [("plan", f"right in {decision.plan_confidence:.1%}:"), *(("", line) for line in lines)]


def _evidence(decision: RouteDecision) -> str:
    evidence = decision.evidence
    unlike = ", unlike the training data" if evidence.unlike else ""
    return f"{evidence.kind}, {evidence.n_outcomes} outcomes, novelty {evidence.novelty:.2f}{unlike}"


def pool_table(models: Sequence[ModelSpec]) -> Table:
    """A row per model, with its prices, limits and abilities."""
    table = table_of(
        "model", ">USD/M in", ">USD/M out", ">cached", ">USD/request", ">window", ">reliable", ">output", "abilities"
    )
    for spec in models:
        sizes = (spec.max_input_tokens, spec.reliable_input_tokens, spec.max_output_tokens)
        table.add_row(
            Text(spec.name),
            *(f"{price:g}" for price in (spec.input_usd_per_mtok, spec.output_usd_per_mtok)),
            *(
                "" if price is None else f"{price:g}"
                for price in (spec.cached_input_usd_per_mtok, spec.cost_per_request_usd)
            ),
            *("" if size is None else f"{size:,}" for size in sizes),
            ", ".join([*sorted(spec.abilities), *(["local"] if spec.local else [])]),
        )
    tariffs = [
        f"{spec.name}: {long.input_usd_per_mtok:g} in, {long.output_usd_per_mtok:g} out above "
        f"{long.above_input_tokens:,} input tokens"
        for spec in models
        if (long := spec.long_context) is not None
    ]
    if tariffs:
        table.caption, table.caption_justify = Text("\n".join(tariffs)), "left"
    return table


def failure_cost_lines(rules: Sequence[FailureCost]) -> list[str]:
    """A line per rule that prices a failure, in the order in which they are tried; none without rules."""
    if not rules:
        return []
    lines = [f"  {usd(rule.usd)} where {rule.conditions()}" for rule in rules]
    return ["what a failure costs, first fit, where request, task and segment do not say how to choose:", *lines]


def table_of(*columns: str) -> Table:
    """A table; a column whose name starts with '>' is a number."""
    table = Table()
    for column in columns:
        number = column.startswith(">")
        # fold, because the ellipsis that marks a cut is no ASCII and cannot be printed everywhere
        table.add_column(
            column.removeprefix(">"), justify="right" if number else "left", no_wrap=number, overflow="fold"
        )
    return table


def console() -> Console:
    """Where tables are printed; wide enough to read also where there is no terminal."""
    terminal = Console(highlight=False)
    return terminal if terminal.is_terminal else Console(highlight=False, width=WIDTH)
