"""The log on a disk whose power fails at any sync, or whose syncs fail.

A VFS of SQLite's notes every write and sync. What was written since a file's last sync may be there after a
power failure, or not, or in parts: of each such moment several images are made and opened.
"""

import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from recserve.engine.state import database, row_index
from recserve.engine.state.config import StateConfig
from recserve.engine.state.events import Event
from recserve.engine.state.state import State, open_state, read_log
from recserve.errors import StorageFailed

apsw = pytest.importorskip("apsw")
pytest.importorskip("cryptography")

NAME, SYSTEM = "power-loss", "unix"
SECTOR = 512
# Without shared memory, which a VFS in Python has not; checkpoints and steps of the index often.
WRITING = ("locking_mode=EXCLUSIVE", "journal_mode=WAL", "wal_autocheckpoint=20")


class Disk(apsw.VFS):  # type: ignore[misc]
    """Knows of the files in ``folder`` what is surely on the disk, and what may be."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.durable: dict[str, bytearray] = {}
        # Since the last sync of a file: (offset, bytes), or (size, None) for one that was cut.
        self.pending: dict[str, list[tuple[int, bytes | None]]] = {}
        self.n_syncs = self.fails_at = 0
        super().__init__(NAME, base=SYSTEM)

    def xOpen(self, name: Any, flags: list[int]) -> "File":
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        return File(self, path or "", name, flags)

    def xDelete(self, path: str, sync_folder: bool) -> None:
        super().xDelete(path, sync_folder)
        self.durable.pop(path, None)
        self.pending.pop(path, None)

    def at_sync(self) -> None:
        """Called before a sync does anything."""

    def note(self, path: str, offset: int, data: bytes | None) -> None:
        """Notes a write, or a cut."""
        if Path(path).parent == self.folder:
            self.pending.setdefault(path, []).append((offset, data))
            self.durable.setdefault(path, bytearray())

    def sync(self, path: str) -> None:
        """Lets everything that was written to a file be on the disk."""
        for offset, data in self.pending.pop(path, []):
            _apply(self.durable[path], offset, data)

    def image(self, target: Path, rng: random.Random, kept: float) -> None:
        """Writes what may be there after a power failure: each unsynced write by chance, some torn."""
        target.mkdir()
        for path, durable in self.durable.items():
            content = bytearray(durable)
            for offset, data in self.pending.get(path, []):
                if rng.random() < kept:
                    torn = data is not None and rng.random() < 0.3
                    _apply(
                        content,
                        offset,
                        data[: rng.randrange(0, len(data), SECTOR)] if torn and data else data,
                    )
            (target / Path(path).name).write_bytes(content)


class File(apsw.VFSFile):  # type: ignore[misc]
    """A file of such a disk."""

    def __init__(self, disk: Disk, path: str, name: Any, flags: list[int]) -> None:
        self.disk, self.path = disk, path
        super().__init__(SYSTEM, name, flags)

    def xWrite(self, data: bytes, offset: int) -> None:
        super().xWrite(data, offset)
        self.disk.note(self.path, offset, bytes(data))

    def xTruncate(self, size: int) -> None:
        super().xTruncate(size)
        self.disk.note(self.path, size, None)

    def xSync(self, flags: int) -> None:
        if Path(self.path).parent == self.disk.folder:
            self.disk.n_syncs += 1
            if self.disk.n_syncs == self.disk.fails_at:
                raise apsw.IOError("sync")
            self.disk.at_sync()
        super().xSync(flags)
        self.disk.sync(self.path)


def _apply(content: bytearray, offset: int, data: bytes | None) -> None:
    if data is None:
        del content[offset:]
    else:
        content.extend(bytes(max(0, offset - len(content))))
        content[offset : offset + len(data)] = data


@contextmanager
def disk_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    monkeypatch.setattr(database, "WRITING", WRITING)
    monkeypatch.setattr(row_index, "MAX_RECENT", 16)
    folder.mkdir()
    disk = Disk(folder)
    try:
        yield disk
    finally:
        disk.unregister()


def opened(config: StateConfig) -> State:
    """Opens a log on the disk; images of it are on the system's."""
    apsw.set_default_vfs(NAME)
    try:
        state = open_state(config)
    finally:
        apsw.set_default_vfs(SYSTEM)
    state.load()
    return state


