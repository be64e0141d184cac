"""How the state's SQLite files are opened, and what their errors mean."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recserve.errors import ConfigError, StorageFailed, StorageFull

# Two connections to one write-ahead log may damage it in older versions.
MIN_SQLITE = (3, 51, 3)
SYNCHRONOUS = {"power": "FULL", "process": "NORMAL", "memory": "OFF"}
JOURNAL_BYTES = 64 << 20
# Pages of the write-ahead log (32 MB) that go into the file together: one that many commits wrote goes once.
CHECKPOINT_PAGES = 8000
WRITING = (
    "journal_mode=WAL",
    f"journal_size_limit={JOURNAL_BYTES}",
    f"wal_autocheckpoint={CHECKPOINT_PAGES}",
)
CACHE_KIB = 64 << 10
BUSY_MS = 5000
# Rows, or keys that are looked for, of one statement: SQLite runs without the interpreter meanwhile.
TOGETHER = 32
# Of the tables, in each file, the newest last: another one is refused.
FORMATS = (1,)


def import_apsw() -> Any:
    """Returns the module; raises :class:`ConfigError` where it, or cryptography, is missing or too old."""
    try:
        import apsw
        import cryptography  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "state.url",
            found="given without apsw and cryptography",
            expected="an installation with the extra [state]",
            cure="Run: pip install 'recserve[state]'",
        ) from error
    version = tuple(int(part) for part in apsw.sqlite_lib_version().split("."))
    if version < MIN_SQLITE:
        raise ConfigError(
            "SQLite of apsw",
            found=apsw.sqlite_lib_version(),
            expected=f"{'.'.join(map(str, MIN_SQLITE))} or newer",
        )
    return apsw


def open_database(
    path: str | Path,
    schema: str,
    probe: str,
    *,
    durability: str,
    read_only: bool = False,
    formats: Sequence[int] = FORMATS,
) -> Any:
    """Opens (makes) a file, or ":memory:"; raises :class:`ConfigError` when that is not possible.

    ``probe``: a query that the tables of this version answer. ``formats``: which they may have; a new file
    has the last one.
    """
    apsw = import_apsw()
    flags = apsw.SQLITE_OPEN_READONLY if read_only else apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
    try:
        database = apsw.Connection(str(path), flags=flags)
        database.set_busy_timeout(BUSY_MS)
        for pragma in (
            f"synchronous={SYNCHRONOUS[durability]}",
            f"cache_size=-{CACHE_KIB}",
            "cell_size_check=ON",
            "mmap_size=0",
            *(() if read_only else WRITING),
        ):
            database.execute(f"PRAGMA {pragma}").fetchall()
        if not read_only:
            database.execute(schema).fetchall()
        else:
            database.execute("SELECT count(*) FROM sqlite_schema").fetchall()
        _check_format(database, path, probe, formats, read_only=read_only)
    except apsw.Error as error:
        raise ConfigError(
            f"database {path}",
            found=f"not usable ({type(error).__name__})",
            expected="an SQLite file in a folder that can be written",
        ) from error
    return database


def _check_format(
    database: Any, path: str | Path, probe: str, formats: Sequence[int], *, read_only: bool
) -> None:
    apsw = import_apsw()
    ((found,),) = database.execute("PRAGMA user_version").fetchall()
    try:
        database.execute(probe).fetchall()
    except apsw.SQLError:
        found = "of an earlier recserve" if found in (0, *formats) else found
    if found not in (0, *formats):
        raise ConfigError(
            f"format of {path}",
            found=found,
            expected=str(formats[-1]),
            cure="Open it with the version of recserve that wrote it, or begin a new log.",
        )
    if found == 0 and not read_only:
        database.execute(f"PRAGMA user_version={formats[-1]}").fetchall()


def insert_all(database: Any, insert: str, rows: Sequence[tuple[Any, ...]]) -> None:
    """Inserts ``rows``, some together; ``insert``: the statement up to VALUES."""
    if not rows:
        return
    one = f"({', '.join('?' * len(rows[0]))})"
    n_together = len(rows) // TOGETHER * TOGETHER
    together = f"{insert} VALUES {', '.join([one] * TOGETHER)}"
    for start in range(0, n_together, TOGETHER):
        database.execute(together, [value for row in rows[start : start + TOGETHER] for value in row])
    database.executemany(f"{insert} VALUES {one}", rows[n_together:])


@contextmanager
def storage_errors() -> Iterator[None]:
    """Turns SQLite's errors into ours: a full disk may get better, anything else ends the log."""
    apsw = import_apsw()
    try:
        yield
    except apsw.FullError as error:
        raise StorageFull(
            "disk of the event log", found="full", expected="room", cure="Free some; nothing needs a restart."
        ) from error
    except apsw.Error as error:
        raise StorageFailed(
            "event log", found=f"failing ({type(error).__name__})", expected="writable"
        ) from error
