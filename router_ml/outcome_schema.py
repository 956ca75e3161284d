"""Tables of the outcome log, the numbered steps that make them, and how its database is opened.

Rows are only ever added. A step, once released, is never edited: a change of the tables is a new step at the end of
``MIGRATIONS``, and ``COLUMNS`` says where all steps together lead. Steps run under a lock, so any number of processes
may open a blank database at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from router_ml.errors import MissingExtraError, OutcomeLogError
from router_ml.forks import between_forks

if TYPE_CHECKING:
    from sqlalchemy import URL, Connection, Engine, Table

VERSIONS = "router_migrations"
LOCK = 0x726F757465726D6C  # of PostgreSQL's advisory locks, while steps run: "routerml"
BUSY_S = 30.0  # how long SQLite waits for another process that writes
CONNECT_S = 10
# Without it a PostgreSQL host that vanished would hold the writer for as long as TCP tries, a quarter of an hour.
SILENT_MS = 30_000
_WRITES = "router_ml_writes"

# table -> column -> "text", "real", "whole", "flag" or "bytes"; the first columns of each are its key
COLUMNS: dict[str, dict[str, str]] = {
    "router_decisions": {
        "decision_id": "text", "created_at": "real", "source": "text", "router_version": "text", "policy": "text",
        "encoder": "text", "feature_set": "text", "session_id": "text", "task": "text", "segment": "text",
        "tags": "text", "labels": "text", "prompt_hash": "text", "prompt": "text", "messages": "text",
        "limits": "text", "input_tokens": "real", "features": "bytes", "embedding": "bytes", "candidates": "text",
        "model": "text", "plan": "text", "confidence": "real", "plan_confidence": "real", "escalated": "flag",
        "degraded": "flag", "reason_code": "text", "reason_text": "text", "propensity": "real",
        "expected_cost_usd": "real", "expected_baseline_usd": "real", "baseline_cost_usd": "real", "novelty": "real",
    },
    "router_attempts": {
        "attempt_id": "text", "decision_id": "text", "position": "whole", "model": "text", "kind": "text",
        "stage": "whole", "started_at": "real", "latency_s": "real", "cost_usd": "real", "input_tokens": "real",
        "output_tokens": "real", "cached_tokens": "real", "propensity": "real", "accepted": "flag",
        "verdict_detail": "text", "verdict_cost_usd": "real", "verdict_latency_s": "real", "error_kind": "text",
        "error_message": "text", "cache_hit": "flag", "turns": "real", "tool_calls": "real", "verifier": "text",
    },
    "router_feedback": {
        "feedback_id": "text", "decision_id": "text", "created_at": "real", "model": "text", "score": "real",
        "verdict": "text", "text": "text", "source": "text",
    },
}  # fmt: skip


def _tables(connection: Connection) -> None:
    blob = "BYTEA" if connection.dialect.name == "postgresql" else "BLOB"
    for statement in (
        f"""CREATE TABLE router_decisions (
            decision_id TEXT PRIMARY KEY, created_at DOUBLE PRECISION NOT NULL, source TEXT NOT NULL,
            router_version TEXT, policy TEXT, encoder TEXT, feature_set TEXT, session_id TEXT, task TEXT, segment TEXT,
            tags TEXT NOT NULL, prompt_hash TEXT, prompt TEXT, messages TEXT, limits TEXT NOT NULL,
            input_tokens DOUBLE PRECISION, features {blob}, embedding {blob}, candidates TEXT NOT NULL, model TEXT,
            plan TEXT NOT NULL, confidence DOUBLE PRECISION, plan_confidence DOUBLE PRECISION, escalated BOOLEAN,
            degraded BOOLEAN, reason_code TEXT, reason_text TEXT, propensity DOUBLE PRECISION,
            expected_cost_usd DOUBLE PRECISION, expected_baseline_usd DOUBLE PRECISION,
            baseline_cost_usd DOUBLE PRECISION, novelty DOUBLE PRECISION)""",
        """CREATE TABLE router_attempts (
            attempt_id TEXT PRIMARY KEY, decision_id TEXT NOT NULL, position INTEGER NOT NULL, model TEXT NOT NULL,
            kind TEXT NOT NULL, stage INTEGER, started_at DOUBLE PRECISION, latency_s DOUBLE PRECISION,
            cost_usd DOUBLE PRECISION, input_tokens DOUBLE PRECISION, output_tokens DOUBLE PRECISION,
            cached_tokens DOUBLE PRECISION, propensity DOUBLE PRECISION, accepted BOOLEAN, verdict_detail TEXT,
            verdict_cost_usd DOUBLE PRECISION, verdict_latency_s DOUBLE PRECISION, error_kind TEXT, error_message TEXT,
            cache_hit BOOLEAN NOT NULL, turns DOUBLE PRECISION, tool_calls DOUBLE PRECISION)""",
        # no foreign key: feedback may come before its decision is written, or for one of another log
        """CREATE TABLE router_feedback (
            feedback_id TEXT PRIMARY KEY, decision_id TEXT NOT NULL, created_at DOUBLE PRECISION NOT NULL, model TEXT,
            score DOUBLE PRECISION, verdict TEXT, text TEXT, source TEXT)""",
    ):
        connection.exec_driver_sql(statement)


def _indexes(connection: Connection) -> None:
    for statement in (
        "CREATE INDEX router_decisions_by_time ON router_decisions (created_at, decision_id)",
        "CREATE INDEX router_attempts_by_decision ON router_attempts (decision_id)",
        "CREATE INDEX router_attempts_by_time ON router_attempts (started_at)",
        "CREATE INDEX router_feedback_by_decision ON router_feedback (decision_id)",
    ):
        connection.exec_driver_sql(statement)


def _labels(connection: Connection) -> None:
    connection.exec_driver_sql("ALTER TABLE router_decisions ADD COLUMN labels TEXT")


def _verifier(connection: Connection) -> None:
    connection.exec_driver_sql("ALTER TABLE router_attempts ADD COLUMN verifier TEXT")


MIGRATIONS: tuple[Callable[[Connection], None], ...] = (
    _tables, _indexes, _labels, _verifier,
)  # step i makes version i + 1  # fmt: skip


class Tables(NamedTuple):
    """The tables as SQLAlchemy knows them."""

    decisions: Table
    attempts: Table
    feedback: Table


@cache
def tables() -> Tables:
    """The tables that all steps together make."""
    import sqlalchemy as sa

    types: dict[str, Any] = {
        "text": sa.Text, "real": sa.Double, "whole": sa.Integer, "flag": sa.Boolean, "bytes": sa.LargeBinary,
    }  # fmt: skip
    metadata = sa.MetaData()
    made = []
    for name, columns in COLUMNS.items():
        key = next(iter(columns))
        items = [sa.Column(column, types[kind], primary_key=column == key) for column, kind in columns.items()]
        made.append(sa.Table(name, metadata, *items))
    return Tables(*made)


def open_database(url: str, *, create: bool = True) -> Engine:
    """Open the database and bring it to this version.

    :param url: ``sqlite:///FILE`` or ``postgresql://...``.
    :param create: make a SQLite file that is not there.
    :raises OutcomeLogError: if it cannot be reached, is no outcome log or was written by a newer version. The message
        holds no password.
    :raises MissingExtraError: if SQLAlchemy or the driver is not installed.
    """
    parsed = _parse(url)
    if not create and parsed.drivername.startswith("sqlite") and not Path(str(parsed.database)).exists():
        raise OutcomeLogError(f"{shown(parsed)} is not there; expected the log of a router")
    engine = _engine(parsed)
    try:
        with between_forks(engine):
            if engine.dialect.name == "sqlite":
                _write_ahead(engine)
            migrate(engine)
    except OutcomeLogError as exc:
        engine.dispose()
        raise OutcomeLogError(f"{shown(parsed)}: {exc}") from None
    except Exception as exc:
        engine.dispose()
        # without its cause: a driver's message and SQLAlchemy's may hold the URL
        raise OutcomeLogError(
            f"{shown(parsed)} cannot be opened: {cause(exc, parsed)}; check the URL and that the database is up"
        ) from None
    return engine


def shown(url: URL) -> str:
    """The URL as a message may hold it."""
    return url.set(query={}).render_as_string(hide_password=True)


def cause(exc: BaseException, url: URL) -> str:
    """First line of what the driver said, without the password. The rest, and SQLAlchemy's own words, hold the row."""
    said = str(getattr(exc, "orig", None) or exc).strip().partition("\n")[0] or type(exc).__name__
    secrets = [url.password, *(value for name, value in url.query.items() if "password" in name)]
    for secret in secrets:
        said = said.replace(str(secret), "***") if secret else said
    return said


