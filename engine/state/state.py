"""All that is remembered of users, opened by URL: the log, its keys, and the histories in memory.

>>> with open_state(StateConfig(url="sqlite:///shop.events")) as state:
...     engine = Engine.load("bundles/shop", observed=state.observed)
...     state.record([Event(user_id="u42", item_id="i7", event_id="…", timestamp=1750000000)])
"""

import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import structlog

from recserve.engine.state.config import StateConfig
from recserve.engine.state.event_log import EventLog, Outcome, blocking
from recserve.engine.state.events import Event, unpack_event, unpack_interaction
from recserve.engine.state.keys import KeyStore
from recserve.engine.state.master import ENVIRONMENT, MasterKeys, add_key, new_line, parse, read_master_keys
from recserve.engine.state.observed import ObservedEvents
from recserve.engine.state.store import EventStore, Row, SqliteStore
from recserve.errors import ConfigError, DataError

log = structlog.get_logger("recserve.state")

MEMORY = ":memory:"
DAY_SECONDS = 86_400


class Loaded(NamedTuple):
    """What a start found in the log. ``n_unreadable``: rows that were changed or whose key is missing."""

    n_events: int
    n_unreadable: int
    seconds: float


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
    ) -> None:
        self.config = config
        self.observed = observed
        self._lock = lock
        self._store, self._keys = store, keys
        self.log = EventLog(store, keys, observed, config, on_failed=self._failed)
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
        return self.log.do(self._load).result()

    def record(self, events: Sequence[Event]) -> Outcome:
        """Appends events and returns when they are durable and the next request sees them."""
        return blocking(self.log, events)

    def events_of(
        self, user_id: str, *, after: int = 0, limit: int = 1000
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

    def erase(self, user_id: str) -> Future[int]:
        """Erases a user for good: key, rows, history; returns how many events they had.

        The key is destroyed first: from then on nothing opens their events, wherever copies of the log are.
        """
        user_key = self._keys.user_key(user_id)

        def erase() -> int:
            self._keys.erase(user_key)
            self.observed.erase(user_key)
            n_events = self._store.delete_user(user_key)
            self._keys.finish_erasure(user_key)
            return n_events

        return self.log.do(erase)

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
        if not self.config.path:
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

    def _load(self) -> Loaded:
        start = time.perf_counter()
        for user_key in self._keys.unfinished_erasures():
            self._store.delete_user(user_key)
            self._keys.finish_erasure(user_key)
        counts = [0, 0]
        self.observed.load(self._interactions(counts))
        for user_key in self._keys.erased:
            self.observed.erase(user_key)
        if counts[1]:
            log.error("events of the log are not readable", events=counts[1], of=counts[0])
        return Loaded(counts[0], counts[1], time.perf_counter() - start)

    def _interactions(self, counts: list[int]) -> Iterator[tuple[bytes, str, int]]:
        open_ = self._keys.open
        for _, event_key, user_key, received, body in self._store.rows():
            counts[0] += 1
            try:
                plain = open_(user_key, event_key, received, body)
            except DataError:
                plain = None
            if plain is None:
                counts[1] += 1
            elif (interaction := unpack_interaction(plain)) is not None:
                yield user_key, *interaction

    def _failed(self) -> None:
        self.on_failed()


def open_row(row: Row, keys: KeyStore) -> LoggedEvent | None:
    """Opens a row; None when its user's key is gone. Raises :class:`DataError` when it was changed."""
    plain = keys.open(row.user_key, row.event_key, row.received, row.body)
    if plain is None:
        return None
    return LoggedEvent(row.seq, row.received, unpack_event(plain, row.user_key.hex()))


def open_state(config: StateConfig, *, max_users: int = 100_000, max_items: int = 1000) -> State:
    """Opens what ``config.url`` names, and loads nothing yet.

    ``max_users``, ``max_items``: how much of it is kept in memory (ObservedEvents). Raises
    :class:`ConfigError` when it cannot be used, or another process uses it.
    """
    if not config.path:
        keys = KeyStore(MEMORY, parse(new_line(), "fresh key"), durability="memory")
        lock, store = None, SqliteStore(MEMORY, durability="memory")
    else:
        lock = _lock(Path(f"{config.path}.lock"))
        try:
            keys = KeyStore(keys_path(config), _masters(config), durability=config.durability)
            store = SqliteStore(config.path, durability=config.durability)
        except ConfigError:
            os.close(lock)
            raise
    observed = ObservedEvents(max_users=max_users, max_items=max_items, key_of=keys.user_key)
    return State(config, lock, store, keys, observed)


def read_log(config: StateConfig, *, user_id: str = "", after: int = 0) -> Iterator[LoggedEvent]:
    """Reads a log of this machine, also while a server writes it; what cannot be opened is left out.

    ``user_id``: only this user's. Raises :class:`ConfigError` without the master key.
    """
    if not config.path:
        raise ConfigError("state.url", found=config.url, expected="sqlite:///PATH of a log on this machine")
    keys = KeyStore(
        keys_path(config), read_master_keys(config.master_file), durability=config.durability, read_only=True
    )
    store = SqliteStore(config.path, durability=config.durability, read_only=True)
    wanted = keys.user_key(user_id) if user_id else None
    try:
        for row in store.rows(after):
            if wanted is None or row.user_key == wanted:
                try:
                    event = open_row(row, keys)
                except DataError as error:
                    log.error("event left out", seq=row.seq, error=str(error))
                    continue
                if event is not None:
                    yield event
    finally:
        store.close()
        keys.close()


def keys_path(config: StateConfig) -> Path:
    """Returns the file of the users' keys."""
    return Path(f"{config.path}.keys")


def _masters(config: StateConfig) -> MasterKeys:
    file = config.master_file
    # Made only where no key closes anything yet: a lost key must be noticed, not replaced.
    if config.key_file is None and ENVIRONMENT not in os.environ and not file.exists():
        if keys_path(config).exists():
            raise ConfigError(
                f"key file {file}", found="missing", expected="the keys of this log", cure="Bring it back."
            )
        add_key(file)
        log.info("made a master key: keep a copy in a safe place", file=str(file))
    return read_master_keys(file)


def _lock(path: Path) -> int:
    """Returns the descriptor of a lock on the log; raises :class:`ConfigError` when another has it."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(
            "state.url", found=f"in a folder that is not writable ({error.strerror})", expected="writable"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = os.pread(descriptor, 20, 0).decode(errors="replace")
        os.close(descriptor)
        raise ConfigError(
            f"event log {path.with_suffix('')}",
            found=f"in use by process {owner}",
            expected="used by one server",
        ) from error
    os.truncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    return descriptor
