"""The log and its keys in Redis (or Valkey), shared by several servers.

The log is a stream whose ids are the rows' numbers; a hash finds rows by event and sorted sets by user. What
changes several of them is one script or transaction. All names share a hash tag: one place in a cluster.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import structlog

from recserve.engine.state.store import PAGE, EventRow, KeyRow, Row
from recserve.errors import ConfigError, StorageFull, Unavailable

log = structlog.get_logger("recserve.state")

CONNECT_SECONDS = 2.0
ANSWER_SECONDS = 5.0
EVENTS, BY_EVENT, LAST = "{recserve}:events", "{recserve}:by-event", "{recserve}:last"
BY_USER = b"{recserve}:by-user:"
CURSORS = "{recserve}:cursors"
ITEMS, ITEM_ORDER = "{recserve}:items", "{recserve}:item-order"
KEYS, ERASED, UNFINISHED = "{recserve}:keys", "{recserve}:erased", "{recserve}:unfinished"

# ARGV: BY_USER, then event key, user key, received and body of each row.
APPEND = """
local added = {}
for i = 2, #ARGV, 4 do
    if redis.call('HEXISTS', KEYS[2], ARGV[i]) == 1 then
        added[#added + 1] = 0
    else
        local seq = redis.call('INCR', KEYS[3])
        redis.call('XADD', KEYS[1], seq .. '-0',
            'event', ARGV[i], 'user', ARGV[i + 1], 'received', ARGV[i + 2], 'body', ARGV[i + 3])
        redis.call('HSET', KEYS[2], ARGV[i], seq)
        redis.call('ZADD', ARGV[1] .. ARGV[i + 1], seq, seq)
        added[#added + 1] = 1
    end
end
return added
"""
# ARGV: id and bytes of each item.
PUT_ITEMS = """
for i = 1, #ARGV, 2 do
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
    redis.call('ZADD', KEYS[2], redis.call('INCR', KEYS[3]), ARGV[i])
end
"""
# ARGV: name and value of each key.
ADD_KEYS = """
local all = 1
for i = 1, #ARGV, 2 do
    if redis.call('ZSCORE', KEYS[2], ARGV[i]) or redis.call('HSETNX', KEYS[1], ARGV[i], ARGV[i + 1]) == 0 then
        all = 0
    end
end
return all
"""
# The same; a key that is gone was destroyed, and stays so.
REPLACE_KEYS = """
for i = 1, #ARGV, 2 do
    if redis.call('HEXISTS', KEYS[1], ARGV[i]) == 1 then
        redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
    end
end
"""
ERASE = """
redis.call('HDEL', KEYS[1], ARGV[1])
if redis.call('ZADD', KEYS[2], 'NX', redis.call('ZCARD', KEYS[2]) + 1, ARGV[1]) == 1 then
    redis.call('SADD', KEYS[3], ARGV[1])
end
"""


class RedisDatabase:
    """The connection; it is made again after a failure. Nothing is sent twice: callers decide that."""

    def __init__(self, url: str) -> None:
        """Raises :class:`ConfigError` when it cannot keep a log, :class:`Unavailable` when nobody answers."""
        try:
            import redis
            from redis.backoff import NoBackoff
            from redis.retry import Retry
        except ImportError as error:
            raise ConfigError(
                "state.url",
                found="redis:// without redis",
                expected="an installation with the extra [redis]",
                cure="Run: pip install 'recserve[redis]'",
            ) from error
        self._errors = redis.exceptions
        self._client = redis.Redis.from_url(
            url,
            retry=Retry(NoBackoff(), 0),
            socket_connect_timeout=CONNECT_SECONDS,
            socket_timeout=ANSWER_SECONDS,
        )
        self._durability = ""
        with self.use():
            pass

    @property
    def durability(self) -> str:
        """What the server's settings said when the connection was made."""
        return self._durability

    @contextmanager
    def use(self) -> Iterator[Any]:
        """Yields the client, with errors turned into ours."""
        try:
            if not self._durability:
                self._durability = self._read_durability()
            yield self._client
        except self._errors.OutOfMemoryError as error:
            raise StorageFull(
                "memory of Redis",
                found="full",
                expected="room",
                cure="Raise maxmemory; nothing needs a restart.",
            ) from error
        except self._errors.RedisError as error:
            # The server that answers next may be another one.
            self._durability = ""
            raise Unavailable(
                "Redis of the event log",
                found=f"not answering ({type(error).__name__})",
                expected="reachable and writable",
                cure="Send the same events again.",
            ) from error

    def close(self) -> None:
        """Closes the connection."""
        self._client.close()

    def _read_durability(self) -> str:
        try:
            found = self._client.config_get("append*", "maxmemory*")
        except self._errors.ResponseError:
            log.warning("Redis does not tell its settings (CONFIG GET): durability is named memory")
            return "memory"
        if found["maxmemory"] != "0" and found["maxmemory-policy"] != "noeviction":
            raise ConfigError(
                "maxmemory-policy of Redis",
                found=found["maxmemory-policy"],
                expected="noeviction: any other loses events without a word",
            )
        if found["appendonly"] != "yes":
            return "memory"
        return "power" if found["appendfsync"] == "always" else "process"


class RedisStore:
    """Rows in a stream; methods as those of :class:`~recserve.engine.state.store.EventStore`."""

    is_shared = True

    def __init__(self, database: RedisDatabase) -> None:
        self._database = database
        with database.use() as client:
            self._append = client.register_script(APPEND)
            self._put_items = client.register_script(PUT_ITEMS)

    @property
    def durability(self) -> str:
        """As :attr:`EventStore.durability`."""
        return self._database.durability

    def append(self, rows: Sequence[EventRow]) -> list[bool]:
        """As :meth:`EventStore.append`."""
        with self._database.use():
            added = self._append(
                keys=(EVENTS, BY_EVENT, LAST), args=(BY_USER, *(field for row in rows for field in row))
            )
        return [is_new == 1 for is_new in added]

    def get(self, event_key: bytes) -> Row | None:
        """As :meth:`EventStore.get`."""
        with self._database.use() as client:
            seq = client.hget(BY_EVENT, event_key)
            found = [] if seq is None else client.xrange(EVENTS, _id(int(seq)), _id(int(seq)))
        return _row(found[0]) if found else None

    def rows(self, after: int = 0) -> Iterator[Row]:
        """As :meth:`EventStore.rows`."""
        while page := self._page(after):
            yield from page
            after = page[-1].seq

    def rows_of(self, user_key: bytes, *, after: int, limit: int) -> list[Row]:
        """As :meth:`EventStore.rows_of`."""
        with self._database.use() as client:
            numbers = client.zrangebyscore(BY_USER + user_key, after + 1, "+inf", start=0, num=limit)
            with client.pipeline(transaction=False) as pipeline:
                for number in numbers:
                    pipeline.xrange(EVENTS, _id(int(number)), _id(int(number)))
                return [_row(found[0]) for found in pipeline.execute() if found]

    def delete_user(self, user_key: bytes) -> int:
        """As :meth:`EventStore.delete_user`."""
        n_deleted = 0
        while rows := self.rows_of(user_key, after=0, limit=PAGE):
            n_deleted += self._delete(rows)
        return n_deleted

    def delete_before(self, received: int) -> int:
        """As :meth:`EventStore.delete_before`."""
        rows = [row for row in self._page(0) if row.received < received]
        return self._delete(rows) if rows else 0

    def cursor(self, name: str) -> int:
        """As :meth:`EventStore.cursor`."""
        with self._database.use() as client:
            return int(client.hget(CURSORS, name) or 0)

    def move_cursor(self, name: str, seq: int) -> None:
        """As :meth:`EventStore.move_cursor`."""
        with self._database.use() as client:
            client.hset(CURSORS, name, seq)

    def put_items(self, items: Sequence[tuple[str, bytes]]) -> None:
        """As :meth:`EventStore.put_items`."""
        with self._database.use():
            self._put_items(keys=(ITEMS, ITEM_ORDER, LAST), args=[part for item in items for part in item])

    def forget_items(self, item_ids: Sequence[str]) -> None:
        """As :meth:`EventStore.forget_items`."""
        with self._database.use() as client, client.pipeline() as pipeline:
            for item_id in item_ids:
                pipeline.hdel(ITEMS, item_id)
                pipeline.zrem(ITEM_ORDER, item_id)
            pipeline.execute()

    def items(self, after: int) -> list[tuple[int, str, bytes]]:
        """As :meth:`EventStore.items`."""
        with self._database.use() as client:
            ordered = client.zrangebyscore(ITEM_ORDER, f"({after}", "+inf", withscores=True)
            bodies = client.hmget(ITEMS, [item_id for item_id, _ in ordered]) if ordered else []
        return [
            (int(seq), item_id.decode(), body) for (item_id, seq), body in zip(ordered, bodies, strict=True)
        ]

    def close(self) -> None:
        """Closes the connection."""
        self._database.close()

    def _page(self, after: int) -> list[Row]:
        with self._database.use() as client:
            return [_row(entry) for entry in client.xrange(EVENTS, _id(after + 1), "+", count=PAGE)]

    def _delete(self, rows: Sequence[Row]) -> int:
        with self._database.use() as client, client.pipeline() as pipeline:
            pipeline.xdel(EVENTS, *(_id(row.seq) for row in rows))
            pipeline.hdel(BY_EVENT, *(row.event_key for row in rows))
            for row in rows:
                pipeline.zrem(BY_USER + row.user_key, row.seq)
            return int(pipeline.execute()[0])


class RedisKeys:
    """Keys in a hash; methods as those of :class:`~recserve.engine.state.store.KeyTable`."""

    name = "Redis"

    def __init__(self, database: RedisDatabase) -> None:
        self._database = database
        with database.use() as client:
            scripts = map(client.register_script, (ADD_KEYS, REPLACE_KEYS, ERASE))
            self._add, self._replace, self._erase = scripts

    def get(self, name: bytes) -> tuple[str, bytes] | None:
        """As :meth:`KeyTable.get`."""
        with self._database.use() as client:
            found = client.hget(KEYS, name)
        return None if found is None else _parts(found)

    def add(self, keys: Sequence[KeyRow]) -> bool:
        """As :meth:`KeyTable.add`."""
        with self._database.use():
            return bool(self._add(keys=(KEYS, ERASED), args=_fields(keys)))

    def replace(self, keys: Iterable[KeyRow]) -> None:
        """As :meth:`KeyTable.replace`."""
        with self._database.use():
            self._replace(keys=(KEYS,), args=_fields(keys))

    def closed_by_others(self, master: str) -> Iterator[list[KeyRow]]:
        """As :meth:`KeyTable.closed_by_others`."""
        cursor = -1
        while cursor != 0:
            with self._database.use() as client:
                cursor, found = client.hscan(KEYS, max(cursor, 0), count=PAGE)
            rows = [(name, *_parts(value)) for name, value in found.items()]
            yield [row for row in rows if row[1] != master]

    def erase(self, user_key: bytes) -> None:
        """As :meth:`KeyTable.erase`."""
        with self._database.use():
            self._erase(keys=(KEYS, ERASED, UNFINISHED), args=(user_key,))

    def erasures(self, after: int) -> list[tuple[int, bytes]]:
        """As :meth:`KeyTable.erasures`."""
        with self._database.use() as client:
            found = client.zrangebyscore(ERASED, after + 1, "+inf", withscores=True)
        return [(int(number), user_key) for user_key, number in found]

    def unfinished_erasures(self) -> list[bytes]:
        """As :meth:`KeyTable.unfinished_erasures`."""
        with self._database.use() as client:
            return list(client.smembers(UNFINISHED))

    def finish_erasure(self, user_key: bytes) -> None:
        """As :meth:`KeyTable.finish_erasure`."""
        with self._database.use() as client:
            client.srem(UNFINISHED, user_key)

    def close(self) -> None:
        """Closes the connection."""
        self._database.close()


def _id(seq: int) -> str:
    return f"{seq}-0"


def _row(entry: tuple[bytes, dict[bytes, bytes]]) -> Row:
    number, fields = entry
    return Row(
        int(number.partition(b"-")[0]),
        fields[b"event"],
        fields[b"user"],
        int(fields[b"received"]),
        fields[b"body"],
    )


def _fields(keys: Iterable[KeyRow]) -> list[bytes]:
    return [field for name, master, closed in keys for field in (name, _value(master, closed))]


def _value(master: str, closed: bytes) -> bytes:
    return master.encode() + b" " + closed


def _parts(value: bytes) -> tuple[str, bytes]:
    master, _, closed = value.partition(b" ")
    return master.decode(), closed
