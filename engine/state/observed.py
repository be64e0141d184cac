"""What was observed since the start, or found in the log: each user's newest events, in memory."""

import math
import struct
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

# One event: the item's code, seconds since the epoch, and how the item was rated (NaN: not at all). Buffers
# grow in place; readers take no lock and copy one in a single step of the interpreter: half a microsecond for
# the 16 kB of a thousand events.
EVENT = np.dtype([("code", "<i4"), ("timestamp", "<i8"), ("value", "<f4")])
NO_EVENTS: NDArray[np.void] = np.empty(0, EVENT)
pack_one = struct.Struct("<iqf").pack
"""Code, timestamp and rating as one ``EVENT``."""
UNRATED = math.nan
NOTHING = bytearray()
# Ids are the callers' choice: beyond these many, events of further ones are logged but not kept in memory.
MAX_CODES = 1 << 22


class Forgetful(Protocol):
    """What keeps something that was made of users' events."""

    def forget(self, key: Hashable) -> None:
        """Drops what is kept of a user for good; must be quick and must not raise."""


class ObservedEvents:
    """Observed events by user; safe to call from several threads.

    Items are kept by a code that stands for their id, so that all versions of a model share one: a swap
    forgets nothing. Bounded: at most ``max_users`` users (the one observed longest ago is forgotten first)
    and ``max_items`` newest events each. What survives the process is the log's matter.
    """

    def __init__(
        self, *, max_users: int, max_items: int, key_of: Callable[[str], Hashable] = lambda user_id: user_id
    ) -> None:
        """``key_of``: what stands for a user in memory; a pseudonym where there is a log."""
        self._max_users = max_users
        self._max_bytes = max_items * EVENT.itemsize
        self.key_of = key_of
        # Taken by writers.
        self._lock = threading.Lock()
        self._events: OrderedDict[Hashable, bytearray] = OrderedDict()
        # What users were shown, in the same way.
        self._shown: OrderedDict[Hashable, bytearray] = OrderedDict()
        self._codes: dict[str, int] = {}
        self._item_ids: list[str] = []
        self._erased: set[Hashable] = set()
        self._followers: weakref.WeakSet[Forgetful] = weakref.WeakSet()

    def follow(self, follower: "Forgetful") -> None:
        """Lets ``follower`` hear of every user who was or is erased, while somebody holds it."""
        with self._lock:
            self._followers.add(follower)
            erased = tuple(self._erased)
        # It may have met them before: an engine warms up with users of its bundle.
        for key in erased:
            follower.forget(key)

    def observe(
        self, user_id: str, item_id: str, timestamp: int, value: float = UNRATED, *, shown: bool = False
    ) -> None:
        """Appends one event, or impression; the next :meth:`get`, or :meth:`shown_to`, sees it."""
        self.add([(self.key_of(user_id), item_id, timestamp, value)], shown=shown)

    def add(self, events: Iterable[tuple[Hashable, str, int, float]], *, shown: bool = False) -> None:
        """Appends events, or impressions, (key, item id, timestamp, value) in their order."""
        packed = (
            (key, pack_one(code, timestamp, value))
            for key, item_id, timestamp, value in events
            if (code := self.code(item_id)) >= 0
        )
        self.add_packed(packed, shown=shown)

    def add_packed(self, events: Iterable[tuple[Hashable, bytes]], *, shown: bool = False) -> None:
        """Does what :meth:`add` does, of keys and events as bytes of ``EVENT``."""
        kept, erased, max_bytes = self._shown if shown else self._events, self._erased, self._max_bytes
        with self._lock:
            for key, event in events:
                if key in erased:
                    continue
                buffer = kept.get(key)
                if buffer is None:
                    kept[key] = bytearray(event)
                    if len(kept) > self._max_users:
                        kept.popitem(last=False)
                else:
                    buffer += event
                    if len(buffer) > max_bytes:
                        del buffer[:-max_bytes]
                    kept.move_to_end(key)

    def load(self, events: Iterable[tuple[Hashable, str, int, float]]) -> None:
        """Does what :meth:`add` does with many, oldest first, into an empty store."""
        buffers: OrderedDict[Hashable, bytearray] = OrderedDict()
        trim = 4 * self._max_bytes
        for key, item_id, timestamp, value in events:
            code = self.code(item_id)
            if code < 0:
                continue
            buffer = buffers.get(key)
            if buffer is None:
                buffer = buffers[key] = bytearray()
            else:
                buffers.move_to_end(key)
            buffer += pack_one(code, timestamp, value)
            if len(buffer) > trim:
                del buffer[: -self._max_bytes]
            if len(buffers) > self._max_users:
                buffers.popitem(last=False)
        with self._lock:
            for key, buffer in buffers.items():
                self._events[key] = buffer[-self._max_bytes :]

    def emptied(self) -> "ObservedEvents":
        """Returns one without events, of the same item codes and erased users, for :meth:`take`."""
        empty = ObservedEvents(max_users=self._max_users, max_items=0)
        empty._max_bytes = self._max_bytes
        empty._codes, empty._item_ids, empty._erased = self._codes, self._item_ids, self._erased
        return empty

    def take(self, other: "ObservedEvents") -> None:
        """Has the events of ``other``, which :meth:`emptied` made, instead of its own, at one moment.

        One thread alone writes to both.
        """
        with self._lock:
            old = [*self._events.values(), *self._shown.values()]
            self._events, self._shown = other._events, other._shown
        # One by one: to free a gigabyte in one step would keep requests waiting for half a second.
        while old:
            old.pop()

    def get(self, user_id: str) -> NDArray[np.void] | None:
        """Returns the events of a user (n,) ``EVENT``, newest last; None for an erased user."""
        return self.of_key(self.key_of(user_id))

    def of_key(self, key: Hashable) -> NDArray[np.void] | None:
        """Returns what :meth:`get` does, by what stands for the user in memory."""
        if key in self._erased:
            return None
        events = self._events.get(key)
        return NO_EVENTS if events is None else np.frombuffer(self._copy(events), EVENT)

    def shown_to(self, user_id: str) -> NDArray[np.void]:
        """Returns what a user was shown (n,) ``EVENT``, newest last."""
        shown = self._shown.get(self.key_of(user_id))
        return NO_EVENTS if shown is None else np.frombuffer(self._copy(shown), EVENT)

    def state_of(self, user_id: str, *, with_shown: bool = False) -> bytes | None:
        """Returns what changes with every event, or impression too, of a user; None for an erased user."""
        key = self.key_of(user_id)
        if key in self._erased:
            return None
        events = self._copy(self._events.get(key, NOTHING))
        return events + b"|" + self._copy(self._shown.get(key, NOTHING)) if with_shown else events

    @property
    def n_erased(self) -> int:
        """How many users were erased: what was made of their events before is to be forgotten."""
        return len(self._erased)

    def erase(self, key: Hashable) -> None:
        """Forgets a user, for good: what the bundle knew of them too."""
        with self._lock:
            self._erased.add(key)
            self._events.pop(key, None)
            self._shown.pop(key, None)
            followers = tuple(self._followers)
        for follower in followers:
            follower.forget(key)

    def item_ids(self, start: int) -> list[str]:
        """Returns the ids of the codes from ``start`` on."""
        return self._item_ids[start:]

    def _copy(self, buffer: bytearray) -> bytes:
        # All of it in one step; the writer may be about to trim it.
        return bytes(buffer)[-self._max_bytes :]

    def code(self, item_id: str) -> int:
        """Returns the code of an item, a new one where it has none; −1 where there are too many."""
        code = self._codes.get(item_id)
        if code is None:
            code = len(self._item_ids)
            if code >= MAX_CODES:
                return -1
            # The id first: whoever sees the code finds it.
            self._item_ids.append(item_id)
            self._codes[item_id] = code
        return code
