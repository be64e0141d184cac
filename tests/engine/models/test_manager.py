"""Operations on a real repository with real engines: what they change, and what a failure leaves alone."""

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from recserve.engine import Request
from recserve.engine.config import EngineConfig
from recserve.engine.engine import Engine
from recserve.engine.models.guard import Breach
from recserve.engine.models.manager import ModelManager
from recserve.engine.models.registry import Registry
from recserve.engine.models.repository import FoundBundle, Repository
from recserve.engine.models.routing import Arm, Route, Shadow
from recserve.engine.models.states import State
from recserve.engine.server.models import EngineLoader
from recserve.errors import BundleInvalid, BundleReason, ConfigError, Conflict, InvalidRequest, UnknownModel
from tests.engine.models.conftest import MODEL
from tests.engine.models.versions import flip_bit, is_of, make_version

GRAPH = "variants/fp32/query_encoder.onnx"


def new_manager(folder: Path, load: Callable[[FoundBundle], Engine] | None = None) -> ModelManager:
    return ModelManager(Repository(folder), Registry(), load or EngineLoader(EngineConfig()))


def started(folder: Path, load: Callable[[FoundBundle], Engine] | None = None) -> ModelManager:
    manager = new_manager(folder, load)
    manager.start()
    return manager


def answering(manager: ModelManager) -> str:
    """Asks one request; returns the version that answered, whose items must be its own."""
    with manager.registry.lease() as lease:
        slate = lease.engine().recommend(Request(k=5))
    assert is_of(slate.bundle_version, [item.item_id for item in slate.items])
    return slate.bundle_version


def states(manager: ModelManager) -> dict[str, State]:
    [model] = manager.models()
    return {entry.version: entry.state for entry in model.versions}


def test_a_swap_and_the_way_back_survive_a_restart(repository_folder: Path) -> None:
    manager = started(repository_folder)
    assert answering(manager) == "v2", "without a pointer file the newest answers"
    manager.activate(MODEL, "v1")
    assert answering(manager) == "v1"
    assert states(manager) == {"v1": State.ACTIVE, "v2": State.UNLOADED}
    assert answering(started(repository_folder)) == "v1"
    manager.rollback(MODEL)
    assert answering(manager) == answering(started(repository_folder)) == "v2"
    with pytest.raises(Conflict, match="at its first route"):
        manager.rollback(MODEL)


def test_loading_gives_no_callers(repository_folder: Path) -> None:
    manager = started(repository_folder)
    assert manager.load(MODEL, "v1").state is State.READY
    assert answering(manager) == "v2"
    assert manager.load(MODEL, "v2").state is State.ACTIVE
    manager.unload(MODEL, "v1")
    assert states(manager) == {"v1": State.UNLOADED, "v2": State.ACTIVE}
    with pytest.raises(Conflict, match="Activate another one first"):
        manager.unload(MODEL, "v2")
    manager.unload(MODEL)
    assert manager.registry.engines() == []
    with pytest.raises(UnknownModel):
        manager.rollback(MODEL)
    manager.activate(MODEL)
    assert answering(manager) == "v2"


BROKEN = {
    BundleReason.FILE_DIGEST: lambda folder: flip_bit(folder / GRAPH),
    BundleReason.FILE_MISSING: lambda folder: (folder / "popularity.npy").unlink(),
    BundleReason.FILE_UNLISTED: lambda folder: (folder / "extra").write_text("x"),
    BundleReason.FILE_NOT_PLAIN: lambda folder: [
        (folder / "items.arrow").rename(folder.parent / "moved"),
        (folder / "items.arrow").symlink_to(folder.parent / "moved"),
    ],
}


