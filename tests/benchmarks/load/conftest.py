"""Small real servers to ask."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures

import grpc
import pytest

from recserve.proto import recommender_pb2 as pb

Answer = Callable[[bytes, grpc.ServicerContext], bytes]


@contextlib.contextmanager
def grpc_server(answer: Answer, threads: int = 4) -> Iterator[tuple[grpc.Server, int]]:
    """Answers every method of the Recommender by ``answer(bytes, context)``; yields it and its port."""
    server = grpc.server(futures.ThreadPoolExecutor(threads))
    handler = grpc.unary_unary_rpc_method_handler(answer)
    methods = dict.fromkeys(("Recommend", "SimilarItems"), handler)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("recserve.v1.Recommender", methods),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield server, port
    finally:
        server.stop(0).wait()


class Stalls:
    """Answers at once, except in the first ``stall`` seconds of every second, which it waits for to end."""

    def __init__(self, stall: float) -> None:
        self._stall = stall
        self._start = time.monotonic()
        self._over = threading.Event()
        self.slate = pb.Slate(source="model").SerializeToString()

    def __call__(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        into = (time.monotonic() - self._start) % 1.0
        if into < self._stall:
            self._over.wait(self._stall - into)
        return self.slate


@pytest.fixture
def stalling_port() -> Iterator[int]:
    """A server that stalls for 100 ms each second."""
    with grpc_server(Stalls(0.1)) as (_, port):
        yield port
