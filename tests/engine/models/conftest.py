"""A repository with two versions of one model, made once per test run and copied for each test."""

import shutil
from pathlib import Path

import pytest

from tests.engine.models.versions import make_version
from tests.once import made_once

MODEL = "shop"


@pytest.fixture(scope="session")
def versions_folder(bundle_folder: Path, shared_folder: Path) -> Path:
    """``v1`` to ``v3`` of one bundle. Read-only by convention."""
    folder = shared_folder / "versions"
    with made_once(folder) as is_missing:
        if is_missing:
            partial = shared_folder / "versions.partial"
            partial.mkdir()
            for day, version in enumerate(("v1", "v2", "v3"), start=1):
                make_version(bundle_folder, partial / version, version, day=day)
            partial.rename(folder)
    return folder


@pytest.fixture
def repository_folder(versions_folder: Path, tmp_path: Path) -> Path:
    """A repository of the model ``shop`` with v1 and v2."""
    folder = tmp_path / "repository"
    for version in ("v1", "v2"):
        shutil.copytree(versions_folder / version, folder / MODEL / version)
    return folder
