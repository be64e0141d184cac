"""kill −9 at each step of a swap: after the restart the old version answers or the new one, whole.

One process that has only imported forks a child for each point (importing takes longest). The child kills
itself at the point, through wrappers put around the functions that the swap calls; another child restarts.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.engine.models.conftest import MODEL

ROOT = Path(__file__).resolve().parents[3]
TIMEOUT_SECONDS = 240


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def wrap(owner: Any, name: str, *, after: bool, at: int = 1, only: Callable[..., bool] | None = None) -> None:
    """Makes the ``at``-th call of ``owner.name`` (that ``only`` accepts) the last thing that happens."""
    original = getattr(owner, name)
    calls = 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        counts = only is None or only(*args)
        calls += counts
        if counts and calls == at and not after:
            die()
        result = original(*args, **kwargs)
        if counts and calls == at:
            die()
        return result

    setattr(owner, name, wrapped)


def is_folder(descriptor: int) -> bool:
    return os.path.isdir(f"/proc/self/fd/{descriptor}")


def is_pointer(descriptor: int) -> bool:
    return "active.json" in os.readlink(f"/proc/self/fd/{descriptor}")


def is_repository(descriptor: int) -> bool:
    return os.readlink(f"/proc/self/fd/{descriptor}").endswith("/repository")


# Point → (who is wrapped, how, which versions may answer after the restart).
POINTS: dict[str, tuple[str, str, dict[str, Any], set[str]]] = {
    "copying": ("feeds.FolderFeed", "copy", {"after": True, "at": 3}, {"v2"}),
    "copied": ("watcher", "open_bundle", {"after": False}, {"v2"}),
    "copy checked": ("watcher", "open_bundle", {"after": True}, {"v2"}),
    "copy flushed": ("Path", "rename", {"after": False}, {"v2"}),
    "copy in its place": ("Path", "rename", {"after": True}, {"v2"}),
    "hashed": ("loading", "open_bundle", {"after": True}, {"v2"}),
    "loaded": ("engine.Engine", "rehearse", {"after": False}, {"v2"}),
    "warm": ("engine.Engine", "rehearse", {"after": True}, {"v2"}),
    "pointer written": ("os", "fsync", {"after": False, "only": is_pointer}, {"v2"}),
    "pointer flushed": ("os", "fsync", {"after": True, "only": is_pointer}, {"v2"}),
    "pointer renamed": ("os", "replace", {"after": True}, {"v3"}),
    "folder flushed": ("repository", "write_whole", {"after": True}, {"v3"}),
    "swapped": ("registry.Registry", "set_route", {"after": True}, {"v3"}),
}


def child(point: str, repository: Path, published: Path) -> None:
    """Starts on v2, then lets the watcher fetch and activate v3, and dies at ``point``."""
    manager, watcher, modules = new_manager(repository, published)
    manager.start()
    manager.activate(MODEL, "v2")
    where, name, how, _ = POINTS[point]
    module, _, attribute = where.partition(".")
    owner = getattr(modules[module], attribute) if attribute else modules[module]
    wrap(owner, name, **how)
    watcher._tried = watcher._own_files.list()
    watcher.look()


def restart(repository: Path, published: Path) -> dict[str, Any]:
    """What a restarted server answers with, and what it finds on disk."""
    from recserve.engine import Request

    manager, _, _ = new_manager(repository, published)
    manager.start()
    with manager.registry.lease() as lease:
        slate = lease.engine().recommend(Request(k=20))
    staging = repository / ".staging"
    return {
        "version": slate.bundle_version,
        "items": sorted({item.item_id.split(":")[0] for item in slate.items}),
        "left": [
            *(path.name for path in repository.glob(".*.tmp")),
            *(path.name for path in (staging.iterdir() if staging.is_dir() else ())),
        ],
    }


def new_manager(repository: Path, published: Path) -> tuple[Any, Any, dict[str, Any]]:
    from recserve.engine import engine, loading
    from recserve.engine.config import EngineConfig
    from recserve.engine.models import config, feeds, registry, watcher
    from recserve.engine.models import manager as manager_module
    from recserve.engine.models import repository as repository_module
    from recserve.engine.server.models import EngineLoader

    manager = manager_module.ModelManager(
        repository_module.Repository(repository), registry.Registry(), EngineLoader(EngineConfig())
    )
    settings = config.RepositoryConfig(folder=str(repository), source=str(published))
    modules = {
        "os": os,
        "Path": Path,
        "feeds": feeds,
        "watcher": watcher,
        "engine": engine,
        "loading": loading,
        "registry": registry,
        "repository": repository_module,
    }
    return manager, watcher.Watcher(manager, settings, feeds.open_feed(str(published))), modules


def in_child(work: Callable[[], Any]) -> tuple[int, str]:
    """Runs ``work`` in a forked process; returns the signal that ended it and what it returned, as JSON."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(reading)
        os.write(writing, json.dumps(work()).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    _, status = os.waitpid(process, 0)
    return os.waitstatus_to_exitcode(status), text


def main(versions: Path, scratch: Path) -> None:
    """Forks for every point; writes ``outcomes.json``."""
    import recserve.engine.models.watcher
    import recserve.engine.server.models  # noqa: F401 - what all children need

    outcomes = {}
    for number, point in enumerate(POINTS):
        folder = scratch / str(number)
        repository, published = folder / "repository", folder / "published"
        for version in ("v1", "v2"):
            shutil.copytree(versions / version, repository / MODEL / version)
        shutil.copytree(versions / "v3", published / MODEL / "v3")
        code, _ = in_child(lambda p=point, r=repository, s=published: child(p, r, s))  # type: ignore[misc]
        _, found = in_child(lambda r=repository, s=published: restart(r, s))  # type: ignore[misc]
        outcomes[point] = {"code": code, **json.loads(found or "{}")}
    (scratch / "outcomes.json").write_text(json.dumps(outcomes))


@pytest.fixture(scope="module")
def outcomes(versions_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    scratch = tmp_path_factory.mktemp("crashes")
    finished = subprocess.run(
        [sys.executable, "-m", "tests.engine.models.test_crashes", str(versions_folder), str(scratch)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return json.loads((scratch / "outcomes.json").read_text())  # type: ignore[no-any-return]


def test_after_a_kill_at_any_step_one_whole_version_answers(outcomes: dict[str, Any]) -> None:
    assert list(outcomes) == list(POINTS)
    for point, (_, _, _, allowed) in POINTS.items():
        found = outcomes[point]
        assert found["code"] == -signal.SIGKILL, f"{point}: the swap never came there"
        assert found["version"] in allowed, point
        assert found["items"] == [found["version"]], f"{point}: a mix"
        assert found["left"] == [], f"{point}: what the dead one began was left"


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
