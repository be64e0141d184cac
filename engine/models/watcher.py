"""Looks at repository and source again and again: follows the pointer file, fetches and activates."""

import contextlib
import shutil
import threading
from pathlib import Path

import structlog

from recserve.engine.bundle.manifest import MANIFEST_NAME
from recserve.engine.bundle.reader import MAX_MANIFEST_BYTES, UNCHECKED, open_bundle, read_manifest
from recserve.engine.bundle.signatures import MAX_SIGNATURES_BYTES, SIGNATURES_NAME, SignaturePolicy
from recserve.engine.models.config import RepositoryConfig
from recserve.engine.models.feeds import Feed, FolderFeed, Place
from recserve.engine.models.manager import ModelManager, reason_of
from recserve.engine.models.repository import FoundBundle, check_name
from recserve.engine.threads import Crew
from recserve.errors import BundleInvalid, BundleReason, RecserveError

log = structlog.get_logger("recserve.models")


class Watcher:
    """One thread that calls :meth:`look` every ``poll_seconds``; a failed look changes nothing.

    What failed is tried again when its files have changed, not before.
    """

    def __init__(
        self,
        manager: ModelManager,
        config: RepositoryConfig,
        source: Feed | None = None,
        signatures: SignaturePolicy = UNCHECKED,
    ) -> None:
        """``signatures``: what bundles of ``source`` must show before they get a place in the repository."""
        self._manager = manager
        self._signatures = signatures
        self._config = config
        self._source = source
        self._repository = manager.repository
        self._own_files = FolderFeed(self._repository.folder)
        # Fingerprints of what was dealt with, well or not.
        self._fetched: dict[Place, str] = {}
        self._tried: dict[Place, str] = {}
        self._stop = threading.Event()
        self._crew: Crew | None = None

    def start(self) -> None:
        """Starts the thread; what lies in the repository now is not new."""
        self._tried = self._own_files.list()
        self._crew = Crew("recserve-watcher", 1, self._work)

    def close(self) -> None:
        """Ends the thread after the look under way."""
        self._stop.set()
        if self._crew is not None:
            self._crew.join()

    def look(self) -> None:
        """Does everything once; errors are logged."""
        for step in (self._manager.follow, self._fetch_new, self._activate_new):
            try:
                step()
            except (RecserveError, OSError) as error:
                log.warning("look failed", step=step.__name__.lstrip("_"), error=str(error))

    def _work(self) -> None:
        while not self._stop.wait(self._config.poll_seconds):
            self.look()

    def _fetch_new(self) -> None:
        if self._source is None:
            return
        for place, fingerprint in self._source.list().items():
            if self._fetched.get(place) == fingerprint or self._stop.is_set():
                continue
            self._fetched[place] = fingerprint
            try:
                self._fetch(self._source, place)
            except (RecserveError, OSError) as error:
                # Half copied perhaps: the rest will change the fingerprint.
                self._repository.refusals.note(error)
                log.warning(
                    "bundle not fetched",
                    place="/".join(place),
                    reason=reason_of(error),
                    error=str(error),
                )

    def _fetch(self, source: Feed, place: Place) -> None:
        """Copies one bundle to a private folder, checks every byte, and moves it into the repository."""
        with self._repository.staging() as staging:
            folder = staging / "bundle"
            folder.mkdir()
            source.copy(place, MANIFEST_NAME, folder / MANIFEST_NAME, MAX_MANIFEST_BYTES)
            manifest = read_manifest(folder)
            version = manifest.bundle_version
            check_name("bundle_version", version)
            if self._repository.find(place.model, version) is not None:
                return
            self._check_size(sum(entry.size_bytes for entry in manifest.files.values()))
            for name, entry in manifest.files.items():
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                source.copy(place, name, target, entry.size_bytes)
            # A store may have none; whether there must be one, opening tells.
            with contextlib.suppress(FileNotFoundError):
                source.copy(place, SIGNATURES_NAME, folder / SIGNATURES_NAME, MAX_SIGNATURES_BYTES)
            open_bundle(folder, self._signatures)
            self._repository.adopt(folder, place.model, version)
        log.info("bundle fetched", model=place.model, version=version)

    def _check_size(self, n_bytes: int) -> None:
        limit = min(self._config.max_bundle_bytes, shutil.disk_usage(self._repository.folder).free)
        if n_bytes > limit:
            raise BundleInvalid(
                "bundle",
                found=f"{n_bytes} bytes large",
                expected=f"at most {limit}",
                reason=BundleReason.TOO_LARGE,
            )

    def _activate_new(self) -> None:
        if not self._config.activate_new:
            return
        files = self._own_files.list()
        bundles = {bundle.folder: bundle for bundle in self._repository.bundles()}
        new = {
            bundle: place
            for place, fingerprint in files.items()
            if self._tried.get(place) != fingerprint
            and (bundle := bundles.get(Path(self._repository.folder, *place))) is not None
        }
        for bundle in sorted(new, key=lambda found: found.created_at):
            self._tried[new[bundle]] = files[new[bundle]]
            if self._is_wanted(bundle):
                try:
                    self._manager.activate(bundle.model, bundle.version)
                except RecserveError as error:
                    log.warning("bundle not activated", version=bundle.version, error=str(error))

    def _is_wanted(self, bundle: FoundBundle) -> bool:
        current = self._manager.registry.current(bundle.model)
        if current is None:
            return True
        found = self._repository.find(bundle.model, current.route.arms[0].version)
        return not current.route.is_split and (found is None or bundle.created_at > found.created_at)
