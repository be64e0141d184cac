"""The state of a server whose log is written by a process of its own: the same face, and memory here."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import structlog

from recserve.engine.state.config import StateConfig
from recserve.engine.state.event_log import check_waiting, closed, resolving
from recserve.engine.state.events import Event
from recserve.engine.state.follower import Interaction, Loaded, LogListener
from recserve.engine.state.group_commit import Events, Outcome
from recserve.engine.state.items import ItemChange, LiveItems
from recserve.engine.state.keys import Pseudonyms
from recserve.engine.state.observed import ObservedEvents
from recserve.engine.state.packed import PackedReader
from recserve.engine.state.state import LoggedEvent, State, identity_of
from recserve.engine.state.writing_process import PROCESS_NAME, Opened, WritingProcess
from recserve.engine.threads import MAX_DEATHS, Crew
from recserve.errors import ConfigError, RecserveError, StorageFailed, Unavailable

log = structlog.get_logger("recserve.state")

# Before the next one tries what the one before could not, times how many could not.
PAUSE_SECONDS = 5.0


class DistantState:
    """As :class:`State`, over a pipe. What becomes of events is told in the order of the log.

    Memory first, then the answer. A process that dies is replaced, as threads are: who waits is told to ask
    again, and memory becomes what the log has. Requests meanwhile see what was known before.
    """

    def __init__(
        self,
        config: StateConfig,
        run: Callable[[StateConfig, Connection], None],
        *,
        max_users: int,
        max_items: int,
    ) -> None:
        """``run``: as of :class:`WritingProcess`.

        ``max_users``, ``max_items``: as of :func:`open_state`, and so are the errors.
        """
        self.config = config
        self._run = run
        # Who is asked, the last that has read the log, and the reader of what it tells.
        self._process: WritingProcess
        self._packed: PackedReader
        # The last that was started.
        self._newest: WritingProcess | None = None
        # How many, one after the other, did not start or come to the end of the log.
        self._n_in_vain = 0
        self.observed = ObservedEvents(max_users=max_users, max_items=max_items)
        # Where what the process tells goes: not to what requests see, while it reads the log again.
        self._memory = self.observed
        self.live_items = LiveItems()
        self.listeners: list[LogListener] = []
        self.on_failed: Callable[[], None] = lambda: None
        self._failure: RecserveError | None = None
        # Guards the end: a process that starts or takes over is one that :meth:`close` finds, or it finds
        # the end.
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._first: Future[Opened] = Future()
        # A thread for each process: it ends with the thread that made it.
        self._crew = Crew("recserve-log", 1, self._live, on_exhausted=self._give_up)
        try:
            opened = self._first.result()
        except KeyboardInterrupt:
            self._abandon()
            raise
        self.durability = opened.durability
        self._pseudonyms = Pseudonyms(opened.secret)
        self.observed.key_of = self._pseudonyms.user_key

    def append(self, read: Callable[[], Events], done: Callable[[Outcome | Exception], None]) -> None:
        """As :meth:`State.append`; ``read`` must be picklable."""
        process = self._process
        # Here, too: a process that stands still refuses nobody.
        check_waiting(process.n_waiting, self.config)
        process.ask("append", (read,), done)

    def load(self) -> Loaded:
        """As :meth:`State.load`."""
        loaded: Loaded = self._ask("load").result()
        return loaded

    def record(self, events: Sequence[Event]) -> Outcome:
        """As :meth:`State.record`."""
        future: Future[Outcome] = Future()
        self.append(partial(tuple, events), resolving(future))
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
        with self._lock:
            self._closed.set()
            self._process.finish(closed())
            # One that reads the log was asked for nothing that it must finish.
            if self._newest is not None and self._newest is not self._process:
                self._newest.kill()
        self._crew.join()

    def _abandon(self) -> None:
        # Nobody can close what nobody has, and Python ends only after its processes have.
        with self._lock:
            self._closed.set()
            if self._newest is not None:
                self._newest.kill()

    def _ask(self, name: str, *arguments: Any) -> Future[Any]:
        return self._process.asked(name, *arguments)

    def _live(self) -> None:
        if self._n_in_vain > MAX_DEATHS:
            # Whenever that was: to read a large log takes longer than the crew counts deaths.
            self._give_up()
            return
        # What kept the one before from it may pass.
        self._closed.wait(PAUSE_SECONDS * self._n_in_vain)
        try:
            with self._lock:
                if self._closed.is_set() or self._failure is not None:
                    return
                self._n_in_vain += 1
                process = self._newest = WritingProcess(self.config, self._run)
            self._serve_with(process)
        except BaseException as error:
            if self._first.done():
                raise
            # Nobody has a state yet: who makes it hears why not.
            self._first.set_exception(error)

    def _serve_with(self, process: WritingProcess) -> None:
        """Returns when the process has ended as it should; raises where another one must take its place.

        So it must where something of what was told did not come to memory: it is read again.
        """
        try:
            self._begin(process)
            for what, arguments in process.told:
                self._hear(process, what, arguments)
        except BaseException:
            process.kill()
            raise
        finally:
            process.end(_dead())
        if not self._closed.is_set() and self._failure is None:
            raise process.died()

    def _begin(self, process: WritingProcess) -> None:
        opened = process.opened()
        # Each numbers the items anew.
        self._packed = PackedReader(self.observed.code)
        is_first = not self._first.done()
        if not is_first and not self._load_again(process, opened):
            return
        with self._lock:
            self._process = process
            if self._closed.is_set():
                process.finish(closed())
        self._n_in_vain = 0
        if is_first:
            self._first.set_result(opened)
        # There may be events that the process before had not told.
        self._tell("stored")

    def _load_again(self, process: WritingProcess, opened: Opened) -> bool:
        """Returns whether memory has become what the log has; False when the process ended before."""
        if opened.secret != self._first.result().secret:
            raise ConfigError(
                f"event log {self.config.path}",
                found="another one",
                expected="that of before its process died",
            )
        start = time.perf_counter()
        self._memory = fresh = self.observed.emptied()
        loaded = process.asked("load")
        try:
            for what, arguments in process.told:
                self._hear(process, what, arguments)
                if loaded.done():
                    break
            else:
                return False
        finally:
            self._memory = self.observed
        n_events = loaded.result().n_events
        self.observed.take(fresh)
        seconds = round(time.perf_counter() - start, 3)
        log.warning("event log is open again", events=n_events, seconds=seconds)
        return True

    def _hear(self, process: WritingProcess, what: str, arguments: tuple[Any, ...]) -> None:
        if what == "answer":
            process.answer(*arguments)
        elif what == "add":
            events, shown = arguments
            self._memory.add_packed(self._packed.open(events), shown=shown)
        elif what == "load":
            self._memory.load(self._loaded(process, *arguments))
        elif what == "erase":
            # At once, and maybe once more: the process before may have died before it told everybody.
            self.observed.erase(*arguments)
            self._tell("erased", *arguments)
        elif what == "items":
            self.live_items.apply(*arguments)
        elif what == "failed":
            self._fail(*arguments)
        else:
            self._tell(what, *arguments)

    def _loaded(self, process: WritingProcess, part: list[Interaction]) -> Iterator[Interaction]:
        """Yields the parts of a load as they come; what comes in between is heard."""
        while part:
            yield from part
            for what, arguments in process.told:
                if what == "load":
                    [part] = arguments
                    break
                self._hear(process, what, arguments)
            else:
                return

    def _tell(self, what: str, *arguments: Any) -> None:
        for listener in tuple(self.listeners):
            getattr(listener, what)(*arguments)

    def _give_up(self) -> None:
        self._fail(
            StorageFailed(
                PROCESS_NAME,
                found="dying again and again",
                expected="running",
                cure="The log tells why; start the server again.",
            )
        )

    def _fail(self, error: RecserveError) -> None:
        log.critical("the event log failed, nothing more is written", error=str(error))
        self._failure = self._process.refusal = error
        self.on_failed()


AnyState = State | DistantState


def _dead() -> Unavailable:
    return Unavailable(
        PROCESS_NAME,
        found="dead",
        expected="running",
        cure="Another one starts: send the events again, event_id makes them count once.",
    )
