"""Where versions of a model can stand, and how that is told."""

import enum
from dataclasses import dataclass
from typing import Protocol, TypeVar

from recserve.engine.models.routing import Route


class State(enum.Enum):
    """Where a version stands."""

    LOADING = "loading"
    READY = "ready"
    ACTIVE = "active"
    DRAINING = "draining"
    FAILED = "failed"
    UNLOADED = "unloaded"


LOADED = frozenset({State.READY, State.ACTIVE, State.DRAINING})


class Closeable(Protocol):
    """What a version answers with; closed when nobody uses it any more."""

    def close(self) -> None:
        """Called once, after the last lease."""


E = TypeVar("E", bound=Closeable)


@dataclass(frozen=True, slots=True)
class VersionStatus:
    """``reason`` and ``message`` say why a version FAILED."""

    version: str
    state: State
    reason: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """One model: its route (None: nothing answers) and its versions, oldest load first."""

    name: str
    is_default: bool
    route: Route | None
    versions: tuple[VersionStatus, ...]
