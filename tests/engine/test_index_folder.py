"""Prepared indices in a shared folder: those that nobody serves go, and nobody notices."""

import os
from pathlib import Path

from recserve.engine import Engine, EngineConfig, Request
from recserve.engine.retrieval import KEPT_SECONDS, drop_indices


def test_indices_of_versions_that_are_not_served_go_after_an_hour(
    bundle_folder: Path, tmp_path: Path
) -> None:
    with Engine.load(bundle_folder, EngineConfig(index_folder=tmp_path)) as engine:
        before = engine.recommend(Request(k=5)).items
        indices = [path for path in tmp_path.iterdir() if path.is_dir()]
        others = tmp_path / "v1.0"
        others.mkdir()
        drop_indices(tmp_path, set())
        # They may be for a version that is being loaded.
        assert indices
        assert all(path.exists() for path in indices)
        for path in (*indices, others):
            os.utime(path, (0, path.stat().st_mtime - 2 * KEPT_SECONDS))
        drop_indices(tmp_path, engine.loaded.index_names)
        assert all(path.exists() for path in indices)
        drop_indices(tmp_path, set())
        assert not any(path.exists() for path in indices)
        # What somebody else keeps there is theirs.
        assert others.exists()
        assert engine.recommend(Request(k=5)).items == before
