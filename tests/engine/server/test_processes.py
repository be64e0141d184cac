"""``recserve serve --workers N``: one port, several processes, and a parent that keeps them running."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from recserve.engine import Request
from recserve.engine.client import RecommenderClient
from recserve.engine.server.config import ServerConfig
from recserve.engine.server.processes import reserved_port
from recserve.engine.wire.status import RemoteError
from recserve.errors import ConfigError

TIMEOUT_SECONDS = 90


@contextlib.contextmanager
def serving(bundle: Path, log: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, "-m", "recserve.engine.cli", "serve", str(bundle), "--port", "0", *arguments]
    with (
        log.open("w") as stderr,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def events(log: Path, name: str) -> list[dict[str, int]]:
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == name]


def has_ended(pid: int) -> bool:
    """Waits until the process, nobody's child here, is gone."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], TIMEOUT_SECONDS)[0])
    finally:
        os.close(handle)


def answers(address: str) -> bool:
    # A new channel each time: a new connection, which the kernel gives to any of the workers.
    with RecommenderClient(address, timeout=TIMEOUT_SECONDS) as client:
        return bool(client.recommend(Request(k=1)).items)


def test_a_killed_worker_is_replaced_and_sigterm_ends_all(
    bundle_folder: Path, tmp_path: Path, transport: str
) -> None:
    log = tmp_path / "log"
    with serving(bundle_folder, log, "--workers", "2", "--transport", transport) as (process, address):
        first = [event["pid"] for event in events(log, "worker started")]
        assert len(first) == 2
        assert all(answers(address) for _ in range(8))
        os.kill(first[0], signal.SIGKILL)
        assert has_ended(first[0])
        end = time.monotonic() + TIMEOUT_SECONDS
        while len(events(log, "serving")) < 3:
            # The other one answers; the new one takes no connection before it is warm.
            assert answers(address)
            assert time.monotonic() < end
        assert [event["exit_code"] for event in events(log, "worker died")] == [-signal.SIGKILL]
        assert all(answers(address) for _ in range(8))
        process.send_signal(signal.SIGTERM)
        process.wait(TIMEOUT_SECONDS)
    assert process.returncode == 0
    pids = [event["pid"] for event in events(log, "worker started")]
    assert all(map(has_ended, pids))
    assert "Traceback" not in log.read_text()


def test_workers_do_not_outlive_their_parent(bundle_folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with serving(bundle_folder, log, "--workers", "2") as (process, address):
        assert answers(address)
        process.kill()
        process.wait(TIMEOUT_SECONDS)
        pids = [event["pid"] for event in events(log, "worker started")]
        assert all(map(has_ended, pids))


def test_a_bundle_that_no_worker_can_load_ends_all_with_its_own_error(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with serving(tmp_path, log, "--workers", "2") as (process, address):
        process.wait(TIMEOUT_SECONDS)
    assert (address, process.returncode) == ("", 5)
    assert "error: bundle" in log.read_text()
    assert "Traceback" not in log.read_text()


def test_a_port_is_reserved_for_several_and_refused_when_taken() -> None:
    with reserved_port(ServerConfig(port=0)) as port:
        assert port > 0
        with (
            pytest.raises(ConfigError, match="expected free to bind"),
            reserved_port(ServerConfig(port=port)),
        ):
            pass
    with pytest.raises(ConfigError, match="Unix socket"), reserved_port(ServerConfig(host="unix:/tmp/x")):
        pass


def test_a_unix_socket_carries_calls(bundle_folder: Path, tmp_path: Path, transport: str) -> None:
    log = tmp_path / "log"
    arguments = ("--host", f"unix:{tmp_path}/s", "--transport", transport)
    with serving(bundle_folder, log, *arguments) as (process, address):
        assert address == f"unix:{tmp_path}/s"
        assert answers(address)
        process.send_signal(signal.SIGTERM)
        assert process.wait(TIMEOUT_SECONDS) == 0
    with pytest.raises(RemoteError):
        answers(address)
