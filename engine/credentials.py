"""What a client shows to a server, and how it knows that it is the right one."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from recserve.engine.addresses import host_of, is_local
from recserve.errors import ConfigError

# Stands for the authorities that the system trusts, instead of a file of them.
SYSTEM = "system"


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """Options of both clients; without any they speak plain text and show nothing.

    >>> Credentials(ca="ca.pem", token="rsk_…")
    """

    ca: Path | str | None = None
    """PEM file of the authorities that may have signed the server's certificate, or "system" for those of the
    system. Turns TLS on."""

    certificate: Path | str | None = None
    """PEM file of the client's own certificate (mutual TLS)."""

    key: Path | str | None = None
    """PEM file of its private key."""

    server_name: str = ""
    """The name that the server's certificate must have, where it is not that of the address."""

    token: str | Callable[[], str] = field(default="", repr=False)
    """An API key or a JWT, or what returns one: it is asked before every call, so tokens may change."""

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ConfigError(
                "credentials", found="half a pair", expected="both certificate and key, or none"
            )
        for name in ("certificate", "server_name"):
            if getattr(self, name) and self.ca is None:
                raise ConfigError(
                    f"credentials.{name}", found="given without ca", expected='ca, or ca="system"'
                )

    def check(self, target: str) -> None:
        """Raises :class:`ConfigError` when a token would travel to another machine in plain text."""
        if self.token and self.ca is None and not is_local(host_of(target)):
            raise ConfigError(
                "credentials.token",
                found=f"given for {target} without TLS",
                expected="TLS for a server on another machine",
                cure='Give ca, the file of its authority, or ca="system".',
            )

    def channel(self) -> Any:
        """Returns gRPC's channel credentials; None for plain text. Raises OSError for a missing file."""
        if self.ca is None:
            return None
        roots = None if self.ca == SYSTEM else Path(self.ca).read_bytes()
        if self.certificate is None or self.key is None:
            return grpc.ssl_channel_credentials(roots)
        return grpc.ssl_channel_credentials(
            roots, Path(self.key).read_bytes(), Path(self.certificate).read_bytes()
        )

    def options(self) -> tuple[tuple[str, Any], ...]:
        """Returns gRPC's channel options."""
        return (("grpc.ssl_target_name_override", self.server_name),) if self.server_name else ()

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Returns what goes with each call."""
        token = self.token() if callable(self.token) else self.token
        return (("authorization", f"Bearer {token}"),) if token else ()
