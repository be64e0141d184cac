"""Threads that are watched: one that dies, or does not come back from its work, is replaced."""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import structlog

log = structlog.get_logger("recserve.threads")

# How often one who waits for the threads looks whether the watch has given one up.
JOIN_SECONDS = 0.1
# The watch looks so many times within the time that work may take.
LOOKS = 4
# More deaths than this within a minute are no accident: the crew gives up and says so.
MAX_DEATHS = 3
DEATHS_WITHIN_SECONDS = 60.0


_own = threading.local()


def this_crew() -> "Crew":
    """Returns the crew that the calling thread is of; it must be of one."""
    crew: Crew = _own.crew
    return crew


class Crew:
    """``n_threads`` threads that each run ``work`` until it returns.

    ``work`` handles its own failures. What it raises all the same ends that thread: the error is logged,
    ``on_death(error)`` is called on the dying thread, and a new thread takes its place, unless there were
    more than ``MAX_DEATHS`` within a minute: then ``on_exhausted()`` is called, once.

    Work that tells when it :meth:`begins` something and when it :meth:`ends` is watched: what takes longer
    than ``stuck_seconds`` counts as a death, of which ``on_stuck(thread, what)`` hears on the watch's thread.
    """

    def __init__(
        self,
        name: str,
        n_threads: int,
        work: Callable[[], None],
        *,
        on_death: Callable[[BaseException], None] = lambda error: None,
        on_exhausted: Callable[[], None] = lambda: None,
        stuck_seconds: float = float("inf"),
        on_stuck: Callable[[int, Any], None] = lambda thread, what: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._work = work
        self._on_death = on_death
        self._on_exhausted = on_exhausted
        self._stuck_seconds = stuck_seconds
        self._on_stuck = on_stuck
        self._clock = clock
        # What each thread works on and since when. Who takes an entry out decides: the thread that ends it,
        # or the watch that gives the thread up. Each operation is one atomic step.
        self._busy: dict[threading.Thread, tuple[float, Any]] = {}
        self._joined = threading.Event()
        # Guards the fields below.
        self._lock = threading.Lock()
        self._deaths: deque[float] = deque(maxlen=MAX_DEATHS + 1)
        self._exhausted = False
        self._threads: set[threading.Thread] = set()
        for _ in range(n_threads):
            self._start()
        if n_threads and stuck_seconds < float("inf"):
            threading.Thread(target=self._watch, name=f"{name}-watch", daemon=True).start()

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
                self._joined.set()
                return
            thread.join(JOIN_SECONDS)

    def begins(self, what: Any) -> None:
        """Told by a thread that works on something from now on."""
        self._busy[threading.current_thread()] = (self._clock(), what)

    def ends(self) -> bool:
        """Told by a thread that is done with it; False: another one has taken its place, it must return."""
        return self._busy.pop(threading.current_thread(), None) is not None

    def has_given_up(self) -> bool:
        """Asked by a thread between :meth:`begins` and :meth:`ends`: whether another has taken its place."""
        return threading.current_thread() not in self._busy

    def _watch(self) -> None:
        while not self._joined.wait(self._stuck_seconds / LOOKS):
            for thread, (since, what) in list(self._busy.items()):
                seconds = self._clock() - since
                if seconds > self._stuck_seconds and self._busy.pop(thread, None) is not None:
                    log.critical("thread stuck", thread=self._name, seconds=round(seconds, 1))
                    try:
                        self._on_stuck(thread.ident or 0, what)
                    finally:
                        self._replace()
                        self._forget(thread)

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        # Who joins finds none that has not begun.
        with self._lock:
            self._threads.add(thread)
            thread.start()

    def _run(self) -> None:
        _own.crew = self
        try:
            self._work()
        except BaseException as error:
            log.critical("thread died", thread=self._name, exc_info=error)
            with self._lock:
                is_replaced = threading.current_thread() not in self._threads
            if not is_replaced:
                try:
                    self._on_death(error)
                finally:
                    self._replace()
        finally:
            self._forget(threading.current_thread())

    def _forget(self, thread: threading.Thread) -> None:
        self._busy.pop(thread, None)
        with self._lock:
            self._threads.discard(thread)

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
