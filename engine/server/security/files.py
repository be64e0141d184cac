"""Files that security hangs on: who may read or change them, and noticing that they changed."""

import os
import stat
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import structlog

from recserve.errors import ConfigError

log = structlog.get_logger("recserve.server")

T = TypeVar("T")

# A revoked key is refused within this time.
CHECK_SECONDS = 1.0
OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH
OTHERS_MAY_ANYTHING = stat.S_IRWXG | stat.S_IRWXO
# What root hands to the group of a service (a mounted secret): reading, nothing else.
MORE_THAN_GROUP_MAY_READ = stat.S_IWGRP | stat.S_IXGRP | stat.S_IRWXO


def check_secret(path: Path, name: str) -> None:
    """Raises :class:`ConfigError` when someone else than its owner may read the file.

    The rule is PostgreSQL's for keys: ours with mode 0600 or less, or root's with 0640 or less.
    """
    status = _status(path, name)
    mine = status.st_uid == os.geteuid()
    if (not mine and status.st_uid != 0) or status.st_mode & (
        OTHERS_MAY_ANYTHING if mine else MORE_THAN_GROUP_MAY_READ
    ):
        raise ConfigError(
            f"{name} {path}",
            found=f"mode {stat.S_IMODE(status.st_mode):04o} of user {status.st_uid}",
            expected="readable by its owner only",
            cure=f"Run: chmod 600 {path}",
        )


def check_trusted(path: Path, name: str) -> None:
    """Raises :class:`ConfigError` when someone else than its owner may change the file."""
    status = _status(path, name)
    if status.st_uid not in (os.geteuid(), 0) or status.st_mode & OTHERS_MAY_WRITE:
        raise ConfigError(
            f"{name} {path}",
            found=f"mode {stat.S_IMODE(status.st_mode):04o} of user {status.st_uid}",
            expected="writable by its owner only",
            cure=f"Run: chmod go-w {path}",
        )


def read_file(path: Path, name: str) -> bytes:
    """Returns the bytes of a file; raises :class:`ConfigError` when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{name} {path}", found=(error.strerror or "unreadable").lower(), expected="a readable file"
        ) from error


class Reloaded(Generic[T]):
    """What ``load`` makes of some files; made anew when they change, checked on use.

    The first load raises what ``load`` raises. Later the last good value stays, and the log says why.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        load: Callable[[], T],
        *,
        every_seconds: float = CHECK_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._paths = tuple(paths)
        self._load = load
        self._every_seconds = every_seconds
        self._clock = clock
        # Who holds it looks at the files; the others go on with what there is.
        self._looking = threading.Lock()
        self._stamp = self._read_stamp()
        self._value = load()
        self._next_check = clock() + every_seconds

    def get(self) -> T:
        """Returns the value of now; looks at the files at most every ``every_seconds``."""
        if self._clock() >= self._next_check and self._looking.acquire(blocking=False):
            try:
                self._next_check = self._clock() + self._every_seconds
                self._reload()
            finally:
                self._looking.release()
        return self._value

    def _reload(self) -> None:
        stamp = self._read_stamp()
        if stamp == self._stamp:
            return
        # Even when it fails: the log says it once, and the next change is a new try.
        self._stamp = stamp
        files = [str(path) for path in self._paths]
        try:
            self._value = self._load()
        except (ConfigError, OSError) as error:
            log.error("reload failed, the old content stays", files=files, error=str(error))
        else:
            log.info("reloaded", files=files)

    def _read_stamp(self) -> tuple[tuple[int, int, int], ...]:
        return tuple(_stamp(path) for path in self._paths)


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        status = path.stat()
    except OSError:
        return (0, 0, 0)
    return (status.st_mtime_ns, status.st_size, status.st_ino)


def _status(path: Path, name: str) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise ConfigError(
            f"{name} {path}", found=(error.strerror or "unreadable").lower(), expected="a readable file"
        ) from error
