"""Starts, watches and stops the gRPC server."""

import asyncio
import signal
import time
from collections.abc import Callable
from typing import Any

import grpc
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection

from recserve.engine.engine import Engine
from recserve.engine.server.config import ServerConfig
from recserve.engine.server.interceptor import ErrorInterceptor
from recserve.engine.server.service import RecommenderService
from recserve.engine.server.workers import WorkerPool
from recserve.errors import ConfigError
from recserve.proto import recommender_pb2, recommender_pb2_grpc

log = structlog.get_logger("recserve.server")

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
HEALTH_NAME = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
SERVICE_NAME = recommender_pb2.DESCRIPTOR.services_by_name["Recommender"].full_name
# The core drops calls at random beyond 1000 pending ones, as bare CANCELLED. Admission is ours
# (WorkerPool), with a status that says so, hence these stand far above it.
MAX_PENDING_REQUESTS = 100_000
SETTLE_SECONDS = 0.2
STREAM_GRACE_SECONDS = 0.5
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Server:
    """A gRPC server that answers health checks at once and requests when its engine is warm."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._pool = WorkerPool(config.worker_threads, config.max_in_flight)
        self._service = RecommenderService(self._pool, config)
        self._health = health_aio.HealthServicer()
        self._server = grpc.aio.server(
            interceptors=[ErrorInterceptor()],
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", config.max_message_bytes),
                ("grpc.server.max_pending_requests", MAX_PENDING_REQUESTS),
                ("grpc.server.max_pending_requests_hard_limit", MAX_PENDING_REQUESTS),
            ],
        )
        recommender_pb2_grpc.add_RecommenderServicer_to_server(self._service, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if config.reflection:
            names = [SERVICE_NAME, HEALTH_NAME, reflection.SERVICE_NAME]
            reflection.enable_server_reflection(names, self._server)

    async def start(self) -> int:
        """Binds and returns the port; Health answers NOT_SERVING until :meth:`serve`.

        Raises :class:`ConfigError` when the address cannot be bound.
        """
        await self._set_health(NOT_SERVING)
        address = self._config.address(self._config.port)
        try:
            port = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise ConfigError(
                "server address", found=address, expected="free to bind", cure="Choose another --port."
            ) from error
        await self._server.start()
        return int(port)

    async def serve(self, engine: Engine) -> None:
        """Answers requests from ``engine`` (loaded and warm) from now on."""
        self._service.serve(engine)
        await self._set_health(SERVING)

    async def stop(self) -> None:
        """Says NOT_SERVING, refuses new requests, finishes the admitted ones, closes."""
        await self._set_health(NOT_SERVING)
        self._pool.drain()
        start = time.monotonic()
        await self._pool.wait_until_idle(self._config.drain_seconds)
        # The core resets calls that it has received and not handed over yet: let them reach the pool,
        # which refuses them with a status that says why.
        await asyncio.sleep(SETTLE_SECONDS)
        remaining = self._config.drain_seconds - (time.monotonic() - start)
        # Without requests only streams are left (health Watch), which never end by themselves.
        await self._server.stop(max(0.0, remaining) if self._pool.in_flight else STREAM_GRACE_SECONDS)
        self._pool.close()

    async def _set_health(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for name in ("", SERVICE_NAME):
            await self._health.set(name, status)


async def run_server(
    config: ServerConfig, load_engine: Callable[[], Engine], announce: Callable[[int], None]
) -> None:
    """Serves until SIGTERM or SIGINT, then drains; a second signal stops at once.

    ``load_engine`` runs on a thread while the server already answers health checks; ``announce`` is
    called with the port when the first request can be answered.
    """
    server = Server(config)
    port = await server.start()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        # Whoever asks a second time wants out now: from here on a signal ends the process.
        for number in SIGNALS:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)
        stop.set()

    for number in SIGNALS:
        loop.add_signal_handler(number, on_signal)
    loading = loop.run_in_executor(None, load_engine)
    stopping = asyncio.ensure_future(stop.wait())
    try:
        waiting: list[asyncio.Future[Any]] = [loading, stopping]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if not stop.is_set():
            engine = loading.result()
            await server.serve(engine)
            announce(port)
            log.info("serving", port=port, bundle=engine.manifest.bundle_version)
            await stopping
        log.info("draining")
    finally:
        await server.stop()
        stopping.cancel()
    # A load under way cannot be interrupted; its end, good or bad, is waited for.
    (await loading).close()
    log.info("stopped")
