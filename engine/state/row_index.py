"""Where the rows of an SQLite log are, by event and by user: the newest in memory, the others in two tables.

Keys are random, so a table that is kept with every row has a page of its own to write for each: ten times
the bytes of the rows. The newest keys wait in memory instead, in parts by their first byte, and with the rows
of later appends one part after the other is written: its keys are neighbours and share pages.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from recserve.engine.state.database import TOGETHER, insert_all
from recserve.engine.state.store import EventRow

TABLES = """
CREATE TABLE IF NOT EXISTS rows_of_events (event_key BLOB PRIMARY KEY, seq INTEGER NOT NULL)
    STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS rows_of_users (
    user_key BLOB NOT NULL, seq INTEGER NOT NULL, PRIMARY KEY (user_key, seq)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS cursors (name TEXT PRIMARY KEY, seq INTEGER NOT NULL) STRICT, WITHOUT ROWID;
"""
# All rows up to this cursor are in the tables.
INDEXED = "rows of events and users"
N_PARTS = 256
# Rows whose keys stay in memory.
MAX_RECENT = 65_536
# Parts that one append writes at most.
PARTS_TOGETHER = 8
INSERT_EVENTS = "INSERT OR IGNORE INTO rows_of_events"
INSERT_USERS = "INSERT OR IGNORE INTO rows_of_users"

# Number, event key and user key of a row.
Place = tuple[int, bytes, bytes]


class RowIndex:
    """Which rows events and users have; the writer of ``database`` alone uses it."""

    def __init__(self, database: Any) -> None:
        self._database = database
        # Of each part: the row of an event key, the user key of a row.
        self._events: list[dict[bytes, int]] = [{} for _ in range(N_PARTS)]
        self._users: list[dict[int, bytes]] = [{} for _ in range(N_PARTS)]
        self._n_recent = self._newest = self._next_part = 0
        done = database.execute("SELECT max(seq) FROM cursors WHERE name = ?", (INDEXED,)).get or 0
        for seq, event_key, user_key in database.execute(
            "SELECT seq, event_key, user_key FROM events WHERE seq > ? ORDER BY seq", (done,)
        ):
            self._add(seq, event_key, user_key)
        # A round goes over all parts; when it ends, the tables have what was there when it began.
        self._round_from = self._newest

    def find(self, event_keys: Sequence[bytes]) -> dict[bytes, int]:
        """Returns the rows of those events that the log has."""
        found, others = {}, []
        for key in event_keys:
            seq = self._events[key[0]].get(key)
            if seq is None:
                others.append(key)
            else:
                found[key] = seq
        for start in range(0, len(others), TOGETHER):
            keys = others[start : start + TOGETHER]
            marks = ", ".join("?" * len(keys))
            found.update(
                self._database.execute(
                    f"SELECT event_key, seq FROM rows_of_events WHERE event_key IN ({marks})", keys
                )
            )
        return found

    def write_next(self) -> list[int]:
        """Writes the parts whose turn it is, in the transaction of the caller.

        Returns them: :meth:`written` hears of it when that was committed.
        """
        parts: list[int] = []
        n_recent = self._n_recent
        while n_recent > MAX_RECENT and len(parts) < PARTS_TOGETHER:
            part = (self._next_part + len(parts)) % N_PARTS
            self.write(part)
            n_recent -= len(self._events[part])
            parts.append(part)
            if part == N_PARTS - 1:
                cursor = (INDEXED, self._round_from)
                self._database.execute("INSERT OR REPLACE INTO cursors VALUES (?, ?)", cursor)
        return parts

    def write(self, part: int) -> None:
        """Writes a part, in the transaction of the caller; what is written twice is there once."""
        insert_all(self._database, INSERT_EVENTS, sorted(self._events[part].items()))
        of_users = sorted((key, seq) for seq, key in self._users[part].items())
        insert_all(self._database, INSERT_USERS, of_users)

    def written(self, parts: Sequence[int]) -> None:
        """Forgets parts of :meth:`write_next` that are in the tables."""
        for part in parts:
            self._n_recent -= len(self._events[part])
            self._events[part].clear()
            self._users[part].clear()
            if part == N_PARTS - 1:
                self._round_from = self._newest
            self._next_part = (part + 1) % N_PARTS

    def add(self, rows: Iterable[EventRow], first: int) -> None:
        """Notes rows that were committed, numbered from ``first`` on."""
        for seq, (event_key, user_key, _, _) in enumerate(rows, first):
            self._add(seq, event_key, user_key)

    def delete(self, rows: Sequence[Place]) -> None:
        """Removes rows from the tables, in the transaction of the caller; then :meth:`deleted`."""
        delete, of_users = self._database.executemany, [(user_key, seq) for seq, _, user_key in rows]
        delete("DELETE FROM rows_of_events WHERE event_key = ?", [(event_key,) for _, event_key, _ in rows])
        delete("DELETE FROM rows_of_users WHERE user_key = ? AND seq = ?", of_users)

    def deleted(self, rows: Sequence[Place]) -> None:
        """Forgets rows that are gone."""
        for seq, event_key, user_key in rows:
            if self._events[event_key[0]].pop(event_key, None) is not None:
                self._n_recent -= 1
            self._users[user_key[0]].pop(seq, None)

    def _add(self, seq: int, event_key: bytes, user_key: bytes) -> None:
        self._events[event_key[0]][event_key] = seq
        self._users[user_key[0]][seq] = user_key
        self._n_recent += 1
        self._newest = seq
