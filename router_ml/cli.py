"""The ``router-ml`` command: decide requests and look at pools; offline commands plug in from outside.

Exit codes: 0 done; 1 refused or failed, with one line on stderr; 2 wrong usage. Tables are for people: what a program
reads is behind ``--json``.

Serving never imports training, so commands such as ``train`` are found by entry point (group ``router_ml.commands``:
the command's name -> a click command) and imported when they run, not before.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from router_ml.errors import MissingExtraError, RequestError, RouterError
from router_ml.pool import ModelPool, ModelSpec, refresh
from router_ml.request import ABILITIES, RouteDecision, RouteRequest

PLUGGED = "router_ml.commands"
WIDTH = 160  # columns where no terminal says how many there are; rich would take 80 and fold every sentence


class PluggedGroup(click.Group):
    """A group with commands of its own and those that installed packages plug in."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *_plugged()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        own = super().get_command(ctx, cmd_name)
        if own is not None:
            return own
        entry = _plugged().get(cmd_name)
        return None if entry is None else _load(entry)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        plugged = _plugged()
        rows = []
        for name in self.list_commands(ctx):
            own = super().get_command(ctx, name)
            rows.append((name, own.get_short_help_str(100) if own is not None else _summary(plugged[name])))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _plugged() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=PLUGGED)}


def _load(entry: EntryPoint) -> click.Command:
    try:
        command = entry.load()
    except ModuleNotFoundError as exc:
        raise MissingExtraError(exc.name or entry.module, "train") from exc
    if not isinstance(command, click.Command):
        raise RouterError(f"entry point {entry.name} = {entry.value} is not a click command; reinstall its package")
    return command


def _summary(entry: EntryPoint) -> str:
    """First line of the docstring of a plugged command's module, read without importing what may take seconds."""
    try:
        spec = importlib.util.find_spec(entry.module)
    except ModuleNotFoundError:
        return ""
    source = spec.loader.get_source(entry.module) if spec and hasattr(spec.loader, "get_source") else None
    return (ast.get_docstring(ast.parse(source or "")) or "").partition("\n")[0]


@click.group(cls=PluggedGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="router-ml")
def commands() -> None:
    """Route each request to the cheapest model that will do it, with an honest probability that it will."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    :param argv: arguments after the program's name; None: those of the process.
    :return: the exit code.
    """
    try:
        code = commands.main(None if argv is None else list(argv), prog_name="router-ml", standalone_mode=False)
    except click.ClickException as exc:
        exc.show()
        return exc.exit_code
    except click.Abort:
        click.echo("router-ml: aborted", err=True)
        return 1
    except (RouterError, OSError) as exc:
        click.echo(f"router-ml: {_one_line(exc)}", err=True)
        return 1
    return code if isinstance(code, int) else 0


def _one_line(exc: Exception) -> str:
    return "; ".join(line.strip() for line in str(exc).splitlines())


# -- route


