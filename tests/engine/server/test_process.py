"""``recserve serve`` as a process: signals while it loads, IPv6, and what its log must not hold."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from recserve.engine import Request
from recserve.engine.client import RecommenderClient
from recserve.engine.server.app import Server, run_server
from recserve.engine.server.config import ServerConfig
from recserve.engine.wire.status import RemoteError
from recserve.errors import BundleInvalid, BundleReason

TIMEOUT_SECONDS = 60

# Loads for as long as stdin is open, then an engine or not.
SLOW_LOADER = """
import sys
from recserve.engine import BundleInvalid, Engine
from recserve.engine.logs import configure_logs
from recserve.engine.server.app import Server, run_server
from recserve.engine.server.config import ServerConfig

def load():
    print("loading", flush=True)
    sys.stdin.read()
    return Engine.load(sys.argv[1])

configure_logs()
run_server(Server(ServerConfig(port=0)), load, lambda address: print("announced", flush=True))
"""


@contextmanager
def slow_loader(bundle: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_LOADER, str(bundle)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "loading\n"
            yield process
        finally:
            process.kill()


def test_a_signal_while_loading_ends_the_server_after_the_load(bundle_folder: Path) -> None:
    with slow_loader(bundle_folder) as process:
        process.send_signal(signal.SIGTERM)
        out, log = process.communicate(timeout=TIMEOUT_SECONDS)
    assert (process.returncode, out) == (0, "")
    assert [json.loads(line)["event"] for line in log.splitlines()] == ["draining", "stopped"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_a_load_that_hangs(bundle_folder: Path, number: signal.Signals) -> None:
    with slow_loader(bundle_folder) as process:
        process.send_signal(number)
        assert process.stderr is not None
        assert json.loads(process.stderr.readline())["event"] == "draining"
        # Its stdin stays open: the load never ends.
        process.send_signal(number)
        process.wait(TIMEOUT_SECONDS)
        assert process.returncode == -number


def test_an_error_of_the_load_reaches_the_caller() -> None:
    def load() -> None:
        raise BundleInvalid("bundle", found="broken", expected="whole", reason=BundleReason.SHAPE)

    with pytest.raises(BundleInvalid, match="bundle is broken"):
        run_server(Server(ServerConfig(port=0)), load, lambda address: None)  # type: ignore[arg-type]


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def test_an_ipv6_address_is_written_with_brackets() -> None:
    assert ServerConfig(host="::1").address(7) == "[::1]:7"
    assert ServerConfig().address(7) == "127.0.0.1:7"


def test_the_log_of_a_server_names_no_user(bundle_folder: Path) -> None:
    command = [sys.executable, "-m", "recserve.engine.cli", "serve", str(bundle_folder), "--port", "0"]
    command += ["--host", "::1"] if has_ipv6() else []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    ) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            with RecommenderClient(address, timeout=TIMEOUT_SECONDS) as client:
                assert client.recommend(Request(user_id="canary-user", history=["canary-item"])).items
                for bad in (Request(user_id="canary-user", k=0), Request(user_id="canary-user" * 90)):
                    with pytest.raises(RemoteError):
                        client.recommend(bad)
            process.send_signal(signal.SIGINT)
            out, log = process.communicate(timeout=TIMEOUT_SECONDS)
        finally:
            process.kill()
    assert (process.returncode, out) == (0, "")
    assert '"serving"' in log
    assert "canary" not in log
