"""The versions that are loaded and the routes that requests take: states, leases, swaps.

    LOADING ─► READY ─► ACTIVE ─► DRAINING ─► UNLOADED
       └─► FAILED

A route is an immutable value with the engines that it needs. A batch leases the whole route, so it is
answered by what was current when it began, and a version is freed when the last batch of the last route
that had it is over. Whatever fails, the route that is there stays.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Generic

from recserve.engine.models.guard import Window
from recserve.engine.models.routing import Arm, Route
from recserve.engine.models.states import LOADED, E, ModelStatus, State, VersionStatus
from recserve.errors import Conflict, Unavailable, UnknownModel

# Without a guard the windows are for reading only.
DEFAULT_WINDOW_SECONDS = 60.0
# Failed loads are remembered, the newest per model: somebody will ask why.
MAX_FAILED = 20


@dataclass(slots=True)
class _Version(Generic[E]):
    state: State = State.LOADING
    engine: E | None = None
    # Routes that need it: the current one and those that still have leases.
    n_routes: int = 0
    reason: str = ""
    message: str = ""


@dataclass(slots=True, eq=False)
class ActiveRoute(Generic[E]):
    """A route with its engines by version and what its arms did, by name."""

    model: str
    route: Route
    engines: dict[str, E]
    windows: dict[str, Window]
    n_leases: int = 0
    is_retired: bool = False


@dataclass(slots=True)
class _Model(Generic[E]):
    versions: dict[str, _Version[E]] = field(default_factory=dict)
    active: ActiveRoute[E] | None = None


class Lease(Generic[E]):
    """Holds a route for the time of one batch: ``with registry.lease(model) as lease: …``."""

    __slots__ = ("_registry", "active")

    def __init__(self, registry: "Registry[E]", active: ActiveRoute[E]) -> None:
        self._registry = registry
        self.active = active

    @property
    def route(self) -> Route:
        """The route that was current when the lease was taken."""
        return self.active.route

    def engine(self, arm: Arm | None = None) -> E:
        """Returns the engine of ``arm``, of the baseline when none is given."""
        return self.active.engines[(arm or self.route.arms[0]).version]

    def engines(self) -> list[E]:
        """Returns the engines of all arms, the baseline first, once each."""
        return [self.active.engines[v] for v in dict.fromkeys(arm.version for arm in self.route.arms)]

    def __enter__(self) -> "Lease[E]":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._registry._release(self.active)


class Registry(Generic[E]):
    """Models by name; every method may be called from any thread and none of them waits for a load.

    ``default_model`` answers requests that name none; with "" they are refused.
    ``on_freed(model, version)`` is called after a version was closed.
    """

    def __init__(
        self,
        default_model: str = "",
        *,
        on_freed: Callable[[str, str], None] = lambda model, version: None,
        run: Callable[[Callable[[], None]], None] = lambda work: work(),
    ) -> None:
        """``run``: runs what closes a version after its last lease: no work for a thread that answers."""
        self.default_model = default_model
        self._on_freed = on_freed
        self._run = run
        # Guards everything below; held for a few operations on dictionaries, never while closing or loading.
        self._lock = threading.Lock()
        self._models: dict[str, _Model[E]] = {}

    def lease(self, model: str = "") -> Lease[E]:
        """Holds the current route of ``model``.

        Raises :class:`UnknownModel`, :class:`Unavailable` while the model has no route.
        """
        with self._lock:
            active = self._named(model).active
            if active is None:
                raise _loading(f"model {model}" if model else "server")
            active.n_leases += 1
            return Lease(self, active)

    def serve_one(self, model: str, version: str, engine: E) -> None:
        """Makes an engine that is loaded already the one that answers everything."""
        self.begin_load(model, version)
        self.finish_load(model, version, engine)
        self.set_route(model, Route(arms=(Arm(version=version),)))
        self.default_model = model

    def begin_load(self, model: str, version: str) -> None:
        """UNLOADED or FAILED → LOADING; raises :class:`Conflict` for any other state."""
        with self._lock:
            versions = self._models.setdefault(model, _Model()).versions
            state = versions[version].state if version in versions else State.UNLOADED
            if state not in (State.UNLOADED, State.FAILED):
                raise Conflict(f"version {version} of {model}", found=state.value, expected="not loaded")
            versions.pop(version, None)
            versions[version] = _Version()

    def finish_load(self, model: str, version: str, engine: E) -> None:
        """LOADING → READY."""
        with self._lock:
            entry = self._models[model].versions[version]
            entry.state, entry.engine = State.READY, engine

    def fail_load(self, model: str, version: str, reason: str, message: str) -> None:
        """LOADING → FAILED; the routes stay as they are."""
        with self._lock:
            versions = self._models[model].versions
            entry = versions[version]
            entry.state, entry.reason, entry.message = State.FAILED, reason, message
            failed = [name for name, other in versions.items() if other.state is State.FAILED]
            for name in failed[:-MAX_FAILED]:
                del versions[name]

    def keep(self, model: str, version: str) -> bool:
        """Returns whether ``version`` is loaded; one that drains becomes READY and is not freed."""
        with self._lock:
            entry = self._models[model].versions.get(version) if model in self._models else None
            if entry is None or entry.state not in LOADED:
                return False
            if entry.state is State.DRAINING:
                entry.state = State.READY
            return True

    def set_route(self, model: str, route: Route | None, *, instead_of: ActiveRoute[E] | None = None) -> bool:
        """Makes ``route`` the current one between two batches; None: nobody answers for ``model``.

        Returns False, without a change, when ``instead_of`` is given and not current any more.
        Raises :class:`Conflict` when one of its versions is not loaded.
        """
        with self._lock:
            entry = self._models.setdefault(model, _Model())
            before = entry.active
            if instead_of is not None and before is not instead_of:
                return False
            entry.active = None if route is None else self._activate(model, entry, route)
            freed = [] if before is None else self._retire(entry, before)
        self._close(model, freed)
        return True

    def unload(self, model: str, version: str) -> None:
        """READY → UNLOADED; raises :class:`Conflict` for a version that answers or is loading."""
        with self._lock:
            versions = self._known(model).versions
            entry = versions.get(version)
            if entry is None or entry.state in (State.FAILED, State.DRAINING):
                return
            if entry.state is not State.READY:
                raise Conflict(
                    f"version {version} of {model}",
                    found=entry.state.value,
                    expected="not in use",
                    cure="Activate another one first.",
                )
            if entry.n_routes:
                # Batches that began before still need it.
                entry.state = State.DRAINING
                return
            freed = [(version, entry.engine)]
            del versions[version]
        self._close(model, freed)

    def state(self, model: str, version: str) -> State:
        """Returns where a version stands."""
        with self._lock:
            versions = self._models[model].versions if model in self._models else {}
            return versions[version].state if version in versions else State.UNLOADED

    def engine(self, model: str, version: str) -> E:
        """Returns the engine of a loaded version, for a look: only a lease keeps it from being freed."""
        with self._lock:
            entry = self._models[model].versions.get(version) if model in self._models else None
            if entry is None or entry.engine is None:
                raise Conflict(f"version {version} of {model}", found="not loaded", expected="loaded")
            return entry.engine

    def engines(self) -> list[E]:
        """Returns every engine that is loaded, for a look at it."""
        with self._lock:
            entries = [entry for model in self._models.values() for entry in model.versions.values()]
            return [entry.engine for entry in entries if entry.engine is not None]

    def routes(self) -> dict[str, list[str]]:
        """Returns the versions that answer, by model."""
        return {model.name: list(model.route.versions) for model in self.models() if model.route}

    def current(self, model: str) -> ActiveRoute[E] | None:
        """Returns the current route of ``model`` for reading, without a lease."""
        with self._lock:
            return self._models[model].active if model in self._models else None

    def models(self) -> list[ModelStatus]:
        """Returns a snapshot of all models, by name."""
        with self._lock:
            return [
                ModelStatus(
                    name,
                    name == self.default_model,
                    model.active.route if model.active else None,
                    tuple(
                        VersionStatus(version, entry.state, entry.reason, entry.message)
                        for version, entry in model.versions.items()
                    ),
                )
                for name, model in sorted(self._models.items())
            ]

    def _activate(self, model: str, entry: _Model[E], route: Route) -> ActiveRoute[E]:
        engines: dict[str, E] = {}
        for version in route.versions:
            found = entry.versions.get(version)
            if found is None or found.engine is None:
                raise Conflict(f"version {version} of {model}", found="not loaded", expected="loaded")
            engines[version] = found.engine
        for version in route.versions:
            entry.versions[version].state = State.ACTIVE
            entry.versions[version].n_routes += 1
        seconds = route.guard.window_seconds if route.guard else DEFAULT_WINDOW_SECONDS
        return ActiveRoute(model, route, engines, {arm.name: Window(seconds) for arm in route.arms})

    def _retire(self, entry: _Model[E], before: ActiveRoute[E]) -> list[tuple[str, E | None]]:
        before.is_retired = True
        for version in before.route.versions:
            if entry.active is None or version not in entry.active.engines:
                entry.versions[version].state = State.DRAINING
        return [] if before.n_leases else self._settle(entry, before)

    def _settle(self, entry: _Model[E], over: ActiveRoute[E]) -> list[tuple[str, E | None]]:
        """Forgets a route without leases; returns the versions that nobody needs any more."""
        freed = []
        for version in over.route.versions:
            found = entry.versions[version]
            found.n_routes -= 1
            if found.n_routes == 0 and found.state is State.DRAINING:
                freed.append((version, found.engine))
                del entry.versions[version]
        over.engines.clear()
        return freed

    def _release(self, active: ActiveRoute[E]) -> None:
        with self._lock:
            active.n_leases -= 1
            if not active.is_retired or active.n_leases:
                return
            freed = self._settle(self._models[active.model], active)
        if freed:
            self._run(lambda: self._close(active.model, freed))

    def _close(self, model: str, freed: Sequence[tuple[str, E | None]]) -> None:
        for version, engine in freed:
            if engine is not None:
                engine.close()
            self._on_freed(model, version)

    def _named(self, model: str) -> _Model[E]:
        if model:
            return self._known(model)
        if self.default_model in self._models:
            return self._models[self.default_model]
        if self.default_model or not self._models:
            raise _loading("server")
        names = ", ".join(sorted(self._models))
        raise UnknownModel("model", found="not given", expected=f"one of {names}")

    def _known(self, model: str) -> _Model[E]:
        found = self._models.get(model)
        if found is None and not self._models:
            raise _loading("server")
        if found is None:
            raise UnknownModel("model", found=model, expected=f"one of {', '.join(sorted(self._models))}")
        return found


def _loading(name: str) -> Unavailable:
    return Unavailable(name, found="loading", expected="warm", cure="Try again after a moment.")
