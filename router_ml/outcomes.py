"""The outcome log: which decision was made on what evidence, what came of it, and what was said of it later.

    with OutcomeLog("sqlite:///router_ml.db") as log:
        log.record(Entry(decision, request, reading.features, reading.embedding, attempts))
        log.feedback(decision.decision_id, score=1.0, source="reviewer")

It is append-only: rows are added, none is ever changed or removed. ``record`` only queues; a thread writes. An entry
counts as logged once its receipt is done, and survives the process from then on (SQLite: and a loss of power, but for
the last moments before it).
"""

from __future__ import annotations

import json
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from router_ml.errors import OutcomeLogError, RequestError
from router_ml.forks import between_forks
from router_ml.outcome_rows import (
    IMPORT,
    Entry,
    LoggedAttempt,
    LoggedDecision,
    LoggedFeedback,
    Prompts,
    Rows,
    decision_of,
    entry_rows,
    finite,
    owned,
    packed,
    storable,
)
from router_ml.outcome_schema import cause, open_database, shown, tables
from router_ml.outcome_writer import Receipt, Writer

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine, Select

__all__ = ["VERDICTS", "Entry", "LoggedAttempt", "LoggedDecision", "LoggedFeedback", "OutcomeLog", "Receipt"]

VERDICTS = ("good_fit", "underpowered", "overprovisioned", "failed")
PROMPTS = ("none", "hash", "text")
DEFAULT_URL = "sqlite:///router_ml.db"
CHUNK = 500  # decisions read at once
MAX_ID = 200  # characters of a decision id or a name in feedback
MAX_TEXT = 20_000  # characters of a feedback's text


