"""What the server does before its memory runs out: the kernel would kill it in the middle of its requests.

Near the limit what is kept to save time goes first, then new calls are refused, and at last the server ends
as SIGTERM ends it, to be started again by whoever watches it.
"""

import enum
import threading
from collections.abc import Callable
from pathlib import Path

import structlog

log = structlog.get_logger("recserve.server")

CHECK_SECONDS = 0.25
REMIND_LOOKS = 40  # what was dropped fills up again: a level that lasts is told again
_STATUS = Path("/proc/self/status")
_CGROUP = Path("/sys/fs/cgroup")


class Pressure(enum.IntEnum):
    """How near the limit is; each does what those below it do."""

    NONE = 0
    DROP = 1
    """What is kept to save time is dropped."""
    REFUSE = 2
    """New calls are refused, those to health and admin methods are not."""
    RESTART = 3
    """The server finishes what it has admitted and ends."""


# Shares of the limit: shrink, refuse, restart (Envoy's overload manager shrinks at 95 % of its heap; Python
# gives memory back late, so we begin earlier). The second of each pair is where the level ends again.
LEVELS = {Pressure.DROP: (0.80, 0.75), Pressure.REFUSE: (0.90, 0.85), Pressure.RESTART: (0.95, 0.95)}


def pressure(used: int, limit: int, before: Pressure) -> Pressure:
    """The level of ``used`` bytes of ``limit``: a level begins at its share and ends below another. Pure."""
    level = Pressure.NONE
    for one, (begins, ends) in LEVELS.items():
        if used >= (ends if before >= one else begins) * limit:
            level = one
    return level


def used_bytes() -> int:
    """The memory of this process that can't be dropped: that of its own, and what it shares by tmpfs.

    Pages of mapped files (a bundle's vectors) are left out: the kernel takes those back by itself.
    """
    fields = dict(
        line.split(":", 1) for line in _STATUS.read_text(encoding="ascii").splitlines() if ":" in line
    )
    return sum(int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "RssShmem"))


def container_limit(folder: Path = _CGROUP) -> int | None:
    """The bytes that the control group of this process may have (version 2); None: as many as there are."""
    try:
        text = (folder / "memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return None
    return None if text == "max" else int(text)


class MemoryGuard:
    """Looks four times a second, on a thread of its own, and tells ``on_pressure`` of every change."""

    def __init__(
        self,
        limit: int,
        on_pressure: Callable[[Pressure], None],
        *,
        used: Callable[[], int] = used_bytes,
    ) -> None:
        """``limit``: bytes."""
        self.limit = limit
        self._on_pressure = on_pressure
        self._used = used
        self._level = Pressure.NONE
        self._n_looks = 0
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="recserve-memory", daemon=True)

    def start(self) -> None:
        """Begins to look."""
        self._thread.start()

    def look(self) -> None:
        """Looks once."""
        used = self._used()
        level = pressure(used, self.limit, self._level)
        self._n_looks += 1
        if level is self._level and (level is Pressure.NONE or self._n_looks % REMIND_LOOKS):
            return
        log.warning("memory", level=level.name, used_bytes=used, limit_bytes=self.limit)
        self._level = level
        self._on_pressure(level)

    def close(self) -> None:
        """Looks no more."""
        self._closed.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _watch(self) -> None:
        while not self._closed.wait(CHECK_SECONDS):
            try:
                self.look()
            except Exception:
                # Whatever one look meets: who stops looking is killed by the kernel one day.
                log.exception("memory guard failed")