@pytest.mark.parametrize("reason", BROKEN)
def test_a_broken_bundle_never_replaces_a_good_one(repository_folder: Path, reason: BundleReason) -> None:
    manager = started(repository_folder)
    manager.activate(MODEL, "v1")
    pointer = (repository_folder / "active.json").read_bytes()
    BROKEN[reason](repository_folder / MODEL / "v2")
    for change in (
        lambda: manager.activate(MODEL, "v2"),
        lambda: manager.load(MODEL, "v2"),
        lambda: manager.shadow(MODEL, Shadow(version="v2")),
        lambda: manager.split(MODEL, Route(arms=(Arm(name="a", version="v1"), Arm(name="b", version="v2")))),
        lambda: manager.rollback(MODEL),
    ):
        with pytest.raises(BundleInvalid):
            change()
        assert answering(manager) == "v1"
    [model] = manager.models()
    [failed] = [entry for entry in model.versions if entry.state is State.FAILED]
    assert (failed.version, failed.reason) == ("v2", str(reason))
    assert failed.message
    assert (repository_folder / "active.json").read_bytes() == pointer
    assert [engine.manifest.bundle_version for engine in manager.registry.engines()] == ["v1"]


def test_a_pointer_to_what_broke_since_falls_back_to_the_one_before(repository_folder: Path) -> None:
    manager = started(repository_folder)
    manager.activate(MODEL, "v1")
    manager.activate(MODEL, "v2")
    flip_bit(repository_folder / MODEL / "v2" / GRAPH)
    assert answering(started(repository_folder)) == "v1"
    flip_bit(repository_folder / MODEL / "v1" / GRAPH)
    with pytest.raises(BundleInvalid):
        started(repository_folder)


