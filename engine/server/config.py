"""The settings of the server; checked when made."""

import ipaddress
from dataclasses import dataclass

from recserve.errors import ConfigError, nearest

TRANSPORTS = ("grpcio", "native")
UNIX_PREFIX = "unix:"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """How the server listens, admits and stops."""

    transport: str = "grpcio"
    """What carries the calls: grpcio, or native (the extra [native]; faster, plain text, local only)."""

    host: str = "127.0.0.1"
    """Address to bind, or unix:PATH. There is no TLS and no authentication: keep it on loopback or behind
    a proxy."""

    port: int = 50051
    """Port to bind; 0 takes a free one, which the first line on stdout names."""

    workers: int = 1
    """Processes that serve the same port; the bundle's vectors are in memory once."""

    worker_threads: int = 2
    """Threads for the calls that are not batched (RecommendMany, SimilarItems, GetItems)."""

    max_in_flight: int = 256
    """Requests admitted and not yet answered; more are refused with RESOURCE_EXHAUSTED."""

    default_deadline_ms: int = 1000
    """Deadline of a call that brings none."""

    drain_seconds: float = 20.0
    """How long SIGTERM waits for admitted requests."""

    max_message_bytes: int = 1 << 20
    """Largest request message."""

    insecure_bind: bool = False
    """Allows an address other than loopback, in plain text and without authentication."""

    reflection: bool | None = None
    """Whether the server describes its own API (grpcurl). Not set: where the transport can (grpcio)."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError("server.port", found=self.port, expected="0 to 65535")
        for name in (
            "workers",
            "worker_threads",
            "max_in_flight",
            "default_deadline_ms",
            "max_message_bytes",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"server.{name}", found=getattr(self, name), expected="1 or more")
        if not self.drain_seconds >= 0:
            raise ConfigError("server.drain_seconds", found=self.drain_seconds, expected="0 or more")
        if self.transport not in TRANSPORTS:
            raise ConfigError(
                "server.transport",
                found=self.transport,
                expected=f"one of {', '.join(TRANSPORTS)}",
                cure=nearest(self.transport, TRANSPORTS),
            )
        if not self.insecure_bind and not self.is_local:
            raise ConfigError(
                "server.host",
                found=self.host,
                expected="a loopback address",
                cure="There is no TLS or authentication yet; --insecure-bind accepts that.",
            )

    @property
    def is_unix(self) -> bool:
        """Whether the address is a Unix socket."""
        return self.host.startswith(UNIX_PREFIX)

    @property
    def is_local(self) -> bool:
        """Whether only this machine can connect."""
        return self.is_unix or _is_loopback(self.host)

    @property
    def with_reflection(self) -> bool:
        """Whether the server describes its own API."""
        return self.transport == "grpcio" if self.reflection is None else self.reflection

    def address(self, port: int) -> str:
        """Returns HOST:PORT, or unix:PATH, as gRPC and a caller write it."""
        if self.is_unix:
            return self.host
        return f"[{self.host}]:{port}" if ":" in self.host else f"{self.host}:{port}"


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
