"""The generator asks real servers over real connections and tells what became of each request."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from recserve.benchmarks.load import connection as codes
from recserve.benchmarks.load.http1 import JsonConnection
from recserve.benchmarks.load.http2 import GrpcConnection, GrpcMessage
from recserve.benchmarks.load.messages import RECOMMENDER, Question, grpc_message, json_message
from recserve.benchmarks.load.options import Asked
from recserve.benchmarks.load.schedule import ClosedLoop, OpenLoop
from recserve.benchmarks.load.sending import Journal, Sender
from recserve.engine import Engine, Request
from recserve.engine.batch_policy import BatcherConfig
from recserve.engine.server.app import Server
from recserve.engine.server.config import ServerConfig
from recserve.engine.server.http.config import HttpConfig
from recserve.engine.wire.convert import slate_from_message
from recserve.proto import recommender_pb2 as pb
from tests.benchmarks.load.conftest import grpc_server

RECOMMEND = GrpcMessage(RECOMMENDER + "Recommend", b"one")
SIMILAR = GrpcMessage(RECOMMENDER + "SimilarItems", b"another")


def send(
    connect: Callable[[], Any], n: int, *, n_connections: int = 2, messages: int = 1, timeout: float = 30.0
) -> Journal:
    """Sends n requests that are due at once."""
    sender = Sender(OpenLoop([0.0] * n), connect, n_connections, list(range(messages)), timeout, 1)
    return sender.run(time.monotonic())


def to(port: int, *messages: GrpcMessage, timeout: float = 30.0) -> Callable[[], GrpcConnection]:
    return lambda: GrpcConnection("127.0.0.1", port, messages or (RECOMMEND,), timeout)


def test_replies_belong_to_their_requests() -> None:
    def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
        return request * 3

    with grpc_server(answer) as (_, port):
        journal = send(to(port, RECOMMEND, SIMILAR), 500, messages=2)
    assert set(journal.code) == {codes.OK}
    assert all(journal.replies[i] == (b"another" if i % 2 else b"one") * 3 for i in range(500))


def test_a_reply_of_many_frames_is_put_together() -> None:
    with grpc_server(lambda request, context: b"x" * 1_000_000) as (_, port):
        journal = send(to(port), 20)
    assert [len(reply) for reply in journal.replies.values()] == [1_000_000] * 20


def test_headers_that_change_with_every_reply_are_read() -> None:
    counter = iter(range(1_000_000))

    def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
        # New entries of the table all the time, until it evicts the old ones.
        context.set_trailing_metadata((("x-number", f"{next(counter)}" * 20),))
        if request == b"another":
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"number {next(counter)}")
        return request

    with grpc_server(answer) as (_, port):
        journal = send(to(port, RECOMMEND, SIMILAR), 600, messages=2)
    assert Counter(journal.code) == {codes.OK: 300, codes.RESOURCE_EXHAUSTED: 300}


def test_an_unknown_method_has_its_own_code() -> None:
    with grpc_server(lambda request, context: request) as (_, port):
        journal = send(to(port, GrpcMessage("/no.Such/Method", b"")), 3)
    assert journal.code == [12, 12, 12]


def test_the_deadline_and_the_headers_reach_the_server() -> None:
    seen: list[tuple[float | None, dict[str, Any]]] = []

    def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
        seen.append((context.time_remaining(), dict(context.invocation_metadata())))
        return b""

    with grpc_server(answer) as (_, port):
        headers = [("authorization", "Bearer x")]
        send(lambda: GrpcConnection("127.0.0.1", port, [RECOMMEND], 30.0, headers), 1)
    [(seconds, metadata)] = seen
    assert seconds is not None
    assert 0 < seconds <= 30
    assert metadata["authorization"] == "Bearer x"


def test_what_is_never_answered_ends_by_its_deadline() -> None:
    over = threading.Event()

    def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
        over.wait()
        return request

    with grpc_server(answer) as (_, port):
        try:
            journal = send(to(port), 10, timeout=0.2)
        finally:
            over.set()
    assert set(journal.code) == {codes.DEADLINE_EXCEEDED}
    assert min(journal.done) >= 0.2


class StopsAServer(ClosedLoop):
    """Two callers, whose tenth answer is the server's last."""

    def __init__(self, server: grpc.Server) -> None:
        super().__init__(concurrency=2, warm_up=0, duration=0, requests=20, think=0, seed=0)
        self._server = server
        self._answers = 0

    def answered(self, now: float) -> None:
        super().answered(now)
        self._answers += 1
        if self._answers == 10:
            self._server.stop(0).wait()


def test_a_server_that_dies_is_unavailable() -> None:
    with grpc_server(lambda request, context: request) as (server, port):
        journal = Sender(StopsAServer(server), to(port), 2, [0], 0.2, 1).run(time.monotonic())
    assert len(journal.code) == 20
    # Begun when the server ends: the ten that were answered, and that which the other caller is in, whichever
    # of them it is: cut off, or just answered.
    assert journal.code[:11].count(codes.OK) in (10, 11)
    assert codes.OK not in journal.code[11:]
    assert journal.code[-1] == codes.UNAVAILABLE


def test_nobody_who_listens_is_an_os_error() -> None:
    with grpc_server(lambda request, context: request) as (server, port):
        server.stop(0).wait()
        with pytest.raises(OSError, match="refused"):
            send(to(port), 1)


@pytest.fixture(params=["native", "grpcio"])
def recommender(request: pytest.FixtureRequest, engine: Engine) -> Iterator[Server]:
    """The server itself, over both transports and HTTP."""
    if request.param == "native":
        pytest.importorskip("pygrpc_native")
    config = ServerConfig(port=0, transport=str(request.param), default_deadline_ms=30_000)
    server = Server(config, BatcherConfig(max_size=4), http=HttpConfig(port=0))
    server.address = server.start()  # type: ignore[attr-defined]
    server.serve(engine)
    yield server
    server.stop()


def test_the_server_answers_the_generator_as_it_answers_its_client(recommender: Any, engine: Engine) -> None:
    users = list(engine.user_ids()[:7])
    questions = [Question("recommend", user) for user in users]
    grpc_port = int(recommender.address.rpartition(":")[2])
    messages = [grpc_message(Asked(), question) for question in questions]
    journal = send(to(grpc_port, *messages), 70, messages=7)
    assert set(journal.code) == {codes.OK}
    expected = [engine.recommend(Request(user_id=user)).items for user in users]
    for number, reply in journal.replies.items():
        items = slate_from_message(pb.Slate.FromString(reply)).items
        assert [item.item_id for item in items] == [item.item_id for item in expected[number % 7]]


def test_the_gateway_answers_too(recommender: Any, engine: Engine) -> None:
    users = list(engine.user_ids()[:3])
    messages = [json_message(Asked(), Question("recommend", user)) for user in users]
    messages.append(json_message(Asked(k=0), Question("recommend", users[0])))
    port = int(recommender.urls["http"].rpartition(":")[2])
    journal = send(lambda: JsonConnection("127.0.0.1", port, messages, 30.0), 40, messages=4)
    assert Counter(journal.code) == {codes.OK: 30, 3: 10}
    assert b'"items"' in journal.replies[0]
