"""Faults inside a real server process: who asks then is told, nobody else is, and it goes on by itself."""

import resource
import signal
import time
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from recserve.benchmarks.load.connection import OK
from recserve.benchmarks.load.messages import draw
from recserve.benchmarks.load.options import Asked, Client, Pace, read_target
from recserve.benchmarks.load.process import run_processes
from recserve.engine import Request
from recserve.engine.client import RecommenderClient
from recserve.engine.engine import Engine
from recserve.engine.retry import NO_RETRY
from recserve.engine.types import Slate
from recserve.engine.wire.status import RemoteError, error_from_call
from recserve.proto import admin_pb2, admin_pb2_grpc, recommender_pb2_grpc
from recserve.proto import recommender_pb2 as pb
from tests.engine.models.versions import make_version
from tests.engine.server.faulty import Faulty, faulty
from tests.engine.server.http_client import HttpCaller
from tests.engine.server.raw_http2 import RawConnection

TIMEOUT_SECONDS = 60.0
# After that an overload may have left no trace.
RECOVERY_SECONDS = 5.0
UNAVAILABLE, INTERNAL, LATE = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.DEADLINE_EXCEEDED,
)


@pytest.fixture
def known(engine: Engine) -> str:
    """A user whom the model answers."""
    return next(user for user in engine.user_ids() if engine.history(user))


def ask(server: Faulty, user: str, timeout: float = TIMEOUT_SECONDS) -> Slate | grpc.StatusCode:
    """Returns a slate, or the code of the refusal."""
    with RecommenderClient(server.address, timeout=timeout, retry=NO_RETRY) as client:
        try:
            return client.recommend(Request(user_id=user, k=3))
        except RemoteError as error:
            return grpc.StatusCode.UNKNOWN if "secret" in str(error) else error.code


def source(answer: Slate | grpc.StatusCode) -> str:
    return answer.source if isinstance(answer, Slate) else answer.name


def is_serving(server: Faulty) -> bool:
    with grpc.insecure_channel(server.address) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        answer = check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_SECONDS)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


@pytest.mark.parametrize("transport", ["grpcio", "native"])
def test_an_inference_that_never_comes_back_costs_its_batch(
    bundle_folder: Path, tmp_path: Path, known: str, transport: str
) -> None:
    arguments = (bundle_folder, "--transport", transport, "--http-port", 0)
    with faulty("inference-hangs", tmp_path, *arguments, RECSERVE__BATCHER__STUCK_SECONDS="1.5") as server:
        assert source(ask(server, known)) == "model"
        server.fault(True)
        # Who waits longer than the bound is told; who does not was told before.
        assert ask(server, known) is UNAVAILABLE
        assert ask(server, known, timeout=0.3) is LATE
        assert is_serving(server)
        server.fault(False)
        assert source(ask(server, known)) == "model"
        with HttpCaller(server.urls[0].removeprefix("http://")) as caller:
            assert b"recserve_batcher_stuck_batches_total" in caller.get("/metrics")[2]
        assert "thread stuck" in server.log()
        # Two threads hang for good, and do not keep the server from ending.
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(TIMEOUT_SECONDS) == 0


def test_a_model_that_fails_is_left_alone_and_tried_again(
    bundle_folder: Path, tmp_path: Path, known: str
) -> None:
    with faulty("inference-fails", tmp_path, bundle_folder) as server:
        server.fault(True)
        # Not more: its rest of five seconds may pass on a busy machine.
        answers = [source(ask(server, known)) for _ in range(6)]
        assert answers == ["INTERNAL"] * 5 + ["popularity"]
        server.fault(False)
        end = time.monotonic() + TIMEOUT_SECONDS
        while source(ask(server, known)) != "model":
            assert time.monotonic() < end, "the model is never tried again"
        assert "secret" in server.log(), "the log has the cause"


