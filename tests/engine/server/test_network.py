"""Clients that no library would be, against a server process: whoever behaves notices nothing of them."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from recserve.engine import Request
from recserve.engine.client import RecommenderClient
from recserve.engine.retry import NO_RETRY
from recserve.proto import recommender_pb2 as pb
from recserve.proto import recommender_pb2_grpc
from tests.engine.server.raw_http2 import RawConnection, continuation, ping, reset

TIMEOUT_SECONDS = 60.0
MAX_CONNECTIONS = 40
# grpcio keeps 17 kB of each call that waits to be read, of at most 8192 by default.
MAX_MORE_BYTES = 240 << 20
FEW_PENDING, FEW_MORE_BYTES = 512, 64 << 20
MAX_MORE_FILES = 8


@dataclass(frozen=True)
class ServerProcess:
    transport: str
    address: str
    process_id: int

    def memory(self) -> int:
        """Bytes of its own."""
        status = Path(f"/proc/{self.process_id}/status").read_text()
        return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("RssAnon"))

    def files(self) -> int:
        return len(os.listdir(f"/proc/{self.process_id}/fd"))

    def answers(self) -> bool:
        """Whether a new client gets a slate."""
        with RecommenderClient(self.address, timeout=TIMEOUT_SECONDS, retry=NO_RETRY) as client:
            return bool(client.recommend(Request(k=3)).items)


@pytest.fixture(scope="module", params=["grpcio", "native"])
def server(
    request: pytest.FixtureRequest, bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    if request.param == "native":
        pytest.importorskip("pygrpc_native")
    log = tmp_path_factory.mktemp("network") / "server.log"
    with serving(bundle_folder, str(request.param), log, MAX_CONNECTIONS=MAX_CONNECTIONS) as process:
        yield process


@contextlib.contextmanager
def serving(bundle_folder: Path, transport: str, log: Path, **limits: int) -> Iterator[ServerProcess]:
    """A server with settings of the section [server]; it must be there at the end, without a traceback."""
    command = [sys.executable, "-m", "recserve.engine.cli", "serve", str(bundle_folder), "--port", "0"]
    settings = {f"RECSERVE__SERVER__{name}": str(value) for name, value in limits.items()}
    with (
        log.open("w") as errors,
        subprocess.Popen(
            [*command, "--transport", transport],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, **settings},
        ) as process,
    ):
        try:
            assert process.stdout is not None
            server = ServerProcess(transport, process.stdout.readline().strip(), process.pid)
            assert server.answers()
            yield server
            assert process.poll() is None
            assert "Traceback" not in log.read_text()
        finally:
            process.kill()


@pytest.fixture(autouse=True)
def nothing_stays(server: ServerProcess) -> Iterator[None]:
    """After each of these clients the server answers, has its files back and little more memory."""
    memory, files = server.memory(), server.files()
    yield
    end = time.monotonic() + TIMEOUT_SECONDS
    while server.files() > files + MAX_MORE_FILES:
        assert time.monotonic() < end, "connections that are gone keep their files"
        time.sleep(0.01)
    assert server.answers()
    assert server.memory() - memory < MAX_MORE_BYTES


def test_streams_that_are_taken_back_at_once(server: ServerProcess) -> None:
    """HTTP/2 rapid reset (CVE-2023-44487)."""
    with RawConnection(server.address) as raw, contextlib.suppress(OSError):
        for i in range(10_000):
            raw.send(raw.headers() + reset(2 * i + 1))
            if i % 2500 == 0:
                assert server.answers()


@pytest.mark.slow
def test_a_hundred_thousand_streams_that_are_taken_back_cost_no_more_memory(server: ServerProcess) -> None:
    for _ in range(10):
        with RawConnection(server.address) as raw, contextlib.suppress(OSError):
            for i in range(10_000):
                raw.send(raw.headers() + reset(2 * i + 1))


def test_streams_that_are_taken_back_cost_as_much_memory_as_may_wait_to_be_read(
    server: ServerProcess, bundle_folder: Path, tmp_path: Path
) -> None:
    if server.transport == "native":
        pytest.skip("nothing waits in its front")
    with serving(bundle_folder, "grpcio", tmp_path / "server.log", MAX_PENDING=FEW_PENDING) as bounded:
        before = bounded.memory()
        with RawConnection(bounded.address) as raw, contextlib.suppress(OSError):
            for i in range(10_000):
                raw.send(raw.headers() + reset(2 * i + 1))
        assert bounded.memory() - before < FEW_MORE_BYTES


def test_headers_without_an_end(server: ServerProcess) -> None:
    """CONTINUATION flood (CVE-2024-27316 and its kin): 64 MB are far over any limit."""
    with RawConnection(server.address) as raw:
        raw.send(raw.headers(whole=False))
        # A literal that is not kept, name and value of 60 bytes each.
        literal = b"\x00" + b"\x3c" + b"a" * 60 + b"\x3c" + b"b" * 60
        closed = raw.is_closed_after(continuation(1, literal * 130), times=4000)
    # The core of gRPC reads on and keeps nothing.
    assert closed or server.transport == "grpcio"


def test_headers_that_unpack_to_far_more(server: ServerProcess) -> None:
    """HPACK bomb (CVE-2016-6581, CVE-2023-33953): one large entry, named ten thousand times."""
    with RawConnection(server.address) as raw, contextlib.suppress(OSError):
        raw.send(raw.headers(("x", "y" * 3000)))
        block = raw.headers(whole=False)
        indexed = b"\xbe" * 10_000  # the newest entry of the dynamic table
        raw.send(block + continuation(3, indexed))
        for _ in range(20):
            raw.send(continuation(3, indexed))


def test_pings_without_an_end(server: ServerProcess) -> None:
    with RawConnection(server.address) as raw:
        closed = raw.is_closed_after(ping() * 100, times=500)
    # hyper answers them, at little cost; the core of gRPC sends GOAWAY too_many_pings.
    assert closed or server.transport == "native"


def test_half_a_request_keeps_nobody_from_answering(server: ServerProcess) -> None:
    with contextlib.ExitStack() as stack:
        for i in range(20):
            if i % 2:
                raw = stack.enter_context(RawConnection(server.address))
                raw.send(raw.headers())  # and never a message
            else:
                host, _, port = server.address.rpartition(":")
                silent = stack.enter_context(socket.create_connection((host, int(port)), TIMEOUT_SECONDS))
                silent.sendall(b"PRI * HTTP/2")
        assert server.answers()


def test_a_caller_that_does_not_read_costs_only_itself(server: ServerProcess) -> None:
    with RawConnection(server.address, window=0) as raw:
        message = pb.RecommendRequest(k=500).SerializeToString()
        for _ in range(200):
            raw.call(message, ("grpc-timeout", "2S"))
        for _ in range(5):
            assert server.answers()


def test_connections_that_come_and_go(server: ServerProcess) -> None:
    """What is closed counts as open until the server has seen it: a busy one refuses the next meanwhile."""
    for _ in range(500):
        RawConnection(server.address).sock.close()


def test_more_connections_than_allowed_are_closed_and_those_that_are_open_go_on(
    server: ServerProcess,
) -> None:
    if server.transport == "native":
        pytest.skip("it does not count connections: it is local, or behind a proxy that does")
    with (
        RecommenderClient(server.address, timeout=TIMEOUT_SECONDS, retry=NO_RETRY) as client,
        contextlib.ExitStack() as stack,
    ):
        assert client.recommend(Request(k=1)).items
        idle = [stack.enter_context(RawConnection(server.address)) for _ in range(2 * MAX_CONNECTIONS)]
        n_closed = 0
        for raw in reversed(idle):
            # Whoever is let in gets the server's settings.
            with contextlib.suppress(OSError):
                if raw.sock.recv(9):
                    continue
            n_closed += 1
        assert n_closed >= MAX_CONNECTIONS
        assert client.recommend(Request(k=1)).items


def test_what_the_core_refuses_itself(server: ServerProcess) -> None:
    with grpc.insecure_channel(server.address) as channel:
        with pytest.raises(grpc.RpcError) as unknown:
            channel.unary_unary("/recserve.v1.Recommender/Nothing")(b"", timeout=TIMEOUT_SECONDS)
        assert unknown.value.code() is grpc.StatusCode.UNIMPLEMENTED  # type: ignore[attr-defined]
        stub = recommender_pb2_grpc.RecommenderStub(channel)
        metadata = (("x-large", "x" * 20_000),)
        with pytest.raises(grpc.RpcError) as large:
            stub.Recommend(pb.RecommendRequest(), timeout=TIMEOUT_SECONDS, metadata=metadata)
        # hyper says 431, which clients of gRPC read as UNKNOWN.
        expected = "RESOURCE_EXHAUSTED" if server.transport == "grpcio" else "UNKNOWN"
        assert large.value.code().name == expected  # type: ignore[attr-defined]
