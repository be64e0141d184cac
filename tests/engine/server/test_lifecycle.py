"""Loading, health, deadlines, overload, cancellation and stopping."""

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from recserve.engine import Engine, InvalidRequest, Request
from recserve.engine.batch_policy import BatcherConfig
from recserve.engine.brownout import Brownout
from recserve.engine.client import RecommenderClient
from recserve.engine.ranked import Ranked
from recserve.engine.retry import NO_RETRY
from recserve.engine.server.app import Server
from recserve.engine.server.config import ServerConfig
from recserve.engine.wire.status import RemoteError
from recserve.errors import ConfigError
from recserve.proto import recommender_pb2 as pb
from recserve.proto import recommender_pb2_grpc
from tests.engine.server.conftest import RunningServer

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE = "recserve.v1.Recommender"
TIMEOUT_SECONDS = 60
# One call at a time, one after the other.
ONE = BatcherConfig(max_size=1, threads=1)


class Gate:
    """Holds engine calls until it is opened, and counts them."""

    def __init__(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered = threading.Semaphore(0)
        self.open = threading.Event()
        self.n_calls = 0
        rank = engine.rank_each

        def held(requests: list[Request], **options: Any) -> list[Ranked | InvalidRequest]:
            if options["degraded"]:
                return rank(requests, **options)
            self.n_calls += len(requests)
            self.entered.release()
            assert self.open.wait(TIMEOUT_SECONDS)
            return rank(requests, **options)

        monkeypatch.setattr(engine, "rank_each", held)


def health(address: str, service: str = "") -> int:
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return int(stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=TIMEOUT_SECONDS).status)


def wait_for_in_flight(server: RunningServer, n: int) -> None:
    """Waits until so many calls are in flight; health answers meanwhile."""
    end = time.monotonic() + TIMEOUT_SECONDS
    while server.server.admission.in_flight != n:
        assert health(server.address) == SERVING
        assert time.monotonic() < end


def test_health_says_when_the_engine_is_warm(start: Callable[..., RunningServer], engine: Engine) -> None:
    server = start()
    with grpc.insecure_channel(server.address) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(service=SERVICE), timeout=TIMEOUT_SECONDS
        )
        assert next(watch).status == NOT_SERVING
        assert health(server.address) == health(server.address, SERVICE) == NOT_SERVING
        with RecommenderClient(server.address, timeout=TIMEOUT_SECONDS, retry=NO_RETRY) as client:
            with pytest.raises(RemoteError, match="server is loading") as caught:
                client.recommend(Request())
            assert caught.value.code is grpc.StatusCode.UNAVAILABLE
            server.serve(engine)
            assert next(watch).status == SERVING
            assert health(server.address) == health(server.address, SERVICE) == SERVING
            assert client.recommend(Request(k=1)).items
        watch.cancel()


@pytest.mark.parametrize("wanted", [True, False])
@pytest.mark.parametrize("transport", ["grpcio"])
def test_reflection_can_be_switched_off(
    start: Callable[..., RunningServer], engine: Engine, wanted: bool
) -> None:
    server = start(reflection=wanted)
    with grpc.insecure_channel(server.address) as channel:
        ask = reflection_pb2.ServerReflectionRequest(list_services="")
        answers = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
            iter([ask]), timeout=TIMEOUT_SECONDS
        )
        if not wanted:
            with pytest.raises(grpc.RpcError) as caught:
                next(answers)
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED  # type: ignore[attr-defined]
            return
        names = {service.name for service in next(answers).list_services_response.service}
        assert {SERVICE, "grpc.health.v1.Health"} <= names


