"""Where new bundles come from: a folder, or a prefix of an object store (fsspec)."""

import hashlib
import importlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from recserve.engine.bundle.manifest import MANIFEST_NAME
from recserve.engine.bundle.plain_files import copy_bounded, open_plain
from recserve.engine.models.repository import SAFE_NAME
from recserve.errors import ConfigError


class Place(NamedTuple):
    """One bundle of a source: the names of its model's folder and its own."""

    model: str
    bundle: str


class Feed(Protocol):
    """Bundles by place. Every method may raise OSError; the watcher tries again at its next look."""

    def list(self) -> dict[Place, str]:
        """Returns the bundles that have a manifest, each with a fingerprint that changes when a file does."""

    def copy(self, place: Place, name: str, target: Path, max_bytes: int) -> None:
        """Copies one file of a bundle, by its plain name below the bundle, to the new file ``target``.

        Raises :class:`BundleInvalid` for a larger one, before more than ``max_bytes`` are written.
        """


def open_feed(url: str) -> Feed:
    """Returns the source of a folder or URL; raises :class:`ConfigError` when its library is not there."""
    if "://" not in url:
        return FolderFeed(Path(url))
    try:
        fsspec: Any = importlib.import_module("fsspec")
    except ImportError as error:
        raise ConfigError(
            "repository.source",
            found=url,
            expected="an installation with the extra [object-store]",
            cure="Run: pip install 'recserve[object-store]'",
        ) from error
    try:
        return ObjectFeed(*fsspec.core.url_to_fs(url))
    except (ImportError, ValueError) as error:
        raise ConfigError("repository.source", found=url, expected=f"a known protocol ({error})") from error


class FolderFeed:
    """A folder laid out as the repository; links in it are not followed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def list(self) -> dict[Place, str]:
        """See :class:`Feed`."""
        files = []
        for root, _, names in os.walk(self._folder):
            for name in names:
                path = Path(root, name)
                status = path.lstat()
                key = str(path.relative_to(self._folder))
                files.append((key, f"{status.st_size} {status.st_mtime_ns}"))
        return _bundles(files)

    def copy(self, place: Place, name: str, target: Path, max_bytes: int) -> None:
        """See :class:`Feed`."""
        path = self._folder / place.model / place.bundle / name
        path.lstat()  # A file that is not there is an OSError, one that is no plain file no bundle's.
        with open_plain(path, name, linked=True) as source:
            copy_bounded(source, target, name, max_bytes)


class ObjectFeed:
    """A prefix of an fsspec file system."""

    def __init__(self, file_system: Any, prefix: str) -> None:
        self._files = file_system
        self._prefix = prefix.rstrip("/")

    def list(self) -> dict[Place, str]:
        """See :class:`Feed`."""
        # Listings are cached by default: a watcher would never see anything new.
        self._files.invalidate_cache()
        found = self._files.find(self._prefix, detail=True)
        start = len(self._prefix) + 1
        return _bundles((path[start:], _fingerprint(info)) for path, info in found.items())

    def copy(self, place: Place, name: str, target: Path, max_bytes: int) -> None:
        """See :class:`Feed`."""
        # What a store says of sizes may be old: what it sends is counted.
        path = f"{self._prefix}/{place.model}/{place.bundle}/{name}"
        with self._files.open(path, "rb", cache_type="none") as source:
            copy_bounded(source, target, name, max_bytes)


def _fingerprint(info: dict[str, Any]) -> str:
    # Stores name their own kind of version differently.
    marks = ("ETag", "etag", "md5Hash", "LastModified", "last_modified", "mtime", "created")
    return " ".join(str(info.get(mark, "")) for mark in ("size", *marks))


def _bundles(files: Iterable[tuple[str, str]]) -> dict[Place, str]:
    contents: dict[Place, list[str]] = {}
    complete = set()
    for key, mark in files:
        model, _, rest = key.partition("/")
        bundle, _, name = rest.partition("/")
        if SAFE_NAME.fullmatch(model) and SAFE_NAME.fullmatch(bundle) and name:
            place = Place(model, bundle)
            contents.setdefault(place, []).append(f"{name} {mark}")
            if name == MANIFEST_NAME:
                complete.add(place)
    return {
        place: hashlib.sha256("\n".join(sorted(contents[place])).encode()).hexdigest()
        for place in sorted(complete)
    }
