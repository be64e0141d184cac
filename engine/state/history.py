"""The histories that requests see: what the bundle brought, then what was observed since, newest last."""

import threading
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from recserve.engine.bundle.histories import History, StoredHistories
from recserve.engine.bundle.vocabulary import Vocabulary

# (item id, seconds since the epoch), newest last.
Events = tuple[tuple[str, int], ...]


class ObservedEvents:
    """Observed events in memory by user id; safe to call from several threads.

    Items are kept by id, so that all versions of a model share one: a swap forgets nothing.
    Bounded: at most ``max_users`` users (the one observed longest ago is forgotten first) and
    ``max_items`` newest events each. Nothing here survives the process.
    """

    def __init__(self, *, max_users: int, max_items: int) -> None:
        self._max_users = max_users
        self._max_items = max_items
        # Taken by writers; the tuples are replaced, never changed, so a reader needs no lock.
        self._lock = threading.Lock()
        self._events: OrderedDict[str, Events] = OrderedDict()

    def observe(self, user_id: str, item_id: str, timestamp: int) -> None:
        """Appends one event; the next :meth:`get` sees it."""
        with self._lock:
            events = self._events.get(user_id, ())
            # Readers take no lock: the key must never be missing in between.
            self._events[user_id] = (*events, (item_id, timestamp))[-self._max_items :]
            self._events.move_to_end(user_id)
            if len(self._events) > self._max_users:
                self._events.popitem(last=False)

    def get(self, user_id: str) -> Events:
        """Returns the events of ``user_id``."""
        return self._events.get(user_id, ())


class HistoryStore:
    """The histories of one bundle, in its item indices, followed by the observed events that it knows."""

    def __init__(self, stored: StoredHistories, items: Vocabulary, observed: ObservedEvents) -> None:
        self._stored = stored
        self._items = items
        self._observed = observed

    def get(self, user_id: str) -> History:
        """Returns the history of ``user_id``, newest last; empty for an unknown user."""
        return self._with_observed(user_id, self._stored.get(user_id))

    def get_many(self, user_ids: Sequence[str]) -> list[History]:
        """Returns the history of each user, as :meth:`get` does."""
        stored = self._stored.get_many(user_ids)
        return [self._with_observed(*pair) for pair in zip(user_ids, stored, strict=True)]

    def _with_observed(self, user_id: str, stored: History) -> History:
        observed = self._observed.get(user_id)
        if not observed:
            return stored
        items = self._items.indices([item_id for item_id, _ in observed])
        timestamps = np.fromiter((time for _, time in observed), np.int64, len(observed))
        # Observed by another version whose catalogue had more.
        known = items >= 0
        return History(
            np.concatenate([stored.items, items[known]]),
            np.concatenate([stored.timestamps, timestamps[known]]),
        )
