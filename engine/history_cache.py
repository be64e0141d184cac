"""What an encoder computed of users' histories: keys and values, which attention to longer ones needs too."""

import threading
from collections import OrderedDict
from collections.abc import Hashable

import numpy as np
from numpy.typing import NDArray

# A window of a long history stays for about as many events: it is copied for more room as often as it moves.
ROOM = 32


class Encoded:
    """The oldest ``n`` items of a history with what was computed of them, and room for a few more.

    ``items`` int32. ``timestamps`` int64, one more: that of the item after them too, for how long each was
    the newest counts; None where times are not read. ``past``: keys and values (2 n_layers, room, n_heads,
    head size) float32. A row is written once: those that somebody found stay as they are.
    """

    __slots__ = ("items", "n", "past", "timestamps")

    def __init__(self, room: int, past: NDArray[np.float32], *, has_times: bool) -> None:
        """Has no items yet; ``past`` is of the right shape but for its room."""
        self.n = 0
        self.items = np.empty(room, np.int32)
        self.timestamps = np.empty(room + 1, np.int64) if has_times else None
        self.past = np.empty((len(past), room, *past.shape[2:]), np.float32)

    @property
    def n_bytes(self) -> int:
        """What it needs in memory."""
        n_bytes = self.items.nbytes + self.past.nbytes
        return n_bytes if self.timestamps is None else n_bytes + self.timestamps.nbytes

    def extend(
        self, items: NDArray[np.int32], timestamps: NDArray[np.int64] | None, past: NDArray[np.float32]
    ) -> None:
        """Adds ``past``, of the items of a history that follow those that are here."""
        n, end = self.n, self.n + past.shape[1]
        self.past[:, n:end] = past
        self.items[n:end] = items[n:end]
        if self.timestamps is not None and timestamps is not None:
            self.timestamps[n : end + 1] = timestamps[n : end + 1]
        self.n = end


class HistoryCache:
    """One entry a user, of at most ``limit_bytes`` together; who was encoded longest ago leaves first.

    Entries are compared with the history item by item, so one that is out of date is only shorter than hoped.
    Safe to call from several threads.
    """

    def __init__(self, limit_bytes: int, longest: int) -> None:
        """``longest``: items of a history, at most."""
        self._limit, self._longest = limit_bytes, longest
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
        self, key: Hashable, items: NDArray[np.int32], timestamps: NDArray[np.int64] | None
    ) -> tuple[Encoded | None, int]:
        """Returns what was computed of a history, and of how many of its oldest items: never of all.

        None and 0 where nothing is known of ``key``, or of this history. ``timestamps``: None where what is
        computed does not depend on them.
        """
        with self._lock:
            kept = self._kept.get(key)
            n = 0
            if kept is not None:
                self._kept.move_to_end(key)
                n = _n_common(kept, items, timestamps, min(kept.n, len(items) - 1))
            self._n_hits += n > 0
            self._n_misses += n == 0
        return (kept, n) if n else (None, 0)

    def keep(
        self,
        key: Hashable,
        found: Encoded | None,
        n_known: int,
        items: NDArray[np.int32],
        timestamps: NDArray[np.int64] | None,
        new: NDArray[np.float32],
    ) -> None:
        """Keeps ``new``, computed of the items of a history after the ``n_known`` that were ``found``.

        Replaces what was kept of the user unless that has all of it, or is just what was found and has room.
        Keeps nothing of who alone is larger than all may be.
        """
        n = n_known + new.shape[1]
        with self._lock:
            # Erased while it was being encoded.
            if key in self._forgotten:
                return
            kept = self._kept.get(key)
            if kept is not None and kept is found and kept.n == n_known and n <= len(kept.items):
                kept.extend(items, timestamps, new)
                return
            # Nothing is new of who is asked about again, nor of what another thread kept meanwhile.
            if kept is not None and n <= kept.n and _n_common(kept, items, timestamps, n) == n:
                self._kept.move_to_end(key)
                return
            made = Encoded(min(n + ROOM, self._longest), new, has_times=timestamps is not None)
            if found is not None:
                made.extend(items, timestamps, found.past[:, :n_known])
            made.extend(items, timestamps, new)
            self._drop(key)
            # It would drive out everybody else's first.
            if made.n_bytes > self._limit:
                return
            self._kept[key] = made
            self._n_bytes += made.n_bytes
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


def _n_common(kept: Encoded, items: NDArray[np.int32], timestamps: NDArray[np.int64] | None, n: int) -> int:
    """Returns how many of the oldest ``n`` items ``kept`` has too."""
    # Most are the same: bytes are compared sooner than arrays.
    is_same = items[:n].tobytes() == kept.items[:n].tobytes()
    if kept.timestamps is None or timestamps is None:
        return n if is_same else int((kept.items[:n] == items[:n]).argmin())
    if is_same and timestamps[: n + 1].tobytes() == kept.timestamps[: n + 1].tobytes():
        return n
    in_time = kept.timestamps[: n + 1] == timestamps[: n + 1]
    same = (kept.items[:n] == items[:n]) & in_time[:n] & in_time[1:]
    return n if same.all() else int(same.argmin())