def test_a_pointer_that_cannot_be_written_leaves_the_old_version(
    repository_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = started(repository_folder)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space left"):
        manager.activate(MODEL, "v1")
    monkeypatch.undo()
    assert answering(manager) == answering(started(repository_folder)) == "v2"
    assert states(manager)["v1"] is State.UNLOADED, "loaded for nothing, and kept"
    assert not list(repository_folder.glob(".*.tmp"))


@pytest.mark.parametrize(
    ("error", "reason"), [(MemoryError(), "OUT_OF_MEMORY"), (RuntimeError("secret path"), "INTERNAL")]
)
def test_what_a_load_raises_is_told_as_a_reason(
    repository_folder: Path, error: Exception, reason: str
) -> None:
    load = EngineLoader(EngineConfig())

    def fails_for_v1(bundle: FoundBundle) -> Engine:
        if bundle.version == "v1":
            raise error
        return load(bundle)

    manager = started(repository_folder, fails_for_v1)
    with pytest.raises(Exception):  # noqa: B017, PT011 - of any kind: the status below is what counts
        manager.activate(MODEL, "v1")
    [model] = manager.models()
    [failed] = [entry for entry in model.versions if entry.state is State.FAILED]
    assert failed.reason == reason
    assert "secret" not in failed.message
    assert answering(manager) == "v2"


def test_of_two_changes_at_once_one_is_refused(repository_folder: Path) -> None:
    load = EngineLoader(EngineConfig())
    entered, go_on = threading.Event(), threading.Event()

    def slow_for_v1(bundle: FoundBundle) -> Engine:
        if bundle.version == "v1":
            entered.set()
            assert go_on.wait(60)
        return load(bundle)

    manager = started(repository_folder, slow_for_v1)
    first = threading.Thread(target=manager.activate, args=(MODEL, "v1"))
    first.start()
    assert entered.wait(60)
    assert states(manager)["v1"] is State.LOADING
    for change in (manager.activate, manager.load, manager.rollback, manager.unload):
        with pytest.raises(Conflict, match="being changed"):
            change(MODEL)
    assert answering(manager) == "v2", "a load in the background must not hold anybody"
    go_on.set()
    first.join()
    assert answering(manager) == "v1"


def test_observed_events_survive_a_swap(repository_folder: Path, versions_folder: Path) -> None:
    # Two versions of one catalogue, in which the same item has another index.
    for day, version in ((10, "a"), (11, "b")):
        make_version(versions_folder / "v1", repository_folder / "other" / version, "same", day=day)
        manifest = repository_folder / "other" / version / "manifest.json"
        manifest.write_text(
            json.dumps({**json.loads(manifest.read_text()), "bundle_version": version}), encoding="utf-8"
        )
    shutil.rmtree(repository_folder / MODEL)
    manager = started(repository_folder)
    with manager.registry.lease() as lease:
        [first, *_] = lease.engine().recommend(Request(k=1)).items
        assert lease.engine().observe(user_id="newcomer", item_id=first.item_id)
    manager.activate("other", "a")
    with manager.registry.lease() as lease:
        assert lease.engine().manifest.bundle_version == "a"
        assert lease.engine().history("newcomer") == [first.item_id]


def test_events_of_items_that_the_next_version_lacks_are_left_out(repository_folder: Path) -> None:
    manager = started(repository_folder)
    with manager.registry.lease() as lease:
        [item, *_] = lease.engine().recommend(Request(k=1)).items
        lease.engine().observe(user_id="newcomer", item_id=item.item_id)
    manager.activate(MODEL, "v1")
    with manager.registry.lease() as lease:
        assert lease.engine().history("newcomer") == []
        assert lease.engine().recommend(Request(user_id="newcomer")).source == "popularity"


def test_another_process_follows_the_pointer(repository_folder: Path) -> None:
    ours, theirs = started(repository_folder), started(repository_folder)
    ours.activate(MODEL, "v1")
    theirs.follow()
    assert answering(theirs) == "v1"
    generation = theirs.repository.read_desired().generation
    theirs.follow()
    assert theirs.repository.read_desired().generation == generation, "following is not changing"


def test_an_automatic_rollback_is_written_down(repository_folder: Path) -> None:
    manager = started(repository_folder)
    manager.load(MODEL, "v1")
    arms = (Arm(name="old", version="v2"), Arm(name="new", version="v1", weight=0.5))
    manager.split(MODEL, Route(arms=arms))
    current = manager.registry.current(MODEL)
    assert current is not None
    manager.registry.set_route(MODEL, current.route.baseline_only(), instead_of=current)
    manager.rolled_back(MODEL, Breach("new", "error_rate", 1.0, 0.01))
    manager.follow()
    [arm] = manager.repository.read_desired().models[MODEL].route.arms
    assert arm.version == "v2"
    assert states(manager)["v1"] is State.UNLOADED
    assert answering(started(repository_folder)) == "v2"


@pytest.mark.parametrize("text", ["{", "[]", '{"generation": 1, "modles": {}}', '{"generation": "x"}'])
def test_a_pointer_file_that_somebody_broke_is_said(repository_folder: Path, text: str) -> None:
    (repository_folder / "active.json").write_text(text)
    with pytest.raises(ConfigError, match=r"active\.json"):
        started(repository_folder)


def test_what_is_not_there_is_said(repository_folder: Path, tmp_path: Path) -> None:
    manager = started(repository_folder)
    for model, version in ((MODEL, "v9"), ("shup", ""), ("shup", "v1")):
        with pytest.raises(UnknownModel):
            manager.activate(model, version)
    for name in ("../shop", "", "a/b", ".hidden", "a\0b"):
        with pytest.raises(InvalidRequest, match="model is"):
            manager.load(name, "v1")
    with pytest.raises(UnknownModel, match="variant of v1"):
        manager.activate(MODEL, "v1", variant="int3")
    assert states(manager)["v1"] is State.UNLOADED
    with pytest.raises(ConfigError, match="not a writable folder"):
        Repository(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="empty"):
        started(tmp_path / "empty")


def test_the_sweep_takes_what_the_dead_left(repository_folder: Path) -> None:
    repository = Repository(repository_folder)
    (repository_folder / ".staging" / "orphan").mkdir(parents=True)
    (repository_folder / ".staging" / "orphan" / "file").touch()
    with repository.staging() as alive:
        assert Repository(repository_folder).sweep() == 1
        assert alive.is_dir()
    assert list((repository_folder / ".staging").iterdir()) == []
