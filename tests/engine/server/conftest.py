"""A real gRPC server over a real engine, on a loop of its own, for blocking tests."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from recserve.engine import Engine
from recserve.engine.server.app import Server
from recserve.engine.server.config import ServerConfig

TIMEOUT_SECONDS = 60


class RunningServer:
    """A server on a thread; ``serve`` gives it an engine, as the command line does when it is loaded."""

    def __init__(self, config: ServerConfig) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.server = self.call(self._make(config))
        self.address = f"127.0.0.1:{self.call(self.server.start())}"

    async def _make(self, config: ServerConfig) -> Server:
        return Server(config)

    def call(self, work: Any) -> Any:
        """Runs a coroutine on the server's loop and returns its result."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(TIMEOUT_SECONDS)

    def serve(self, engine: Engine) -> None:
        self.call(self.server.serve(engine))

    def stop(self) -> None:
        self.call(self.server.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@contextmanager
def running(config: ServerConfig) -> Iterator[RunningServer]:
    server = RunningServer(config)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def start() -> Iterator[Callable[..., RunningServer]]:
    """Starts servers with settings and stops them at the end of the test."""
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(running(ServerConfig(port=0, **settings)))


@pytest.fixture
def server(start: Callable[..., RunningServer], engine: Engine) -> RunningServer:
    """A warm server with generous deadlines."""
    running_server = start(default_deadline_ms=30_000)
    running_server.serve(engine)
    return running_server