def _quality(value: str) -> float | str:
    if value == "escalation":
        return value
    try:
        return float(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is neither a number nor 'escalation'") from None


LIMITS: tuple[Callable[[Any], Any], ...] = (
    click.option("--task", help="A task that the pool's rules or the training table know."),
    click.option("--budget-usd", type=float, help="Most that the call may be expected to cost."),
    click.option("--max-latency-s", type=float, help="Most seconds that the call may be expected to take."),
    click.option("--min-quality", type=_quality, metavar="P", help="P(success) wanted, or 'escalation'."),
    click.option("--failure-cost-usd", type=float, help="What a wrong answer costs."),
    click.option("--max-output-tokens", type=int, help="Output limit that will be asked of the model."),
    click.option("--local-only", is_flag=True, help="Only models on your own machines."),
    click.option("--allow", multiple=True, metavar="MODEL", help="Only this model; may be repeated."),
    click.option("--deny", multiple=True, metavar="MODEL", help="Never this model; may be repeated."),
    click.option("--pin", metavar="MODEL", help="This model, if it can."),
    click.option("--require", multiple=True, type=click.Choice(sorted(ABILITIES)), help="An ability; may be repeated."),
)


def _with_limits(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(LIMITS):
        function = option(function)
    return function


@commands.command()
@click.argument("text", required=False)
@click.option("--file", "path", metavar="FILE", help="JSON lines, a request each; '-' for standard input.")
@click.option("--router", "folder", metavar="DIR", help="A saved router; without it, the bundled one.")
@click.option("--json", "as_json", is_flag=True, help="Print a decision a line.")
@_with_limits
def route(text: str | None, path: str | None, folder: str | None, as_json: bool, **limits: Any) -> None:
    """Decide which model a request goes to.

    TEXT is one request, or '-' to read it from standard input. The options narrow every request.
    """
    from router_ml.router import Router

    if (text is None) == (path is None):
        raise click.UsageError("expected either TEXT or --file")
    router = Router.load(folder)
    given = {name: value for name, value in limits.items() if value not in (None, (), False)}
    if path is None:
        if text == "-":
            text = click.get_text_stream("stdin", encoding="utf-8", errors="replace").read()
        decision = router.predict({"prompt": text, **given})
        if as_json:
            _print_json(decision)
        else:
            print_decision(decision)
        return
    decided = _decide_lines(path, given, router.predict)
    if as_json:
        for _, decision in decided:
            _print_json(decision)
    else:
        _console().print(decisions_table(decided))


def _decide_lines(
    path: str, given: dict[str, Any], decide: Callable[[RouteRequest], RouteDecision]
) -> Iterator[tuple[str, RouteDecision]]:
    """A title and the decision for each line of a file that is not blank; errors name the line."""
    with click.open_file(path, encoding="utf-8") as lines:
        try:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    try:
                        request = dataclasses.replace(RouteRequest.of(json.loads(line)), **given)
                        yield _title(request, number), decide(request)
                    except (RouterError, json.JSONDecodeError, RecursionError) as exc:
                        raise RouterError(f"{path}, line {number}: {exc}") from exc
        except UnicodeDecodeError as exc:
            raise RequestError(f"{path} is not UTF-8: {exc}") from exc


def _title(request: RouteRequest, number: int) -> str:
    title = request.metadata.get("title")
    if isinstance(title, str):
        return title
    return f"{number}: {request.messages[:40]}" if isinstance(request.messages, str) else f"line {number}"


def _print_json(decision: RouteDecision) -> None:
    click.echo(json.dumps(decision.to_dict(), allow_nan=False))


# -- pool


@commands.group()
def pool() -> None:
    """Show, check or refresh a pool of models."""


_POOL = click.option("--pool", "path", metavar="FILE", help="A pool.yaml; without it, the default pool.")


@pool.command()
@_POOL
@click.option("--json", "as_json", is_flag=True, help="Print the pool as JSON.")
def show(path: str | None, as_json: bool) -> None:
    """Show the models of a pool."""
    loaded = _read_pool(path)
    if as_json:
        click.echo(json.dumps(loaded.to_dict()))
        return
    _console().print(_pool_table(loaded.models))
    click.echo(f"escalation model {loaded.escalation_model}, confidence threshold {loaded.confidence_threshold}")


@pool.command()
@click.argument("path", metavar="FILE")
def validate(path: str) -> None:
    """Check a pool.yaml; the first mistake is named."""
    loaded = ModelPool.from_yaml(path)
    click.echo(f"{path}: valid, {len(loaded.models)} models, escalation model {loaded.escalation_model}")


@pool.command("refresh")
@_POOL
@click.option("--out", metavar="FILE", help="Where to write the pool; without it, the file of --pool is replaced.")
def refresh_pool(path: str | None, out: str | None) -> None:
    """Reread prices, windows and abilities from litellm's price map.

    Comments in the file are not kept.
    """
    target = out or path
    if target is None:
        raise click.UsageError("expected --out: the pool inside the package is not replaced")
    before = _read_pool(path)
    after, missing = refresh(before)
    after.to_yaml(target)
    changed = [new.name for old, new in zip(before.models, after.models, strict=True) if old != new]
    click.echo(f"{target}: changed {', '.join(changed) or 'nothing'}")
    if missing:
        click.echo(f"left as they were, not in the price map: {', '.join(missing)}")


def _read_pool(path: str | None) -> ModelPool:
    return ModelPool.default() if path is None else ModelPool.from_yaml(path)


# -- what people read


def print_decision(decision: RouteDecision) -> None:
    """Show one decision and all its candidates."""
    console = _console()
    facts = Table.grid(padding=(0, 2))
    for name, value in (
        ("model", decision.model),
        ("confidence", f"{decision.confidence:.3f} ({_evidence(decision)})"),
        ("reason", f"{decision.reason.text} [{decision.reason.code.value}]"),
        ("expected cost", usd(decision.expected_cost_usd)),
        ("saving", f"{_saving(decision)} against always calling the escalation model"),
    ):
        facts.add_row(Text(name, style="dim"), Text(value, style="bold" if name == "model" else ""))
    console.print(facts)
    table = _table("candidate", ">P(success)", ">expected cost", ">latency", "excluded because")
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
    console.print(table)


def decisions_table(decided: Iterable[tuple[str, RouteDecision]]) -> Table:
    """A row per decision: (title, decision) pairs in."""
    table = _table("request", "model", ">confidence", ">expected cost", ">saving", "reason")
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


def usd(amount: float) -> str:
    """An amount to three significant digits, never in exponent form."""
    if amount == 0.0 or not math.isfinite(amount):
        return f"${amount:.2f}"
    return f"${amount:.{max(2, 2 - math.floor(math.log10(abs(amount))))}f}"


def _saving(decision: RouteDecision) -> str:
    if decision.baseline_cost_usd <= 0.0:
        return usd(decision.saving_usd)
    return f"{decision.saving_usd / decision.baseline_cost_usd:.0%}"


def _evidence(decision: RouteDecision) -> str:
    evidence = decision.evidence
    return f"{evidence.kind}, {evidence.n_outcomes} outcomes, novelty {evidence.novelty:.2f}"


def _pool_table(models: Sequence[ModelSpec]) -> Table:
    table = _table("model", ">USD/M in", ">USD/M out", ">cached", ">window", ">reliable", ">output", "abilities")
    for spec in models:
        cached = "" if spec.cached_input_usd_per_mtok is None else f"{spec.cached_input_usd_per_mtok:g}"
        sizes = (spec.max_input_tokens, spec.reliable_input_tokens, spec.max_output_tokens)
        table.add_row(
            Text(spec.name),
            f"{spec.input_usd_per_mtok:g}",
            f"{spec.output_usd_per_mtok:g}",
            cached,
            *("" if size is None else f"{size:,}" for size in sizes),
            ", ".join([*sorted(spec.abilities), *(["local"] if spec.local else [])]),
        )
    return table


def _table(*columns: str) -> Table:
    """A table; a column whose name starts with '>' is a number."""
    table = Table()
    for column in columns:
        number = column.startswith(">")
        # fold, because the ellipsis that marks a cut is no ASCII and cannot be printed everywhere
        table.add_column(
            column.removeprefix(">"), justify="right" if number else "left", no_wrap=number, overflow="fold"
        )
    return table


def _console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=WIDTH)


if __name__ == "__main__":
    raise SystemExit(main())
