"""The one thread that writes events: what waits together is committed together.

An answer is given after the commit, when the event is as durable as was promised and in memory for the next
request; between two commits the thread does what else changes the log. Order: the keys of new users, the
events, memory, answers.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import NamedTuple, TypeVar

import structlog

from recserve.engine.state.config import StateConfig
from recserve.engine.state.events import (
    EVERY_PURPOSE,
    HISTORY_ACTIONS,
    IMPRESSION,
    SERVE,
    Event,
    check_event,
    pack_event,
    rating_of,
)
from recserve.engine.state.follower import Follower, Interaction
from recserve.engine.state.keys import NONCE_BYTES, KeyStore
from recserve.engine.state.store import EventRow, EventStore
from recserve.errors import (
    AlreadyRecorded,
    Overloaded,
    RecserveError,
    StorageFailed,
    Unavailable,
    UserErased,
)

log = structlog.get_logger("recserve.state")

T = TypeVar("T")

# A commit that takes longer is a disk in trouble: callers are refused instead of queued behind it.
MAX_COMMIT_SECONDS = 1.0
# How often a server that has nothing to write looks for what others wrote.
FOLLOW_SECONDS = 0.02
# Bytes before an event's action: its timestamp, which the server may have set.
TIMESTAMP_BYTES = 8


@dataclass(slots=True)
class Outcome:
    """What became of the events of one call; the lists name their positions in it.

    ``duplicates``: known already, and the same. ``refused``: with the reason. ``n_withheld``: nobody agreed
    to keep them.
    """

    durability: str
    n_stored: int = 0
    n_withheld: int = 0
    duplicates: list[int] = field(default_factory=list)
    refused: list[tuple[int, RecserveError]] = field(default_factory=list)


Events = Sequence[Event | RecserveError]


class Entry(NamedTuple):
    """A call that waits. ``read`` makes its events on the writer's thread; an error stands for a bad one."""

    read: Callable[[], Events]
    done: Callable[[Outcome | Exception], None]


class Read(NamedTuple):
    """A call and its events, or why it has none."""

    entry: Entry
    events: Events | Exception


