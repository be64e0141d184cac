"""Puts a server together, starts, watches and stops it."""

import gc
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

import structlog
from google.protobuf import descriptor_pool

from recserve.engine.batch_policy import BatcherConfig
from recserve.engine.batcher import Batcher
from recserve.engine.engine import Engine
from recserve.engine.models.manager import ModelManager
from recserve.engine.models.memory import release_memory
from recserve.engine.models.registry import Registry
from recserve.engine.models.router import Router
from recserve.engine.runtime import end_inference
from recserve.engine.server.admission import Admission
from recserve.engine.server.call import Call
from recserve.engine.server.chain import Chain, Observer
from recserve.engine.server.config import ServerConfig
from recserve.engine.server.health import NOT_SERVING, SERVING, HealthService
from recserve.engine.server.http.config import HttpConfig
from recserve.engine.server.listeners import new_transports
from recserve.engine.server.memory_guard import MemoryGuard, Pressure, container_limit
from recserve.engine.server.methods import Method, MethodTable
from recserve.engine.server.open_inference.models import ServedModels
from recserve.engine.server.open_inference.service import OpenInferenceService
from recserve.engine.server.open_inference.statistics import Statistics
from recserve.engine.server.reflection import Pools, reflection_method
from recserve.engine.server.security.setup import new_security
from recserve.engine.server.service import RecommenderService, Row
from recserve.engine.server.workers import WorkerPool
from recserve.errors import CheckFailed, ConfigError, RecserveError
from recserve.proto import open_inference_pb2

if TYPE_CHECKING:
    from recserve.engine.server.http.front import HttpFront
    from recserve.engine.server.telemetry.metrics import Metrics

log = structlog.get_logger("recserve.server")
C = TypeVar("C")

