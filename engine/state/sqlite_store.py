"""The log and its keys in two SQLite files, or in memory.

The files are separate, so that a copy of the log, however old, does not open what was erased since.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from recserve.engine.state.database import open_database, storage_errors
from recserve.engine.state.store import PAGE, EventRow, KeyRow, Row

EVENTS = """
CREATE TABLE IF NOT EXISTS events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    event_key BLOB NOT NULL UNIQUE,
    user_key BLOB NOT NULL,
    received INTEGER NOT NULL,
    body BLOB NOT NULL
) STRICT;
DROP INDEX IF EXISTS events_by_user;
CREATE TABLE IF NOT EXISTS rows_of_users (
    user_key BLOB NOT NULL, seq INTEGER NOT NULL, PRIMARY KEY (user_key, seq)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS items (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, item_id TEXT NOT NULL UNIQUE, body BLOB NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS cursors (name TEXT PRIMARY KEY, seq INTEGER NOT NULL) STRICT, WITHOUT ROWID;
"""
KEYS = """
CREATE TABLE IF NOT EXISTS keys (name BLOB PRIMARY KEY, master TEXT NOT NULL, wrapped BLOB NOT NULL)
    STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS erased (user_key BLOB PRIMARY KEY, time INTEGER NOT NULL, is_done INTEGER NOT NULL)
    STRICT, WITHOUT ROWID;
"""
COLUMNS = "seq, event_key, user_key, received, body"
INSERT = "INSERT OR IGNORE INTO events (event_key, user_key, received, body) VALUES (?, ?, ?, ?)"
# Rows of one statement: SQLite runs without the interpreter meanwhile.
TOGETHER = 32
INSERT_TOGETHER = INSERT + ", (?, ?, ?, ?)" * (TOGETHER - 1)
# Rows that wait for their place among those of their user. Each alone would write a page of the index with
# every event; as many as these, in the order of the users, share pages: half the work of a commit.
INDEXED_TOGETHER = 16_384
INDEXED = "rows of users"


class SqliteStore:
    """Rows in one file that one process writes, or in memory."""

    is_shared = False

    def __init__(self, path: str | Path, *, durability: str, read_only: bool = False) -> None:
        """``path``: a file or ":memory:". Raises :class:`ConfigError` when it cannot be opened."""
        self.durability = durability
        self._database: Any = open_database(
            path,
            EVENTS,
            f"SELECT {COLUMNS} FROM events LIMIT 0",
            durability=durability,
            read_only=read_only,
        )
        # At most so many rows, all of them new, are not yet among those of their users.
        self._n_to_index = max(0, self._newest() - self.cursor(INDEXED))

    def append(self, rows: Sequence[EventRow]) -> list[bool]:
        """As :meth:`EventStore.append`."""
        database, added = self._database, []
        with storage_errors():
            # Before the rows: an error of it must say that none was added.
            if self._n_to_index >= INDEXED_TOGETHER:
                self._index()
            database.execute("BEGIN IMMEDIATE")
            try:
                for start in range(0, len(rows), TOGETHER):
                    added += self._insert(rows[start : start + TOGETHER])
                database.execute("COMMIT")
            except BaseException:
                # SQLite has rolled back by itself after some errors.
                if database.in_transaction:
                    database.execute("ROLLBACK")
                raise
        self._n_to_index += len(rows)
        return added

    def _insert(self, rows: Sequence[EventRow]) -> list[bool]:
        """Inserts at most ``TOGETHER`` rows of a transaction; returns which were new."""
        execute, changes = self._database.execute, self._database.changes
        if len(rows) < TOGETHER:
            added = []
            for row in rows:
                execute(INSERT, row)
                added.append(changes() == 1)
            return added
        before = self._newest()
        execute(INSERT_TOGETHER, [value for row in rows for value in row])
        if changes() == TOGETHER:
            return [True] * TOGETHER
        # The first of equal ones is new unless its row was there before.
        keys = [row[0] for row in rows]
        seq_of = {key: execute("SELECT seq FROM events WHERE event_key = ?", (key,)).get for key in {*keys}}
        return [seq_of[key] > before and key not in keys[:i] for i, key in enumerate(keys)]

    def _newest(self) -> int:
        """Returns the largest number of a row, 0 where there is none."""
        return self._database.execute("SELECT max(seq) FROM events").get or 0

    def _index(self) -> bool:
        """Gives the next rows their place among those of their users; returns whether there were any."""
        execute, done = self._database.execute, self.cursor(INDEXED)
        with storage_errors(), self._database:
            last = execute(
                "SELECT max(seq) FROM (SELECT seq FROM events WHERE seq > ? ORDER BY seq LIMIT ?)",
                (done, INDEXED_TOGETHER),
            ).get
            if last is not None:
                execute(
                    "INSERT OR IGNORE INTO rows_of_users SELECT user_key, seq FROM events"
                    " WHERE seq > ? AND seq <= ? ORDER BY user_key, seq",
                    (done, last),
                )
                self.move_cursor(INDEXED, last)
        self._n_to_index = 0 if last is None else self._newest() - last
        return last is not None

    def get(self, event_key: bytes) -> Row | None:
        """As :meth:`EventStore.get`."""
        with storage_errors():
            found = self._database.execute(
                f"SELECT {COLUMNS} FROM events WHERE event_key = ?", (event_key,)
            ).fetchone()
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
        while self._index():
            pass
        with storage_errors():
            found: Sequence[Any] = self._database.execute(
                f"SELECT {COLUMNS} FROM rows_of_users JOIN events USING (seq, user_key)"
                " WHERE user_key = ? AND seq > ? ORDER BY seq LIMIT ?",
                (user_key, after, limit),
            ).fetchall()
        return [Row(*row) for row in found]

    def delete_user(self, user_key: bytes) -> int:
        """As :meth:`EventStore.delete_user`."""
        while self._index():
            pass
        with storage_errors(), self._database:
            self._database.execute(
                "DELETE FROM events WHERE seq IN (SELECT seq FROM rows_of_users WHERE user_key = ?)",
                (user_key,),
            )
            n_deleted = int(self._database.changes())
            self._database.execute("DELETE FROM rows_of_users WHERE user_key = ?", (user_key,))
        return n_deleted

    def delete_before(self, received: int) -> int:
        """As :meth:`EventStore.delete_before`: looks at the oldest rows only."""
        while self._index():
            pass
        with storage_errors(), self._database:
            gone = self._database.execute(
                "DELETE FROM events WHERE received < ?1 AND seq <= (SELECT max(seq) FROM"
                " (SELECT seq FROM events ORDER BY seq LIMIT ?2)) RETURNING user_key, seq",
                (received, PAGE),
            ).fetchall()
            self._database.executemany("DELETE FROM rows_of_users WHERE user_key = ? AND seq = ?", gone)
        return len(gone)

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
