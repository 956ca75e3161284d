"""The ``router-ml`` command: decide requests and look at pools; offline commands plug in from outside.

Exit codes: 0 done; 1 refused or failed, with one line on stderr; 2 wrong usage. Tables are for people: what a program
reads is behind ``--json``.

Serving never imports training, so commands such as ``train`` are found by entry point (group ``router_ml.commands``:
the command's name -> a click command) and imported when they run, not before.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import importlib.util
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.abc import InspectLoader
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import click

from router_ml.errors import MissingExtraError, RequestError, RouterError
from router_ml.pool import ModelPool
from router_ml.price_map import refresh
from router_ml.request import ABILITIES, RouteDecision, RouteRequest
from router_ml.terminal import (
    completion_line,
    console,
    decisions_table,
    failure_cost_lines,
    pool_table,
    print_decision,
)

if TYPE_CHECKING:
    from router_ml.outcome_rows import Prompts
    from router_ml.outcomes import OutcomeLog

PLUGGED = "router_ml.commands"


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
        missing = exc.name or entry.module
        if missing.partition(".")[0] == entry.module.partition(".")[0]:
            raise RouterError(f"command {entry.name} cannot be loaded: {exc}; reinstall its package") from exc
        raise MissingExtraError(missing, "train") from exc
    if not isinstance(command, click.Command):
        raise RouterError(f"entry point {entry.name} = {entry.value} is not a click command; reinstall its package")
    return command


def _summary(entry: EntryPoint) -> str:
    """First line of the docstring of a plugged command's module, read without importing what may take seconds."""
    try:
        spec = importlib.util.find_spec(entry.module)
    except ModuleNotFoundError:
        return ""
    if spec is None or not isinstance(spec.loader, InspectLoader):
        return ""
    source = spec.loader.get_source(entry.module) or ""
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]


@click.group(cls=PluggedGroup, context_settings={"help_option_names": ["--help", "-h"], "max_content_width": 110})
@click.version_option(package_name="router-ml")
def commands() -> None:
    """Route each request to the cheapest model that will do it, with an honest probability that it will."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``router-ml``.

    :param argv: arguments after the program's name; None: those of the process.
    :return: the exit code.
    """
    return run(commands, argv, "router-ml")


def run(command: click.Command, argv: Sequence[str] | None = None, name: str | None = None) -> int:
    """Run any command with the exit codes of ``router-ml``.

    :param argv: arguments after the program's name; None: those of the process.
    :param name: the program's name in messages; None: the command's own.
    """
    name = name or command.name
    try:
        code = command.main(None if argv is None else list(argv), prog_name=name, standalone_mode=False)
    except click.ClickException as exc:
        exc.show()
        return exc.exit_code
    except click.Abort:
        click.echo(f"{name}: aborted", err=True)
        return 1
    except (RouterError, OSError) as exc:
        click.echo(f"{name}: {_one_line(exc)}", err=True)
        return 1
    return code if isinstance(code, int) else 0


def _one_line(exc: Exception) -> str:
    return "; ".join(line.strip() for line in str(exc).splitlines())