# Without requests only streams are left (health Watch), which never end by themselves, and calls that are in
# the transport's own queue: they must come as far as being refused, or their callers would see CANCELLED.
STREAM_GRACE_SECONDS = 2.0
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Server:
    """A server that answers health checks at once and requests when its engine is warm.

    ``reuse_port``: other processes bind the same port (processes.py). Then this one binds it only when it is
    warm: until then the kernel would send it connections that the others could serve.
    """

    def __init__(
        self,
        config: ServerConfig,
        batcher: BatcherConfig | None = None,
        *,
        router: Router | None = None,
        manager: ModelManager | None = None,
        reuse_port: bool = False,
        extra_methods: Sequence[Method] = (),
        observers: Sequence[Observer] = (),
        http: HttpConfig | None = None,
    ) -> None:
        self._config = config
        self._batcher_config = (batcher or BatcherConfig()).over(config.transport)
        # Who fills it, and what answers, is not the server's matter.
        self.router = router or Router(Registry())
        self.admin_address = ""
        self._gave_up = False
        self._pool = WorkerPool(
            config.worker_threads,
            on_exhausted=self._give_up,
            stuck_seconds=self._batcher_config.stuck_seconds,
            on_stuck=end_inference,
        )
        self.health = HealthService()
        statistics = Statistics()
        recommender = RecommenderService(self.router, self._pool, on_batch=statistics.on_batch)
        http = http or HttpConfig()
        metrics = _new_metrics(http)
        self.batcher = self._new_batcher(recommender, metrics)
        models = ServedModels(self.router.registry, manager)
        self._open_inference = OpenInferenceService(models, statistics, self.health, self._batcher_config)
        methods = [
            *recommender.methods(self.batcher),
            *self._open_inference.methods(self.batcher),
            *extra_methods,
            *self.health.methods(),
        ]
        if config.with_reflection or config.admin_address:
            methods.append(_reflection(methods))
        self._security = new_security(config)
        self.admission = Admission(config.max_in_flight)
        self.chain = Chain(
            MethodTable(methods),
            self.admission,
            default_deadline_seconds=config.default_deadline_ms / 1000,
            max_message_bytes=config.max_message_bytes,
            principal_of=self._security.authoriser,
            limits=self._security.limits,
            observers=[one for one in (statistics, self._security.auditor, *observers, metrics) if one],
        )
        self._memory = _new_memory_guard(config, self._under_pressure)
        # What ends the server, as a signal does, with the reason.
        self.on_end: Callable[[RecserveError], None] = lambda reason: None
        self.binds_when_warm = reuse_port
        self._transports = new_transports(self.chain, config, self.batcher.receive, reuse_port=reuse_port)
        self._http = self._new_http(http, metrics, manager) if metrics else None
        # By name, "http" and "metrics"; of the ports that are open.
        self.urls: dict[str, str] = {}
        self._not_ready()

    def start(self) -> str:
        """Binds and returns the public address; Health answers NOT_SERVING until :meth:`serve`.

        Raises :class:`ConfigError` when an address cannot be bound.
        """
        try:
            address, *admin = [transport.start() for transport in self._transports]
            if self._http is not None:
                self.urls = self._http.start()
        except ConfigError:
            self.stop()
            raise
        if admin:
            self.admin_address = admin[0]
            log.info("admin address", address=self.admin_address)
        return address

    def serve(self, engine: Engine | None = None) -> None:
        """Answers from ``engine`` (loaded and warm) from now on; without one, from the models of the router.

        Raises :class:`ConfigError` when the engine takes smaller batches than the server makes.
        """
        registry = self.router.registry
        engines = [engine] if engine else registry.engines()
        for config in (one.config for one in engines):
            if self._batcher_config.max_size > config.max_requests:
                raise ConfigError(
                    "batcher.max_size",
                    found=self._batcher_config.max_size,
                    expected=f"at most engine.max_requests ({config.max_requests})",
                )
        if engine is not None:
            registry.serve_one(engine.manifest.model, engine.manifest.bundle_version, engine)
        self.health.set(SERVING, *self._health_names())
        if self._memory is not None:
            self._memory.start()

    def stop(self) -> None:
        """Says NOT_SERVING, refuses new requests, finishes the admitted ones, closes."""
        self._not_ready()
        if self._memory is not None:
            self._memory.close()
        self.admission.drain()
        self.admission.wait_until_idle(self._config.drain_seconds)
        for transport in self._transports:
            transport.stop(STREAM_GRACE_SECONDS)
        if self._http is not None:
            self._http.stop()
        self.batcher.close()
        self._pool.close()
        self._open_inference.close()
        self.router.close()
        self.chain.close()
        self._security.close()

    @property
    def is_ready(self) -> bool:
        """Whether requests are answered: an engine is there and warm, nothing is stopping."""
        return bool(self.health.status("") == SERVING)

    @property
    def is_alive(self) -> bool:
        """Whether the process is worth keeping: its threads have not died again and again."""
        return not self._gave_up

    def _new_batcher(self, recommender: RecommenderService, metrics: "Metrics | None") -> Batcher[Call | Row]:
        counted = metrics.counting if metrics else _as_it_is
        return Batcher(
            counted(recommender.recommend),
            self._batcher_config,
            answer_smaller=counted(recommender.recommend_smaller),
            answer_degraded=recommender.recommend_degraded,
            on_exhausted=self._give_up,
            on_stuck=end_inference,
            model_of=recommender.model_of,
        )

    def _new_http(self, http: HttpConfig, metrics: "Metrics", manager: ModelManager | None) -> "HttpFront":
        from recserve.engine.server.http.front import HttpFront
        from recserve.engine.server.http.probes import probe_routes
        from recserve.engine.server.telemetry.metrics import Sources

        sources = Sources(
            in_flight=lambda: self.admission.in_flight,
            waiting=lambda: self.batcher.n_waiting,
            batcher=self.batcher.stats,
            engines=self.router.registry.engines,
            methods=self.chain.methods,
            is_ready=lambda: self.is_ready,
            refusals=manager.repository.refusals.counts if manager is not None else dict,
        )
        probes = probe_routes(lambda: self.is_alive, lambda: self.is_ready)
        return HttpFront(self.chain, self._config, http, metrics=metrics, sources=sources, probes=probes)

    def _under_pressure(self, level: Pressure) -> None:
        self.admission.is_short_of_memory = level >= Pressure.REFUSE
        if level >= Pressure.DROP:
            for engine in self.router.registry.engines():
                engine.drop_kept()
            gc.collect()
            release_memory()
        if level is Pressure.RESTART:
            self._not_ready()
            cure = "Raise server.memory_limit_mb, or lower what it keeps."
            self.on_end(CheckFailed("memory", found="used up", expected="within its limit", cure=cure))

    def _give_up(self) -> None:
        self._gave_up = True
        self._not_ready()

    def _not_ready(self) -> None:
        self.health.set(NOT_SERVING, *self._health_names())

    def _health_names(self) -> list[str]:
        return ["", *self.chain.methods.services()]


