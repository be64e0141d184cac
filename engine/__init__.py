"""The online half of recserve: load a bundle and answer requests, embedded or behind gRPC.

Names are loaded when they are first used, so that importing one room does not pull ONNX Runtime and Numba.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recserve.engine.bundle.rules import Boost, Frequency, Pin, PipelineConfig, Rules
    from recserve.engine.config import EngineConfig
    from recserve.engine.engine import Engine
    from recserve.engine.types import Request, Slate, SlateItem
    from recserve.errors import BundleInvalid, ConfigError, InvalidRequest, RecserveError, Unavailable

_HOME = {
    "Boost": "recserve.engine.bundle.rules",
    "BundleInvalid": "recserve.errors",
    "ConfigError": "recserve.errors",
    "Engine": "recserve.engine.engine",
    "EngineConfig": "recserve.engine.config",
    "Frequency": "recserve.engine.bundle.rules",
    "InvalidRequest": "recserve.errors",
    "RecserveError": "recserve.errors",
    "Pin": "recserve.engine.bundle.rules",
    "PipelineConfig": "recserve.engine.bundle.rules",
    "Request": "recserve.engine.types",
    "Rules": "recserve.engine.bundle.rules",
    "Slate": "recserve.engine.types",
    "SlateItem": "recserve.engine.types",
    "Unavailable": "recserve.errors",
}

__all__ = [
    "Boost",
    "BundleInvalid",
    "ConfigError",
    "Engine",
    "EngineConfig",
    "Frequency",
    "InvalidRequest",
    "Pin",
    "PipelineConfig",
    "RecserveError",
    "Request",
    "Rules",
    "Slate",
    "SlateItem",
    "Unavailable",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