def test_threads_that_die_are_replaced_until_it_is_no_accident(
    bundle_folder: Path, tmp_path: Path, known: str
) -> None:
    with faulty("threads-die", tmp_path, bundle_folder) as server:
        server.fault(True)
        assert [source(ask(server, known)) for _ in range(3)] == ["UNAVAILABLE"] * 3
        server.fault(False)
        assert source(ask(server, known)) == "model"
        assert is_serving(server)
        server.fault(True)
        assert ask(server, known) is UNAVAILABLE
        # The callers are told just before the thread has ended.
        end = time.monotonic() + TIMEOUT_SECONDS
        while is_serving(server):
            assert time.monotonic() < end, "a server without threads must not say that it serves"


def test_what_waited_behind_a_blocked_loop_is_dropped_not_computed(
    bundle_folder: Path, tmp_path: Path, known: str
) -> None:
    with faulty("loop-blocks", tmp_path, bundle_folder, "--http-port", 0) as server:
        assert source(ask(server, known)) == "model"
        server.fault(True)
        assert ask(server, known, timeout=0.3) is LATE
        server.fault(False)
        assert source(ask(server, known)) == "model"
        with HttpCaller(server.urls[0].removeprefix("http://")) as caller:
            metrics = caller.get("/metrics")[2].decode()
        rows = next(line for line in metrics.splitlines() if line.startswith("recserve_batcher_rows_total"))
        assert rows.endswith(" 2.0"), "the call that was late was computed"


def test_a_wall_clock_that_jumps_moves_no_deadline(bundle_folder: Path, tmp_path: Path, known: str) -> None:
    with faulty("clock-jumps", tmp_path, bundle_folder) as server:
        server.fault(True)
        assert [source(ask(server, known)) for _ in range(20)] == ["model"] * 20
        assert is_serving(server)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(TIMEOUT_SECONDS) == 0


@pytest.mark.parametrize("transport", ["grpcio", pytest.param("native", marks=pytest.mark.slow)])
def test_a_peer_that_is_gone_without_a_word_is_let_go(
    bundle_folder: Path, tmp_path: Path, known: str, transport: str
) -> None:
    """Half-open: the connection is there, nobody answers pings; over native that takes 20 s more."""
    with (
        faulty("peers-vanish", tmp_path, bundle_folder, "--transport", transport) as server,
        RawConnection(server.address) as raw,
    ):
        raw.send(raw.headers())  # and never a message
        while raw.sock.recv(1 << 16):
            pass  # what the server sends, its pings too, until it closes; the socket has a timeout
        assert source(ask(server, known)) == "model"


def test_a_second_sigterm_ends_a_drain_that_waits(bundle_folder: Path, tmp_path: Path, known: str) -> None:
    settings = {"RECSERVE__SERVER__DRAIN_SECONDS": "600", "RECSERVE__BATCHER__STUCK_SECONDS": "600"}
    with (
        faulty("inference-hangs", tmp_path, bundle_folder, **settings) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        server.fault(True)
        stub = recommender_pb2_grpc.RecommenderStub(channel)
        held = stub.Recommend.future(pb.RecommendRequest(user_id=known), timeout=600)
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=600)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        server.process.send_signal(signal.SIGTERM)
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(grpc.RpcError) as refused:
            stub.Recommend(pb.RecommendRequest(), timeout=TIMEOUT_SECONDS)
        assert refused.value.code() is UNAVAILABLE  # type: ignore[attr-defined]
        assert server.process.poll() is None, "the first one waits for what was admitted"
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(TIMEOUT_SECONDS) == -signal.SIGTERM
        assert held.code() is UNAVAILABLE


@pytest.fixture
def repository(bundle_folder: Path, tmp_path: Path) -> Path:
    """A repository of the model ``shop`` with v1 and v2."""
    folder = tmp_path / "repository"
    (folder / "shop").mkdir(parents=True)
    for day, version in enumerate(("v1", "v2"), start=1):
        make_version(bundle_folder, folder / "shop" / version, version, day=day)
    return folder


