"""What a place for the log and its keys must do; what stands in them is closed before it gets there."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

# Rows that are read, or removed, in one step.
PAGE = 1000

EventRow = tuple[bytes, bytes, int, bytes]
"""A row without its number: event key, user key, received, body."""
KeyRow = tuple[bytes, str, bytes]
"""What a key is for (a user key, or another name), the master key that closed it, the closed key."""


class Row(NamedTuple):
    """An event as it is stored. ``received``: seconds since the epoch, of the server that took it."""

    seq: int
    event_key: bytes
    user_key: bytes
    received: int
    body: bytes


class EventStore(Protocol):
    """A place for rows, which are only ever appended and found again by number or by user.

    One thread calls it. Every method raises :class:`StorageFull` or :class:`Unavailable` where that may get
    better by itself, :class:`StorageFailed` where nobody knows any more what is stored.
    """

    is_shared: bool
    """Whether other servers may write at the same time."""

    @property
    def durability(self) -> str:
        """What a row survives: power, process or memory."""

    def append(self, rows: Sequence[EventRow]) -> list[bool]:
        """Adds rows in order, as one step that is durable when it returns; readers see them in that order.

        Returns for each whether it was added; else a row of the same event key was there. An error says that
        none was, or, :class:`Unavailable`, that nobody knows: all of them or none.
        """

    def get(self, event_key: bytes) -> Row | None:
        """Returns the row of an event."""

    def rows(self, after: int = 0) -> Iterator[Row]:
        """Yields the rows with larger numbers than ``after``, in their order."""

    def rows_of(self, user_key: bytes, *, after: int, limit: int) -> list[Row]:
        """Returns the first ``limit`` rows of a user with larger numbers than ``after``."""

    def delete_user(self, user_key: bytes) -> int:
        """Removes the rows of a user; returns how many."""

    def delete_before(self, received: int) -> int:
        """Removes some of the oldest rows that were received before; returns how many."""

    def cursor(self, name: str) -> int:
        """Returns the number up to which somebody who reads the log came; 0 at first."""

    def move_cursor(self, name: str, seq: int) -> None:
        """Notes that number."""

    def put_items(self, items: Sequence[tuple[str, bytes]]) -> None:
        """Keeps the newest that is known of items, by id, each named once; durable when it returns."""

    def forget_items(self, item_ids: Sequence[str]) -> None:
        """Removes what was put of items."""

    def items(self, after: int) -> list[tuple[int, str, bytes]]:
        """Returns number, id and bytes of what was put since the number ``after``, in that order."""

    def close(self) -> None:
        """Closes the place."""


class KeyTable(Protocol):
    """A place for closed keys, and for who was erased. Every method raises what those of EventStore do."""

    name: str
    """For messages."""

    def get(self, name: bytes) -> tuple[str, bytes] | None:
        """Returns the master key and the closed key of a name."""

    def add(self, keys: Sequence[KeyRow]) -> bool:
        """Adds keys, durable when it returns; returns whether all were.

        Those that are there stay as they are, and an erased user gets none.
        """

    def replace(self, keys: Iterable[KeyRow]) -> None:
        """Writes the keys of names that are there."""

    def closed_by_others(self, master: str) -> Iterator[list[KeyRow]]:
        """Yields, some at a time, the keys that another master key closed, while they are being replaced."""

    def erase(self, user_key: bytes) -> None:
        """Destroys a user's key and notes that, once; durable when it returns."""

    def erasures(self, after: int) -> list[tuple[int, bytes]]:
        """Returns the erased users with larger numbers than ``after``, in their order."""

    def unfinished_erasures(self) -> list[bytes]:
        """Returns erased users whose rows may still be in the log."""

    def finish_erasure(self, user_key: bytes) -> None:
        """Notes that the user's rows are gone."""

    def close(self) -> None:
        """Closes the place."""
