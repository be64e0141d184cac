"""Real database servers on a free loopback port, with their data in a temporary folder."""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from recserve.errors import CheckFailed

POSTGRES_FOLDERS = ":".join(map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)))
# PostgreSQL does not run as root.
UNPRIVILEGED = 65534


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class RedisServer:
    """``redis-server``, with every write synced to its log."""

    def __init__(self, folder: Path) -> None:
        binary = shutil.which("redis-server")
        if binary is None:
            pytest.skip("redis-server is not installed")
        redis = pytest.importorskip("redis")
        port = free_port()
        self.url = f"redis://127.0.0.1:{port}/0"
        self.client = redis.Redis.from_url(self.url)
        self._command = [
            binary,
            "--bind",
            "127.0.0.1",
            "--port",
            str(port),
            "--dir",
            str(folder),
            "--save",
            "",
        ]
        self._command += ["--appendonly", "yes", "--appendfsync", "always"]

    def start(self) -> None:
        """Starts it and waits until it answers."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if "Ready to accept connections" in line:
                return
        raise CheckFailed("redis-server", found="ended", expected="running")

    def kill(self) -> None:
        """Kills it as a crash would."""
        self._process.kill()
        self._process.communicate()

    def empty(self) -> None:
        """Removes everything."""
        self.client.flushall()

    @contextmanager
    def configured(self, **settings: str) -> Iterator[None]:
        """Has other settings for a while; dashes are underscores."""
        names = {name: name.replace("_", "-") for name in settings}
        before = {name: self.client.config_get(name)[name] for name in names.values()}
        for name, value in settings.items():
            self.client.config_set(names[name], value)
        try:
            yield
        finally:
            for name, value in before.items():
                self.client.config_set(name, value)

    def everything(self) -> str:
        """Returns what it keeps, as text."""
        return "".join(str((key, self._content(key))) for key in self.client.scan_iter())

    def _content(self, key: bytes) -> Any:
        kind = self.client.type(key)
        if kind == b"hash":
            return self.client.hgetall(key)
        if kind == b"stream":
            return self.client.xrange(key)
        return self.client.zrange(key, 0, -1) if kind == b"zset" else kind


class PostgresServer:
    """``postgres``, under an account without rights where we are root."""

    def __init__(self, folder: Path) -> None:
        path = f"{POSTGRES_FOLDERS}:{os.environ['PATH']}"
        initdb, self._pg_ctl = shutil.which("initdb", path=path), shutil.which("pg_ctl", path=path)
        if initdb is None or self._pg_ctl is None:
            pytest.skip("PostgreSQL's server is not installed")
        self._psycopg = pytest.importorskip("psycopg")
        self._data = folder / "data"
        self._user = (
            {"user": UNPRIVILEGED, "group": UNPRIVILEGED, "extra_groups": []} if not os.getuid() else {}
        )
        if self._user:
            os.chown(folder, UNPRIVILEGED, UNPRIVILEGED)
        self._run(
            initdb,
            "-D",
            str(self._data),
            "-U",
            "recserve",
            "-A",
            "trust",
            "--no-sync",
            "--no-locale",
            "-E",
            "UTF8",
        )
        port = free_port()
        self.url = f"postgresql://recserve@127.0.0.1:{port}/postgres"
        self._options = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories="

    def start(self) -> None:
        """Starts it and waits until it answers."""
        self._control("start", "-l", str(self._data / "server.log"), "-o", self._options)

    def kill(self) -> None:
        """Stops it as a crash would: no checkpoint, connections cut."""
        self._control("stop", "-m", "immediate")

    def empty(self) -> None:
        """Removes everything."""
        self._ask("DROP SCHEMA public CASCADE")
        self._ask("CREATE SCHEMA public")

    def everything(self) -> str:
        """Returns what it keeps, as text."""
        tables = ("recserve_events", "recserve_keys", "recserve_erased")
        return "".join(str(self._ask(f"SELECT * FROM {table}")) for table in tables)

    def _ask(self, statement: str) -> list[Any]:
        with self._psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(statement)
            return list(cursor.fetchall()) if cursor.description else []

    def _control(self, *arguments: str) -> None:
        assert self._pg_ctl is not None
        self._run(self._pg_ctl, "-D", str(self._data), "-w", "-s", *arguments)

    def _run(self, *command: str) -> None:
        finished = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            cwd="/",
            **self._user,
        )
        if finished.returncode:
            raise CheckFailed(command[0], found=finished.stderr, expected="to succeed")


DatabaseServer = RedisServer | PostgresServer
KINDS: dict[str, type[RedisServer] | type[PostgresServer]] = {
    "redis": RedisServer,
    "postgres": PostgresServer,
}


@contextmanager
def running(kind: str) -> Iterator[DatabaseServer]:
    """Runs a server of a kind; skips the test where it is not installed."""
    # Not pytest's folder: another account must get there.
    with tempfile.TemporaryDirectory(prefix="recserve-", ignore_cleanup_errors=True) as folder:
        server = KINDS[kind](Path(folder))
        server.start()
        try:
            yield server
        finally:
            server.kill()
