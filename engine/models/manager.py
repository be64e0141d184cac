"""Changes what answers: load, verify, warm, then the pointer file, then the swap; else all stays."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import structlog

from recserve.engine.engine import Engine
from recserve.engine.models.guard import Breach
from recserve.engine.models.registry import Registry
from recserve.engine.models.repository import Desired, DesiredModel, FoundBundle, Repository, check_name
from recserve.engine.models.routing import Arm, Route, Shadow
from recserve.engine.models.states import ModelStatus, State, VersionStatus
from recserve.errors import BundleInvalid, ConfigError, Conflict, Overloaded, RecserveError, UnknownModel

log = structlog.get_logger("recserve.models")

# The watcher holds a model for a moment when it looks: that is no conflict.
PATIENCE_SECONDS = 0.2
# Of a load that failed, beside the reasons of BundleReason; for lists and metrics.
REASON_CONFIGURATION, REASON_MEMORY, REASON_OTHER = "CONFIGURATION", "OUT_OF_MEMORY", "INTERNAL"


class ModelManager:
    """The operations of ``recserve.v1.Admin``; safe to call from any thread.

    Each blocks until it is done, as long as a load takes, so none belongs on a thread that answers
    requests. Two operations on one model exclude each other: the second raises :class:`Conflict`.
    """

    def __init__(
        self,
        repository: Repository,
        registry: Registry[Engine],
        load: Callable[[FoundBundle], Engine],
    ) -> None:
        """``load(bundle)`` opens, checks and warms; it raises and leaves nothing behind, or returns."""
        self.repository = repository
        self.registry = registry
        self._load_engine = load
        # Guards _locks.
        self._lock = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}
        # What active.json said when it was last followed.
        self._desired = Desired(generation=-1)
        self._rolled_back: set[str] = set()

    def start(self) -> None:
        """Loads what ``active.json`` wants, else the newest version of each model that can be loaded.

        Raises the error of the last attempt when no model at all can answer.
        """
        self.repository.sweep()
        models = dict.fromkeys([found.model for found in self.repository.bundles()])
        desired = self.repository.read_desired()
        self._desired = desired
        models.update(dict.fromkeys(desired.models))
        if not models:
            raise ConfigError(
                f"repository {self.repository.folder}", found="empty", expected="a folder MODEL/BUNDLE"
            )
        if len(models) == 1 and not self.registry.default_model:
            self.registry.default_model = next(iter(models))
        last: RecserveError | None = None
        for model in models:
            wanted = desired.models.get(model)
            try:
                self._start_model(model, wanted)
            except RecserveError as error:
                log.error("model not served", model=model, error=str(error))
                last = error
        if last is not None and not any(status.route for status in self.registry.models()):
            raise last

    def models(self) -> list[ModelStatus]:
        """Returns all models with every version that is loaded, has failed, or lies in the repository."""
        found: dict[str, dict[str, VersionStatus]] = {}
        for bundle in self.repository.bundles():
            entry = VersionStatus(bundle.version, State.UNLOADED)
            found.setdefault(bundle.model, {})[bundle.version] = entry
        known = {status.name: status for status in self.registry.models()}
        for name in sorted(found.keys() | known.keys()):
            status = known.get(name) or ModelStatus(name, False, None, ())
            versions = {**found.get(name, {}), **{entry.version: entry for entry in status.versions}}
            known[name] = replace(status, versions=tuple(versions.values()))
        return [known[name] for name in sorted(known)]

    def load(self, model: str, version: str = "") -> VersionStatus:
        """Loads a version (the newest when none is given) and keeps it READY; loaded ones stay so."""
        with self._exclusive(model):
            version = version or self._newest(model).version
            self._ensure_loaded(model, version)
            return VersionStatus(version, self.registry.state(model, version))

    def unload(self, model: str, version: str = "") -> None:
        """Frees a READY version; without ``version`` the whole model: it answers no more, all is freed.

        Raises :class:`Conflict` for a version that answers.
        """
        with self._exclusive(model):
            if version:
                self.registry.unload(model, version)
                return
            if self.registry.current(model) is not None:
                self._note(self.repository.write_desired(model, None))
            self.registry.set_route(model, None)
            for status in self.registry.models():
                for entry in status.versions if status.name == model else ():
                    if entry.state is State.READY:
                        self.registry.unload(model, entry.version)

    def activate(self, model: str, version: str = "", variant: str = "") -> Route:
        """Gives all callers to one version (the newest when none is given); returns the new route."""
        with self._exclusive(model):
            version = version or self._newest(model).version
            return self._change(model, Route(arms=(Arm(version=version, variant=variant),)))

    def split(self, model: str, route: Route) -> Route:
        """Divides the callers as ``route`` says; a shadow that it does not name goes on."""
        with self._exclusive(model):
            current = self.registry.current(model)
            if route.shadow is None and current is not None:
                route = replace(route, shadow=current.route.shadow)
            return self._change(model, route)

    def shadow(self, model: str, shadow: Shadow | None) -> Route:
        """Starts or (None) ends shadow traffic; who answers stays the same."""
        with self._exclusive(model):
            return self._change(model, replace(self._route(model), shadow=shadow), is_new=False)

    def rollback(self, model: str) -> Route:
        """Goes back to the route before the current one; raises :class:`Conflict` when there is none."""
        with self._exclusive(model):
            self._route(model)
            entry = self.repository.read_desired().models.get(model)
            if entry is None or not entry.past:
                raise Conflict(
                    f"model {model}", found="at its first route", expected="one that had another before"
                )
            return self._apply(model, DesiredModel(route=entry.past[-1], past=entry.past[:-1]))

    def rolled_back(self, model: str, breach: Breach) -> None:
        """Notes that a canary was taken back; :meth:`follow` writes it down. Never blocks."""
        self._rolled_back.add(model)

    def follow(self) -> None:
        """Writes down automatic rollbacks, then does what another process wrote into ``active.json``.

        Called again and again by a thread. What cannot be loaded here is logged, and what answers stays.
        """
        while self._rolled_back:
            self._write_down(self._rolled_back.pop())
        desired = self.repository.read_desired()
        if desired.generation == self._desired.generation:
            return
        for model in self._desired.models.keys() | desired.models.keys():
            try:
                with self._exclusive(model):
                    self._follow(model)
            except Conflict:
                return  # A change is under way here: the next look is early enough.
            except RecserveError as error:
                log.error("change not followed", model=model, error=str(error))
        self._desired = desired

    def _follow(self, model: str) -> None:
        wanted = self.repository.read_desired().models.get(model)
        current = self.registry.current(model)
        if wanted is None:
            self.registry.set_route(model, None)
        elif current is None or current.route != wanted.route:
            self._swap(model, wanted.route)

    def _write_down(self, model: str) -> None:
        with self._exclusive(model, seconds=-1):
            entry = self.repository.read_desired().models.get(model)
            current = self.registry.current(model)
            if entry and current and entry.route != current.route:
                self._note(self.repository.write_desired(model, replace(entry, route=current.route)))

    def _start_model(self, model: str, wanted: DesiredModel | None) -> None:
        """Sets the first route that can be loaded: the wanted one, those before it, the newest versions."""
        routes = [wanted.route, *reversed(wanted.past)] if wanted else []
        newest = reversed([found for found in self.repository.bundles() if found.model == model])
        routes += [Route(arms=(Arm(version=found.version),)) for found in newest]
        error: RecserveError = UnknownModel("model", found=model, expected="one with a bundle")
        for route in dict.fromkeys(routes):
            try:
                self._swap(model, route)
            except RecserveError as failed:
                log.error("route not possible", model=model, versions=route.versions, error=str(failed))
                error = failed
            else:
                return
        raise error

    def _change(self, model: str, route: Route, *, is_new: bool = True) -> Route:
        entry = self.repository.read_desired().models.get(model)
        past = entry.past if entry else ()
        current = self.registry.current(model)
        if is_new and current is not None and current.route != route:
            past = (*past, current.route)
        return self._apply(model, DesiredModel(route=route, past=past))

    def _apply(self, model: str, desired: DesiredModel) -> Route:
        self._swap(
            model,
            desired.route,
            before_swap=lambda: self._note(self.repository.write_desired(model, desired)),
        )
        return desired.route

    def _swap(self, model: str, route: Route, before_swap: Callable[[], None] = lambda: None) -> None:
        """Loads what ``route`` needs and makes it current; on any failure frees what was loaded for it."""
        loaded: list[str] = []
        try:
            for version in route.versions:
                if self._ensure_loaded(model, version):
                    loaded.append(version)
                self._check_variants(model, route, version)
            before_swap()
            self.registry.set_route(model, route)
        except BaseException:
            for version in loaded:
                self.registry.unload(model, version)
            raise
        log.info("route set", model=model, versions=route.versions)

    def _ensure_loaded(self, model: str, version: str) -> bool:
        """Returns whether it had to be loaded."""
        if self.registry.keep(model, version):
            return False
        found = self.repository.find(model, version)
        if found is None:
            raise UnknownModel(f"version of {model}", found=version, expected="one of the repository")
        self.registry.begin_load(model, version)
        try:
            engine = self._load_engine(found)
        except BaseException as error:
            reason = reason_of(error)
            self.repository.refusals.note(error)
            log.warning("load failed", model=model, version=version, reason=reason, exc_info=error)
            ours = isinstance(error, RecserveError)
            self.registry.fail_load(model, version, reason, str(error) if ours else "See the server's log.")
            if isinstance(error, MemoryError):
                raise Overloaded(f"memory for {version}", found="used up", expected="enough") from error
            raise
        self.registry.finish_load(model, version, engine)
        return True

    def _check_variants(self, model: str, route: Route, version: str) -> None:
        offered = self.registry.engine(model, version).manifest.variants
        for arm in route.arms:
            if arm.version == version and arm.variant and arm.variant not in offered:
                raise UnknownModel(
                    f"variant of {version}",
                    found=arm.variant,
                    expected=f"one of {', '.join(sorted(offered))}",
                )

    def _newest(self, model: str) -> FoundBundle:
        versions = [found for found in self.repository.bundles() if found.model == model]
        if not versions:
            raise UnknownModel("model", found=model, expected="one of the repository")
        return versions[-1]

    def _route(self, model: str) -> Route:
        current = self.registry.current(model)
        if current is None:
            raise UnknownModel("model", found=model, expected="one that answers")
        return current.route

    def _note(self, after: Desired) -> None:
        # One that somebody else wrote in between is still to be followed.
        if after.generation == self._desired.generation + 1:
            self._desired = after

    @contextmanager
    def _exclusive(self, model: str, *, seconds: float = PATIENCE_SECONDS) -> Iterator[None]:
        check_name("model", model)
        with self._lock:
            lock = self._locks.setdefault(model, threading.Lock())
        if not lock.acquire(timeout=seconds):
            raise Conflict(f"model {model}", found="being changed", expected="free", cure="Try again later.")
        try:
            yield
        finally:
            lock.release()


def reason_of(error: BaseException) -> str:
    """Returns the closed reason of a load that failed."""
    if isinstance(error, BundleInvalid):
        return str(error.reason)
    if isinstance(error, RecserveError):
        return REASON_CONFIGURATION
    return REASON_MEMORY if isinstance(error, MemoryError) else REASON_OTHER
