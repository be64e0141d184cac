"""What the protocol needs of a model repository, and the repository of a server with one bundle."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from recserve.engine.engine import Engine
from recserve.errors import RecserveError, UnknownModel, Unsupported

READY = "READY"


@dataclass(frozen=True, slots=True)
class ModelState:
    """One version of a model: ``state`` is READY, LOADING, UNLOADING or UNAVAILABLE, for ``reason``."""

    name: str
    version: str
    state: str
    reason: str = ""


class ModelRepository(Protocol):
    """Models by name and version; safe to call from any thread."""

    @property
    def can_load(self) -> bool:
        """Whether :meth:`load` and :meth:`unload` are there."""

    def states(self) -> Sequence[ModelState]:
        """Returns every version that there is, served or not."""

    def find(self, name: str, version: str = "") -> Engine:
        """Returns the engine that serves a model; ``version`` empty: whichever is served.

        Raises :class:`UnknownModel`, :class:`Unavailable` while there is none.
        """

    def load(self, name: str) -> None:
        """Loads a model, or its newest version anew; returns when it is served, raises why it is not."""

    def unload(self, name: str) -> None:
        """Stops serving a model; returns when its requests are answered."""


class ServedBundle:
    """The repository of a server that serves one bundle from start to end."""

    can_load = False

    def __init__(self, engine_of: Callable[[], Engine]) -> None:
        """``engine_of`` raises :class:`Unavailable` until it is warm."""
        self._engine_of = engine_of
        # Asked for with every request: made once for each engine.
        self._known: tuple[Engine | None, list[ModelState]] = (None, [])

    def states(self) -> list[ModelState]:
        """Returns the served bundle; nothing while it is loading."""
        try:
            engine = self._engine_of()
        except RecserveError:
            return []
        known, states = self._known
        if known is not engine:
            states = [ModelState(engine.manifest.model, engine.manifest.bundle_version, READY)]
            self._known = (engine, states)
        return states

    def find(self, name: str, version: str = "") -> Engine:
        """Returns the engine; raises :class:`UnknownModel` for any other name or version."""
        engine = self._engine_of()
        served = engine.manifest.model
        if name != served:
            raise UnknownModel("model", found=f"{name} (not found)", expected=served)
        if version and version != engine.manifest.bundle_version:
            raise UnknownModel(
                f"version of model {served}",
                found=f"{version} (not found)",
                expected=f"{engine.manifest.bundle_version} or empty",
            )
        return engine

    def load(self, name: str) -> None:
        """Raises :class:`Unsupported`."""
        raise self._fixed()

    def unload(self, name: str) -> None:
        """Raises :class:`Unsupported`."""
        raise self._fixed()

    @staticmethod
    def _fixed() -> Unsupported:
        return Unsupported(
            "model control",
            found="not available: this server has one bundle from start to end",
            expected="a server with a model repository",
            cure="Restart it with another bundle.",
        )
