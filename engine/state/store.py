"""The log of events: rows that are only ever appended, found again by number or by user.

:class:`EventStore` is what a place for rows must do; what stands in them is closed before it gets there.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from recserve.engine.state.database import open_database, storage_errors

SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    event_key BLOB NOT NULL UNIQUE,
    user_key BLOB NOT NULL,
    received INTEGER NOT NULL,
    body BLOB NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS events_by_user ON events (user_key, seq);
"""
COLUMNS = "seq, event_key, user_key, received, body"
EXPIRE_AT_ONCE = 1000


class Row(NamedTuple):
    """An event as it is stored. ``received``: seconds since the epoch, of the server that took it."""

    seq: int
    event_key: bytes
    user_key: bytes
    received: int
    body: bytes


class EventStore(Protocol):
    """A place for rows. One thread calls it."""

    durability: str

    def append(self, rows: Iterable[tuple[bytes, bytes, int, bytes]]) -> list[bool]:
        """Adds rows (all but their numbers) in order, as one step that is durable when it returns.

        Returns for each whether it was added; else a row of the same event key was there. Raises
        :class:`StorageFull` or :class:`StorageFailed`, and then none was.
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

    def close(self) -> None:
        """Closes the place."""


class SqliteStore:
    """Rows in one SQLite file, or in memory."""

    def __init__(self, path: str | Path, *, durability: str, read_only: bool = False) -> None:
        """``path``: a file or ":memory:". Raises :class:`ConfigError` when it cannot be opened."""
        self.durability = durability
        self._database: Any = open_database(path, SCHEMA, durability=durability, read_only=read_only)

    def append(self, rows: Iterable[tuple[bytes, bytes, int, bytes]]) -> list[bool]:
        """As :meth:`EventStore.append`."""
        database, added = self._database, []
        with storage_errors():
            execute, changes = database.cursor().execute, database.changes
            execute("BEGIN IMMEDIATE")
            try:
                for row in rows:
                    execute(
                        "INSERT INTO events (event_key, user_key, received, body) VALUES (?, ?, ?, ?)"
                        " ON CONFLICT DO NOTHING",
                        row,
                    )
                    added.append(changes() == 1)
                execute("COMMIT")
            except BaseException:
                # SQLite has rolled back by itself after some errors.
                if database.in_transaction:
                    execute("ROLLBACK")
                raise
        return added

    def get(self, event_key: bytes) -> Row | None:
        """As :meth:`EventStore.get`."""
        found = self._database.execute(
            f"SELECT {COLUMNS} FROM events WHERE event_key = ?", (event_key,)
        ).fetchone()
        return None if found is None else Row(*found)

    def rows(self, after: int = 0) -> Iterator[Row]:
        """As :meth:`EventStore.rows`."""
        return map(
            Row._make,
            self._database.execute(f"SELECT {COLUMNS} FROM events WHERE seq > ? ORDER BY seq", (after,)),
        )

    def rows_of(self, user_key: bytes, *, after: int, limit: int) -> list[Row]:
        """As :meth:`EventStore.rows_of`."""
        found: Sequence[Any] = self._database.execute(
            f"SELECT {COLUMNS} FROM events WHERE user_key = ? AND seq > ? ORDER BY seq LIMIT ?",
            (user_key, after, limit),
        ).fetchall()
        return [Row(*row) for row in found]

    def delete_user(self, user_key: bytes) -> int:
        """As :meth:`EventStore.delete_user`."""
        with storage_errors():
            self._database.execute("DELETE FROM events WHERE user_key = ?", (user_key,)).fetchall()
            return int(self._database.changes())

    def delete_before(self, received: int) -> int:
        """As :meth:`EventStore.delete_before`: looks at the oldest rows only."""
        with storage_errors():
            self._database.execute(
                "DELETE FROM events WHERE received < ?1 AND seq <= (SELECT max(seq) FROM"
                " (SELECT seq FROM events ORDER BY seq LIMIT ?2))",
                (received, EXPIRE_AT_ONCE),
            ).fetchall()
            return int(self._database.changes())

    def close(self) -> None:
        """Closes the file."""
        self._database.close()
