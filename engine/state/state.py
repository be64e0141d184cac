"""All that is remembered of users, opened by URL: the log, its keys, and the histories in memory.

>>> with open_state(StateConfig(url="sqlite:///shop.events")) as state:
...     engine = Engine.load("bundles/shop", observed=state.observed)
...     state.record([Event(user_id="u42", item_id="i7", event_id="…", timestamp=1750000000)])
"""

import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType

import structlog

from recserve.engine.state.config import StateConfig
from recserve.engine.state.event_log import EventLog, blocking
from recserve.engine.state.events import Event, unpack_event
from recserve.engine.state.follower import Follower, Loaded, LogListener
from recserve.engine.state.group_commit import Events, Outcome
from recserve.engine.state.items import ItemChange, LiveItems, check_change, check_room, pack_change
from recserve.engine.state.keys import KeyStore, Pseudonyms
from recserve.engine.state.master import MasterKeys, read_master_keys
from recserve.engine.state.observed import ObservedEvents
from recserve.engine.state.opening import open_places
from recserve.engine.state.store import EventStore, Row
from recserve.errors import ConfigError, DataError

log = structlog.get_logger("recserve.state")

DAY_SECONDS = 86_400


@dataclass(frozen=True, slots=True)
class LoggedEvent:
    """An event of the log; its ``event.user_id`` is the pseudonym in hex."""

    seq: int
    received: int
    event: Event


class State:
    """Use :func:`open_state`; :meth:`load` before the first event, :meth:`close` after the last one."""

    def __init__(
        self,
        config: StateConfig,
        lock: int | None,
        store: EventStore,
        keys: KeyStore,
        observed: ObservedEvents,
        live_items: LiveItems,
        give_way: Callable[[], None] = lambda: None,
    ) -> None:
        """``give_way``: as of :class:`EventLog`."""
        self.config = config
        self.observed, self.live_items = observed, live_items
        self._lock = lock
        self._store, self._keys = store, keys
        self._follower = Follower(store, keys, observed, live_items)
        self.log = EventLog(store, keys, self._follower, config, on_failed=self._failed, give_way=give_way)
        # Who wants to know that nothing is written any more; set by the server.
        self.on_failed: Callable[[], None] = lambda: None

    def __enter__(self) -> "State":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def durability(self) -> str:
        """What an event that was answered with OK survives: power, process or (nothing) memory."""
        return self._store.durability

    def load(self) -> Loaded:
        """Builds the histories in memory from the log, and ends what an earlier process left half done."""
        return self.log.do(self._follower.load).result()

    def append(self, read: Callable[[], Events], done: Callable[[Outcome | Exception], None]) -> None:
        """As :meth:`EventLog.append`."""
        self.log.append(read, done)

    def record(self, events: Sequence[Event]) -> Outcome:
        """Appends events and returns when they are durable and the next request sees them."""
        return blocking(self.log, events)

    def events_of(
        self, user_id: str, after: int = 0, limit: int = 1000
    ) -> Future[tuple[list[LoggedEvent], int]]:
        """Reads a user's events with larger numbers than ``after``, at most ``limit``.

        With them comes the number to go on after, 0 when there is no more.
        """
        user_key = self._keys.user_key(user_id)

        def read() -> tuple[list[LoggedEvent], int]:
            rows = self._store.rows_of(user_key, after=after, limit=limit)
            events = [event for row in rows if (event := open_row(row, self._keys)) is not None]
            return events, rows[-1].seq if len(rows) == limit else 0

        return self.log.do(read)

    def events_after(self, after: int, limit: int) -> Future[tuple[list[LoggedEvent], int]]:
        """Reads the next events of the log, of at most ``limit`` rows with larger numbers than ``after``.

        With them comes the number of the last row, 0 when there is none. Rows that do not open are left out.
        """

        def read() -> tuple[list[LoggedEvent], int]:
            rows = list(itertools.islice(self._store.rows(after), limit))
            return list(_open_rows(rows, self._keys)), rows[-1].seq if rows else 0

        return self.log.do(read)

    def change_items(self, changes: Sequence[ItemChange]) -> Future[None]:
        """Keeps what is new of items; done when it is durable and this state's engines serve it.

        Raises :class:`InvalidRequest` for a change that cannot be kept; then none is.
        """
        for change in changes:
            check_change(change)
        check_room(self.live_items, changes)

        def put() -> None:
            # The last of each item: a store takes it once.
            newest = {change.item_id: change for change in changes}
            self._store.put_items([(item_id, pack_change(change)) for item_id, change in newest.items()])
            self._follower.follow_items()

        return self.log.do(put)

    def user_key(self, user_id: str) -> str:
        """Returns the pseudonym of a user, as ``event.user_id`` of logged events has it."""
        return self._keys.user_key(user_id).hex()

    @property
    def identity(self) -> str:
        """A name of this log, that another log does not have."""
        return identity_of(self._keys)

    @property
    def listeners(self) -> list[LogListener]:
        """Who hears of new events and of erased users."""
        return self._follower.listeners

    def cursor(self, name: str) -> Future[int]:
        """Returns the number up to which a reader of the log came, as :meth:`move_cursor` noted it."""
        return self.log.do(lambda: self._store.cursor(name))

    def move_cursor(self, name: str, seq: int) -> Future[None]:
        """Notes, in the log itself, up to which number a reader came."""
        return self.log.do(lambda: self._store.move_cursor(name, seq))

    def erase(self, user_id: str) -> Future[int]:
        """Erases a user for good: key, rows, history; returns how many events they had.

        The key is destroyed first: from then on nothing opens their events, wherever copies of the log are.
        """
        user_key = self._keys.user_key(user_id)
        return self.log.do(lambda: self._follower.erase(user_key))

    def expire(self, now: float | None = None) -> int:
        """Removes events that are older than the retention; returns how many."""
        before = int(time.time() if now is None else now) - self.config.retention_days * DAY_SECONDS
        n_deleted = 0
        # In steps, so that calls are answered in between.
        while step := self.log.do(lambda: self._store.delete_before(before)).result():
            n_deleted += step
        return n_deleted

    def follow_key_file(self) -> int:
        """Takes the master keys that the file has now; returns how many users' keys that closed anew.

        Raises :class:`ConfigError` when it cannot be read.
        """
        if self.config.is_memory:
            return 0
        masters = read_master_keys(self.config.master_file)
        return 0 if masters == self._keys.masters else self.rotate(masters)

    def rotate(self, masters: MasterKeys) -> int:
        """Closes every user's key with the current one of ``masters``; returns how many users that were."""
        self.log.do(lambda: self._keys.use_masters(masters)).result()
        steps = self._keys.rewrap()
        n_users = 0
        while (n_done := self.log.do(lambda: next(steps, None)).result()) is not None:
            n_users = n_done
        return n_users

    def close(self) -> None:
        """Writes what waits and closes the files."""
        self.log.close()
        self._store.close()
        self._keys.close()
        if self._lock is not None:
            os.close(self._lock)

    def _failed(self) -> None:
        self.on_failed()


