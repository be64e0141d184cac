"""The models on disk: ``FOLDER/<model>/<bundle>/manifest.json``, and ``active.json``, what shall answer.

``active.json`` is replaced as a whole (temporary file, fsync, rename, fsync of the folder): a reader, or a
restart after a crash at any point, finds the old text or the new one. It names a version only after that
version was loaded, checked and warm.
"""

import fcntl
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import structlog
from pydantic import TypeAdapter, ValidationError

from recserve.engine.bundle.manifest import MANIFEST_NAME
from recserve.engine.bundle.reader import read_manifest
from recserve.engine.models.refusals import Refusals
from recserve.engine.models.routing import STRICT, Route
from recserve.errors import BundleInvalid, BundleReason, ConfigError, InvalidRequest
from recserve.files import fsync, write_whole

log = structlog.get_logger("recserve.models")

ACTIVE_NAME = "active.json"
LOCK_NAME = ".lock"
STAGING_NAME = ".staging"
SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
MAX_PAST_ROUTES = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class DesiredModel:
    """The route that shall be current, and those before it, newest last: rollback takes the last one."""

    __pydantic_config__ = STRICT

    route: Route
    past: tuple[Route, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Desired:
    """The content of ``active.json``; ``generation`` counts its changes."""

    __pydantic_config__ = STRICT

    generation: int = 0
    models: dict[str, DesiredModel] = field(default_factory=dict)


DESIRED = TypeAdapter(Desired)


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundBundle:
    """A bundle folder of the repository, its manifest read but its files not yet checked."""

    model: str
    version: str
    created_at: str
    folder: Path


class Repository:
    """One folder of models. Processes may share it: changes of ``active.json`` exclude each other."""

    def __init__(self, folder: Path) -> None:
        """Raises :class:`ConfigError` when ``folder`` is not a folder that can be written to."""
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise ConfigError(f"repository {folder}", found="not a writable folder", expected="one")
        self.folder = folder
        self.refusals = Refusals()
        self._known: dict[Path, tuple[int, FoundBundle | None]] = {}

    def bundles(self) -> list[FoundBundle]:
        """Returns the bundles of all models, oldest first; folders without a readable manifest are skipped.

        Of two folders with one version the first by name counts.
        """
        found: dict[tuple[str, str], FoundBundle] = {}
        for model in sorted(_folders(self.folder)):
            for folder in sorted(_folders(model)):
                bundle = self._read(model.name, folder)
                if bundle is not None:
                    found.setdefault((bundle.model, bundle.version), bundle)
        return sorted(found.values(), key=lambda bundle: (bundle.model, bundle.created_at, bundle.version))

    def find(self, model: str, version: str) -> FoundBundle | None:
        """Returns the bundle of a version, None when the repository has none."""
        return next(
            (found for found in self.bundles() if (found.model, found.version) == (model, version)), None
        )

    def read_desired(self) -> Desired:
        """Reads ``active.json``; without one nothing is desired yet.

        Raises :class:`ConfigError` when somebody wrote nonsense into it.
        """
        path = self.folder / ACTIVE_NAME
        try:
            return DESIRED.validate_json(path.read_bytes())
        except FileNotFoundError:
            return Desired()
        except (ValidationError, InvalidRequest) as error:
            first = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
            raise ConfigError(
                f"file {path}",
                found=str(first),
                expected="what recserve wrote",
                cure="Delete it to serve the newest version of each model.",
            ) from error

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Excludes other processes (and threads) that change ``active.json``, for the block."""
        with (self.folder / LOCK_NAME).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def write_desired(self, model: str, desired: DesiredModel | None) -> Desired:
        """Replaces the entry of ``model`` (None removes it) and returns what stands there now."""
        with self.changing():
            before = self.read_desired()
            models = {name: entry for name, entry in before.models.items() if name != model}
            if desired is not None:
                models[model] = replace(desired, past=desired.past[-MAX_PAST_ROUTES:])
            after = Desired(generation=before.generation + 1, models=models)
            partial = self.folder / f".{ACTIVE_NAME}.{uuid.uuid4().hex[:8]}.tmp"
            text = DESIRED.dump_json(after, indent=2) + b"\n"
            write_whole(self.folder / ACTIVE_NAME, text, temporary=partial)
        return after

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """Yields a private folder for a copy in the making; what is left in it at the end is removed."""
        folder = self.folder / STAGING_NAME / uuid.uuid4().hex
        folder.mkdir(parents=True)
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            # Says that its owner lives: the sweep of another process leaves it alone.
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield folder
        finally:
            os.close(descriptor)
            shutil.rmtree(folder, ignore_errors=True)

    def sweep(self) -> int:
        """Removes what processes that died had begun (copies, pointer files); returns how many."""
        n = 0
        with self.changing():
            for partial in self.folder.glob(f".{ACTIVE_NAME}.*.tmp"):
                partial.unlink()
                n += 1
        staging = self.folder / STAGING_NAME
        for folder in list(staging.iterdir()) if staging.is_dir() else []:
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            else:
                shutil.rmtree(folder)
                n += 1
            finally:
                os.close(descriptor)
        return n

    def adopt(self, staged: Path, model: str, version: str) -> FoundBundle:
        """Moves a checked copy to its place, durably; one that is there already wins."""
        target = self.folder / model / version
        target.parent.mkdir(exist_ok=True)
        if not target.exists():
            for folder, _, names in os.walk(staged):
                for name in names:
                    fsync(Path(folder, name))
                fsync(Path(folder))
            staged.rename(target)
            fsync(target.parent)
            fsync(self.folder)
        found = self._read(model, target)
        if found is None:
            raise BundleInvalid(
                f"bundle {target}",
                found="unreadable",
                expected="readable",
                reason=BundleReason.FILE_UNREADABLE,
            )
        return found

    def _read(self, model: str, folder: Path) -> FoundBundle | None:
        try:
            changed_at = (folder / MANIFEST_NAME).stat().st_mtime_ns
        except OSError:
            return None  # Not a bundle, or one that is being removed.
        if folder not in self._known or self._known[folder][0] != changed_at:
            found = None
            try:
                manifest = read_manifest(folder)
                found = FoundBundle(
                    model=model,
                    version=manifest.bundle_version,
                    created_at=manifest.created_at,
                    folder=folder,
                )
            except BundleInvalid as error:
                self.refusals.note(error)
                log.warning("bundle skipped", folder=str(folder), reason=str(error.reason), error=str(error))
            self._known[folder] = (changed_at, found)
        return self._known[folder][1]


def check_name(kind: str, name: str) -> None:
    """Raises :class:`InvalidRequest` unless ``name`` is a plain file name: joining it leaves no folder."""
    if not SAFE_NAME.fullmatch(name):
        raise InvalidRequest(kind, found=name, expected="letters, digits, '.', '_', '-', at most 128")


def _folders(parent: Path) -> list[Path]:
    """Returns the folders in ``parent`` with a plain name; not hidden ones, not links."""
    with os.scandir(parent) as entries:
        return [
            Path(entry.path)
            for entry in entries
            if SAFE_NAME.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
        ]
