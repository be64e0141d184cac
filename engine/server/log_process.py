"""The process that writes a log: it runs the state, and tells the server what its memory must know.

A server that kept its log itself would share one interpreter between the thread that closes and writes
events and those that answer requests: each of them would wait for the other.
"""

import pickle
import signal
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from multiprocessing.connection import Connection
from typing import Any

import structlog

from recserve.engine.children import follow_parent
from recserve.engine.courtesy import Courtesy
from recserve.engine.logs import configure_logs
from recserve.engine.state.config import StateConfig
from recserve.engine.state.group_commit import Events
from recserve.engine.state.items import ItemChange, LiveItems
from recserve.engine.state.observed import ObservedEvents, pack_one
from recserve.engine.state.opening import open_places
from recserve.engine.state.packed import Packed
from recserve.engine.state.state import State
from recserve.engine.state.writing_process import Opened
from recserve.errors import CheckFailed, RecserveError

log = structlog.get_logger("recserve.state")

# Interactions of a load that travel together, and are unpacked in one step: it keeps requests waiting.
CHUNK = 1000
# Messages that are held back for the next one: a log with little but impressions tells many at a start.
MAX_HELD = 16
# Calls other than those that bring events: each waits for the log's thread.
N_ASKING = 4
# The process of a server that was killed ends when the disk has answered it.
LOCK_SECONDS = 2.0


class Teller:
    """Sends messages to the server, (what, arguments): safe to use from any thread."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._held: list[tuple[str, tuple[Any, ...]]] = []
        self._lock = threading.Lock()

    def __call__(self, what: str, *arguments: Any) -> None:
        """Sends one; when the server is gone there is nobody to tell, and the process ends."""
        with self._lock:
            self._send(what, arguments)

    def first(self, what: str, *arguments: Any) -> None:
        """Sends one before the next one, together: the server wakes up once."""
        with self._lock:
            if len(self._held) < MAX_HELD:
                self._held.append((what, arguments))
            else:
                self._send(what, arguments)

    def _send(self, what: str, arguments: tuple[Any, ...]) -> None:
        # Before anything is sent, or let go: what cannot be packed takes nothing else with it.
        message = pickle.dumps([*self._held, (what, arguments)], pickle.HIGHEST_PROTOCOL)
        self._held.clear()
        try:
            self._pipe.send_bytes(message)
        except OSError:
            log.warning("the server of the event log is gone")


class ToldEvents(ObservedEvents):
    """Remembers nothing: the server's memory hears of it."""

    def __init__(self, tell: Teller) -> None:
        super().__init__(max_users=0, max_items=0)
        self._tell = tell
        self._n_told = 0

    def add(self, events: Iterable[tuple[Hashable, str, int, float]], *, shown: bool = False) -> None:
        """As :meth:`ObservedEvents.add`, there, before what is answered then."""
        keys: list[Any] = []
        packed: list[bytes] = []
        for key, item_id, timestamp, value in events:
            code = self.code(item_id)
            if code >= 0:
                keys.append(key)
                packed.append(pack_one(code, timestamp, value))
        if keys:
            new_ids = self.item_ids(self._n_told)
            self._n_told += len(new_ids)
            self._tell.first("add", Packed(new_ids, b"".join(keys), b"".join(packed)), shown)

    def load(self, events: Iterable[tuple[Hashable, str, int, float]]) -> None:
        """As :meth:`ObservedEvents.load`, there: in parts, the last one empty."""
        rest = iter(events)
        while part := list(islice(rest, CHUNK)):
            self._tell("load", part)
        self._tell("load", [])

    def erase(self, key: Hashable) -> None:
        """As :meth:`ObservedEvents.erase`, there; the listeners there hear of it too."""
        self._tell("erase", key)


class ToldItems(LiveItems):
    """Knows the changed items, and lets the server's engines serve them."""

    def __init__(self, tell: Teller) -> None:
        super().__init__()
        self._tell = tell

    def apply(self, changes: Sequence[ItemChange]) -> None:
        """As :meth:`LiveItems.apply`, there too."""
        super().apply(changes)
        self._tell("items", changes)


class ToldListener:
    """A listener of the log that passes on what it hears."""

    def __init__(self, tell: Teller) -> None:
        self._tell = tell

    def stored(self) -> None:
        """As :meth:`LogListener.stored`."""
        self._tell.first("stored")

    def erased(self, user_key: bytes) -> None:
        """As :meth:`LogListener.erased`: the server's listeners hear what :meth:`ToldEvents.erase` tells."""


def run_log(config: StateConfig, pipe: Connection) -> None:
    """Opens the log and does what the server asks, until it closes the pipe or dies (a process of its own).

    The first message is :class:`Opened`, or the error.
    """
    follow_parent(signal.SIGKILL)
    # Whoever stops the server by a signal to all of its processes: events are kept until it has drained.
    for stop in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stop, signal.SIG_IGN)
    configure_logs()
    tell, courtesy = Teller(pipe), Courtesy()
    try:
        lock, store, keys = open_places(config, lock_seconds=LOCK_SECONDS, give_way=courtesy)
    except RecserveError as error:
        pipe.send(error)
        return
    pipe.send(Opened(store.durability, keys.secret))
    # What reads the events of a call: the first one need not wait for it.
    import recserve.engine.wire.events  # noqa: F401

    events, items = ToldEvents(tell), ToldItems(tell)
    with State(config, lock, store, keys, events, items, give_way=courtesy) as state:
        state.listeners.append(ToldListener(tell))
        state.on_failed = lambda: tell("failed", state.log.failure)
        with ThreadPoolExecutor(N_ASKING, "recserve-asking") as asking:
            for number, name, arguments in _asked(pipe):
                answer = _answering(tell, number)
                if name == "append":
                    _append(state, arguments[0], answer)
                else:
                    asking.submit(_ask, getattr(state, name), arguments, answer)


def _asked(pipe: Connection) -> Iterator[tuple[int, str, tuple[Any, ...]]]:
    """Yields (number, method, arguments) until the pipe is closed, there or by the server's death."""
    while True:
        try:
            message = pipe.recv()
        except (EOFError, ConnectionResetError):
            return
        if message is None:
            return
        yield message


def _answering(tell: Teller, number: int) -> Callable[[Any], None]:
    return lambda answer: tell("answer", number, answer)


def _append(state: State, read: Callable[[], Events], answer: Callable[[Any], None]) -> None:
    try:
        state.append(read, answer)
    except RecserveError as error:
        answer(error)


def _ask(method: Callable[..., Any], arguments: tuple[Any, ...], answer: Callable[[Any], None]) -> None:
    try:
        found = method(*arguments)
        answer(found.result() if isinstance(found, Future) else found)
    except RecserveError as error:
        answer(error)
    except Exception as error:
        log.exception("the event log could not answer")
        answer(CheckFailed("event log", found=type(error).__name__, expected="an answer"))
