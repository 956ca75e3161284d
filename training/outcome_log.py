"""Turn the outcome log into an outcome table, and an outcome table into part of the log.

    router-ml outcomes export [--log URL] --out FILE [--since TIME] [--until TIME]
    router-ml outcomes import [--log URL] --table FILE [--log-prompts none|hash|text]
    router-ml outcomes verifiers [--log URL] [--since TIME] [--until TIME] [--out FILE]     (see ``training.verifiers``)

An export holds a row per decision and model that answered, wherever it is known how good the answer was: by the newest
score of late feedback, else its newest verdict, else by the verifier. What cannot be labelled is counted, by reason.
Where the text was not logged, the row holds what the classifier saw of it, and training reads that.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import time
from typing import Any

import click
import numpy as np

from router_ml.cli import FiniteRange, run
from router_ml.embedding import Encoder
from router_ml.errors import OutcomeLogError, TableError
from router_ml.outcome_rows import (
    IMPORT,
    Rows,
    as_json,
    feature_set,
    finite,
    packed,
    prompt_columns,
    representation_columns,
    storable,
)
from router_ml.outcomes import DEFAULT_URL, PROMPTS, LoggedAttempt, LoggedDecision, OutcomeLog
from router_ml.terminal import console
from training.fitting import CHUNK, default_encoder, represent
from training.outcome_columns import KNOWN, IntArray, number_of_text
from training.outcome_labels import answers_of, scores_of
from training.outcome_table import OutcomeTable, from_columns, read_table, write_table
from training.verifiers import LEVEL, MIN_LABELS, reliability

MAX_ID_BYTES = 1_000  # of a request id or a model's name; PostgreSQL indexes no more than 2,700

CALL_FAILED = "the call failed, which says nothing of how good the model's answers are"
NO_LABEL = "no score, no verdict and no check"
NO_ANSWER = "no model was called, or none answered"
NO_CONTENT = "neither text nor features and embedding were logged"
OTHER_FEATURES = "the text was not logged, and its features are those of another version"
OTHER_ENCODER = "the text was not logged, and its embedding is that of another encoder"


@dataclass(frozen=True)
class Export:
    """What an export took, and what it left out, by reason. Counts are of (decision, model), or of decisions."""

    n_decisions: int
    n_rows: int
    left_out: dict[str, int]
    unmatched_feedback: int  # feedback on decisions that this log does not hold


@dataclass(frozen=True)
class Import:
    """What an import did with the requests of a table: ``known`` were decided by this log and are left as they are."""

    n_requests: int
    n_new: int
    n_known: int


def table_of_log(
    log: OutcomeLog, since: float | None = None, until: float | None = None
) -> tuple[OutcomeTable, Export]:
    """Read the log as an outcome table.

    :param since: seconds since 1970, of decisions; included. :param until: excluded.
    :raises TableError: if no row is left. :raises OutcomeLogError: if the log cannot be read.
    """
    columns: dict[str, list[Any]] = {name: [] for name in KNOWN}
    left_out: Counter[str] = Counter()
    n_decisions = 0
    for decision in log.decisions(since, until):
        n_decisions += 1
        for row in _rows_of(decision, left_out):
            for name in KNOWN:
                columns[name].append(row.get(name))
    columns = _of_one_encoder(columns, left_out)
    if not columns:
        problems = [f"{n} left out: {reason}" for reason, n in left_out.items()]
        raise TableError(log.name, [f"{n_decisions} decisions give no row", *problems])
    table = from_columns(columns, log.name)
    return table, Export(n_decisions, table.n_rows, dict(left_out), log.unmatched_feedback())


def _rows_of(decision: LoggedDecision, left_out: Counter[str]) -> Iterator[dict[str, Any]]:
    """The rows of one decision; what gives none is counted."""
    answers = answers_of(decision)
    left_out[CALL_FAILED] += len({a.model for a in decision.attempts if a.error_kind is not None} - answers.keys())
    scores = scores_of(decision)
    if not scores:
        left_out[NO_ANSWER] += 1
    content = _content(decision)
    for model, score in scores.items():
        if score is None:
            left_out[NO_LABEL] += 1
        elif isinstance(content, str):
            left_out[content] += 1
        else:
            yield {"score": score, **content, **_outcome(decision, model, answers.get(model))}


def _content(decision: LoggedDecision) -> dict[str, Any] | str:
    """The columns that say what was asked; a reason if there are none."""
    if decision.prompt is not None:
        return {"prompt" if isinstance(decision.prompt, str) else "messages": decision.prompt}
    if decision.features is None or decision.embedding is None or decision.encoder is None:
        return NO_CONTENT
    if decision.feature_set != feature_set():
        return OTHER_FEATURES
    return {"features": decision.features, "embedding": decision.embedding, "encoder": decision.encoder}


def _outcome(decision: LoggedDecision, model: str, attempt: LoggedAttempt | None) -> dict[str, Any]:
    imported = decision.source == IMPORT
    row: dict[str, Any] = {
        "request_id": decision.decision_id, "model": model, "task": decision.task, "segment": decision.segment,
        "group": decision.session_id, "source": decision.labels.get("source") if imported else decision.source,
    }  # fmt: skip
    if attempt is None:
        chosen = model == decision.model
        return row | {"timestamp": decision.created_at, "propensity": decision.propensity if chosen else None}
    row |= {
        "timestamp": attempt.started_at, "propensity": attempt.propensity, "turns": attempt.turns,
        "tool_calls": attempt.tool_calls,
    }  # fmt: skip
    if attempt.cache_hit:  # what a cached answer cost is not what the model costs
        return row
    cost = None if attempt.cost_usd is None else attempt.cost_usd + (attempt.verdict_cost_usd or 0.0)
    # a provider that counts no tokens reports none, which is not a count of zero
    counted = imported or bool(attempt.input_tokens or attempt.output_tokens)
    return row | {
        "cost_usd": cost, "latency_s": attempt.latency_s,
        "input_tokens": attempt.input_tokens if counted else None,
        "output_tokens": attempt.output_tokens if counted else None,
    }  # fmt: skip


def _of_one_encoder(columns: dict[str, list[Any]], left_out: Counter[str]) -> dict[str, list[Any]]:
    """A table holds embeddings of one encoder: that of the newest row which has one."""
    encoders = columns["encoder"]
    newest = next((encoder for encoder in reversed(encoders) if encoder is not None), None)
    kept = [i for i, encoder in enumerate(encoders) if encoder in (None, newest)]
    left_out[OTHER_ENCODER] += len(encoders) - len(kept)
    for reason in [reason for reason, n in left_out.items() if not n]:
        del left_out[reason]
    held = columns if len(kept) == len(encoders) else {n: [v[i] for i in kept] for n, v in columns.items()}
    return {name: values for name, values in held.items() if any(value is not None for value in values)}


def import_table(log: OutcomeLog, table: OutcomeTable, encoder: Encoder | None = None) -> Import:
    """Add a table's outcomes to the log; what is there already is left as it is.

    A request becomes a decision of source "import" with the request's id, a row an attempt and a score.

    :param encoder: None: the static encoder of the bundled router. It represents the prompts for later training.
    :raises TableError: if the log holds a request id with another prompt, or an id or a name cannot be a key.
    :raises OutcomeLogError: if the log cannot be written.
    """
    encoder = encoder if encoder is not None else default_encoder()
    _check_names(table)
    known = log.known(table.request_ids)
    rows_of_request = np.split(np.arange(table.n_rows), np.searchsorted(table.request, np.arange(1, table.n_requests)))
    prompts = [prompt_columns(prompt, log.log_prompts) if prompt else {} for prompt in table.prompts]
    _check_prompts(table, [columns.get("prompt_hash") for columns in prompts], known)
    refused = log.refused
    for start in range(0, table.n_requests, CHUNK):
        chunk = range(start, min(start + CHUNK, table.n_requests))
        seen = _representations(table, chunk, encoder)
        for i in chunk:
            if known.get(table.request_ids[i], (IMPORT,))[0] == IMPORT:
                rows = _import_rows(table, i, rows_of_request[i], seen[i - start] | prompts[i])
                log.add(lambda rows=rows: rows)  # type: ignore[misc]
    log.flush()
    if log.refused > refused:
        raise OutcomeLogError(f"{log.refused - refused} requests were refused by {log.name}; its log says why")
    decided = sum(source != IMPORT for source, _ in known.values())
    return Import(table.n_requests, table.n_requests - len(known), decided)


def _check_names(table: OutcomeTable) -> None:
    problems = [
        f"{kind} {name[:40]!r} holds a NUL character or is longer than {MAX_ID_BYTES} bytes"
        for kind, names in (("request_id", table.request_ids), ("model", table.models))
        for name in names
        if storable(name) != name or len(name.encode()) > MAX_ID_BYTES
    ]
    if problems:
        raise TableError("import", problems)


def _check_prompts(table: OutcomeTable, hashes: Sequence[str | None], known: dict[str, tuple[str, str | None]]) -> None:
    problems = []
    for request_id, prompt_hash in zip(table.request_ids, hashes, strict=True):
        source, logged = known.get(request_id, (None, None))
        if source == IMPORT and None not in (prompt_hash, logged) and prompt_hash != logged:
            problems.append(f"request_id {request_id!r} was imported with another prompt; give one of them another id")
    if problems:
        raise TableError("import", problems)


def _representations(table: OutcomeTable, chunk: range, encoder: Encoder) -> list[dict[str, Any]]:
    """For each request of the chunk its columns ``features``, ``embedding``, ``feature_set`` and ``encoder``."""
    written = [i for i in chunk if table.prompts[i]]
    fresh = represent([table.prompts[i] for i in written], encoder)
    found = {i: (fresh.features[k], fresh.embedding[k], encoder.fingerprint) for k, i in enumerate(written)}
    if table.stored is not None:
        for i in chunk:
            row = table.stored.row[i]
            if row >= 0:
                found[i] = (table.stored.features[row], table.stored.embedding[row], table.stored.encoder)
    return [{**representation_columns(packed(found[i][0]), packed(found[i][1])), "encoder": found[i][2]} for i in chunk]


def _import_rows(table: OutcomeTable, i: int, rows: IntArray, seen: dict[str, Any]) -> Rows:
    request_id, group = table.request_ids[i], table.group[i]
    stamps = [float(table.timestamp[r]) for r in rows if not math.isnan(table.timestamp[r])]
    now = time()
    decision = {
        **dict.fromkeys(_ONLY_A_ROUTER_KNOWS), **prompt_columns("", "none"),
        "decision_id": request_id, "created_at": min(stamps, default=now), "source": IMPORT,
        "session_id": storable(group) if group != request_id else None, "task": storable(table.task[i]),
        "segment": storable(table.segment[i]), "tags": "[]", "limits": "{}", "candidates": "[]", "plan": "[]",
        "labels": None if table.source[i] is None else as_json({"source": table.source[i]}), **seen,
    }  # fmt: skip
    attempts, feedback = [], []
    for position, row in enumerate(rows.tolist()):
        model, score = table.models[table.model[row]], float(table.score[row])
        shared = {"decision_id": request_id, "model": model}
        held = {name: finite(getattr(table, name)[row]) for name in _NUMBERS}
        attempts.append({
            **dict.fromkeys(_ONLY_A_CALL_KNOWS), **shared, **held, "attempt_id": _key(request_id, model),
            "position": position, "kind": "answer", "started_at": finite(table.timestamp[row]), "cache_hit": False,
        })  # fmt: skip
        feedback.append({
            **shared, "feedback_id": _key(request_id, model, score.hex()), "created_at": now, "score": score,
            "verdict": None, "text": None, "source": IMPORT,
        })  # fmt: skip
    return Rows([decision], attempts, feedback)


_NUMBERS = ("latency_s", "cost_usd", "input_tokens", "output_tokens", "propensity", "turns", "tool_calls")
_ONLY_A_ROUTER_KNOWS = (
    "router_version", "policy", "input_tokens", "model", "confidence", "plan_confidence", "escalated", "degraded",
    "reason_code", "reason_text", "propensity", "expected_cost_usd", "expected_baseline_usd", "baseline_cost_usd",
    "novelty",
)  # fmt: skip
_ONLY_A_CALL_KNOWS = (
    "stage", "cached_tokens", "accepted", "verdict_detail", "verdict_cost_usd", "verdict_latency_s", "error_kind",
    "error_message", "verifier",
)  # fmt: skip


def _key(*parts: str) -> str:
    """A key that the same content always gets, so that importing it again adds nothing."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def moment(_: click.Context, __: click.Parameter, value: str | None) -> float | None:
    """Seconds since 1970 from what a command line says; a click callback."""
    if value is None:
        return None
    try:
        seconds = number_of_text(value, "timestamp")
    except ValueError as exc:
        raise click.BadParameter(str(exc)) from exc
    if not math.isfinite(seconds):
        raise click.BadParameter(f"is {value!r}; expected seconds since 1970 or an ISO 8601 time")
    return seconds


