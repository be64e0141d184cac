"""The state of a server whose log is written by a process of its own: the same face, and memory here."""

import itertools
import multiprocessing
import pickle
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any, NamedTuple

import structlog

from recserve.engine.state.config import StateConfig
from recserve.engine.state.event_log import check_waiting
from recserve.engine.state.events import Event
from recserve.engine.state.follower import Interaction, Loaded, LogListener
from recserve.engine.state.group_commit import Events, Outcome
from recserve.engine.state.items import ItemChange, LiveItems
from recserve.engine.state.keys import Pseudonyms
from recserve.engine.state.observed import ObservedEvents
from recserve.engine.state.packed import PackedReader
from recserve.engine.state.state import LoggedEvent, State, identity_of
from recserve.errors import RecserveError, StorageFailed, Unavailable

log = structlog.get_logger("recserve.state")


class Opened(NamedTuple):
    """The first message of the process: ``secret`` is that of the log's pseudonyms."""

    durability: str
    secret: bytes


class DistantState:
    """As :class:`State`, over a pipe. Main thread only when made: the process ends with the thread (Linux).

    What becomes of events is told in the order of the log: memory first, then the answer.
    """

    def __init__(
        self,
        config: StateConfig,
        run: Callable[[StateConfig, Connection], None],
        *,
        max_users: int,
        max_items: int,
    ) -> None:
        """``run``: what the process does with its end of the pipe; :class:`Opened`, or an error, comes first.

        ``max_users``, ``max_items``: as of :func:`open_state`, and so are the errors.
        """
        self.config = config
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=run, args=(config, theirs), name="recserve-log")
        self._process.start()
        theirs.close()
        opened = _opened(self._pipe)
        if isinstance(opened, RecserveError):
            self._process.join()
            raise opened
        self.durability = opened.durability
        self._pseudonyms = Pseudonyms(opened.secret)
        self.observed = ObservedEvents(
            max_users=max_users, max_items=max_items, key_of=self._pseudonyms.user_key
        )
        self._packed = PackedReader(self.observed.code)
        self.live_items = LiveItems()
        self.listeners: list[LogListener] = []
        self.on_failed: Callable[[], None] = lambda: None
        self._failure: RecserveError | None = None
        self._closed = False
        self._numbers = itertools.count()
        self._waiting: dict[int, Callable[[Any], None]] = {}
        # A full pipe must hold up nobody who asks.
        self._to_send: SimpleQueue[bytes | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=work, name=f"recserve-log-{name}", daemon=True)
            for name, work in (("sender", self._send), ("receiver", self._receive))
        ]
        for thread in self._threads:
            thread.start()

    def append(self, read: Callable[[], Events], done: Callable[[Outcome | Exception], None]) -> None:
        """As :meth:`State.append`; ``read`` must be picklable."""
        # Here, too: a process that stands still refuses nobody.
        check_waiting(len(self._waiting), self.config)
        self._put("append", (read,), done)

    def load(self) -> Loaded:
        """As :meth:`State.load`."""
        loaded: Loaded = self._ask("load").result()
        return loaded

    def record(self, events: Sequence[Event]) -> Outcome:
        """As :meth:`State.record`."""
        future: Future[Outcome] = Future()
        self.append(partial(tuple, events), _resolving(future))
        return future.result()

    def events_of(
        self, user_id: str, after: int = 0, limit: int = 1000
    ) -> Future[tuple[list[LoggedEvent], int]]:
        """As :meth:`State.events_of`."""
        return self._ask("events_of", user_id, after, limit)

    def events_after(self, after: int, limit: int) -> Future[tuple[list[LoggedEvent], int]]:
        """As :meth:`State.events_after`."""
        return self._ask("events_after", after, limit)

    def change_items(self, changes: Sequence[ItemChange]) -> Future[None]:
        """As :meth:`State.change_items`; the future has its errors."""
        return self._ask("change_items", changes)

    def user_key(self, user_id: str) -> str:
        """As :meth:`State.user_key`."""
        return self._pseudonyms.user_key(user_id).hex()

    @property
    def identity(self) -> str:
        """As :attr:`State.identity`."""
        return identity_of(self._pseudonyms)

    def cursor(self, name: str) -> Future[int]:
        """As :meth:`State.cursor`."""
        return self._ask("cursor", name)

    def move_cursor(self, name: str, seq: int) -> Future[None]:
        """As :meth:`State.move_cursor`."""
        return self._ask("move_cursor", name, seq)

    def erase(self, user_id: str) -> Future[int]:
        """As :meth:`State.erase`."""
        return self._ask("erase", user_id)

    def expire(self, now: float | None = None) -> int:
        """As :meth:`State.expire`."""
        n_events: int = self._ask("expire", now).result()
        return n_events

    def follow_key_file(self) -> int:
        """As :meth:`State.follow_key_file`."""
        n_users: int = self._ask("follow_key_file").result()
        return n_users

    def close(self) -> None:
        """As :meth:`State.close`; the process has ended when it returns."""
        self._closed = True
        self._to_send.put(None)
        for thread in self._threads:
            thread.join()
        self._process.join()
        self._pipe.close()

    def _ask(self, name: str, *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self._put(name, arguments, _resolving(future))
        return future

    def _put(self, name: str, arguments: tuple[Any, ...], done: Callable[[Any], None]) -> None:
        if self._closed:
            raise _closed()
        number = next(self._numbers)
        message = pickle.dumps((number, name, arguments), pickle.HIGHEST_PROTOCOL)
        self._waiting[number] = done
        # Looked at after the entry was made: who ends the waiting ones sees it, or it sees the end.
        ended = _closed() if self._closed else self._failure
        if ended is not None and self._waiting.pop(number, None) is not None:
            raise ended
        self._to_send.put(message)

    def _send(self) -> None:
        # The receiver finds the end of the process, and tells everybody.
        with suppress(OSError):
            while (message := self._to_send.get()) is not None:
                self._pipe.send_bytes(message)
            self._pipe.send(None)

    def _receive(self) -> None:
        for what, arguments in self._told():
            self._hear(what, arguments)
        error = _closed() if self._closed else self._died()
        # Empty, also by who takes theirs back.
        with suppress(KeyError):
            while True:
                _, done = self._waiting.popitem()
                self._hear("ended", (done, error))

    def _told(self) -> Iterator[tuple[str, tuple[Any, ...]]]:
        while True:
            try:
                messages = self._pipe.recv()
            except (EOFError, OSError):
                return
            yield from messages

    def _hear(self, what: str, arguments: tuple[Any, ...]) -> None:
        try:
            if what == "answer":
                number, answer = arguments
                self._waiting.pop(number)(answer)
            elif what == "ended":
                done, error = arguments
                done(error)
            elif what == "add":
                events, shown = arguments
                self.observed.add_packed(self._packed.open(events), shown=shown)
            elif what == "load":
                self.observed.load(self._loaded(*arguments))
            elif what == "erase":
                self.observed.erase(*arguments)
            elif what == "items":
                self.live_items.apply(*arguments)
            elif what == "failed":
                self._fail(*arguments)
            else:
                for listener in tuple(self.listeners):
                    getattr(listener, what)(*arguments)
        except Exception:
            # Others wait for what comes after it.
            log.exception("a message of the event log was lost", what=what)

    def _loaded(self, part: list[Interaction]) -> Iterator[Interaction]:
        """Yields the parts of a load as they come; what comes in between is heard."""
        while part:
            yield from part
            for what, arguments in self._told():
                if what == "load":
                    [part] = arguments
                    break
                self._hear(what, arguments)
            else:
                return

    def _died(self) -> RecserveError:
        self._process.join()
        if self._failure is None:
            self._fail(
                StorageFailed(
                    "process of the event log",
                    found=f"dead (exit code {self._process.exitcode})",
                    expected="running",
                    cure="Start the server again.",
                )
            )
        assert self._failure is not None
        return self._failure

    def _fail(self, error: RecserveError) -> None:
        log.critical("the event log failed, nothing more is written", error=str(error))
        self._failure = error
        self.on_failed()


AnyState = State | DistantState


def _opened(pipe: Connection) -> Opened | RecserveError:
    try:
        opened: Opened | RecserveError = pipe.recv()
    except EOFError:
        return StorageFailed("process of the event log", found="dead", expected="opening the log")
    return opened


def _closed() -> Unavailable:
    return Unavailable("event log", found="closed", expected="open", cure="Ask another server.")


def _resolving(future: Future[Any]) -> Callable[[Any], None]:
    def done(answer: Any) -> None:
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)

    return done
