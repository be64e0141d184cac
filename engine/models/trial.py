"""Tries a bundle in a process of its own before the server loads it.

The trial is a whole load: files, contents, graphs, recorded inferences, index. It has the lowest priority and
an interpreter of its own, so callers wait for none of it; what crashes, hangs or needs too much memory does
so there. It leaves the index and the stamps of the files, after which a load is a matter of milliseconds.
"""

import multiprocessing
import resource
import signal
import threading
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import structlog

from recserve.engine.bundle.stamps import Stamps, settled_stamps
from recserve.engine.children import follow_parent, take_low_priority
from recserve.engine.config import CPU, EngineConfig
from recserve.engine.engine import Engine
from recserve.engine.logs import configure_logs
from recserve.errors import BundleInvalid, BundleReason, RecserveError, Unavailable

log = structlog.get_logger("recserve.models")

# By the clock, of the processor time that it may take: others go first.
PATIENCE = 10


class Trials:
    """Runs trials, each for the thread that asks; :meth:`close` ends those that are under way."""

    def __init__(self, seconds: float) -> None:
        """``seconds``: of processor time that a trial may take."""
        self._seconds = seconds
        self._context = multiprocessing.get_context("spawn")
        # Guards the fields below.
        self._lock = threading.Lock()
        self._running: set[BaseProcess] = set()
        self._closed = False

    def __call__(self, folder: Path, config: EngineConfig) -> Stamps:
        """Loads ``folder`` in another process; its index is in ``config.index_folder`` then.

        Returns the stamps of the files that were checked. Raises what the load raised, and
        :class:`BundleInvalid` where it killed its process or did not end in time.
        """
        mine, theirs = self._context.Pipe(duplex=False)
        process = self._context.Process(
            target=_load, args=(folder, config, self._seconds, theirs), name="recserve-trial", daemon=True
        )
        with mine:
            self._start(process)
            theirs.close()
            try:
                outcome = mine.recv() if mine.poll(PATIENCE * self._seconds) else TimeoutError()
            except EOFError as error:
                process.join()
                outcome = self._died(process.exitcode or 0, error)
            finally:
                process.kill()
                process.join()
                with self._lock:
                    self._running.discard(process)
        if isinstance(outcome, TimeoutError):
            outcome = _too_long(f"{PATIENCE * self._seconds:.0f} s by the clock")
        if isinstance(outcome, Exception):
            raise outcome
        stamps: Stamps = outcome
        return stamps

    def close(self) -> None:
        """Ends the trials under way and refuses others."""
        with self._lock:
            self._closed = True
            for process in self._running:
                process.kill()

    def _start(self, process: BaseProcess) -> None:
        with self._lock:
            if self._closed:
                raise _shutting_down()
            process.start()
            self._running.add(process)

    def _died(self, exit_code: int, cause: EOFError) -> Exception:
        if self._closed:
            return _shutting_down()
        if exit_code == -signal.SIGXCPU:
            return _too_long(f"{self._seconds:.0f} s of processor time")
        if exit_code == -signal.SIGKILL:
            # By the system, which does that for memory alone.
            return MemoryError("killed while it tried the bundle")
        return BundleInvalid(
            "bundle",
            found=f"the end of the process that tries it (exit code {exit_code})",
            expected="loadable",
            reason=BundleReason.LOAD_CRASHES,
        )


def _too_long(found: str) -> BundleInvalid:
    return BundleInvalid(
        "load of the bundle",
        found=f"not done after {found}",
        expected="sooner",
        cure="Raise repository.trial_seconds for a large one.",
        reason=BundleReason.LOAD_TOO_LONG,
    )


def _shutting_down() -> Unavailable:
    return Unavailable("server", found="shutting down", expected="serving", cure="Ask another one.")


def _load(folder: Path, config: EngineConfig, seconds: float, reports: Connection) -> None:
    follow_parent(signal.SIGKILL)
    take_low_priority()
    limit = max(1, round(seconds))
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 1))
    configure_logs()
    try:
        stamps = settled_stamps(folder)
        # The memory of a GPU is the server's, and what the trace would warm is in its process.
        with Engine.load(folder, replace(config, provider=CPU, warmup_trace=None)):
            reports.send(stamps)
    except (RecserveError, MemoryError) as error:
        log.warning("trial failed", folder=str(folder), exc_info=error)
        reports.send(error)