def test_a_call_without_deadline_gets_the_default_one(
    start: Callable[..., RunningServer], engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start(default_deadline_ms=300, batcher=ONE)
    server.serve(engine)
    gate = Gate(engine, monkeypatch)
    with grpc.insecure_channel(server.address) as channel:
        stub = recommender_pb2_grpc.RecommenderStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Recommend(pb.RecommendRequest())
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED  # type: ignore[attr-defined]
        # The only thread is still held: this one waits behind it, and its time passes too.
        with pytest.raises(grpc.RpcError):
            stub.Recommend(pb.RecommendRequest())
        gate.open.set()
        stub.GetItems(pb.GetItemsRequest(), timeout=TIMEOUT_SECONDS)
    assert gate.n_calls == 1, "a request whose deadline had passed reached the engine"


def test_overload_is_said_while_health_still_answers(
    start: Callable[..., RunningServer], engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start(max_in_flight=2, batcher=ONE, default_deadline_ms=60_000)
    server.serve(engine)
    gate = Gate(engine, monkeypatch)
    with grpc.insecure_channel(server.address) as channel:
        stub = recommender_pb2_grpc.RecommenderStub(channel)
        admitted = [
            stub.Recommend.future(pb.RecommendRequest(k=1), timeout=TIMEOUT_SECONDS) for _ in range(2)
        ]
        assert gate.entered.acquire(timeout=TIMEOUT_SECONDS)
        with RecommenderClient(server.address, timeout=TIMEOUT_SECONDS, retry=NO_RETRY) as client:
            # The second of the two may still be on its way.
            wait_for_in_flight(server, 2)
            with pytest.raises(RemoteError, match="requests in flight") as caught:
                client.recommend(Request())
        assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
        assert health(server.address) == SERVING
        gate.open.set()
        assert [len(call.result().items) for call in admitted] == [1, 1]


def test_in_a_brown_out_who_waits_behind_a_batch_gets_popular_items(
    start: Callable[..., RunningServer], engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start(batcher=ONE, default_deadline_ms=60_000)
    server.serve(engine)
    gate = Gate(engine, monkeypatch)
    monkeypatch.setattr(server.server.batcher, "_brownout", Brownout(is_on=True))
    known = engine.user_ids()[0]
    with grpc.insecure_channel(server.address) as channel:
        stub = recommender_pb2_grpc.RecommenderStub(channel)
        ask = pb.RecommendRequest(user_id=known, k=3)
        calls = [stub.Recommend.future(ask, timeout=TIMEOUT_SECONDS)]
        assert gate.entered.acquire(timeout=TIMEOUT_SECONDS)
        calls += [stub.Recommend.future(ask, timeout=TIMEOUT_SECONDS) for _ in range(4)]
        answered = threading.Semaphore(0)
        for call in calls:
            call.add_done_callback(lambda _: answered.release())
        # Before the model is done: all but the one that it has and the last, which the next batch is for.
        for _ in range(3):
            assert answered.acquire(timeout=TIMEOUT_SECONDS)
        gate.open.set()
        slates = [call.result() for call in calls]
    assert [len(slate.items) for slate in slates] == [3] * 5
    degraded = [slate for slate in slates if slate.degraded]
    assert len(degraded) == 3
    assert {(tuple(slate.degraded), slate.source) for slate in degraded} == {(("model",), "popularity")}
    assert {slate.source for slate in slates if not slate.degraded} == {"model"}
    assert server.server.batcher.stats()["degraded_rows"] == len(degraded)
    seen = set(engine.history(known))
    assert not any(item.item_id in seen for slate in degraded for item in slate.items)


def test_cancelled_calls_leave_nothing_behind(
    start: Callable[..., RunningServer], engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start(batcher=ONE, default_deadline_ms=60_000)
    server.serve(engine)
    gate = Gate(engine, monkeypatch)
    with grpc.insecure_channel(server.address) as channel:
        stub = recommender_pb2_grpc.RecommenderStub(channel)
        calls = [stub.Recommend.future(pb.RecommendRequest(), timeout=TIMEOUT_SECONDS) for _ in range(20)]
        assert gate.entered.acquire(timeout=TIMEOUT_SECONDS)
        for call in calls:
            call.cancel()
        # All of them are gone on the server's side before the first one could end.
        wait_for_in_flight(server, 0)
        gate.open.set()
        assert stub.Recommend(pb.RecommendRequest(k=1), timeout=TIMEOUT_SECONDS).items
    assert gate.n_calls < len(calls)


def test_no_call_is_lost_in_a_burst(start: Callable[..., RunningServer], engine: Engine) -> None:
    server = start(max_in_flight=5000, default_deadline_ms=60_000)
    server.serve(engine)
    with grpc.insecure_channel(server.address) as channel:
        stub = recommender_pb2_grpc.RecommenderStub(channel)
        burst = [
            stub.Recommend.future(pb.RecommendRequest(k=1), timeout=TIMEOUT_SECONDS) for _ in range(3000)
        ]
        codes = {call.code() for call in burst}
    assert codes == {grpc.StatusCode.OK}


def serve_process(bundle: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "recserve.engine.cli", "serve", str(bundle), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_sigterm_finishes_what_was_admitted(bundle_folder: Path, transport: str) -> None:
    with serve_process(bundle_folder, "--port", "0", "--transport", transport) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert health(address) == SERVING
        with grpc.insecure_channel(address) as channel:
            stub = recommender_pb2_grpc.RecommenderStub(channel)
            calls = [
                stub.Recommend.future(pb.RecommendRequest(k=3), timeout=TIMEOUT_SECONDS) for _ in range(200)
            ]
            # One answer means that the burst has arrived; the rest is admitted or on its way.
            calls[0].result()
            process.send_signal(signal.SIGTERM)
            codes = {call.code() for call in calls}
        assert codes <= {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
        assert grpc.StatusCode.OK in codes
        _, log = process.communicate(timeout=TIMEOUT_SECONDS)
    assert process.returncode == 0
    assert '"stopped"' in log
    assert "Traceback" not in log


def test_an_open_watch_does_not_hold_the_server(bundle_folder: Path, tmp_path: Path, transport: str) -> None:
    settings = tmp_path / "recserve.toml"
    # Far beyond the test's own limit: waiting for the stream would fail it.
    settings.write_text(f'[server]\nport = 0\ntransport = "{transport}"\ndrain_seconds = 600.0\n')
    with serve_process(bundle_folder, "--config", str(settings)) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        with grpc.insecure_channel(address) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            assert next(watch).status == SERVING
            process.send_signal(signal.SIGTERM)
            assert next(watch).status == NOT_SERVING
            process.communicate(timeout=TIMEOUT_SECONDS)
            watch.cancel()
    assert process.returncode == 0


def test_a_damaged_bundle_ends_the_server_with_one_line(bundle_folder: Path, tmp_path: Path) -> None:
    with serve_process(tmp_path, "--port", "0") as process:
        out, log = process.communicate(timeout=TIMEOUT_SECONDS)
    assert (process.returncode, out) == (5, "")
    assert "error: bundle" in log
    assert "Traceback" not in log


def test_a_busy_port_is_a_matter_of_configuration(bundle_folder: Path, transport: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        with serve_process(bundle_folder, "--port", port, "--transport", transport) as process:
            _, log = process.communicate(timeout=TIMEOUT_SECONDS)
    assert process.returncode == 3
    assert "expected free to bind" in log
    assert "Traceback" not in log


def test_only_loopback_is_bound_in_plain_text() -> None:
    with pytest.raises(ConfigError, match="--insecure-bind"):
        ServerConfig(host="0.0.0.0")
    assert ServerConfig(host="0.0.0.0", insecure_bind=True).host == "0.0.0.0"
    assert ServerConfig(host="::1").host == "::1"
    with pytest.raises(ConfigError, match="0 to 65535"):
        ServerConfig(port=70_000)


def test_what_the_native_transport_cannot_do_is_said_at_the_start() -> None:
    pytest.importorskip("pygrpc_native")
    with pytest.raises(ConfigError, match=r"ServerReflectionInfo over transport native is bidirectional"):
        Server(ServerConfig(port=0, transport="native", reflection=True))
    with pytest.raises(ConfigError, match=r"0\.0\.0\.0; expected loopback or unix:PATH"):
        Server(ServerConfig(port=0, transport="native", host="0.0.0.0", insecure_bind=True))
    with pytest.raises(ConfigError, match="Did you mean 'native'"):
        ServerConfig(transport="nativ")


def test_without_its_library_the_native_transport_names_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pygrpc_native", None)
    with pytest.raises(ConfigError, match=r"pip install 'recserve\[native\]'"):
        Server(ServerConfig(port=0, transport="native"))


def test_a_batch_larger_than_the_engine_takes_is_a_matter_of_configuration(
    start: Callable[..., RunningServer], engine: Engine
) -> None:
    server = start(batcher=BatcherConfig(max_size=engine.config.max_requests + 1))
    with pytest.raises(ConfigError, match=r"batcher\.max_size is 257; expected at most"):
        server.serve(engine)


def test_calls_behind_a_batch_that_hangs_are_answered_in_time_and_health_goes_on(
    start: Callable[..., RunningServer], engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start(batcher=ONE, default_deadline_ms=200)
    server.serve(engine)
    gate = Gate(engine, monkeypatch)
    with grpc.insecure_channel(server.address) as channel:
        stub = recommender_pb2_grpc.RecommenderStub(channel)
        calls = [stub.Recommend.future(pb.RecommendRequest()) for _ in range(10)]
        assert {call.code() for call in calls} == {grpc.StatusCode.DEADLINE_EXCEEDED}
        assert health(server.address) == SERVING
        assert server.server.admission.in_flight == 0
        gate.open.set()
        assert stub.Recommend(pb.RecommendRequest(k=1), timeout=TIMEOUT_SECONDS).items
    # Of those that waited none was computed after its time.
    assert gate.n_calls == 2


def test_a_batcher_thread_that_dies_costs_its_batch_and_nothing_else(
    start: Callable[..., RunningServer], engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start(batcher=ONE, default_deadline_ms=60_000)
    server.serve(engine)
    rank = engine.rank_each

    def die_once(requests: list[Request], **options: bool) -> list[Ranked | InvalidRequest]:
        monkeypatch.setattr(engine, "rank_each", rank)
        raise SystemExit

    monkeypatch.setattr(engine, "rank_each", die_once)
    with RecommenderClient(server.address, timeout=TIMEOUT_SECONDS, retry=NO_RETRY) as client:
        with pytest.raises(RemoteError, match="batch is aborted") as caught:
            client.recommend(Request())
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE
        assert client.recommend(Request(k=1)).items
    assert health(server.address) == SERVING
