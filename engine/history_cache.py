"""What an encoder computed of users' histories: keys and values, which attention to longer ones needs too."""

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Encoded(NamedTuple):
    """The oldest items (n,) of a history, with what was computed of them.

    ``timestamps`` (n + 1,): theirs and that of the item after them, for how long each was the newest counts.
    ``past``: keys and values (2 n_layers, n_heads, n, head size) float32.
    """

    items: NDArray[np.int32]
    timestamps: NDArray[np.int64]
    past: NDArray[np.float32]

    @property
    def n_bytes(self) -> int:
        """What it needs in memory."""
        return self.items.nbytes + self.timestamps.nbytes + self.past.nbytes


class HistoryCache:
    """One entry a user, of at most ``limit_bytes`` together; who was encoded longest ago leaves first.

    Entries are compared with the history item by item, so one that is out of date is only shorter than hoped.
    Safe to call from several threads.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        # Guards all below.
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, Encoded] = OrderedDict()
        self._n_bytes = 0
        self._forgotten: set[Hashable] = set()
        self._n_hits = self._n_misses = 0

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def n_bytes(self) -> int:
        """What all entries need in memory."""
        return self._n_bytes

    def stats(self) -> dict[str, int]:
        """Returns how often :meth:`find` found something, and how often nothing."""
        with self._lock:
            return {"history_cache_hits": self._n_hits, "history_cache_misses": self._n_misses}

    def find(
        self, key: Hashable, items: NDArray[np.int32], timestamps: NDArray[np.int64]
    ) -> NDArray[np.float32] | None:
        """Returns what was computed of the oldest items of a history, of as many as are known but not of all.

        (2 n_layers, n_heads, n, head size); None where nothing is known of ``key``, or of this history.
        """
        with self._lock:
            kept = self._kept.get(key)
            if kept is not None:
                self._kept.move_to_end(key)
            n = 0 if kept is None else _n_common(kept, items, timestamps)
            self._n_hits += n > 0
            self._n_misses += n == 0
        if kept is None or n == 0:
            return None
        return kept.past if n == len(kept.items) else np.ascontiguousarray(kept.past[:, :, :n])

    def keep(self, key: Hashable, encoded: Encoded) -> None:
        """Keeps what was computed of a user's history in place of what was kept before.

        Keeps nothing of the user where that alone is larger than all may be.
        """
        with self._lock:
            # Erased while it was being encoded.
            if key in self._forgotten:
                return
            self._drop(key)
            # It would drive out everybody else's first.
            if encoded.n_bytes > self._limit:
                return
            self._kept[key] = encoded
            self._n_bytes += encoded.n_bytes
            while self._n_bytes > self._limit:
                self._drop(next(iter(self._kept)))

    def forget(self, key: Hashable) -> None:
        """Drops what is kept of a user and keeps nothing of them any more; None: drops all, for now."""
        with self._lock:
            if key is None:
                self._kept.clear()
                self._n_bytes = 0
            else:
                self._forgotten.add(key)
                self._drop(key)

    def _drop(self, key: Hashable) -> None:
        gone = self._kept.pop(key, None)
        if gone is not None:
            self._n_bytes -= gone.n_bytes


def _n_common(kept: Encoded, items: NDArray[np.int32], timestamps: NDArray[np.int64]) -> int:
    """Returns how many of the oldest items ``kept`` has too; never all of them."""
    n = min(len(kept.items), len(items) - 1)
    # Most are the same: bytes are compared sooner than arrays.
    if items[:n].tobytes() == kept.items[:n].tobytes() and (
        timestamps[: n + 1].tobytes() == kept.timestamps[: n + 1].tobytes()
    ):
        return n
    in_time = kept.timestamps[: n + 1] == timestamps[: n + 1]
    same = (kept.items[:n] == items[:n]) & in_time[:n] & in_time[1:]
    return n if same.all() else int(same.argmin())
