"""A real redis-server for tests: on a free loopback port, in a temporary folder, without persistence."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator

import pytest


class RedisServer:
    """Where it listens. It can be stopped, and started again at the same port, empty."""

    def __init__(self, folder: str, password: str | None) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self._folder, self._password = folder, password
        self.url = f"redis://:{password}@127.0.0.1:{self.port}/0" if password else f"redis://127.0.0.1:{self.port}/0"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Return when it answers."""
        command = [
            "redis-server", "--bind", "127.0.0.1", "--port", str(self.port), "--dir", self._folder,
            "--save", "", "--appendonly", "no", *(["--requirepass", self._password] if self._password else []),
        ]  # fmt: skip
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while not self._listens():
            assert time.monotonic() < deadline and self._process.poll() is None, "redis-server does not start"
            time.sleep(0.01)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None

    def _listens(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(1) in (b"+", b"-")
        return False


@contextlib.contextmanager
def redis_server(password: str | None = None) -> Iterator[RedisServer]:
    """Start one and stop it. Skips the test where redis-server or its client is not installed."""
    pytest.importorskip("redis")
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed")
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(folder, password)
        server.start()
        try:
            yield server
        finally:
            server.stop()
