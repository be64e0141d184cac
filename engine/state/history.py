"""The histories that requests see: what the bundle brought, then what was observed since, newest last."""

import threading
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from recserve.engine.bundle.histories import History, StoredHistories


class HistoryStore:
    """Observed events in memory over the histories of a bundle; safe to call from several threads.

    Bounded: at most ``max_users`` users (the one observed longest ago is forgotten first) and
    ``max_items`` newest events each. Nothing here survives the process.
    """

    def __init__(self, stored: StoredHistories, *, max_users: int, max_items: int) -> None:
        self._stored = stored
        self._max_users = max_users
        self._max_items = max_items
        # Taken by writers; the lists are replaced, never changed, so a reader needs no lock.
        self._lock = threading.Lock()
        self._observed: OrderedDict[str, tuple[tuple[int, int], ...]] = OrderedDict()

    def observe(self, user_id: str, item_index: int, timestamp: int) -> None:
        """Appends one event; the next :meth:`get` sees it."""
        with self._lock:
            events = self._observed.get(user_id, ())
            # Readers take no lock: the key must never be missing in between.
            self._observed[user_id] = (*events, (item_index, timestamp))[-self._max_items :]
            self._observed.move_to_end(user_id)
            if len(self._observed) > self._max_users:
                self._observed.popitem(last=False)

    def get(self, user_id: str) -> History:
        """Returns the history of ``user_id``, newest last; empty for an unknown user."""
        return self._with_observed(user_id, self._stored.get(user_id))

    def get_many(self, user_ids: Sequence[str]) -> list[History]:
        """Returns the history of each user, as :meth:`get` does."""
        stored = self._stored.get_many(user_ids)
        return [self._with_observed(*pair) for pair in zip(user_ids, stored, strict=True)]

    def _with_observed(self, user_id: str, stored: History) -> History:
        # One atomic read: the value is a tuple that is never changed.
        observed = self._observed.get(user_id)
        if not observed:
            return stored
        items = np.fromiter((item for item, _ in observed), np.int32, len(observed))
        timestamps = np.fromiter((time for _, time in observed), np.int64, len(observed))
        return History(np.concatenate([stored.items, items]), np.concatenate([stored.timestamps, timestamps]))