def _parse(url: str) -> URL:
    try:
        import sqlalchemy as sa
    except ImportError as exc:
        raise MissingExtraError("sqlalchemy", "log") from exc
    expected = "expected sqlite:///FILE or postgresql://user:password@host/database"
    try:
        parsed = sa.make_url(url)
    except Exception:  # its message may hold the URL
        raise OutcomeLogError(f"the outcome log's URL cannot be read; {expected}") from None
    if parsed.drivername in ("postgresql", "postgres"):
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername == "postgresql+psycopg":
        return parsed
    if parsed.drivername not in ("sqlite", "sqlite+pysqlite"):
        raise OutcomeLogError(f"the outcome log's URL begins with {parsed.drivername}; {expected}")
    if not parsed.database or parsed.database == ":memory:":
        raise OutcomeLogError(
            "the outcome log needs a file, for several threads and processes; expected sqlite:///FILE"
        )
    if not Path(parsed.database).absolute().parent.is_dir():
        raise OutcomeLogError(f"{shown(parsed)} cannot be opened: its folder does not exist; make it first")
    return parsed


def _engine(url: URL) -> Engine:
    import sqlalchemy as sa

    if url.drivername.startswith("postgresql"):
        limits = {"connect_timeout": CONNECT_S, "tcp_user_timeout": SILENT_MS, "application_name": "router-ml"}
        own = {name: value for name, value in limits.items() if name not in url.query}
        try:
            return sa.create_engine(url, pool_pre_ping=True, isolation_level="READ COMMITTED", connect_args=own)
        except ImportError as exc:
            raise MissingExtraError("psycopg", "postgres") from exc
    engine = sa.create_engine(url, connect_args={"timeout": BUSY_S})

    def connected(connection: Any, _: object) -> None:
        connection.isolation_level = None  # else the driver, not we, would say when a transaction begins
        connection.execute("PRAGMA synchronous = NORMAL").close()

    def begun(connection: Connection) -> None:
        # A transaction that reads first and writes later may find that it cannot; so a writer says so at once.
        writes = connection.get_execution_options().get(_WRITES)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    sa.event.listen(engine, "connect", connected)
    sa.event.listen(engine, "begin", begun)
    return engine


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A transaction that writes."""
    with engine.connect().execution_options(**{_WRITES: True}) as connection, connection.begin():
        yield connection


def _write_ahead(engine: Engine) -> None:
    """Switch to write-ahead logging, which readers do not block. SQLite does not wait for the lock of this switch."""
    import sqlite3

    deadline = time.monotonic() + BUSY_S
    while True:
        connection: Any = engine.raw_connection()
        try:
            connection.execute("PRAGMA journal_mode = WAL").close()
            return
        except sqlite3.OperationalError as exc:
            if "locked" not in str(exc) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        finally:
            connection.close()


def migrate(engine: Engine) -> None:
    """Run the steps that the database has not seen, each once, whoever else opens it.

    :raises OutcomeLogError: if a newer version wrote it.
    """
    with engine.connect() as connection:
        if _version(connection) == len(MIGRATIONS):
            return
    with writing(engine) as connection:
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({LOCK})").close()
        for number in range(_version(connection), len(MIGRATIONS)):
            if number == 0:
                connection.exec_driver_sql(
                    f"CREATE TABLE {VERSIONS} (version INTEGER PRIMARY KEY, name TEXT, applied_at DOUBLE PRECISION)"
                )
            step = MIGRATIONS[number]
            step(connection)
            row = (number + 1, step.__name__.strip("_"), time.time())
            mark = "%s" if engine.dialect.name == "postgresql" else "?"
            connection.exec_driver_sql(f"INSERT INTO {VERSIONS} VALUES ({mark}, {mark}, {mark})", row)


def _version(connection: Connection) -> int:
    """The database's version, 0 if it is blank."""
    import sqlalchemy as sa

    if not sa.inspect(connection).has_table(VERSIONS):
        return 0
    found = int(connection.exec_driver_sql(f"SELECT COALESCE(MAX(version), 0) FROM {VERSIONS}").scalar_one())
    if found > len(MIGRATIONS):
        raise OutcomeLogError(
            f"written by a newer version (tables {found}, this version knows {len(MIGRATIONS)}); upgrade router-ml"
        )
    return found
