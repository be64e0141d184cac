"""Servers of a benchmark are ended with all their processes, whatever ends the benchmark."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from recserve.benchmarks.servers import running
from recserve.errors import CheckFailed

# A server with a child that nobody told to stop; both ids are in its first line.
SERVER = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(os.getpid(), child.pid, flush=True)
time.sleep(60)
"""
BENCHMARK = """
import sys, time
from recserve.benchmarks.servers import running
with running("server", [sys.argv[1]], {}) as server:
    print(server.address, flush=True)
    # In steps: a signal that comes just before a sleep is seen after it.
    for _ in range(600):
        time.sleep(0.1)
"""


def is_alive(process_id: int) -> bool:
    """Whether a process runs; one that ended and waits for init to look counts as ended."""
    try:
        stat = Path(f"/proc/{process_id}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def all_end(ids: list[int]) -> bool:
    """Whether all are gone soon: a signal takes a moment."""
    for _ in range(200):
        if not any(map(is_alive, ids)):
            return True
        time.sleep(0.01)
    return False


@pytest.fixture
def script(tmp_path: Path) -> str:
    (tmp_path / "server.py").write_text(SERVER)
    return str(tmp_path / "server.py")


def test_a_server_ends_with_its_children_and_its_time_is_known(script: str) -> None:
    with running("server", [script], {}) as server:
        ids = [int(part) for part in server.address.split()]
        assert server.process_id == ids[0]
        assert all(map(is_alive, ids))
        assert server.cpu_seconds() >= 0
    assert all_end(ids)


def test_nothing_stays_behind_when_the_benchmark_is_terminated(script: str) -> None:
    command = [sys.executable, "-c", BENCHMARK, script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as benchmark:
        assert benchmark.stdout is not None
        ids = [int(part) for part in benchmark.stdout.readline().split()]
        os.kill(benchmark.pid, signal.SIGTERM)
        assert benchmark.wait(30) == 143
    assert all_end(ids)


def test_a_server_that_ends_at_once_is_told(tmp_path: Path) -> None:
    (tmp_path / "server.py").write_text("")
    ends = running("server", [str(tmp_path / "server.py")], {})
    with pytest.raises(CheckFailed, match="server is ended"), ends:
        pass