def _as_it_is(answer: Callable[[list[C]], None]) -> Callable[[list[C]], None]:
    return answer


def _reflection(methods: Sequence[Method]) -> Method:
    pools = Pools(open_inference_pb2.DESCRIPTOR.pool, descriptor_pool.Default())
    return reflection_method(MethodTable(methods).services(), pools)


def _new_metrics(http: HttpConfig) -> "Metrics | None":
    """Returns the observer that counts; None where no port would show it, and no call pays for it."""
    if not http.is_wanted:
        return None
    from recserve.engine.server.telemetry.metrics import Metrics

    return Metrics()


def _new_memory_guard(config: ServerConfig, on_pressure: Callable[[Pressure], None]) -> MemoryGuard | None:
    """Returns None where there is no limit. The workers of a container share its limit."""
    limit = config.memory_limit_mb << 20 or (container_limit() or 0) // config.workers
    return MemoryGuard(limit, on_pressure) if limit else None


def run_server(
    server: Server, load_engine: Callable[[], Engine | None], announce: Callable[[str], None]
) -> None:
    """Runs ``server`` until SIGTERM or SIGINT, then drains; a second signal stops at once. Main thread only.

    ``load_engine`` runs on a thread while the server already answers health checks; it returns the one engine
    to serve, or None when it filled the router's registry. ``announce`` gets the addresses, one a line
    and that of gRPC first, when the first request can be answered.
    """
    address = "" if server.binds_when_warm else server.start()
    # Both end up here; put() may be called by a signal handler while its thread is inside get().
    events: SimpleQueue[str | RecserveError] = SimpleQueue()
    server.on_end = events.put
    loading = Future[Engine | None]()

    def load() -> None:
        try:
            loading.set_result(load_engine())
        except BaseException as error:  # noqa: BLE001 - raised again on the main thread
            loading.set_exception(error)
        events.put("loaded")

    with _on_signals(lambda: events.put("stop")):
        threading.Thread(target=load, name="recserve-load", daemon=True).start()
        try:
            reason = events.get()
            if reason == "loaded":
                engine = loading.result()
                server.serve(engine)
                address = address or server.start()
                # What is there now stays: later collections, which stop every thread, need not look at it.
                gc.collect()
                gc.freeze()
                announce("\n".join((address, *server.urls.values())))
                log.info("serving", address=address, models=server.router.registry.routes(), **server.urls)
                reason = events.get()
            log.info("draining")
        finally:
            server.stop()
        # A load under way cannot be interrupted; its end, good or bad, is waited for.
        if (engine := loading.result()) is not None:
            engine.close()
    log.info("stopped")
    if isinstance(reason, RecserveError):
        raise reason


@contextmanager
def _on_signals(act: Callable[[], None]) -> Iterator[None]:
    """Calls ``act`` on the first signal to stop. Whoever sends a second one wants out now: it kills."""

    def on_signal(number: int, frame: Any) -> None:
        for other in SIGNALS:
            signal.signal(other, signal.SIG_DFL)
        act()

    before = [signal.signal(number, on_signal) for number in SIGNALS]
    try:
        yield
    finally:
        for number, handler in zip(SIGNALS, before, strict=True):
            signal.signal(number, handler)
