"""The log and its keys in two SQLite files, or in memory.

The files are separate, so that a copy of the log, however old, does not open what was erased since.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from recserve.engine.state.database import insert_all, open_database, storage_errors
from recserve.engine.state.row_index import INDEXED, Place, RowIndex
from recserve.engine.state.row_index import TABLES as INDEX_TABLES
from recserve.engine.state.store import PAGE, EventRow, KeyRow, Row

EVENTS = f"""
CREATE TABLE IF NOT EXISTS events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    event_key BLOB NOT NULL,
    user_key BLOB NOT NULL,
    received INTEGER NOT NULL,
    body BLOB NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS items (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, item_id TEXT NOT NULL UNIQUE, body BLOB NOT NULL
) STRICT;
{INDEX_TABLES}
"""
KEYS = """
CREATE TABLE IF NOT EXISTS keys (name BLOB PRIMARY KEY, master TEXT NOT NULL, wrapped BLOB NOT NULL)
    STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS erased (user_key BLOB PRIMARY KEY, time INTEGER NOT NULL, is_done INTEGER NOT NULL)
    STRICT, WITHOUT ROWID;
"""
# Of the first one it is brought up to date: who knows that one alone would keep events twice.
FORMATS = (1, 2)
BEFORE = "sqlite_autoindex_events_1"
# Numbers of rows that are gone must not come again: they are cursors of those who read the log.
BRING_UP_TO_DATE = f"""
DROP INDEX IF EXISTS events_by_user;
ALTER TABLE events RENAME TO events_before;
{EVENTS}
INSERT INTO events SELECT * FROM events_before;
DELETE FROM sqlite_sequence WHERE name = 'events';
INSERT INTO sqlite_sequence SELECT 'events', seq FROM sqlite_sequence WHERE name = 'events_before';
INSERT INTO rows_of_events SELECT event_key, seq FROM events ORDER BY event_key;
INSERT OR IGNORE INTO rows_of_users SELECT user_key, seq FROM events ORDER BY user_key, seq;
INSERT OR REPLACE INTO cursors SELECT :cursor, max(seq) FROM events HAVING max(seq) IS NOT NULL;
DELETE FROM cursors WHERE name = 'rows of users';
DROP TABLE events_before;
"""
COLUMNS = "seq, event_key, user_key, received, body"
# Of SQLite's machine, some tenths of a millisecond.
STEPS_BETWEEN = 1000
INSERT = "INSERT INTO events (event_key, user_key, received, body)"


class SqliteStore:
    """Rows in one file that one process writes, or in memory."""

    is_shared = False

    def __init__(
        self,
        path: str | Path,
        *,
        durability: str,
        read_only: bool = False,
        give_way: Callable[[], None] | None = None,
    ) -> None:
        """``path``: a file or ":memory:". Raises :class:`ConfigError` when it cannot be opened.

        ``give_way`` is called often, by SQLite too.
        """
        self.durability = durability
        self._database: Any = open_database(
            path,
            EVENTS,
            f"SELECT {COLUMNS} FROM events LIMIT 0",
            durability=durability,
            read_only=read_only,
            formats=FORMATS,
        )
        if give_way is not None:
            self._database.set_progress_handler(partial(_go_on, give_way), STEPS_BETWEEN)
        if not read_only:
            with storage_errors():
                self._bring_up_to_date()
                self._index = RowIndex(self._database)

    def append(self, rows: Sequence[EventRow]) -> list[bool]:
        """As :meth:`EventStore.append`."""
        database, index = self._database, self._index
        with storage_errors():
            known = set(index.find([row[0] for row in rows]))
            added = []
            for row in rows:
                added.append(row[0] not in known)
                known.add(row[0])
            fresh = [row for row, is_new in zip(rows, added, strict=True) if is_new]
            database.execute("BEGIN IMMEDIATE")
            try:
                insert_all(database, INSERT, fresh)
                first = database.last_insert_rowid() - len(fresh) + 1
                parts = index.write_next()
                database.execute("COMMIT")
            except BaseException:
                # SQLite has rolled back by itself after some errors.
                if database.in_transaction:
                    database.execute("ROLLBACK")
                raise
        index.written(parts)
        index.add(fresh, first)
        return added

    def get(self, event_key: bytes) -> Row | None:
        """As :meth:`EventStore.get`."""
        with storage_errors():
            seq = self._index.find([event_key]).get(event_key)
            found = self._database.execute(f"SELECT {COLUMNS} FROM events WHERE seq = ?", (seq,)).fetchone()
        return None if found is None else Row(*found)

    def rows(self, after: int = 0) -> Iterator[Row]:
        """As :meth:`EventStore.rows`."""
        with storage_errors():
            yield from map(
                Row._make,
                self._database.execute(f"SELECT {COLUMNS} FROM events WHERE seq > ? ORDER BY seq", (after,)),
            )

    def rows_of(self, user_key: bytes, *, after: int, limit: int) -> list[Row]:
        """As :meth:`EventStore.rows_of`."""
        with storage_errors(), self._database:
            self._index.write(user_key[0])
            found: Sequence[Any] = self._database.execute(
                f"SELECT {COLUMNS} FROM rows_of_users JOIN events USING (seq, user_key)"
                " WHERE user_key = ? AND seq > ? ORDER BY seq LIMIT ?",
                (user_key, after, limit),
            ).fetchall()
        return [Row(*row) for row in found]

    def delete_user(self, user_key: bytes) -> int:
        """As :meth:`EventStore.delete_user`."""
        with storage_errors(), self._database:
            self._index.write(user_key[0])
            gone = self._delete("seq IN (SELECT seq FROM rows_of_users WHERE user_key = ?)", user_key)
        self._index.deleted(gone)
        return len(gone)

    def delete_before(self, received: int) -> int:
        """As :meth:`EventStore.delete_before`: looks at the oldest rows only."""
        oldest = f"seq <= (SELECT max(seq) FROM (SELECT seq FROM events ORDER BY seq LIMIT {PAGE}))"
        with storage_errors(), self._database:
            gone = self._delete(f"received < ? AND {oldest}", received)
        self._index.deleted(gone)
        return len(gone)

    def _delete(self, condition: str, value: Any) -> list[Place]:
        """Deletes rows, in the transaction of the caller; returns them."""
        gone: list[Place] = self._database.execute(
            f"DELETE FROM events WHERE {condition} RETURNING seq, event_key, user_key", (value,)
        ).fetchall()
        self._index.delete(gone)
        return gone

    def cursor(self, name: str) -> int:
        """As :meth:`EventStore.cursor`."""
        with storage_errors():
            found = self._database.execute("SELECT seq FROM cursors WHERE name = ?", (name,)).fetchone()
        return 0 if found is None else int(found[0])

    def move_cursor(self, name: str, seq: int) -> None:
        """As :meth:`EventStore.move_cursor`."""
        with storage_errors():
            self._database.execute("INSERT OR REPLACE INTO cursors VALUES (?, ?)", (name, seq)).fetchall()

    def put_items(self, items: Sequence[tuple[str, bytes]]) -> None:
        """As :meth:`EventStore.put_items`."""
        with storage_errors(), self._database:
            # Replaced: it gets a new number.
            self._database.executemany("INSERT OR REPLACE INTO items (item_id, body) VALUES (?, ?)", items)

    def forget_items(self, item_ids: Sequence[str]) -> None:
        """As :meth:`EventStore.forget_items`."""
        with storage_errors(), self._database:
            self._database.executemany("DELETE FROM items WHERE item_id = ?", [(id_,) for id_ in item_ids])

    def items(self, after: int) -> list[tuple[int, str, bytes]]:
        """As :meth:`EventStore.items`."""
        with storage_errors():
            found: list[tuple[int, str, bytes]] = self._database.execute(
                "SELECT seq, item_id, body FROM items WHERE seq > ? ORDER BY seq", (after,)
            ).fetchall()
        return found

    def close(self) -> None:
        """Closes the file."""
        self._database.close()

    def _bring_up_to_date(self) -> None:
        """Takes its own index of events from the table of an earlier version, once."""
        execute = self._database.execute
        with self._database:
            if execute(f"SELECT 1 FROM sqlite_schema WHERE name = '{BEFORE}'").get is not None:
                execute(BRING_UP_TO_DATE, {"cursor": INDEXED}).fetchall()
            if execute("PRAGMA user_version").get != FORMATS[-1]:
                execute(f"PRAGMA user_version={FORMATS[-1]}").fetchall()


def _go_on(give_way: Callable[[], None]) -> bool:
    give_way()
    # Whether to stop.
    return False


class SqliteKeys:
    """Keys in one file. ``secure_delete`` and a truncated write-ahead log leave no destroyed key in it."""

    def __init__(self, path: str | Path, *, durability: str, read_only: bool = False) -> None:
        """``path``: a file or ":memory:". Raises :class:`ConfigError` when it cannot be opened."""
        self.name = str(path)
        self._database: Any = open_database(
            path,
            KEYS,
            "SELECT name, master, wrapped FROM keys LIMIT 0",
            durability=durability,
            read_only=read_only,
        )
        if not read_only:
            self._database.execute("PRAGMA secure_delete=ON")

    def get(self, name: bytes) -> tuple[str, bytes] | None:
        """As :meth:`KeyTable.get`."""
        with storage_errors():
            found: tuple[str, bytes] | None = self._database.execute(
                "SELECT master, wrapped FROM keys WHERE name = ?", (name,)
            ).fetchone()
        return found

    def add(self, keys: Sequence[KeyRow]) -> bool:
        """As :meth:`KeyTable.add`; nobody else adds any."""
        with storage_errors(), self._database:
            self._database.executemany("INSERT INTO keys VALUES (?, ?, ?)", keys)
        return True

    def replace(self, keys: Iterable[KeyRow]) -> None:
        """As :meth:`KeyTable.replace`."""
        with storage_errors(), self._database:
            self._database.executemany("UPDATE keys SET master = ?2, wrapped = ?3 WHERE name = ?1", keys)

    def closed_by_others(self, master: str) -> Iterator[list[KeyRow]]:
        """As :meth:`KeyTable.closed_by_others`."""
        while rows := self._database.execute(
            "SELECT name, master, wrapped FROM keys WHERE master != ? LIMIT ?", (master, PAGE)
        ).fetchall():
            yield rows
        self._truncate()

    def erase(self, user_key: bytes) -> None:
        """As :meth:`KeyTable.erase`."""
        with storage_errors(), self._database:
            self._database.execute("DELETE FROM keys WHERE name = ?", (user_key,))
            self._database.execute(
                "INSERT INTO erased VALUES (?, ?, 0) ON CONFLICT DO NOTHING", (user_key, int(time.time()))
            )
        self._truncate()

    def erasures(self, after: int) -> list[tuple[int, bytes]]:
        """As :meth:`KeyTable.erasures`, counted from 1."""
        rows = self._database.execute(
            "SELECT user_key FROM erased ORDER BY time LIMIT -1 OFFSET ?", (after,)
        ).fetchall()
        return [(number, user_key) for number, (user_key,) in enumerate(rows, after + 1)]

    def unfinished_erasures(self) -> list[bytes]:
        """As :meth:`KeyTable.unfinished_erasures`."""
        return [key for (key,) in self._database.execute("SELECT user_key FROM erased WHERE NOT is_done")]

    def finish_erasure(self, user_key: bytes) -> None:
        """As :meth:`KeyTable.finish_erasure`."""
        with storage_errors():
            self._database.execute("UPDATE erased SET is_done = 1 WHERE user_key = ?", (user_key,))

    def close(self) -> None:
        """Closes the file."""
        self._database.close()

    def _truncate(self) -> None:
        with storage_errors():
            self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
