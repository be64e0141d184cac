"""N worker processes on one port, and the parent that starts, watches, restarts and stops them.

Each worker is a whole server that binds the same port (SO_REUSEPORT: the kernel spreads connections over
them) and maps the same bundle and the same prepared index, so the vectors are in memory once.
"""

import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

import structlog

from recserve.engine.children import follow_parent
from recserve.engine.server.config import ServerConfig
from recserve.errors import ConfigError, RecserveError, Unavailable

log = structlog.get_logger("recserve.server")

# More deaths than this within a minute are no accident: the parent stops the rest and says so.
MAX_DEATHS = 5
DEATHS_WITHIN_SECONDS = 60.0

# What a worker runs: serves until SIGTERM, calls the function with its address when it is warm.
Serve = Callable[[Callable[[str], None]], None]


@dataclass(slots=True)
class Worker:
    """One child: ``reports`` brings its address when it is warm, or the error that it ended with."""

    number: int
    process: SpawnProcess
    reports: Connection
    is_ready: bool = False
    error: RecserveError | None = None


class Supervisor:
    """Keeps one process for each of ``works`` running until SIGTERM or SIGINT; main thread only.

    They must be picklable. A worker that dies is restarted; one that fails before any was ready (a
    damaged bundle, a busy port) ends all, and its error is raised here.
    """

    def __init__(self, works: Sequence[Serve]) -> None:
        self._works = works
        self._context = multiprocessing.get_context("spawn")
        self._workers: dict[int, Worker] = {}
        self._deaths: deque[float] = deque(maxlen=MAX_DEATHS + 1)
        self._stopping = False
        self._announced = False
        self._failure: RecserveError | None = None

    def run(self, announce: Callable[[str], None]) -> None:
        """Starts the workers; ``announce`` gets the address when all are warm for the first time."""
        with _signal_pipe() as signals:
            for number in range(len(self._works)):
                self._start(number)
            while self._workers:
                reports = {worker.reports: worker for worker in self._workers.values()}
                for ready in wait([signals, *reports]):
                    if ready is signals:
                        self._on_signal(signals.recv(1)[0])
                    else:
                        self._on_report(reports[ready], announce)  # type: ignore[index]
        if self._failure is not None:
            raise self._failure

    def _start(self, number: int) -> None:
        mine, theirs = self._context.Pipe(duplex=False)
        process = self._context.Process(
            target=_run_worker, args=(self._works[number], theirs), name=f"recserve-worker-{number}"
        )
        process.start()
        theirs.close()
        self._workers[number] = Worker(number, process, mine)
        log.info("worker started", worker=number, pid=process.pid)

    def _on_report(self, worker: Worker, announce: Callable[[str], None]) -> None:
        try:
            report = worker.reports.recv()
        except EOFError:
            self._on_death(worker)
            return
        if isinstance(report, RecserveError):
            worker.error = report
            return
        worker.is_ready = True
        ready = [other for other in self._workers.values() if other.is_ready]
        if len(ready) == len(self._works) and not self._announced:
            self._announced = True
            announce(report)

    def _on_death(self, worker: Worker) -> None:
        worker.process.join()
        worker.reports.close()
        del self._workers[worker.number]
        code = worker.process.exitcode
        if self._stopping:
            return
        log.error("worker died", worker=worker.number, pid=worker.process.pid, exit_code=code)
        now = time.monotonic()
        self._deaths.append(now)
        many = len(self._deaths) > MAX_DEATHS and now - self._deaths[0] < DEATHS_WITHIN_SECONDS
        if many or not self._announced:
            self._failure = worker.error or Unavailable(
                "worker processes",
                found=f"dying (the last with exit code {code})",
                expected="running",
                cure="The log tells why.",
            )
            self._stop()
        else:
            self._start(worker.number)

    def _on_signal(self, number: int) -> None:
        if self._stopping:
            # Whoever asks a second time wants out now: it ends the workers, and then this process.
            self._failure = None
            self._signal_workers(signal.SIGKILL)
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self._stop()

    def _stop(self) -> None:
        self._stopping = True
        self._signal_workers(signal.SIGTERM)

    def _signal_workers(self, number: signal.Signals) -> None:
        for worker in self._workers.values():
            if worker.process.pid is not None:
                # It may be gone already: its report then tells.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker.process.pid, number)


def _run_worker(serve: Serve, reports: Connection) -> None:
    # The terminal's Ctrl-C is for the parent, which passes it on once; when it dies we must not stay.
    follow_parent(signal.SIGTERM)
    try:
        serve(reports.send)
    except RecserveError as error:
        reports.send(error)
        sys.exit(error.exit_code)


@contextlib.contextmanager
def _signal_pipe() -> Iterator[socket.socket]:
    """Yields a socket on which each SIGTERM or SIGINT arrives as one byte, its number."""
    readable, writable = socket.socketpair()
    writable.setblocking(False)
    before = [signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)]
    earlier = signal.set_wakeup_fd(writable.fileno())
    try:
        yield readable
    finally:
        signal.set_wakeup_fd(earlier)
        for number, handler in zip((signal.SIGTERM, signal.SIGINT), before, strict=True):
            signal.signal(number, handler)
        readable.close()
        writable.close()


@contextlib.contextmanager
def reserved_port(config: ServerConfig) -> Iterator[int]:
    """Yields the port of ``config``, a free one for 0, that several processes can bind until the block ends.

    Raises :class:`ConfigError` when it is taken.
    """
    if config.is_unix:
        raise ConfigError(
            "server.workers", found="several", expected="1 on a Unix socket", cure="Listen on a port instead."
        )
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    with socket.socket(family) as taken:
        # Bound and never listening: it holds the number and gets no connection. Without SO_REUSEPORT at
        # first, so that a port that is somebody else's is noticed.
        try:
            with socket.socket(family) as probe:
                probe.bind((config.host, config.port))
                port = int(probe.getsockname()[1])
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            taken.bind((config.host, port))
        except OSError as error:
            raise ConfigError(
                "server address",
                found=config.address(config.port),
                expected="free to bind",
                cure="Choose another --port.",
            ) from error
        yield port