def test_a_load_that_takes_too_long_is_given_up(repository: Path, tmp_path: Path) -> None:
    admin = f"unix:{tmp_path}/admin"
    arguments = ("--repository", repository, "--admin-address", admin)
    with (
        faulty("clock-jumps", tmp_path, *arguments, RECSERVE__REPOSITORY__TRIAL_SECONDS="0.05") as server,
        RecommenderClient(server.address, timeout=TIMEOUT_SECONDS, retry=NO_RETRY) as client,
        grpc.insecure_channel(admin) as channel,
    ):
        activate = admin_pb2_grpc.AdminStub(channel).Activate
        with pytest.raises(grpc.RpcError) as refused:
            activate(admin_pb2.ActivateRequest(model="shop", version="v1"), timeout=TIMEOUT_SECONDS)
        error = error_from_call(refused.value)
        assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "BUNDLE_LOAD_TOO_LONG")
        assert client.recommend(Request(k=1)).bundle_version == "v2"


def test_a_load_without_memory_leaves_what_answers(repository: Path, tmp_path: Path) -> None:
    admin = f"unix:{tmp_path}/admin"
    arguments = ("--repository", repository, "--admin-address", admin)
    with (
        # A trial would need the memory first.
        faulty("clock-jumps", tmp_path, *arguments, RECSERVE__REPOSITORY__TRIAL="false") as server,
        RecommenderClient(server.address, timeout=TIMEOUT_SECONDS, retry=NO_RETRY) as client,
        grpc.insecure_channel(admin) as channel,
    ):
        activate, v1 = admin_pb2_grpc.AdminStub(channel).Activate, admin_pb2.ActivateRequest(version="v1")
        v1.model = "shop"
        assert client.recommend(Request(k=1)).bundle_version == "v2"
        process_id, unlimited = server.process.pid, resource.RLIM_INFINITY
        status = Path(f"/proc/{process_id}/status").read_text()
        now = next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmSize"))
        resource.prlimit(process_id, resource.RLIMIT_AS, (now, unlimited))
        with pytest.raises(grpc.RpcError):
            activate(v1, timeout=TIMEOUT_SECONDS)
        assert client.recommend(Request(k=1)).bundle_version == "v2"
        resource.prlimit(process_id, resource.RLIMIT_AS, (unlimited, unlimited))
        activate(v1, timeout=TIMEOUT_SECONDS)
        assert client.recommend(Request(k=1)).bundle_version == "v1"


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["grpcio", "native"])
def test_in_an_overload_a_server_that_stood_still_answers_in_time_again(
    bundle_folder: Path, tmp_path: Path, known: str, transport: str
) -> None:
    """Stopped for 0.8 s, it finds calls that have no time left and others behind them."""
    stood_until: list[float] = []
    # Twelve times what the model answers: 8 each 0.1 s.
    pace = Pace(rate=1000.0, warm_up=0.0, duration=9.0, timeout=0.5)
    settings = {"RECSERVE__BATCHER__MAX_SIZE": "8", "RECSERVE__SERVER__MAX_IN_FLIGHT": "2048"}
    arguments = (bundle_folder, "--transport", transport)
    with faulty("inference-takes-long", tmp_path, *arguments, **settings) as server:
        server.fault(True)

        def stand_still(seconds: float) -> None:
            if seconds > 1.0 and not stood_until:
                server.process.send_signal(signal.SIGSTOP)
                time.sleep(0.8)
                server.process.send_signal(signal.SIGCONT)
                stood_until.append(seconds + 0.8)

        samples = run_processes(
            read_target(f"grpc://{server.address}"),
            Asked(),
            draw(Asked(), [known], [], 0),
            pace,
            Client(1, 8),
            stand_still,
        )
    in_time = (samples.code == OK) & (samples.done - samples.due <= pace.timeout)
    assert in_time[samples.due > stood_until[0] + RECOVERY_SECONDS].mean() >= 0.99