def batches(n: int, rng: random.Random) -> Iterator[list[Event]]:
    number = 0
    for _ in range(n):
        size = rng.choice((1, 3, 40))
        yield [
            Event(user_id=f"u{i % 9}", item_id=f"i{i}", event_id=f"e{i}", timestamp=1_750_000_000)
            for i in range(number, number + size)
        ]
        number += size


def check(folder: Path, acknowledged: list[str], sent: list[str]) -> None:
    """Every acknowledged event is in the log, in order, nothing that was not sent, and no page is damaged."""
    found = [one.event.event_id for one in read_log(StateConfig(url=f"sqlite:///{folder}/events"))]
    assert found[: len(acknowledged)] == acknowledged
    assert found == sent[: len(found)]
    with apsw.Connection(str(folder / "events")) as connection:
        assert connection.execute("PRAGMA integrity_check").get == "ok"


def fail_at_every_sync(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, n_batches: int = 10, seed: int = 5
) -> int:
    """Records batches in a new log and looks at images of every sync; returns how many images."""
    rng, n_images = random.Random(seed), 0
    folder.mkdir(exist_ok=True)
    with disk_of(folder / "disk", monkeypatch) as disk:
        config = StateConfig(url=f"sqlite:///{disk.folder}/events")
        acknowledged: list[str] = []
        sent: list[str] = []

        def look() -> None:
            nonlocal n_images
            # None of the unsynced writes, all of them, some of them.
            for kept in (0.0, 1.0, 0.5):
                target = folder / "image"
                disk.image(target, rng, kept)
                shutil.copy(config.master_file, target / "events.master")
                check(target, acknowledged, sent)
                shutil.rmtree(target)
                n_images += 1

        with opened(config) as state:
            disk.at_sync = look  # type: ignore[method-assign]
            for batch in batches(n_batches, rng):
                sent += [event.event_id for event in batch]
                assert state.record(batch).n_stored == len(batch)
                acknowledged[:] = sent
            disk.at_sync = lambda: None  # type: ignore[method-assign]
    return n_images


def test_a_power_failure_loses_nothing_acknowledged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fail_at_every_sync(tmp_path, monkeypatch) > 30


@pytest.mark.slow
def test_ten_thousand_power_failures_lose_nothing_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Many logs, a minute of processor time: each image is read as a whole, a long log would take hours.
    n_images = seed = 0
    while n_images <= 10_000:
        folder = tmp_path / str(seed)
        found = fail_at_every_sync(folder, monkeypatch, n_batches=30, seed=seed)
        # One log more adds images, or the loop would never end.
        assert found > 100
        n_images, seed = n_images + found, seed + 1
        shutil.rmtree(folder)


@pytest.mark.parametrize("fails_at", [1, 2, 3, 5, 8])
def test_a_sync_that_fails_acknowledges_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    with disk_of(tmp_path / "disk", monkeypatch) as disk:
        config = StateConfig(url=f"sqlite:///{disk.folder}/events")
        acknowledged: list[str] = []
        sent: list[str] = []
        with opened(config) as state:
            disk.fails_at = disk.n_syncs + fails_at
            failure = None
            for batch in batches(30, random.Random(5)):
                sent += [event.event_id for event in batch]
                try:
                    state.record(batch)
                except StorageFailed as error:
                    failure = error
                    break
                acknowledged[:] = sent
            assert failure is not None
            with pytest.raises(StorageFailed):
                state.record([Event(user_id="u", item_id="i", event_id="later", timestamp=1)])
        check(disk.folder, acknowledged, sent)