_LOG = click.option(
    "--log", "url", envvar="ROUTER_ML_LOG", default=DEFAULT_URL, show_default=True, metavar="URL",
    help="sqlite:///FILE or postgresql://... [env: ROUTER_ML_LOG]",
)  # fmt: skip
_SINCE = click.option(
    "--since", callback=moment, metavar="TIME", help="Decisions from then on: seconds or ISO 8601, UTC."
)
_UNTIL = click.option("--until", callback=moment, metavar="TIME", help="Decisions before then.")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")


@click.group(name="outcomes")
def command() -> None:
    """Turn the outcome log into an outcome table, and back."""


@command.command("export")
@_LOG
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A .parquet, .csv or .jsonl file.")
@_SINCE
@_UNTIL
@_JSON
def export_command(url: str, out: Path, since: float | None, until: float | None, as_json: bool) -> None:
    """Write the labelled outcomes of a log as an outcome table."""
    with OutcomeLog(url, create=False) as log:
        table, found = table_of_log(log, since, until)
    write_table(table, out)
    if as_json:
        click.echo(json.dumps({"out": str(out), **asdict(found)}))
        return
    click.echo(f"{out}: {found.n_rows} rows of {table.n_requests} requests, from {found.n_decisions} decisions")
    for reason, n in found.left_out.items():
        click.echo(f"left out {n}: {reason}")
    if found.unmatched_feedback:
        click.echo(f"{found.unmatched_feedback} feedback on decisions that this log does not hold")