class OutcomeLog:
    """An outcome log in SQLite or PostgreSQL. Threads may share one; a forked process goes on with its own thread.

    :param url: ``sqlite:///FILE`` or ``postgresql://user:password@host/database``. Made if it is blank.
    :param log_prompts: "none" keeps nothing of a request's text, "hash" a SHA-256 that tells equal requests, "text"
        the text. Training needs no text: features and embedding are logged either way.
    :param queue_size: entries that may wait to be written. A full queue makes callers wait; nothing is dropped.
    :param create: make a SQLite file that is not there yet.
    :raises OutcomeLogError: if the database cannot be opened or was written by a newer version.
    :raises MissingExtraError: if SQLAlchemy (extra ``log``) or psycopg (extra ``postgres``) is not installed.
    """

    def __init__(
        self, url: str = DEFAULT_URL, *, log_prompts: Prompts = "hash", queue_size: int = 10_000, create: bool = True
    ) -> None:
        if log_prompts not in PROMPTS:
            raise OutcomeLogError(f"log_prompts is {log_prompts!r}; expected one of {list(PROMPTS)}")
        if not isinstance(queue_size, int) or queue_size < 1:
            raise OutcomeLogError(f"queue_size is {queue_size!r}; expected a whole number >= 1")
        self.log_prompts = log_prompts
        self._engine: Engine = open_database(url, create=create)
        self.name = shown(self._engine.url)
        self._writer = Writer(self._engine, queue_size)

    def record(self, entry: Entry) -> Receipt:
        """Queue one request's decision and attempts; they are written in one transaction.

        A decision is kept as it was first recorded. The entry's arrays and messages may be changed afterwards.

        :raises OutcomeLogError: if the log is closed.
        """
        created_at = time.time() if entry.created_at is None else entry.created_at
        prompt = owned(entry.request.messages) if self.log_prompts != "none" else ""
        features, embedding = packed(entry.features), packed(entry.embedding)
        return self.add(partial(entry_rows, entry, created_at, features, embedding, prompt, self.log_prompts))

    def feedback(
        self, decision_id: str, *, score: float | None = None, verdict: str | None = None, text: str | None = None,
        source: str | None = None, model: str | None = None,
    ) -> Receipt:  # fmt: skip
        """Queue what is known of a decision's outcome by now; it may come more than once, and before the decision.

        :param score: in [0, 1]. :param verdict: one of ``VERDICTS``. :param text: in the user's words.
        :param source: who says so, such as "user" or a test suite's name.
        :param model: whose answer it is about; None: the answer that was given.
        :raises RequestError: if nothing is said, or a value is not as described.
        """
        _check_feedback(decision_id, score, verdict, text, source, model)
        row = {
            "feedback_id": uuid.uuid4().hex, "decision_id": storable(decision_id), "created_at": time.time(),
            "model": storable(model), "score": finite(score), "verdict": verdict, "text": storable(text),
            "source": storable(source),
        }  # fmt: skip
        return self.add(lambda: Rows(feedback=[row]))

    def add(self, make: Callable[[], Rows]) -> Receipt:
        """Queue rows that ``make`` gives, called once in the writer's thread."""
        return self._writer.put(make)

    @property
    def pending(self) -> int:
        """Entries that are not written yet."""
        return self._writer.pending

    @property
    def refused(self) -> int:
        """Entries that the database refused; their receipts say why."""
        return self._writer.refused

    def flush(self, timeout: float | None = None) -> None:
        """Return once all that was queued before is written.

        :raises OutcomeLogError: if it is not within the time. Writing goes on, and ``flush`` may be called again.
        """
        self._writer.flush(timeout)

    def close(self, timeout: float | None = 30.0) -> None:
        """Write what is queued, and close.

        :raises OutcomeLogError: if something could not be written within the time; it is lost, and counted.
        """
        self._writer.close(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def decisions(self, since: float | None = None, until: float | None = None) -> Iterator[LoggedDecision]:
        """Stream decisions in the order they were made, with attempts and feedback; memory stays bounded.

        :param since: seconds since 1970, included. :param until: excluded.
        :raises OutcomeLogError: if the log cannot be read.
        """
        last: tuple[float, str] | None = None
        while True:
            chunk = self._read(partial(_read_chunk, since=since, until=until, after=last))
            yield from chunk
            if len(chunk) < CHUNK:
                return
            last = chunk[-1].created_at, chunk[-1].decision_id

    def known(self, decision_ids: list[str]) -> dict[str, tuple[str, str | None]]:
        """Source and prompt hash of those of the given decisions that the log holds."""
        import sqlalchemy as sa

        d = tables().decisions.c
        found: dict[str, tuple[str, str | None]] = {}
        for start in range(0, len(decision_ids), CHUNK):
            ids = decision_ids[start : start + CHUNK]
            query = sa.select(d.decision_id, d.source, d.prompt_hash).where(d.decision_id.in_(ids))
            found |= {row[0]: (row[1], row[2]) for row in self._rows(query)}
        return found

    def unmatched_feedback(self) -> int:
        """Count feedback whose decision the log does not hold."""
        import sqlalchemy as sa

        d, f = tables().decisions, tables().feedback
        query = (
            sa.select(sa.func.count())
            .select_from(f.outerjoin(d, d.c.decision_id == f.c.decision_id))
            .where(d.c.decision_id.is_(None))
        )
        return int(self._rows(query)[0][0])

    def spent(self, since: float) -> dict[str | None, float]:
        """What attempts and their checks cost.

        :param since: seconds since 1970: attempts that started then or later count.
        :return: USD in total under None, and per tag. A request with two tags counts for both.
        """
        import sqlalchemy as sa

        d, a = tables().decisions.c, tables().attempts.c
        cost = sa.func.coalesce(a.cost_usd, 0.0) + sa.func.coalesce(a.verdict_cost_usd, 0.0)
        # grouped by the whole list of tags, which both databases can; the few distinct lists are taken apart here
        query = (
            sa.select(d.tags, sa.func.sum(cost))
            .join(tables().attempts, a.decision_id == d.decision_id)
            .where(a.started_at >= since, d.source != IMPORT)
            .group_by(d.tags)
        )
        total: dict[str | None, float] = defaultdict(float, {None: 0.0})
        for tags, usd in self._rows(query):
            for name in (None, *json.loads(tags)):
                total[name] += float(usd)
        return dict(total)

    def _rows(self, query: Select[Any]) -> Sequence[Any]:
        rows: Sequence[Any] = self._read(lambda connection: connection.execute(query).all())
        return rows

    def _read(self, read: Callable[[Connection], Any]) -> Any:
        import sqlalchemy as sa

        try:
            with between_forks(self._engine), self._engine.connect() as connection:
                return read(connection)
        except sa.exc.SQLAlchemyError as exc:
            raise OutcomeLogError(f"{self.name} cannot be read: {cause(exc, self._engine.url)}") from None


def _read_chunk(
    connection: Connection, *, since: float | None, until: float | None, after: tuple[float, str] | None
) -> list[LoggedDecision]:
    import sqlalchemy as sa

    _, a, f = tables()
    rows = connection.execute(_chunk_query(since, until, after)).mappings().all()
    ids = [row["decision_id"] for row in rows]
    attempts, feedback = _by_decision(), _by_decision()
    for held, table, order in (
        (attempts, a, (a.c.position, a.c.attempt_id)),
        (feedback, f, (f.c.created_at, f.c.feedback_id)),
    ):
        query = sa.select(table).where(table.c.decision_id.in_(ids)).order_by(*order)
        for row in connection.execute(query).mappings() if ids else ():
            held[row["decision_id"]].append(dict(row))
    return [decision_of(dict(row), attempts[row["decision_id"]], feedback[row["decision_id"]]) for row in rows]


def _by_decision() -> dict[str, list[dict[str, Any]]]:
    return defaultdict(list)


def _chunk_query(since: float | None, until: float | None, after: tuple[float, str] | None) -> Select[Any]:
    import sqlalchemy as sa

    d = tables().decisions
    query = sa.select(d).order_by(d.c.created_at, d.c.decision_id).limit(CHUNK)
    if since is not None:
        query = query.where(d.c.created_at >= since)
    if until is not None:
        query = query.where(d.c.created_at < until)
    if after is not None:
        # the first condition says no more than the second, and lets the index be used
        at, decision_id = after
        later = sa.or_(d.c.created_at > at, sa.and_(d.c.created_at == at, d.c.decision_id > decision_id))
        query = query.where(d.c.created_at >= at, later)
    return query


def _check_feedback(decision_id: Any, score: Any, verdict: Any, text: Any, source: Any, model: Any) -> None:
    if not isinstance(decision_id, str) or not decision_id.strip() or len(decision_id) > MAX_ID:
        raise RequestError(f"decision_id must be a text of 1 to {MAX_ID} characters; take it from the decision")
    if score is None and verdict is None and text is None:
        raise RequestError("feedback says nothing; expected a score, a verdict or a text")
    number = isinstance(score, (int, float)) and not isinstance(score, bool)
    if score is not None and not (number and 0.0 <= score <= 1.0):
        raise RequestError(f"score is {str(score)[:60]}; expected a number from 0 to 1")
    if verdict is not None and verdict not in VERDICTS:
        raise RequestError(f"verdict is {str(verdict)[:60]!r}; expected one of {list(VERDICTS)}")
    for name, value, most in (("text", text, MAX_TEXT), ("source", source, MAX_ID), ("model", model, MAX_ID)):
        if value is not None and not (isinstance(value, str) and len(value) <= most):
            raise RequestError(f"{name} must be a text of at most {most} characters")
    if model is not None and not model.strip():  # an export could not name it
        raise RequestError("model is blank; expected a model's name, or nothing for the answer that was given")
