"""A real PostgreSQL for tests: started in a temporary folder on a free loopback port, stopped at the end."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PASSWORD = "pg-secret-4711"


def binaries() -> Path | None:
    """Folder of ``initdb`` and ``pg_ctl``: on the path, or where Debian puts them; None: not installed."""
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).parent
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return installed[-1].parent if installed else None


@dataclass(frozen=True)
class PostgresServer:
    """A server that runs in ``folder``."""

    folder: Path
    port: int
    fsync: bool

    @property
    def url(self) -> str:
        """The server's own database, as its owner."""
        return f"postgresql://router:{PASSWORD}@127.0.0.1:{self.port}/postgres"

    def new_database(self, name: str) -> str:
        """:return: URL of a new, blank database."""
        import psycopg

        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"'.encode())
        return self.url.rpartition("/")[0] + f"/{name}"

    def start(self) -> None:
        """Start, and return when it takes connections."""
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c max_connections=60"
        options += "" if self.fsync else " -c fsync=off"
        log = str(self.folder / "log")
        _run(["pg_ctl", "start", "-w", "-s", "-D", str(self.folder / "data"), "-l", log, "-o", options])

    def stop(self, mode: str = "fast") -> None:
        """Stop. :param mode: "immediate" leaves it as a crash would."""
        _run(["pg_ctl", "stop", "-w", "-s", "-D", str(self.folder / "data"), "-m", mode])


@contextmanager
def postgres_server(*, fsync: bool = False) -> Iterator[PostgresServer]:
    """Start a server; stop it and remove its folder at the end.

    :param fsync: whether commits wait for the disk, as in production.
    """
    folder = Path(tempfile.mkdtemp(prefix="router-ml-pg-"))
    try:
        (folder / "password").write_text(PASSWORD)
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            for path in (folder, folder / "password"):
                shutil.chown(path, "postgres", "postgres")
        data, secret = str(folder / "data"), str(folder / "password")
        _run(["initdb", "-D", data, "-U", "router", "-A", "scram-sha-256", "--pwfile", secret, "-E", "UTF8", "-N"])
        server = PostgresServer(folder, _free_port(), fsync)
        server.start()
        try:
            yield server
        finally:
            if (folder / "data" / "postmaster.pid").exists():
                server.stop("immediate")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(command: Sequence[str]) -> None:
    folder = binaries()
    assert folder is not None, "PostgreSQL is not installed"
    as_owner = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    # pg_ctl's child keeps what it inherits, so a pipe would never end
    subprocess.run(
        [*as_owner, str(folder / command[0]), *command[1:]],
        check=True, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=120,
    )  # fmt: skip


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
