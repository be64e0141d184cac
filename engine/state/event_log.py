"""The one thread that writes events: what waits together is committed together.

An answer is given after the commit, when the event is as durable as was promised and in memory for the next
request; between two commits the thread does what else changes the log.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from copy import copy
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, TypeVar

import structlog

from recserve.engine.state.config import StateConfig
from recserve.engine.state.events import Event
from recserve.engine.state.follower import Follower
from recserve.engine.state.group_commit import Events, GroupCommit, Outcome
from recserve.engine.state.keys import KeyStore
from recserve.engine.state.store import EventStore
from recserve.errors import Overloaded, RecserveError, StorageFailed, Unavailable

log = structlog.get_logger("recserve.state")

T = TypeVar("T")

# A commit that takes longer is a disk in trouble: callers are refused instead of queued behind it.
MAX_COMMIT_SECONDS = 1.0
# How often a server that has nothing to write looks for what others wrote.
FOLLOW_SECONDS = 0.02


class Entry(NamedTuple):
    """A call that waits. ``read`` returns its events, on the writer's thread."""

    read: Callable[[], Events]
    done: Callable[[Outcome | Exception], None]


class Read(NamedTuple):
    """A call and its events, or why it has none."""

    entry: Entry
    events: Events | Exception


class EventLog:
    """Appends events; :meth:`append` and :meth:`do` may be called by any thread."""

    def __init__(
        self,
        store: EventStore,
        keys: KeyStore,
        follower: Follower,
        config: StateConfig,
        *,
        on_failed: Callable[[], None] = lambda: None,
        give_way: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``on_failed`` is called when nothing will be written any more, ``give_way`` often while events are.

        Here as there, a thread that has no hurry can let others go first.
        """
        self._store, self._follower, self._config = store, follower, config
        self._group_commit = GroupCommit(store, keys, follower, config, give_way=give_way, clock=clock)
        self._on_failed = on_failed
        self._queue: SimpleQueue[Entry | Callable[[], None] | None] = SimpleQueue()
        self._n_waiting = 0
        # Guards the count.
        self._lock = threading.Lock()
        self._busy_since: float | None = None
        self.failure: RecserveError | None = None
        self._is_behind = False
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="recserve-events", daemon=True)
        self._thread.start()

    def append(self, read: Callable[[], Events], done: Callable[[Outcome | Exception], None]) -> None:
        """Queues the events of one call; ``done`` is called on the writer's thread when they are durable.

        ``read`` returns them, on that thread too; what it raises is the answer.
        Raises :class:`Overloaded`, :class:`StorageFailed` or :class:`Unavailable`; then nothing is queued.
        """
        self._check_open()
        busy_since = self._busy_since
        if busy_since is not None and time.monotonic() - busy_since > MAX_COMMIT_SECONDS:
            raise Overloaded(
                "event log", found="waiting for its disk", expected="writing", cure="Try again after a pause."
            )
        with self._lock:
            check_waiting(self._n_waiting, self._config)
            self._n_waiting += 1
        self._queue.put(Entry(read, done))

    def do(self, work: Callable[[], T]) -> Future[T]:
        """Runs ``work`` on the writer's thread, after what waits now."""
        self._check_open()
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(work())
            except BaseException as error:  # noqa: BLE001 - raised again where the result is asked for
                future.set_exception(error)

        self._queue.put(run)
        return future

    def close(self) -> None:
        """Writes what waits, and ends the thread."""
        self._closed = True
        self._queue.put(None)
        self._thread.join()

    def _check_open(self) -> None:
        if self.failure is not None:
            # A copy: one that is raised again and again would keep the frames of all who asked.
            raise copy(self.failure)
        if self._closed:
            raise closed()

    def _work(self) -> None:
        waiting: deque[Entry | Callable[[], None] | None] = deque()
        while True:
            try:
                waiting.append(self._queue.get(timeout=FOLLOW_SECONDS if self._store.is_shared else None))
            except Empty:
                self._follow()
                continue
            with suppress(Empty):
                while True:
                    waiting.append(self._queue.get_nowait())
            while waiting:
                work = waiting[0]
                if isinstance(work, Entry):
                    self._write(self._group(waiting))
                    continue
                waiting.popleft()
                if work is None:
                    return
                work()

    def _group(self, waiting: deque[Entry | Callable[[], None] | None]) -> list[Read]:
        """Takes and reads the next calls, as many as are committed together."""
        group: list[Read] = []
        n_events = 0
        while waiting and isinstance(entry := waiting[0], Entry) and n_events < self._config.commit_events:
            waiting.popleft()
            try:
                events = entry.read()
                n_events += len(events)
            except Exception as error:  # noqa: BLE001 - this caller gets it, the others are not to blame
                group.append(Read(entry, error))
            else:
                group.append(Read(entry, events))
        return group

    def _follow(self) -> None:
        """Looks for what other servers wrote while there is nothing to write here."""
        try:
            self._follower.catch_up()
            self._is_behind = False
        except RecserveError as error:
            if not self._is_behind:
                log.error("the event log cannot be followed", error=str(error))
            self._is_behind = True

    def _write(self, group: Sequence[Read]) -> None:
        self._busy_since = time.monotonic()
        answers = self._commit(group)
        self._busy_since = None
        with self._lock:
            self._n_waiting -= len(group)
        for read, answer in zip(group, answers, strict=True):
            try:
                read.entry.done(answer)
            except Exception:
                # The next caller must be answered whatever happens to this one.
                log.exception("an answer of the event log was lost")

    def _commit(self, group: Sequence[Read]) -> Sequence[Outcome | Exception]:
        if self.failure is not None:
            return [self.failure] * len(group)
        try:
            return self._group_commit.run([read.events for read in group])
        except Exception as error:  # noqa: BLE001 - the callers get it
            if isinstance(error, StorageFailed):
                self._fail(error)
            return [error] * len(group)

    def _fail(self, error: StorageFailed) -> None:
        # After a failed write or sync nobody knows what is on the disk: only a fresh start finds out.
        log.critical("the event log failed, nothing more is written", exc_info=error)
        self.failure = error
        self._on_failed()


def check_waiting(n_calls: int, config: StateConfig) -> None:
    """Raises :class:`Overloaded` when ``n_calls`` that bring events wait and one more is too many."""
    if n_calls >= config.max_waiting_calls:
        raise Overloaded(
            "calls that wait for the event log",
            found=n_calls,
            expected=f"below {config.max_waiting_calls}",
            cure="Bring more events in one call, or try again after a pause.",
        )


def closed() -> Unavailable:
    """Returns what callers of a log that is closed are told."""
    return Unavailable("event log", found="closed", expected="open", cure="Ask another server.")


def resolving(future: Future[Any]) -> Callable[[Any], None]:
    """Returns what gives an answer, or an error, to ``future``."""

    def done(answer: Any) -> None:
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)

    return done


def blocking(log: EventLog, events: Sequence[Event]) -> Outcome:
    """Appends events and waits until they are durable; raises what :meth:`EventLog.append` does."""
    future: Future[Outcome] = Future()
    log.append(lambda: events, resolving(future))
    return future.result()
