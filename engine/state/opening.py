"""Where a log and its keys lie, opened by URL."""

import fcntl
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import structlog

from recserve.engine.state.config import StateConfig
from recserve.engine.state.items import unpack_change
from recserve.engine.state.keys import KeyStore
from recserve.engine.state.master import ENVIRONMENT, MasterKeys, add_key, new_line, parse, read_master_keys
from recserve.engine.state.postgres_store import PostgresDatabase, PostgresKeys, PostgresStore
from recserve.engine.state.redis_store import RedisDatabase, RedisKeys, RedisStore
from recserve.engine.state.sqlite_store import SqliteKeys, SqliteStore
from recserve.engine.state.store import EventStore, KeyTable
from recserve.errors import ConfigError

log = structlog.get_logger("recserve.state")

MEMORY = ":memory:"
LOOK_SECONDS = 0.02


class Places(NamedTuple):
    """An opened log. ``lock``: the descriptor that keeps other processes away, where they must be."""

    lock: int | None
    store: EventStore
    keys: KeyStore


def open_places(
    config: StateConfig,
    *,
    read_only: bool = False,
    lock_seconds: float = 0.0,
    give_way: Callable[[], None] | None = None,
) -> Places:
    """Opens what ``config.url`` names; ``read_only``: beside the servers that write.

    ``lock_seconds``: how long another process may go on with a file. ``give_way`` is called often by whatever
    of it computes in this process. Raises :class:`ConfigError` when it
    cannot be used, :class:`Unavailable` when nobody answers there.
    """
    with ExitStack() as opened:
        lock = None
        if config.path and not read_only:
            lock = _lock(Path(f"{config.path}.lock"), lock_seconds)
            opened.callback(os.close, lock)
        read_masters = _masters(config, may_make=not read_only)
        store, table = _open_tables(config, read_only, give_way)
        opened.callback(store.close)
        opened.callback(table.close)
        places = Places(lock, store, KeyStore(table, read_masters, read_only=read_only))
        # Nothing failed: all of it stays open.
        opened.pop_all()
    return places


def pseudonyms(config: StateConfig, user_ids: Sequence[str]) -> list[str]:
    """Returns what stands for users in a log, as events read from it have it; also beside a server."""
    _, store, keys = open_places(config, read_only=True)
    try:
        return [keys.user_key(user_id).hex() for user_id in user_ids]
    finally:
        store.close()
        keys.close()


def prune_items(config: StateConfig, is_in_bundle: Callable[[str], bool]) -> int:
    """Forgets items that a bundle brings by now; returns how many. Those that are gone stay gone.

    Raises what :func:`open_places` does: a file must be nobody's. Servers of a shared log forget at their
    next start.
    """
    places = open_places(config)
    with ExitStack() as opened:
        if places.lock is not None:
            opened.callback(os.close, places.lock)
        opened.callback(places.keys.close)
        opened.callback(places.store.close)
        changes = [unpack_change(item_id, body) for _, item_id, body in places.store.items(0)]
        brought = [one.item_id for one in changes if one.is_served and is_in_bundle(one.item_id)]
        places.store.forget_items(brought)
    return len(brought)


def _open_tables(
    config: StateConfig, read_only: bool, give_way: Callable[[], None] | None
) -> tuple[EventStore, KeyTable]:
    if config.scheme == "postgresql":
        postgres = PostgresDatabase(config.url, durability=config.durability, read_only=read_only)
        return PostgresStore(postgres), PostgresKeys(postgres)
    if config.is_shared:
        redis = RedisDatabase(config.url)
        return RedisStore(redis), RedisKeys(redis)
    durability = "memory" if config.is_memory else config.durability
    table = SqliteKeys(_keys_file(config), durability=durability, read_only=read_only)
    path = config.path or MEMORY
    return SqliteStore(path, durability=durability, read_only=read_only, give_way=give_way), table


def _masters(config: StateConfig, *, may_make: bool) -> Callable[[], MasterKeys]:
    """Returns what reads the master keys; they are there, made now where that is right."""
    if config.is_memory:
        masters = parse(new_line(), "fresh key")
        return lambda: masters
    file = config.master_file
    if config.key_file is None and ENVIRONMENT not in os.environ:
        if config.is_shared:
            raise ConfigError(
                "state.key_file",
                found="not set",
                expected=f"a file with a master key, the same for every server, or {ENVIRONMENT}",
            )
        if may_make and not file.exists():
            _make_master(file, Path(_keys_file(config)))
    read_master_keys(file)
    return lambda: read_master_keys(file)


def _make_master(file: Path, keys_file: Path) -> None:
    # Only where no key closes anything yet: a lost key must be noticed, not replaced.
    if keys_file.exists():
        raise ConfigError(
            f"key file {file}", found="missing", expected="the keys of this log", cure="Bring it back."
        )
    add_key(file)
    log.info("made a master key: keep a copy in a safe place", file=str(file))


def _keys_file(config: StateConfig) -> str:
    return f"{config.path}.keys" if config.path else MEMORY


def _lock(path: Path, seconds: float) -> int:
    """Returns the descriptor of a lock on the log; raises :class:`ConfigError` when another has it."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(
            "state.url", found=f"in a folder that is not writable ({error.strerror})", expected="writable"
        ) from error
    until = time.monotonic() + seconds
    while not _is_taken(descriptor):
        if time.monotonic() >= until:
            owner = os.pread(descriptor, 20, 0).decode(errors="replace")
            os.close(descriptor)
            raise ConfigError(
                f"event log {path.with_suffix('')}",
                found=f"in use by process {owner}",
                expected="used by one server",
            )
        time.sleep(LOOK_SECONDS)
    os.truncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    return descriptor


def _is_taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
