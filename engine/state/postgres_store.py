"""The log and its keys in PostgreSQL, shared by several servers.

Tables: ``recserve_events``, ``recserve_keys``, ``recserve_erased``, in the first schema of the search path.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from recserve.engine.state.store import PAGE, EventRow, KeyRow, Row
from recserve.errors import ConfigError, StorageFull, Unavailable

CONNECT_SECONDS = 2
ANSWER_MS = 5000
SCHEMA = """
CREATE TABLE IF NOT EXISTS recserve_events (
    seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    event_key bytea NOT NULL UNIQUE,
    user_key bytea NOT NULL,
    received bigint NOT NULL,
    body bytea NOT NULL
);
CREATE INDEX IF NOT EXISTS recserve_events_by_user ON recserve_events (user_key, seq);
CREATE TABLE IF NOT EXISTS recserve_items (
    seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, item_id text NOT NULL UNIQUE, body bytea NOT NULL
);
CREATE TABLE IF NOT EXISTS recserve_cursors (name text PRIMARY KEY, seq bigint NOT NULL);
CREATE TABLE IF NOT EXISTS recserve_keys (
    name bytea PRIMARY KEY,
    master text NOT NULL,
    wrapped bytea NOT NULL
);
CREATE TABLE IF NOT EXISTS recserve_erased (
    seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    user_key bytea NOT NULL UNIQUE,
    erased timestamptz NOT NULL DEFAULT now(),
    is_done boolean NOT NULL DEFAULT false
);
"""
COLUMNS = "seq, event_key, user_key, received, body"
# Numbers are given out before their rows can be read. One writer at a time, until its commit is visible: who
# has seen a number never misses a smaller one. The lock's own number is any that others do not use.
ONE_AT_A_TIME = "SELECT pg_advisory_xact_lock(7322650948213)"


class PostgresDatabase:
    """The connection; it is made again after a failure. Nothing is sent twice: callers decide that."""

    def __init__(self, url: str, *, durability: str, read_only: bool = False) -> None:
        """``durability``: power or process. ``read_only``: the tables must be there.

        Raises :class:`ConfigError`, :class:`Unavailable`.
        """
        try:
            import psycopg
        except ImportError as error:
            raise ConfigError(
                "state.url",
                found="postgresql:// without psycopg",
                expected="an installation with the extra [postgres]",
                cure="Run: pip install 'recserve[postgres]'",
            ) from error
        self._psycopg = psycopg
        self._url, self._wanted = url, durability
        self._connection: Any = None
        self.durability = "process"
        with self.use() as cursor:
            if not read_only:
                cursor.execute(ONE_AT_A_TIME)
                cursor.connection.execute(SCHEMA)

    @contextmanager
    def use(self) -> Iterator[Any]:
        """Yields a cursor of one transaction, with errors turned into ours."""
        try:
            if self._connection is None or self._connection.closed:
                self._connect()
            with self._connection.transaction(), self._connection.cursor(binary=True) as cursor:
                yield cursor
        except self._psycopg.errors.DiskFull as error:
            raise StorageFull(
                "disk of PostgreSQL",
                found="full",
                expected="room",
                cure="Free some; nothing needs a restart.",
            ) from error
        except self._psycopg.Error as error:
            raise Unavailable(
                "PostgreSQL of the event log",
                found=f"not answering ({type(error).__name__})",
                expected="reachable and writable",
                cure="Send the same events again.",
            ) from error

    def close(self) -> None:
        """Closes the connection."""
        if self._connection is not None:
            self._connection.close()

    def _connect(self) -> None:
        self._connection = self._psycopg.connect(
            self._url,
            autocommit=True,
            connect_timeout=CONNECT_SECONDS,
            tcp_user_timeout=ANSWER_MS,
            application_name="recserve",
        )
        execute = self._connection.execute
        execute(f"SET statement_timeout = {ANSWER_MS}")
        if self._wanted == "process":
            execute("SET synchronous_commit = off")
        # Local is enough: the standbys' disks are not this one's.
        found = [execute(f"SHOW {name}").fetchone()[0] for name in ("fsync", "synchronous_commit")]
        self.durability = "process" if "off" in found else "power"


class PostgresStore:
    """Rows in a table; methods as those of :class:`~recserve.engine.state.store.EventStore`."""

    is_shared = True

    def __init__(self, database: PostgresDatabase) -> None:
        self._database = database

    @property
    def durability(self) -> str:
        """As :attr:`EventStore.durability`."""
        return self._database.durability

    def append(self, rows: Sequence[EventRow]) -> list[bool]:
        """As :meth:`EventStore.append`."""
        with self._database.use() as cursor:
            cursor.execute(ONE_AT_A_TIME)
            cursor.execute(
                "INSERT INTO recserve_events (event_key, user_key, received, body)"
                " SELECT event_key, user_key, received, body FROM"
                " unnest(%b::bytea[], %b::bytea[], %b::bigint[], %b::bytea[]) WITH ORDINALITY"
                " AS given (event_key, user_key, received, body, place) ORDER BY place"
                " ON CONFLICT DO NOTHING RETURNING event_key",
                [list(column) for column in zip(*rows, strict=True)],
            )
            added = {event_key for (event_key,) in cursor.fetchall()}
        is_new = []
        for event_key, *_ in rows:
            is_new.append(event_key in added)
            # Of several in one call the first was added.
            added.discard(event_key)
        return is_new

    def get(self, event_key: bytes) -> Row | None:
        """As :meth:`EventStore.get`."""
        found = self._read("WHERE event_key = %b", event_key)
        return found[0] if found else None

    def rows(self, after: int = 0) -> Iterator[Row]:
        """As :meth:`EventStore.rows`."""
        while page := self._read("WHERE seq > %b ORDER BY seq LIMIT %b", after, PAGE):
            yield from page
            after = page[-1].seq

    def rows_of(self, user_key: bytes, *, after: int, limit: int) -> list[Row]:
        """As :meth:`EventStore.rows_of`."""
        return self._read("WHERE user_key = %b AND seq > %b ORDER BY seq LIMIT %b", user_key, after, limit)

    def delete_user(self, user_key: bytes) -> int:
        """As :meth:`EventStore.delete_user`."""
        with self._database.use() as cursor:
            cursor.execute("DELETE FROM recserve_events WHERE user_key = %b", (user_key,))
            return int(cursor.rowcount)

    def delete_before(self, received: int) -> int:
        """As :meth:`EventStore.delete_before`: looks at the oldest rows only."""
        with self._database.use() as cursor:
            cursor.execute(
                "DELETE FROM recserve_events WHERE received < %b AND seq <= (SELECT max(seq) FROM"
                " (SELECT seq FROM recserve_events ORDER BY seq LIMIT %b) AS oldest)",
                (received, PAGE),
            )
            return int(cursor.rowcount)

    def cursor(self, name: str) -> int:
        """As :meth:`EventStore.cursor`."""
        with self._database.use() as cursor:
            cursor.execute("SELECT seq FROM recserve_cursors WHERE name = %b", (name,))
            found = cursor.fetchone()
        return 0 if found is None else int(found[0])

    def move_cursor(self, name: str, seq: int) -> None:
        """As :meth:`EventStore.move_cursor`."""
        with self._database.use() as cursor:
            cursor.execute(
                "INSERT INTO recserve_cursors VALUES (%b, %b)"
                " ON CONFLICT (name) DO UPDATE SET seq = excluded.seq",
                (name, seq),
            )

    def put_items(self, items: Sequence[tuple[str, bytes]]) -> None:
        """As :meth:`EventStore.put_items`."""
        ids = [item_id for item_id, _ in items]
        with self._database.use() as cursor:
            cursor.execute(ONE_AT_A_TIME)
            # Inserted again: it gets a new number.
            cursor.execute("DELETE FROM recserve_items WHERE item_id = ANY(%b::text[])", (ids,))
            cursor.execute(
                "INSERT INTO recserve_items (item_id, body)"
                " SELECT item_id, body FROM unnest(%b::text[], %b::bytea[]) AS given (item_id, body)",
                (ids, [body for _, body in items]),
            )

    def forget_items(self, item_ids: Sequence[str]) -> None:
        """As :meth:`EventStore.forget_items`."""
        with self._database.use() as cursor:
            cursor.execute("DELETE FROM recserve_items WHERE item_id = ANY(%b::text[])", (list(item_ids),))

    def items(self, after: int) -> list[tuple[int, str, bytes]]:
        """As :meth:`EventStore.items`."""
        with self._database.use() as cursor:
            cursor.execute(
                "SELECT seq, item_id, body FROM recserve_items WHERE seq > %b ORDER BY seq", (after,)
            )
            return [(int(seq), str(item_id), bytes(body)) for seq, item_id, body in cursor.fetchall()]

    def close(self) -> None:
        """Closes the connection."""
        self._database.close()

    def _read(self, condition: str, *values: bytes | int) -> list[Row]:
        with self._database.use() as cursor:
            cursor.execute(f"SELECT {COLUMNS} FROM recserve_events {condition}", values)
            return [Row(*row) for row in cursor.fetchall()]


class PostgresKeys:
    """Keys in a table; methods as those of :class:`~recserve.engine.state.store.KeyTable`."""

    name = "PostgreSQL"

    def __init__(self, database: PostgresDatabase) -> None:
        self._database = database

    def get(self, name: bytes) -> tuple[str, bytes] | None:
        """As :meth:`KeyTable.get`."""
        with self._database.use() as cursor:
            cursor.execute("SELECT master, wrapped FROM recserve_keys WHERE name = %b", (name,))
            found: tuple[str, bytes] | None = cursor.fetchone()
        return found

    def add(self, keys: Sequence[KeyRow]) -> bool:
        """As :meth:`KeyTable.add`."""
        with self._database.use() as cursor:
            cursor.execute(ONE_AT_A_TIME)
            cursor.execute(
                "INSERT INTO recserve_keys SELECT name, master, wrapped FROM"
                " unnest(%b::bytea[], %b::text[], %b::bytea[]) AS given (name, master, wrapped)"
                " WHERE NOT EXISTS (SELECT FROM recserve_erased WHERE user_key = name)"
                " ON CONFLICT DO NOTHING",
                [list(column) for column in zip(*keys, strict=True)],
            )
            return bool(cursor.rowcount == len(keys))

    def replace(self, keys: Iterable[KeyRow]) -> None:
        """As :meth:`KeyTable.replace`."""
        with self._database.use() as cursor:
            cursor.executemany(
                "UPDATE recserve_keys SET master = %b, wrapped = %b WHERE name = %b",
                [(master, wrapped, name) for name, master, wrapped in keys],
            )

    def closed_by_others(self, master: str) -> Iterator[list[KeyRow]]:
        """As :meth:`KeyTable.closed_by_others`."""
        while rows := self._closed_by_others(master):
            yield rows

    def erase(self, user_key: bytes) -> None:
        """As :meth:`KeyTable.erase`."""
        with self._database.use() as cursor:
            cursor.execute(ONE_AT_A_TIME)
            cursor.execute("DELETE FROM recserve_keys WHERE name = %b", (user_key,))
            cursor.execute(
                "INSERT INTO recserve_erased (user_key) VALUES (%b) ON CONFLICT DO NOTHING", (user_key,)
            )

    def erasures(self, after: int) -> list[tuple[int, bytes]]:
        """As :meth:`KeyTable.erasures`."""
        with self._database.use() as cursor:
            cursor.execute("SELECT seq, user_key FROM recserve_erased WHERE seq > %b ORDER BY seq", (after,))
            return list(cursor.fetchall())

    def unfinished_erasures(self) -> list[bytes]:
        """As :meth:`KeyTable.unfinished_erasures`."""
        with self._database.use() as cursor:
            cursor.execute("SELECT user_key FROM recserve_erased WHERE NOT is_done")
            return [user_key for (user_key,) in cursor.fetchall()]

    def finish_erasure(self, user_key: bytes) -> None:
        """As :meth:`KeyTable.finish_erasure`."""
        with self._database.use() as cursor:
            cursor.execute("UPDATE recserve_erased SET is_done = true WHERE user_key = %b", (user_key,))

    def close(self) -> None:
        """Closes the connection."""
        self._database.close()

    def _closed_by_others(self, master: str) -> list[KeyRow]:
        with self._database.use() as cursor:
            cursor.execute(
                "SELECT name, master, wrapped FROM recserve_keys WHERE master != %b LIMIT %b", (master, PAGE)
            )
            return list(cursor.fetchall())