@command.command("import")
@_LOG
@click.option("--table", "path", type=click.Path(path_type=Path), required=True, help="An outcome table.")
@click.option(
    "--log-prompts", type=click.Choice(PROMPTS), default="hash", show_default=True, help="What to keep of the text."
)
@_JSON
def import_command(url: str, path: Path, log_prompts: Any, as_json: bool) -> None:
    """Add the rows of an outcome table to a log."""
    table = read_table(path)
    with OutcomeLog(url, log_prompts=log_prompts) as log:
        done = import_table(log, table)
    if as_json:
        click.echo(json.dumps({"log": log.name, **asdict(done)}))
        return
    click.echo(f"{log.name}: {done.n_new} requests added, {done.n_requests - done.n_new} were there already")


@command.command("verifiers")
@_LOG
@click.option(
    "--out", type=click.Path(path_type=Path), help="A .yaml or .json file that pool.yaml names: `verifiers: FILE`."
)
@click.option("--level", type=FiniteRange(0, 1, True, True), default=LEVEL, show_default=True, help="Of intervals.")
@click.option(
    "--min-labels", type=click.IntRange(1), default=MIN_LABELS, show_default=True,
    help="Labelled answers, right or wrong ones, below which --out leaves a rate as it is declared.",
)  # fmt: skip
@_SINCE
@_UNTIL
@_JSON
def verifiers_command(
    url: str, out: Path | None, level: float, min_labels: int, since: float | None, until: float | None, as_json: bool
) -> None:
    """Estimate how far the verifiers of a log can be trusted.

    From their verdicts, and from what feedback says of the same answers.
    """
    with OutcomeLog(url, create=False) as log:
        found = reliability(log.decisions(since, until), level=level)
    n_written = None if out is None else found.write(out, min_labels)
    if as_json:
        click.echo(json.dumps({**found.to_dict(), "out": None if out is None else str(out)}, allow_nan=False))
        return
    console().print(found.table())
    for note in found.notes():
        click.echo(f"note: {note}")
    if out is not None:
        click.echo(f"{out}: {n_written} verifiers")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see ``router_ml.cli.run`` for the exit codes."""
    return run(command, argv)


if __name__ == "__main__":
    raise SystemExit(main())
