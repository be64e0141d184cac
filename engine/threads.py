"""Threads that are watched: one that dies is replaced, and somebody is told."""

import threading
import time
from collections import deque
from collections.abc import Callable

import structlog

log = structlog.get_logger("recserve.threads")

# More deaths than this within a minute are no accident: the crew gives up and says so.
MAX_DEATHS = 3
DEATHS_WITHIN_SECONDS = 60.0


class Crew:
    """``n_threads`` threads that each run ``work`` until it returns.

    ``work`` handles its own failures. What it raises all the same ends that thread: the error is logged,
    ``on_death(error)`` is called on the dying thread, and a new thread takes its place, unless there were
    more than ``MAX_DEATHS`` within a minute: then ``on_exhausted()`` is called, once.
    """

    def __init__(
        self,
        name: str,
        n_threads: int,
        work: Callable[[], None],
        *,
        on_death: Callable[[BaseException], None] = lambda error: None,
        on_exhausted: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._work = work
        self._on_death = on_death
        self._on_exhausted = on_exhausted
        self._clock = clock
        # Guards the fields below.
        self._lock = threading.Lock()
        self._deaths: deque[float] = deque(maxlen=MAX_DEATHS + 1)
        self._exhausted = False
        self._threads: set[threading.Thread] = set()
        for _ in range(n_threads):
            self._start()

    @property
    def n_alive(self) -> int:
        """Threads at work."""
        with self._lock:
            return len(self._threads)

    def join(self) -> None:
        """Waits for all threads; ``work`` must have been told to return."""
        while True:
            with self._lock:
                thread = next(iter(self._threads), None)
            if thread is None:
                return
            thread.join()

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        with self._lock:
            self._threads.add(thread)
        thread.start()

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            log.critical("thread died", thread=self._name, exc_info=error)
            try:
                self._on_death(error)
            finally:
                self._replace()
        finally:
            with self._lock:
                self._threads.discard(threading.current_thread())

    def _replace(self) -> None:
        now = self._clock()
        with self._lock:
            self._deaths.append(now)
            many = len(self._deaths) > MAX_DEATHS and now - self._deaths[0] < DEATHS_WITHIN_SECONDS
            first = many and not self._exhausted
            self._exhausted = self._exhausted or many
        if not many:
            self._start()
        elif first:
            log.critical("threads given up", thread=self._name, deaths=MAX_DEATHS + 1)
            self._on_exhausted()
