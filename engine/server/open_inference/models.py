"""The models of the registry in the words of the protocol, and what changes them."""

from collections.abc import Mapping
from dataclasses import dataclass

from recserve.engine.engine import Engine
from recserve.engine.models.manager import ModelManager
from recserve.engine.models.registry import Registry
from recserve.engine.models.states import ModelStatus, State, VersionStatus
from recserve.errors import ConfigError, UnknownModel

READY, LOADING, UNLOADING, UNAVAILABLE = "READY", "LOADING", "UNLOADING", "UNAVAILABLE"


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that answers: its engines by version, the baseline first."""

    name: str
    engines: Mapping[str, Engine]

    @property
    def engine(self) -> Engine:
        """The engine of the baseline."""
        return next(iter(self.engines.values()))


@dataclass(frozen=True, slots=True)
class ModelState:
    """One version of a model: ``state`` is READY, LOADING, UNLOADING or UNAVAILABLE, for ``reason``."""

    name: str
    version: str
    state: str
    reason: str = ""


class ServedModels:
    """Models by name and version; safe to call from any thread."""

    def __init__(self, registry: Registry[Engine], manager: ModelManager | None = None) -> None:
        """``manager`` None: the registry has one bundle from start to end."""
        self._registry = registry
        self._manager = manager

    @property
    def can_load(self) -> bool:
        """Whether :meth:`load` and :meth:`unload` are there."""
        return self._manager is not None

    def find(self, name: str, version: str = "") -> ServedModel:
        """Returns what answers for a model; ``name`` empty: the default one, ``version``: of all arms.

        Raises :class:`UnknownModel`, :class:`Unavailable` while nothing answers.
        """
        with self._registry.lease(name) as lease:
            route = lease.route.only(version) if version else lease.route
            engines = {arm.version: lease.engine(arm) for arm in route.arms}
            return ServedModel(lease.active.model, engines)

    def states(self) -> list[ModelState]:
        """Returns every version that there is, served or not; a repository is read for that."""
        models = self._registry.models() if self._manager is None else self._manager.models()
        return [_state(model, version) for model in models for version in model.versions]

    def served(self) -> list[tuple[str, str]]:
        """Returns name and version of what answers."""
        return [
            (model.name, version)
            for model in self._registry.models()
            if model.route
            for version in dict.fromkeys(arm.version for arm in model.route.arms)
        ]

    def load(self, name: str) -> None:
        """Serves the newest version of a model, loading it first when it is not; returns when it answers."""
        self._control(name).activate(name)

    def unload(self, name: str) -> None:
        """Stops serving a model and frees it; running batches finish."""
        self._control(name).unload(name)

    def _control(self, name: str) -> ModelManager:
        if self._manager is None:
            raise ConfigError(
                "model control",
                found="not available: this server has one bundle from start to end",
                expected="a server with a model repository",
                cure="Serve a repository, or restart the server with another bundle.",
            )
        if not name:
            raise UnknownModel("model_name", found="empty", expected="the name of a model")
        return self._manager


def _state(model: ModelStatus, version: VersionStatus) -> ModelState:
    """The protocol calls READY what answers; a loaded version without callers does not."""
    reason = version.message or version.state.value
    state = UNAVAILABLE
    if version.state is State.LOADING:
        state = LOADING
    elif version.state is State.DRAINING:
        state = UNLOADING
    elif model.route and version.version in (arm.version for arm in model.route.arms):
        state, reason = READY, ""
    elif version.state in (State.READY, State.ACTIVE):
        reason = "loaded, without callers"
    return ModelState(model.name, version.version, state, reason)
