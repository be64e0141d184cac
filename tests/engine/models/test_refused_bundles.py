"""Every broken bundle, dropped into a repository that is being served: what answered before goes on."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from recserve.engine.config import EngineConfig
from recserve.engine.models.config import RepositoryConfig
from recserve.engine.models.manager import ModelManager
from recserve.engine.models.registry import Registry
from recserve.engine.models.repository import Repository
from recserve.engine.models.watcher import Watcher
from recserve.engine.server.models import EngineLoader
from recserve.errors import BundleReason
from tests.engine.bundle import (
    test_broken_content,
    test_broken_graphs,
    test_broken_manifests,
    test_broken_tables,
)
from tests.engine.bundle.conftest import BundleCopy
from tests.engine.models.conftest import MODEL
from tests.engine.models.test_manager import answering

MODULES = (test_broken_content, test_broken_graphs, test_broken_manifests, test_broken_tables)
CASES = [(module, label) for module in MODULES for label in module.CASES]


@pytest.fixture(scope="module")
def watcher(versions_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watcher]:
    """Over a repository whose v1 answers; one for all cases: none may leave a trace in the next."""
    folder = tmp_path_factory.mktemp("repository")
    shutil.copytree(versions_folder / "v1", folder / MODEL / "v1")
    manager = ModelManager(Repository(folder), Registry(), EngineLoader(EngineConfig()))
    manager.start()
    watcher = Watcher(manager, RepositoryConfig(folder=str(folder)))
    watcher.look()
    yield watcher
    assert answering(manager) == "v1"


@pytest.mark.parametrize(("module", "label"), CASES, ids=[label for _, label in CASES])
def test_the_bundle_before_goes_on(
    watcher: Watcher,
    bundle_folder: Path,
    table_bundle_folder: Path,
    module: object,
    label: str,
) -> None:
    manager = watcher._manager
    repository = manager.repository
    case = module.CASES[label]  # type: ignore[attr-defined]
    source = table_bundle_folder if module is test_broken_tables else bundle_folder
    before = repository.refusals.counts()
    # By its place: Python's hashes differ from run to run.
    folder = repository.folder / MODEL / f"broken-{CASES.index((module, label))}"
    case.change(BundleCopy(shutil.copytree(source, folder)))
    # Not shown: a traceback with all its variables costs more than the load.
    with structlog.testing.capture_logs() as logs:
        watcher.look()
        watcher.look()
    assert answering(manager) == "v1"
    after = repository.refusals.counts()
    refused = {reason: n - before.get(reason, 0) for reason, n in after.items()}
    # Without a manifest it is no bundle yet: somebody is copying.
    expected = {} if label == "no_manifest" else {str(case.reason): 1}
    assert {reason: n for reason, n in refused.items() if n} == expected
    assert {line["reason"] for line in logs if "reason" in line} == expected.keys()
    for left in (repository.folder / MODEL).iterdir():
        if left.name != "v1":
            shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()


def test_the_cases_cover_what_can_be_wrong() -> None:
    """What is left over has tests of its own: signatures, sizes, indices, trials, unreadable files."""
    covered = {module.CASES[label].reason for module, label in CASES}  # type: ignore[attr-defined]
    assert len(CASES) >= 200
    assert set(BundleReason) - covered == {
        BundleReason.SIGNATURE_MISSING,
        BundleReason.SIGNATURE_MALFORMED,
        BundleReason.SIGNATURE_UNKNOWN_KEY,
        BundleReason.SIGNATURE_WRONG,
        BundleReason.TOO_LARGE,
        BundleReason.FILE_UNREADABLE,
        BundleReason.INDEX,
        BundleReason.LOAD_CRASHES,
        BundleReason.LOAD_TOO_LONG,
    }


def test_every_reason_is_documented() -> None:
    text = Path(__file__).parents[3].joinpath("docs", "security.md").read_text(encoding="utf-8")
    assert [reason for reason in BundleReason if f"`{reason.removeprefix('BUNDLE_')}`" not in text] == []