def identity_of(pseudonyms: Pseudonyms) -> str:
    """Returns what :attr:`State.identity` is."""
    return pseudonyms.event_key("identity of the log").hex()


def open_row(row: Row, keys: KeyStore) -> LoggedEvent | None:
    """Opens a row; None when its user's key is gone. Raises :class:`DataError` when it was changed."""
    plain = keys.open(row.user_key, row.event_key, row.received, row.body)
    if plain is None:
        return None
    return LoggedEvent(row.seq, row.received, unpack_event(plain, row.user_key.hex()))


def _open_rows(rows: Iterable[Row], keys: KeyStore) -> Iterator[LoggedEvent]:
    """Opens rows; what was changed is logged and left out, as is what has no key any more."""
    for row in rows:
        try:
            event = open_row(row, keys)
        except DataError as error:
            log.error("event left out", seq=row.seq, error=str(error))
            continue
        if event is not None:
            yield event


def open_state(config: StateConfig, *, max_users: int = 100_000, max_items: int = 1000) -> State:
    """Opens what ``config.url`` names, and loads nothing yet.

    ``max_users``, ``max_items``: how much of it is kept in memory (ObservedEvents). Raises
    :class:`ConfigError` when it cannot be used, or another process uses it.
    """
    lock, store, keys = open_places(config)
    observed = ObservedEvents(max_users=max_users, max_items=max_items, key_of=keys.user_key)
    return State(config, lock, store, keys, observed, LiveItems())


def read_log(config: StateConfig, *, user_id: str = "", after: int = 0) -> Iterator[LoggedEvent]:
    """Reads a log, also while a server writes it; what cannot be opened is left out.

    ``user_id``: only this user's. Raises :class:`ConfigError` without the master key.
    """
    if config.is_memory:
        raise ConfigError("state.url", found=config.url, expected="that of a log outside the server")
    _, store, keys = open_places(config, read_only=True)
    wanted = keys.user_key(user_id) if user_id else None
    try:
        rows = store.rows(after)
        yield from _open_rows((row for row in rows if wanted in (None, row.user_key)), keys)
    finally:
        store.close()
        keys.close()