class FiniteRange(click.FloatRange):
    """A range of floats that lets no NaN and no infinity through, as click's own does."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


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
    click.option(
        "--supervised/--unsupervised", default=None, help="Whether a person looks before the answer takes effect."
    ),
    click.option("--max-output-tokens", type=int, help="Output limit that will be asked of the model."),
    click.option("--local-only", is_flag=True, default=None, help="Only models on your own machines."),
    click.option("--allow", multiple=True, metavar="MODEL", help="Only this model; may be repeated."),
    click.option("--deny", multiple=True, metavar="MODEL", help="Never this model; may be repeated."),
    click.option("--pin", metavar="MODEL", help="This model, if it can."),
    click.option("--require", multiple=True, type=click.Choice(sorted(ABILITIES)), help="An ability; may be repeated."),
)


LOG_PROMPTS = click.option(
    "--log-prompts",
    type=click.Choice(["none", "hash", "text"]),
    default="hash",
    show_default=True,
    help="What the outcome log keeps of a request's text.",
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
@click.option("--explain", is_flag=True, help="Say why, what was second, and what would have changed it.")
@click.option("--verify", "verifier", metavar="JSON", help="How the answer will be checked; decides for a plan.")
@_with_limits
def route(
    text: str | None, path: str | None, folder: str | None, as_json: bool, explain: bool, verifier: str | None,
    **limits: Any,
) -> None:  # fmt: skip
    """Decide which model a request goes to.

    TEXT is one request, or '-' to read it from standard input. The options narrow every request.
    """
    from router_ml.explanation import explain as explanation_of
    from router_ml.router import Router

    if (text is None) == (path is None):
        raise click.UsageError("expected either TEXT or --file")
    router = Router.load(folder)
    given = _given({**limits, "verifier": _verifier_of(verifier)})
    if path is None:
        decision = router.predict({"prompt": _text_of(text or ""), **given})
        if as_json:
            _print_json(decision, {"explanation": explanation_of(decision).to_dict()} if explain else {})
        elif explain:
            click.echo(explanation_of(decision).text)
        else:
            print_decision(decision)
        return
    if explain:
        raise click.UsageError("--explain is for one request: TEXT in place of --file")
    decided = _decide_lines(path, given, router.predict)
    if as_json:
        for _, decision in decided:
            _print_json(decision)
    else:
        console().print(decisions_table(decided))


@commands.command()
@click.argument("text")
@click.option("--router", "folder", metavar="DIR", help="A saved router; without it, the bundled one.")
@click.option("--pool", "pool_path", metavar="FILE", help="A pool.yaml in place of the router's own.")
@click.option("--log", "log_url", metavar="URL", help="Outcome log, such as sqlite:///outcomes.db.")
@LOG_PROMPTS
@click.option("--stream", is_flag=True, help="Print the answer as it comes.")
@click.option("--timeout-s", type=float, default=30.0, show_default=True, help="Most seconds of one attempt.")
@click.option("--temperature", type=float)
@click.option("--verify", "verifier", metavar="JSON", help="How to check the answer, such as '{\"min_length\": 20}'.")
@click.option("--json", "as_json", is_flag=True, help="Print answer, decision and attempts as JSON.")
@_with_limits
def complete(
    text: str, folder: str | None, pool_path: str | None, log_url: str | None, log_prompts: Prompts,
    stream: bool, timeout_s: float, temperature: float | None, verifier: str | None, as_json: bool, **limits: Any,
) -> None:  # fmt: skip
    """Route a request, call the model, check the answer, escalate.

    TEXT is the request, or '-' to read it from standard input. Keys of providers are read from their usual environment
    variables. The answer goes to standard output, what it took to standard error.
    """
    from router_ml.cascade import Cascade
    from router_ml.router import Router

    if stream and as_json:
        raise click.UsageError("expected either --stream or --json")
    router = Router.load(folder, pool=None if pool_path is None else ModelPool.from_yaml(pool_path))
    request = RouteRequest.of({"prompt": _text_of(text), "verifier": _verifier_of(verifier), **_given(limits)})
    params = {} if temperature is None else {"temperature": temperature}
    with _opened(log_url, log_prompts) as log:
        done = Cascade(router, log=log).complete(request, stream=stream, timeout_s=timeout_s, **params)
        if stream:
            for chunk in done:
                click.echo(chunk.choices[0].delta.content or "" if chunk.choices else "", nl=False)
            click.echo()
            done = done.completion
        elif not as_json:
            click.echo(done.text)
    if as_json:
        click.echo(json.dumps(done.to_dict(), allow_nan=False))
    else:
        click.echo(completion_line(done), err=True)


def _opened(log_url: str | None, log_prompts: Prompts) -> contextlib.AbstractContextManager[OutcomeLog | None]:
    if log_url is None:
        return contextlib.nullcontext()
    from router_ml.outcomes import OutcomeLog

    return OutcomeLog(log_url, log_prompts=log_prompts)


def _verifier_of(text: str | None) -> Any:
    if text is None:
        return None
    from router_ml.verifiers import verifier_of

    try:
        return verifier_of(json.loads(text), trusted=True)  # who types a command line may run commands
    except json.JSONDecodeError as exc:
        raise click.BadParameter(f"--verify is not JSON: {exc}") from exc


def _text_of(text: str) -> str:
    if text != "-":
        return text
    with click.open_file("-", encoding="utf-8", errors="replace") as stream:
        return str(stream.read())


def _given(limits: dict[str, Any]) -> dict[str, Any]:
    """The limits that were given: a budget of 0.0 and ``--unsupervised``, which is False, are."""
    return {name: value for name, value in limits.items() if value is not None and value != ()}


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


def _print_json(decision: RouteDecision, more: Mapping[str, Any] = MappingProxyType({})) -> None:
    click.echo(json.dumps({**decision.to_dict(), **more}, allow_nan=False))


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
    console().print(pool_table(loaded.models))
    click.echo(f"escalation model {loaded.escalation_model}, confidence threshold {loaded.confidence_threshold}")
    click.echo("".join(f"{line}\n" for line in failure_cost_lines(loaded.failure_costs)), nl=False)


@pool.command()
@click.argument("path", metavar="FILE")
def validate(path: str) -> None:
    """Check a pool.yaml; the first mistake is named."""
    from router_ml.live import rule_verifiers
    from router_ml.reliability import verifier_name

    loaded = ModelPool.from_yaml(path)
    for (section, rule), verifier in rule_verifiers(loaded).items():
        if hasattr(verifier, "verify"):
            name = verifier_name(verifier)
            known = "measured" if name in loaded.verifiers else "as declared"
            click.echo(f"{section}.{rule}: verifier {name}, its reliability {known}")
    click.echo(f"{path}: valid, {len(loaded.models)} models, escalation model {loaded.escalation_model}")
    click.echo("".join(f"{line}\n" for line in failure_cost_lines(loaded.failure_costs)), nl=False)


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


if __name__ == "__main__":
    raise SystemExit(main())
