"""A repository that requires signatures: what nobody trusted signed never answers, wherever it comes from."""

import shutil
from pathlib import Path

import pytest

from recserve.engine.bundle.reader import sign_bundle
from recserve.engine.bundle.signatures import SIGNATURES_NAME
from recserve.engine.bundle.signing_keys import SigningKey, create_key, read_signing_key
from recserve.engine.config import EngineConfig
from recserve.engine.models.config import RepositoryConfig
from recserve.engine.models.feeds import open_feed
from recserve.engine.models.manager import ModelManager
from recserve.engine.models.registry import Registry
from recserve.engine.models.repository import Repository
from recserve.engine.models.states import State
from recserve.engine.models.watcher import Watcher
from recserve.engine.server.models import EngineLoader
from recserve.errors import BundleInvalid, BundleReason
from tests.engine.models.conftest import MODEL
from tests.engine.models.test_manager import answering


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    create_key(tmp_path / "key")
    return read_signing_key(tmp_path / "key")


@pytest.fixture
def config(tmp_path: Path, key: SigningKey) -> EngineConfig:
    return EngineConfig(signatures="require", trusted_keys=tmp_path / "key.pub")


@pytest.fixture
def manager(repository_folder: Path, config: EngineConfig, key: SigningKey) -> ModelManager:
    """v1 is signed and answers, v2 is newer and is not."""
    sign_bundle(repository_folder / MODEL / "v1", key)
    manager = ModelManager(Repository(repository_folder), Registry(), EngineLoader(config))
    manager.start()
    return manager


def test_what_is_not_signed_is_refused_until_it_is(manager: ModelManager, key: SigningKey) -> None:
    assert answering(manager) == "v1", "the newest version is not signed"
    for change in (manager.activate, manager.load):
        with pytest.raises(BundleInvalid) as caught:
            change(MODEL, "v2")
        assert caught.value.reason is BundleReason.SIGNATURE_MISSING
    [model] = manager.models()
    reasons = {entry.version: (entry.state, entry.reason) for entry in model.versions}
    assert reasons == {"v1": (State.ACTIVE, ""), "v2": (State.FAILED, "BUNDLE_SIGNATURE_MISSING")}
    assert answering(manager) == "v1"
    sign_bundle(manager.repository.folder / MODEL / "v2", key)
    manager.activate(MODEL, "v2")
    assert answering(manager) == "v2"


@pytest.mark.parametrize("kind", ["folder", "store", "repository"])
def test_the_watcher_takes_a_new_bundle_when_it_is_signed(
    manager: ModelManager,
    config: EngineConfig,
    key: SigningKey,
    versions_folder: Path,
    tmp_path: Path,
    kind: str,
) -> None:
    repository = manager.repository.folder
    place = repository if kind == "repository" else tmp_path / "published"
    source = {"folder": str(place), "store": f"file://{place}", "repository": ""}[kind]
    feed = open_feed(source) if source else None
    settings = RepositoryConfig(folder=str(repository), source=source)
    watcher = Watcher(manager, settings, feed, config.signature_policy)
    # What start() does before its thread.
    watcher._tried = watcher._own_files.list()
    bundle = Path(shutil.copytree(versions_folder / "v3", place / MODEL / "v3"))
    watcher.look()
    assert answering(manager) == "v1"
    assert (repository / MODEL / "v3").exists() == (kind == "repository"), "a place for what nobody signed"
    sign_bundle(bundle, key)
    watcher.look()
    assert answering(manager) == "v3"
    assert (repository / MODEL / "v3" / SIGNATURES_NAME).is_file()
