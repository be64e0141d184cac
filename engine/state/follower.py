"""What memory knows of the log: loaded at the start, then kept up with it.

Alone, a server adds what it has written. Where others write too, every server reads the log in its order,
what it has written itself included: all of them, and a restarted one, know the same.
"""

import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

import structlog

from recserve.engine.bundle.rules import MAX_HOURS
from recserve.engine.state.events import unpack_interaction
from recserve.engine.state.items import LiveItems, unpack_change
from recserve.engine.state.keys import KeyStore
from recserve.engine.state.observed import ObservedEvents
from recserve.engine.state.store import EventStore
from recserve.errors import DataError

log = structlog.get_logger("recserve.state")

# No rule looks further back at what was shown.
SHOWN_SECONDS = MAX_HOURS * 3600
# Impressions that go to memory in one go: it may be that of another process.
SHOWN_TOGETHER = 1000

Interaction = tuple[bytes, str, int, float]
"""User key, item id, timestamp, rating (NaN: none)."""


class Loaded(NamedTuple):
    """What a start found in the log. ``n_unreadable``: rows that were changed or whose key is missing."""

    n_events: int
    n_unreadable: int
    seconds: float


class LogListener(Protocol):
    """Who wants to hear of a log. Called on the log's thread: must be quick and must not raise."""

    def stored(self) -> None:
        """Hears that there may be new events."""

    def erased(self, user_key: bytes) -> None:
        """Hears that a user is to be forgotten."""


class Follower:
    """Brings rows of the log to memory; the thread of the log calls it."""

    def __init__(
        self, store: EventStore, keys: KeyStore, observed: ObservedEvents, live_items: LiveItems
    ) -> None:
        self._store, self._keys, self._observed, self._live_items = store, keys, observed, live_items
        self._seen_items = 0
        # Memory knows the rows up to ``seen``; while they are being read, up to ``read``.
        self._seen = self._read = 0
        self._to_erase: list[bytes] = []
        self._is_loaded = False
        self._n_events = self._n_unreadable = 0
        self.listeners: list[LogListener] = []

    def load(self) -> Loaded:
        """Builds the histories from the log, and ends erasures that an earlier process left half done."""
        start = time.perf_counter()
        for user_key in self._keys.unfinished_erasures():
            self._delete(user_key)
        self._observed.load(self._interactions())
        for user_key in self._keys.erased:
            self._observed.erase(user_key)
        self.follow_items()
        self._seen, self._is_loaded = self._read, True
        if self._n_unreadable:
            log.error("events of the log are not readable", events=self._n_unreadable, of=self._n_events)
        return Loaded(self._n_events, self._n_unreadable, time.perf_counter() - start)

    def written(self, fresh: Iterable[Interaction], shown: Iterable[Interaction]) -> None:
        """Lets memory know of events that this server has just written; ``shown``: impressions."""
        if self._store.is_shared:
            self.catch_up()
        else:
            self._observed.add(fresh)
            self._observed.add(shown, shown=True)
            self._tell_stored()

    def catch_up(self) -> None:
        """Lets memory know of what all servers wrote and whom they erased since the last time."""
        self._to_erase += self._keys.new_erasures()
        while self._to_erase:
            # Once more: until now this server may have written events of them.
            self.erase(self._to_erase[0])
            del self._to_erase[0]
        if not self._is_loaded:
            return
        self.follow_items()
        self._observed.add(list(self._interactions()))
        if self._read > self._seen:
            self._seen = self._read
            self._tell_stored()

    def follow_items(self) -> None:
        """Lets engines serve what is new of the catalogue."""
        if found := self._store.items(self._seen_items):
            self._live_items.apply([unpack_change(item_id, body) for _, item_id, body in found])
            self._seen_items = found[-1][0]

    def erase(self, user_key: bytes) -> int:
        """Erases a user for good; returns how many events they had.

        The key is destroyed first: from then on nothing opens their events, wherever copies of the log are.
        """
        self._keys.erase(user_key)
        self._observed.erase(user_key)
        for listener in tuple(self.listeners):
            listener.erased(user_key)
        return self._delete(user_key)

    def _tell_stored(self) -> None:
        for listener in tuple(self.listeners):
            listener.stored()

    def _delete(self, user_key: bytes) -> int:
        n_events = self._store.delete_user(user_key)
        self._keys.finish_erasure(user_key)
        return n_events

    def _interactions(self) -> Iterator[Interaction]:
        """Yields what belongs in histories; what was shown lately goes to memory on the way."""
        since = time.time() - SHOWN_SECONDS
        shown: list[Interaction] = []
        open_ = self._keys.open
        for seq, event_key, user_key, received, body in self._store.rows(self._seen):
            self._read = seq
            self._n_events += 1
            try:
                plain = open_(user_key, event_key, received, body)
            except DataError:
                plain = None
            if plain is None:
                self._n_unreadable += not self._keys.is_erased(user_key)
            elif (interaction := unpack_interaction(plain)) is not None:
                item_id, timestamp, value, is_shown = interaction
                if not is_shown:
                    yield user_key, item_id, timestamp, value
                elif timestamp > since:
                    shown.append((user_key, item_id, timestamp, value))
                    if len(shown) == SHOWN_TOGETHER:
                        self._observed.add(shown, shown=True)
                        shown = []
        self._observed.add(shown, shown=True)
