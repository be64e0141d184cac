"""Tries a bundle in a process of its own before the server loads it.

The trial is a whole load: files, contents, graphs, recorded inferences, index. It has an interpreter of its
own and only time that nobody else wants, so callers wait for none of it; what crashes, hangs or needs too
much memory does so there. Where no core is ever idle it begins again at a low priority. It leaves the index
and the stamps of the files, after which a load is a matter of milliseconds.
"""

import multiprocessing
import resource
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import structlog

from recserve.engine.bundle.stamps import Stamps, settled_stamps
from recserve.engine.children import follow_parent, run_when_idle, run_with_low_priority
from recserve.engine.config import CPU, EngineConfig
from recserve.engine.engine import Engine
from recserve.engine.loading import load_bundle
from recserve.engine.logs import configure_logs
from recserve.errors import BundleInvalid, BundleReason, RecserveError, Unavailable

log = structlog.get_logger("recserve.models")

# By the clock, of the processor time that it may take: others go first.
PATIENCE = 10


class Trials:
    """Runs trials, each for the thread that asks; :meth:`close` ends those that are under way."""

    def __init__(self, seconds: float, idle_seconds: float) -> None:
        """``seconds``: of processor time that a trial may take.

        ``idle_seconds``: by the clock, after which it begins again at a low priority; 0: it begins so.
        """
        self._seconds = seconds
        self._idle_seconds = min(idle_seconds, PATIENCE * seconds)
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
        outcome = None
        if self._idle_seconds:
            outcome = self._try(folder, config, run_when_idle, self._idle_seconds)
        if outcome is None:
            # A new one: to leave the class of those that run in idle time, a process needs a privilege.
            outcome = self._try(folder, config, run_with_low_priority, PATIENCE * self._seconds)
        if outcome is None:
            raise _too_long(f"{PATIENCE * self._seconds:.0f} s by the clock")
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _try(
        self, folder: Path, config: EngineConfig, lower: Callable[[int], None], patience: float
    ) -> Stamps | Exception | None:
        """Runs one process, whose priority ``lower`` sets; None where it took longer than ``patience``."""
        mine, theirs = self._context.Pipe(duplex=False)
        process = self._context.Process(
            target=_load, args=(folder, config, self._seconds, theirs), name="recserve-trial", daemon=True
        )
        with mine:
            self._start(process, lower)
            theirs.close()
            try:
                outcome: Stamps | Exception | None = mine.recv() if mine.poll(patience) else None
                return outcome
            except EOFError:
                process.join()
                return self._died(process.exitcode or 0)
            finally:
                process.kill()
                process.join()
                with self._lock:
                    self._running.discard(process)

    def close(self) -> None:
        """Ends the trials under way and refuses others."""
        with self._lock:
            self._closed = True
            for process in self._running:
                process.kill()

    def _start(self, process: BaseProcess, lower: Callable[[int], None]) -> None:
        with self._lock:
            if self._closed:
                raise _shutting_down()
            process.start()
            self._running.add(process)
            # From here, not there: what it imports is half of its work.
            lower(process.pid)  # type: ignore[arg-type]

    def _died(self, exit_code: int) -> Exception:
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
    limit = max(1, round(seconds))
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 1))
    configure_logs()
    try:
        stamps = settled_stamps(folder)
        # The memory of a GPU is the server's, and what the trace would warm is in its process.
        config = replace(config, provider=CPU, warmup_trace=None)
        # Without Engine.load, which loads kernels that only requests need.
        with Engine(load_bundle(folder, config), config) as engine:
            engine.rehearse()
            reports.send(stamps)
    except (RecserveError, MemoryError) as error:
        log.warning("trial failed", folder=str(folder), exc_info=error)
        reports.send(error)
