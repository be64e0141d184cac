"""The models of the server's registry in the words of the protocol."""

from dataclasses import dataclass

from recserve.engine.engine import Engine
from recserve.engine.models.manager import ModelManager
from recserve.engine.models.registry import ActiveRoute, Registry
from recserve.engine.models.states import ModelStatus, State, VersionStatus
from recserve.errors import Unavailable, UnknownModel, Unsupported

READY = "READY"
# What the protocol calls a state. Only a version that answers is ready to it.
STATES = {
    State.LOADING: "LOADING",
    State.ACTIVE: READY,
    State.DRAINING: "UNLOADING",
    State.READY: "UNAVAILABLE",
    State.FAILED: "UNAVAILABLE",
    State.UNLOADED: "UNAVAILABLE",
}


@dataclass(frozen=True, slots=True)
class ModelState:
    """One version of a model: ``state`` is READY, LOADING, UNLOADING or UNAVAILABLE, for ``reason``."""

    name: str
    version: str
    state: str
    reason: str = ""


class ServedModels:
    """Models by name and version; safe to call from any thread.

    ``manager``: None for a server that has one bundle from start to end.
    """

    def __init__(self, registry: Registry[Engine], manager: ModelManager | None = None) -> None:
        self._registry = registry
        self._manager = manager
        # Asked for with every request: made once for each route.
        self._known: dict[str, tuple[ActiveRoute[Engine], ModelState]] = {}

    @property
    def can_load(self) -> bool:
        """Whether :meth:`load` and :meth:`unload` are there."""
        return self._manager is not None

    def states(self) -> list[ModelState]:
        """Returns every version that there is, served or not."""
        return [
            ModelState(model.name, version.version, STATES[version.state], _reason(version))
            for model in self._registry.models()
            for version in model.versions
        ]

    def served(self, name: str) -> ModelState | None:
        """Returns the version that answers for a model ("" is the default one); of several, the baseline."""
        name = name or self._registry.default_model
        active = self._registry.current(name)
        if active is None:
            return None
        known = self._known.get(name)
        if known is None or known[0] is not active:
            known = active, ModelState(name, active.route.arms[0].version, READY)
            self._known[name] = known
        return known[1]

    def find(self, name: str, version: str = "") -> Engine:
        """Returns the engine that answers for a model; ``version`` empty: of several the baseline.

        Raises :class:`UnknownModel`, :class:`Unavailable` while nothing is served.
        """
        active = self._registry.current(name)
        if active is None:
            raise self._not_found(name)
        engine = active.engines.get(version or active.route.arms[0].version)
        if engine is None:
            raise UnknownModel(
                f"version of model {name}",
                found=f"{version} (not found)",
                expected=f"{', '.join(active.route.versions)} or empty",
            )
        return engine

    def load(self, name: str) -> None:
        """Loads the newest version of a model and gives it the callers."""
        if self._manager is None:
            raise _fixed()
        self._manager.activate(name)

    def unload(self, name: str) -> None:
        """Stops serving a model; returns when its requests are answered."""
        if self._manager is None:
            raise _fixed()
        self._manager.unload(name)

    def _not_found(self, name: str) -> Exception:
        models: list[ModelStatus] = self._registry.models()
        served = [model.name for model in models if model.route is not None]
        if not served or any(model.name == name for model in models):
            return Unavailable("model", found=f"{name}, not served now", expected="one that is served")
        return UnknownModel("model", found=f"{name} (not found)", expected=", ".join(served))


def _reason(version: VersionStatus) -> str:
    if version.state is State.READY:
        return "loaded, without callers"
    return version.message


def _fixed() -> Unsupported:
    return Unsupported(
        "model control",
        found="not available: this server has one bundle from start to end",
        expected="a server with a model repository",
        cure="Restart it with another bundle, or serve a repository.",
    )