class Candidate(NamedTuple):
    """An event on its way into the log."""

    outcome: Outcome
    position: int
    event: Event
    purposes: int
    plain: bytes
    row: EventRow


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
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``on_failed`` is called when nothing will be written any more."""
        self._store, self._keys, self._follower = store, keys, follower
        self._config = config
        self._default_purposes = 0 if config.require_consent else EVERY_PURPOSE
        self._on_failed = on_failed
        self._clock = clock
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

    def append(
        self,
        read: Callable[[], Events],
        done: Callable[[Outcome | Exception], None],
    ) -> None:
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
            raise self.failure
        if self._closed:
            raise Unavailable("event log", found="closed", expected="open", cure="Ask another server.")

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
            answers, candidates = self._prepare_all(group)
            while not self._keys.commit():
                self._follower.catch_up()
                answers, candidates = self._prepare_all(group)
            if candidates:
                added = self._store.append([candidate.row for candidate in candidates])
                self._apply(candidates, added)
        except Exception as error:  # noqa: BLE001 - the callers get it
            self._keys.discard()
            if isinstance(error, StorageFailed):
                self._fail(error)
            return [error] * len(group)
        return answers

    def _fail(self, error: StorageFailed) -> None:
        # After a failed write or sync nobody knows what is on the disk: only a fresh start finds out.
        log.critical("the event log failed, nothing more is written", exc_info=error)
        self.failure = error
        self._on_failed()

    def _prepare_all(self, group: Sequence[Read]) -> tuple[list[Outcome | Exception], list[Candidate]]:
        candidates: list[Candidate] = []
        return [self._prepare(read.events, candidates) for read in group], candidates

    def _prepare(self, events: Events | Exception, candidates: list[Candidate]) -> Outcome | Exception:
        """Checks and closes the events of a call; adds those that can be written to ``candidates``."""
        if isinstance(events, Exception):
            return events
        outcome = Outcome(self._store.durability)
        n_before = len(candidates)
        try:
            self._prepare_each(events, outcome, candidates)
        except Exception as error:  # noqa: BLE001 - this caller gets it, the others are not to blame
            del candidates[n_before:]
            return error
        return outcome

    def _prepare_each(self, events: Events, outcome: Outcome, candidates: list[Candidate]) -> None:
        received = int(self._clock())
        nonces = os.urandom(NONCE_BYTES * len(events))
        for position, event in enumerate(events):
            if isinstance(event, RecserveError):
                outcome.refused.append((position, event))
                continue
            purposes = self._default_purposes if event.purposes is None else event.purposes
            if not purposes:
                outcome.n_withheld += 1
                continue
            try:
                nonce = nonces[NONCE_BYTES * position : NONCE_BYTES * (position + 1)]
                plain, row = self._close_event(event, purposes, received, nonce)
            except RecserveError as error:
                outcome.refused.append((position, error))
            else:
                candidates.append(Candidate(outcome, position, event, purposes, plain, row))

    def _close_event(
        self, event: Event, purposes: int, received: int, nonce: bytes
    ) -> tuple[bytes, EventRow]:
        check_event(event)
        plain = pack_event(event, purposes)
        user_key, event_key = self._keys.user_key(event.user_id), self._keys.event_key(event.event_id)
        if self._keys.is_erased(user_key):
            raise UserErased("user", found="erased", expected="one who is known, or new")
        body = self._keys.seal(user_key, event_key, received, plain, nonce)
        return plain, (event_key, user_key, received, body)

    def _apply(self, candidates: Sequence[Candidate], added: Iterable[bool]) -> None:
        fresh: list[Interaction] = []
        shown: list[Interaction] = []
        for candidate, is_new in zip(candidates, added, strict=True):
            outcome, position, event, purposes, plain, row = candidate
            if is_new:
                outcome.n_stored += 1
                if purposes & SERVE and event.action in (*HISTORY_ACTIONS, IMPRESSION):
                    kind = shown if event.action == IMPRESSION else fresh
                    value = rating_of(event.action, event.value)
                    kind.append((row[1], event.item_id, event.timestamp, value))
            else:
                try:
                    self._check_same(row, plain)
                    outcome.duplicates.append(position)
                except RecserveError as error:
                    outcome.refused.append((position, error))
        self._follower.written(fresh, shown)

    def _check_same(self, row: EventRow, plain: bytes) -> None:
        """Raises :class:`AlreadyRecorded` unless the log has this very event, whatever its time."""
        event_key, user_key = row[0], row[1]
        known = self._store.get(event_key)
        before = None
        if known is not None and known.user_key == user_key:
            before = self._keys.open(known.user_key, known.event_key, known.received, known.body)
        if before is None or before[TIMESTAMP_BYTES:] != plain[TIMESTAMP_BYTES:]:
            raise AlreadyRecorded("event_id", found="used by another event", expected="one for each event")


def check_waiting(n_calls: int, config: StateConfig) -> None:
    """Raises :class:`Overloaded` when ``n_calls`` that bring events wait and one more is too many."""
    if n_calls >= config.max_waiting_calls:
        raise Overloaded(
            "calls that wait for the event log",
            found=n_calls,
            expected=f"below {config.max_waiting_calls}",
            cure="Bring more events in one call, or try again after a pause.",
        )


def blocking(log: EventLog, events: Sequence[Event]) -> Outcome:
    """Appends events and waits until they are durable; raises what :meth:`EventLog.append` does."""
    future: Future[Outcome] = Future()

    def done(answer: Outcome | Exception) -> None:
        if isinstance(answer, Outcome):
            future.set_result(answer)
        else:
            future.set_exception(answer)

    log.append(lambda: events, done)
    return future.result()
