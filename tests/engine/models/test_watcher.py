"""The watcher's look, step by step, over folders and an object store in memory."""

import json
import shutil
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from recserve.engine.bundle.reader import MAX_MANIFEST_BYTES
from recserve.engine.bundle.signatures import MAX_SIGNATURES_BYTES
from recserve.engine.config import EngineConfig
from recserve.engine.models.config import RepositoryConfig
from recserve.engine.models.feeds import Feed, Place, open_feed
from recserve.engine.models.manager import ModelManager
from recserve.engine.models.registry import Registry
from recserve.engine.models.repository import Repository
from recserve.engine.models.routing import Arm, Route
from recserve.engine.models.states import State
from recserve.engine.models.watcher import Watcher
from recserve.engine.server.models import EngineLoader
from recserve.errors import BundleReason, ConfigError
from tests.engine.models.conftest import MODEL
from tests.engine.models.test_manager import answering, states
from tests.engine.models.versions import flip_bit, make_version


@pytest.fixture
def manager(repository_folder: Path) -> ModelManager:
    manager = ModelManager(Repository(repository_folder), Registry(), EngineLoader(EngineConfig()))
    manager.start()
    return manager


@pytest.fixture(params=["folder", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Where bundles are published: a folder, or a prefix of a store."""
    if request.param == "folder":
        yield str(tmp_path / "published")
    else:
        url = f"memory://{uuid.uuid4().hex}/models"
        yield url
        fsspec.filesystem("memory").rm(url.removeprefix("memory:/"), recursive=True)


def publish(bundle: Path, place: str, name: str, *, only: tuple[str, ...] = ()) -> None:
    """Copies a bundle, or some of its files, to ``place``."""
    for path in sorted(bundle.rglob("*")):
        key = str(path.relative_to(bundle))
        if path.is_file() and (not only or key in only):
            with fsspec.open(f"{place}/{MODEL}/{name}/{key}", "wb", auto_mkdir=True) as target:
                target.write(path.read_bytes())


def new_watcher(manager: ModelManager, source: str = "", **settings: object) -> Watcher:
    folder = str(manager.repository.folder)
    config = RepositoryConfig(folder=folder, source=source, **settings)  # type: ignore[arg-type]
    watcher = Watcher(manager, config, open_feed(source) if source else None)
    # What start() does before its thread.
    watcher._tried = watcher._own_files.list()
    return watcher


def test_a_published_bundle_is_fetched_checked_and_activated(
    manager: ModelManager, place: str, versions_folder: Path
) -> None:
    publish(versions_folder / "v3", place, "anything")
    new_watcher(manager, place).look()
    assert answering(manager) == "v3"
    assert (manager.repository.folder / MODEL / "v3" / "manifest.json").is_file()
    assert list((manager.repository.folder / ".staging").iterdir()) == []


def test_a_half_copied_bundle_waits_for_the_rest(
    manager: ModelManager, place: str, versions_folder: Path
) -> None:
    watcher = new_watcher(manager, place)
    publish(versions_folder / "v3", place, "x", only=("items.arrow",))
    watcher.look()
    publish(versions_folder / "v3", place, "x", only=("manifest.json",))
    watcher.look()
    assert answering(manager) == "v2"
    assert states(manager) == {"v1": State.UNLOADED, "v2": State.ACTIVE}
    publish(versions_folder / "v3", place, "x")
    watcher.look()
    assert answering(manager) == "v3"


def test_a_broken_bundle_is_refused_once_and_taken_when_repaired(
    manager: ModelManager, place: str, versions_folder: Path, tmp_path: Path
) -> None:
    broken = shutil.copytree(versions_folder / "v3", tmp_path / "broken")
    flip_bit(broken / "items.arrow")
    publish(broken, place, "x")
    watcher = new_watcher(manager, place)
    source = watcher._source
    assert source is not None
    copies = CountingFeed(source)
    watcher._source = copies
    watcher.look()
    n_copied = copies.n_copied
    assert n_copied
    assert answering(manager) == "v2"
    assert not (manager.repository.folder / MODEL / "v3").exists()
    watcher.look()
    assert copies.n_copied == n_copied, "copied again though nothing changed"
    (broken / "extra").touch()
    publish(versions_folder / "v3", place, "x")
    publish(broken, place, "x", only=("extra",))
    watcher.look()
    assert answering(manager) == "v3", "a file that the manifest does not name is not copied"


class CountingFeed:
    def __init__(self, source: Feed) -> None:
        self._source = source
        self.n_copied = 0
        self.largest: dict[str, int] = {}

    def list(self) -> dict[Place, str]:
        return self._source.list()

    def copy(self, place: Place, name: str, target: Path, max_bytes: int) -> None:
        self.n_copied += 1
        try:
            self._source.copy(place, name, target, max_bytes)
        finally:
            self.largest[name] = target.stat().st_size if target.exists() else 0


def test_a_bundle_dropped_into_the_repository_is_activated(
    manager: ModelManager, versions_folder: Path
) -> None:
    watcher = new_watcher(manager)
    shutil.copytree(versions_folder / "v3", manager.repository.folder / MODEL / "v3")
    watcher.look()
    assert answering(manager) == "v3"
    # Somebody goes back: the watcher does not know better.
    manager.rollback(MODEL)
    watcher.look()
    assert answering(manager) == "v2"


def test_what_does_not_take_over_by_itself(manager: ModelManager, versions_folder: Path) -> None:
    folder = manager.repository.folder / MODEL
    watcher = new_watcher(manager)
    make_version(versions_folder / "v1", folder / "older", "older", day=1)
    watcher.look()
    assert answering(manager) == "v2", "an older bundle took over"
    manager.split(MODEL, Route(arms=(Arm(name="a", version="v2"), Arm(name="b", version="v1"))))
    shutil.copytree(versions_folder / "v3", folder / "v3")
    watcher.look()
    assert manager.registry.routes() == {MODEL: ["v2", "v1"]}, "a running experiment was ended"
    asked = new_watcher(manager, activate_new=False)
    make_version(versions_folder / "v1", folder / "v4", "v4", day=9)
    asked.look()
    assert manager.registry.routes() == {MODEL: ["v2", "v1"]}


def test_a_source_that_is_away_changes_nothing(
    manager: ModelManager, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    watcher = new_watcher(manager, str(tmp_path / "published"))

    def away(self: object) -> dict[Place, str]:
        raise OSError("connection lost")

    monkeypatch.setattr(type(watcher._source), "list", away)
    watcher.look()
    assert answering(manager) == "v2"


def test_a_bundle_over_the_limit_is_not_copied(
    manager: ModelManager, place: str, versions_folder: Path
) -> None:
    publish(versions_folder / "v3", place, "x")
    new_watcher(manager, place, max_bundle_bytes=1000).look()
    assert answering(manager) == "v2"
    assert not (manager.repository.folder / MODEL / "v3").exists()


@pytest.mark.parametrize("name", ["items.arrow", "manifest.json", "signatures.json"])
def test_a_file_that_is_larger_than_promised_does_not_fill_the_disk(
    manager: ModelManager, place: str, versions_folder: Path, tmp_path: Path, name: str
) -> None:
    swollen = shutil.copytree(versions_folder / "v3", tmp_path / "swollen")
    with (swollen / name).open("ab") as file:
        file.truncate(20 << 20)
    publish(swollen, place, "x")
    watcher = new_watcher(manager, place)
    copies = CountingFeed(watcher._source)  # type: ignore[arg-type]
    watcher._source = copies
    watcher.look()
    assert answering(manager) == "v2"
    assert manager.repository.refusals.counts()[BundleReason.TOO_LARGE] == 1
    promised = json.loads((versions_folder / "v3" / "manifest.json").read_text())["files"]
    limits = {"manifest.json": MAX_MANIFEST_BYTES, "signatures.json": MAX_SIGNATURES_BYTES}
    limit = limits.get(name) or promised[name]["size_bytes"]
    # What was written before the refusal.
    assert copies.largest[name] <= limit


def test_the_thread_looks_until_it_is_closed(manager: ModelManager, versions_folder: Path) -> None:
    config = RepositoryConfig(folder=str(manager.repository.folder), poll_seconds=0.01)
    watcher = Watcher(manager, config)
    swapped = threading.Event()
    manager.registry._on_freed = lambda model, version: swapped.set()
    watcher.start()
    shutil.copytree(versions_folder / "v3", manager.repository.folder / ".v3")
    (manager.repository.folder / ".v3").rename(manager.repository.folder / MODEL / "v3")
    assert swapped.wait(60)
    assert answering(manager) == "v3"
    watcher.close()
    assert watcher._crew is not None
    assert watcher._crew.n_alive == 0


def test_urls_that_nobody_can_open() -> None:
    with pytest.raises(ConfigError, match=r"repository\.source"):
        open_feed("nosuch://bucket/prefix")
    with pytest.raises(ConfigError, match=r"repository\.folder"):
        RepositoryConfig(source="memory://x")
    with pytest.raises(ConfigError, match="poll_seconds"):
        RepositoryConfig(poll_seconds=0)
