"""A real gRPC server over a real engine."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from recserve.engine import Engine
from recserve.engine.batch_policy import BatcherConfig
from recserve.engine.server.app import Server
from recserve.engine.server.config import TRANSPORTS, ServerConfig


class RunningServer:
    """A started server; ``serve`` gives it an engine, as the command line does when it is loaded."""

    def __init__(self, config: ServerConfig, batcher: BatcherConfig | None = None) -> None:
        self.server = Server(config, batcher)
        self.address = self.server.start()

    def serve(self, engine: Engine) -> None:
        self.server.serve(engine)

    def stop(self) -> None:
        self.server.stop()


@contextmanager
def running(config: ServerConfig, batcher: BatcherConfig | None = None) -> Iterator[RunningServer]:
    server = RunningServer(config, batcher)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    """Every test that asks for it runs once over each transport."""
    name = str(request.param)
    if name == "native":
        pytest.importorskip("pygrpc_native")
    return name


@pytest.fixture
def start(transport: str) -> Iterator[Callable[..., RunningServer]]:
    """Starts servers with settings and stops them at the end of the test."""
    with ExitStack() as stack:

        def make(batcher: BatcherConfig | None = None, **settings: Any) -> RunningServer:
            return stack.enter_context(
                running(ServerConfig(port=0, transport=transport, **settings), batcher)
            )

        yield make


@pytest.fixture
def server(start: Callable[..., RunningServer], engine: Engine) -> RunningServer:
    """A warm server with generous deadlines."""
    running_server = start(default_deadline_ms=30_000)
    running_server.serve(engine)
    return running_server
