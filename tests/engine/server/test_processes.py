"""``recserve serve --workers N``: one port, several processes, and a parent that keeps them running."""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from recserve.engine import Request
from recserve.engine.client import RecommenderClient
from recserve.engine.server.app import Server
from recserve.engine.server.config import ServerConfig
from recserve.engine.server.http.config import HttpConfig
from recserve.engine.server.http.listener import HttpListener
from recserve.engine.server.processes import reserved_port
from recserve.engine.wire.status import RemoteError
from recserve.errors import ConfigError
from recserve.proto import admin_pb2, admin_pb2_grpc
from tests.engine.models.versions import make_version
from tests.engine.server.http_client import HttpCaller

TIMEOUT_SECONDS = 90


@contextlib.contextmanager
def serving(
    bundle: Path, log: Path, *arguments: str, repository: bool = False, **environment: str
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """``bundle``: a folder of models with ``repository``."""
    command = [sys.executable, "-m", "recserve.engine.cli", "serve", "--port", "0", *arguments]
    command += ["--repository", str(bundle)] if repository else [str(bundle)]
    with (
        log.open("w") as stderr,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=stderr, text=True, env={**os.environ, **environment}
        ) as process,
    ):
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def events(log: Path, name: str) -> list[dict[str, Any]]:
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


def versions(address: str, n: int) -> set[str]:
    """The versions that ``n`` new connections are answered by."""
    found = set()
    for _ in range(n):
        with RecommenderClient(address, timeout=TIMEOUT_SECONDS) as client:
            found.add(client.recommend(Request(k=1)).bundle_version)
    return found


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


def wait_for(is_there: Callable[[], bool]) -> None:
    """Waits until something has happened in the server."""
    end = time.monotonic() + TIMEOUT_SECONDS
    while not is_there():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_what_one_worker_is_told_all_do(bundle_folder: Path, tmp_path: Path) -> None:
    repository, log, admin = tmp_path / "repository", tmp_path / "log", f"unix:{tmp_path}/admin"
    (repository / "shop").mkdir(parents=True)
    for day, version in enumerate(("v1", "v2"), start=1):
        make_version(bundle_folder, repository / "shop" / version, version, day=day)
    settings = {"RECSERVE__REPOSITORY__POLL_SECONDS": "0.05", "RECSERVE__REPOSITORY__TRIAL": "false"}
    arguments = ("--workers", "2", "--admin-address", admin)

    def ask(method: str, message: Any) -> Any:
        with grpc.insecure_channel(admin) as channel:
            stub = admin_pb2_grpc.AdminStub(channel)
            return getattr(stub, method)(message, timeout=TIMEOUT_SECONDS, wait_for_ready=True)

    def follow(version: str) -> None:
        wait_for(lambda: sum(event["versions"] == [version] for event in events(log, "route set")) == 2)
        assert versions(address, 8) == {version}

    with serving(repository, log, *arguments, repository=True, **settings) as (process, address):
        follow("v2")
        assert ask("Activate", admin_pb2.ActivateRequest(model="shop", version="v1")).arms[0].version == "v1"
        follow("v1")
        first = events(log, "worker started")[0]["pid"]
        os.kill(first, signal.SIGKILL)
        assert has_ended(first)
        # The one in its place has its address, and knows what was told.
        [model] = ask("ListModels", admin_pb2.ListModelsRequest()).models
        assert model.route.arms[0].version == "v1"
        process.send_signal(signal.SIGTERM)
        assert process.wait(TIMEOUT_SECONDS) == 0


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


def test_each_worker_has_metrics_of_its_own(bundle_folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with serving(bundle_folder, log, "--workers", "2", "--metrics-port", "0") as (process, address):
        assert answers(address)
        urls = [str(event["metrics"]) for event in events(log, "serving")]
        assert len(set(urls)) == 2
        for url in urls:
            with HttpCaller(url) as caller:
                assert b"recserve_bundle_info{" in caller.get("/metrics")[2]
                assert caller.get("/readyz")[0] == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(TIMEOUT_SECONDS) == 0
    with pytest.raises(ConfigError, match="a port that all workers can bind"):
        Server(ServerConfig(port=0, workers=2), http=HttpConfig(port=0))


def test_a_worker_takes_the_next_free_metrics_port() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        listener = HttpListener(None, "metrics", "127.0.0.1", [port, 0], max_connections=1)
        assert listener.start() != f"127.0.0.1:{port}"
        listener.stop()
        with pytest.raises(ConfigError, match=f"metrics address is 127.0.0.1:{port}"):
            HttpListener(None, "metrics", "127.0.0.1", [port], max_connections=1).start()
