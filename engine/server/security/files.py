"""Files that security hangs on: noticing that they changed."""

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
