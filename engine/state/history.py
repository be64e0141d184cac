"""The histories that requests see: what the bundle brought, then what was observed since, newest last."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from recserve.engine.bundle.histories import EMPTY_HISTORY, History, StoredHistories
from recserve.engine.bundle.vocabulary import Vocabulary
from recserve.engine.state.observed import NO_EVENTS, ObservedEvents


class HistoryStore:
    """The histories of one bundle, in its item indices, followed by the observed events that it knows."""

    def __init__(self, stored: StoredHistories, items: Vocabulary, observed: ObservedEvents) -> None:
        self._stored = stored
        self._items = items
        self._observed = observed
        # Item index of every code, −1 where the bundle has no such item; grows with the codes.
        self._index_of_code: NDArray[np.int32] = np.empty(0, np.int32)

    def get(self, user_id: str) -> History:
        """Returns the history of ``user_id``, newest last; empty for an unknown or erased user."""
        return self.get_many([user_id])[0]

    def get_many(self, user_ids: Sequence[str]) -> list[History]:
        """Returns the history of each user, as :meth:`get` does."""
        key_of = self._observed.key_of
        stored = self._stored.get_many(user_ids, [key_of(id_) if id_ else None for id_ in user_ids])
        return [history if history.key is None else self._with_observed(history) for history in stored]

    def too_often(self, user_id: str, impressions: int, since: int) -> NDArray[np.int32]:
        """Returns the items (m,) that the user was shown ``impressions`` times or more after ``since``.

        ``since``: seconds since the epoch.
        """
        shown = self._observed.shown_to(user_id)
        codes, counts = np.unique(shown["code"][shown["timestamp"] > since], return_counts=True)
        items = self._indices(codes[counts >= impressions])
        return items[items >= 0]

    def _with_observed(self, stored: History) -> History:
        observed = self._observed.of_key(stored.key)
        if observed is None:
            return EMPTY_HISTORY
        if observed is NO_EVENTS:
            return stored
        items = self._indices(observed["code"])
        # Observed by another version whose catalogue had more.
        known = items >= 0
        if len(stored.items) and observed["timestamp"].min() <= stored.timestamps[-1]:
            known &= ~_are_in(stored, items, observed["timestamp"])
        return History(
            np.concatenate([stored.items, items[known]]),
            np.concatenate([stored.timestamps, observed["timestamp"][known]]),
            key=stored.key,
            values=np.concatenate([stored.rated(), observed["value"][known]]),
        )

    def _indices(self, codes: NDArray[np.int32]) -> NDArray[np.int32]:
        table = self._index_of_code
        if len(codes) and int(codes.max()) >= len(table):
            # Two threads may do the same work here; either result is whole.
            new = self._items.indices(self._observed.item_ids(len(table)))
            table = self._index_of_code = np.concatenate([table, new])
        return table[codes]


def _are_in(stored: History, items: NDArray[np.int32], timestamps: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Returns which events the bundle has too: it was trained from the log that observed them."""
    factor = np.int64(max(int(items.max()), int(stored.items.max())) + 2)
    return np.isin(timestamps * factor + items, stored.timestamps * factor + stored.items)
