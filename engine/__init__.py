"""The online half of recserve: load a bundle and answer requests, embedded or behind gRPC."""

from recserve.engine.config import EngineConfig
from recserve.engine.engine import Engine
from recserve.engine.types import Request, Slate, SlateItem
from recserve.errors import (
    BundleInvalid,
    ConfigError,
    InvalidRequest,
    RecserveError,
    Unavailable,
)

__all__ = [
    "BundleInvalid",
    "ConfigError",
    "Engine",
    "EngineConfig",
    "InvalidRequest",
    "RecserveError",
    "Request",
    "Slate",
    "SlateItem",
    "Unavailable",
]
