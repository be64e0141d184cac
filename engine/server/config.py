"""The settings of the server; checked when made."""

from dataclasses import dataclass, replace
from pathlib import Path

from recserve.engine.addresses import UNIX_PREFIX, host_of, is_local
from recserve.errors import ConfigError, nearest

TRANSPORTS = ("grpcio", "native")


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsConfig:
    """PEM files of the server; ``client_ca`` makes every client show a certificate of that authority."""

    certificate: Path
    key: Path
    client_ca: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """How the server listens, admits and stops."""

    transport: str = "grpcio"
    """What carries the calls: grpcio, or native (the extra [native]; faster, plain text, local only)."""

    host: str = "127.0.0.1"
    """Address to bind, or unix:PATH. One that other machines reach needs TLS and a policy."""

    port: int = 50051
    """Port to bind; 0 takes a free one, which the first line on stdout names."""

    workers: int = 1
    """Processes that serve the same port; the bundle's vectors are in memory once."""

    worker_threads: int = 2
    """Threads for the calls that are not batched: all but Recommend."""

    max_in_flight: int = 256
    """Requests admitted and not yet answered; more are refused with RESOURCE_EXHAUSTED."""

    max_connections: int = 1024
    """Open connections over grpcio; more are closed at once."""

    max_streams: int = 4096
    """Calls that one connection may have open; its client waits with more. It learns that when it has
    connected: what it sends beyond it until then is refused (UNAVAILABLE)."""

    max_pending: int = 8192
    """Calls over grpcio that have arrived and wait to be read, some 17 kB each, those that were taken back at
    once (HTTP/2 rapid reset) included. The core refuses more, whoever asks, as bare CANCELLED."""

    connection_age_seconds: float = 0.0
    """After so long (give or take a tenth) a client over grpcio is asked to connect again, which spreads
    callers over servers that were added; its streams get half a minute. 0: never."""

    default_deadline_ms: int = 1000
    """Deadline of a call that brings none."""

    memory_limit_mb: int = 0
    """Memory of one process, in MiB, near which it drops what it keeps, then refuses calls, at last ends.
    0: the limit of its container, where there is one."""

    drain_seconds: float = 20.0
    """How long SIGTERM waits for admitted requests."""

    max_message_bytes: int = 1 << 20
    """Largest request message."""

    insecure_bind: bool = False
    """Allows an address that other machines reach without TLS or without a policy."""

    reflection: bool | None = None
    """Whether the public address describes the API (grpcurl). Not set: where only this machine can connect
    and the transport can (grpcio)."""

    policy: Path | None = None
    """File that says who may ask what (security/policy.py). Without one everybody may ask everything."""

    tls_certificate: Path | None = None
    """PEM file of the server's certificate chain; read anew when it changes."""

    tls_key: Path | None = None
    """PEM file of its private key, readable by its owner only."""

    tls_client_ca: Path | None = None
    """PEM file of the authorities of client certificates; with it every client must show one."""

    admin_address: str = ""
    """HOST:PORT or unix:PATH where admin methods and reflection are served, over grpcio. Not set: nowhere.
    Of several workers the first one has it."""

    audit_log: Path | None = None
    """File that refusals and admin actions are appended to."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError("server.port", found=self.port, expected="0 to 65535")
        for name in (
            "workers",
            "worker_threads",
            "max_in_flight",
            "max_connections",
            "max_streams",
            "max_pending",
            "default_deadline_ms",
            "max_message_bytes",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"server.{name}", found=getattr(self, name), expected="1 or more")
        if self.memory_limit_mb < 0:
            raise ConfigError("server.memory_limit_mb", found=self.memory_limit_mb, expected="0 or more")
        for name in ("drain_seconds", "connection_age_seconds"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"server.{name}", found=getattr(self, name), expected="0 or more")
        if self.transport not in TRANSPORTS:
            raise ConfigError(
                "server.transport",
                found=self.transport,
                expected=f"one of {', '.join(TRANSPORTS)}",
                cure=nearest(self.transport, TRANSPORTS),
            )
        self._check_tls()
        if self.admin_address:
            _check_address(self.admin_address)
        if self.is_exposed and not self.insecure_bind:
            raise ConfigError(
                "server.host" if not self.is_local else "server.admin_address",
                found=self.host if not self.is_local else self.admin_address,
                expected="a loopback address, or TLS and a policy",
                cure="Give --tls-certificate, --tls-key and --policy; --insecure-bind goes without.",
            )

    def _check_tls(self) -> None:
        if (self.tls_certificate is None) != (self.tls_key is None):
            name, other = (
                ("tls_key", "tls_certificate") if self.tls_key is None else ("tls_certificate", "tls_key")
            )
            raise ConfigError(
                f"server.{name}", found="missing", expected=f"a PEM file, as server.{other} is given"
            )
        if self.tls_client_ca is not None and (self.tls_key is None or self.policy is None):
            raise ConfigError(
                "server.tls_client_ca",
                found="alone",
                expected="server.tls_certificate, server.tls_key and server.policy with it",
                cure="The policy says what the names of client certificates may do.",
            )
        if self.transport == "native" and self.tls is not None:
            raise ConfigError(
                "server.tls_certificate",
                found="given",
                expected="none with --transport native",
                cure="It has no TLS: put a TLS proxy in front of it, or use --transport grpcio.",
            )

    @property
    def tls(self) -> TlsConfig | None:
        """The TLS files, None for plain text."""
        if self.tls_certificate is None or self.tls_key is None:
            return None
        return TlsConfig(certificate=self.tls_certificate, key=self.tls_key, client_ca=self.tls_client_ca)

    @property
    def is_exposed(self) -> bool:
        """Whether other machines can connect without TLS or without a policy."""
        local = self.is_local and (not self.admin_address or is_local(host_of(self.admin_address)))
        return not local and (self.tls is None or self.policy is None)

    def for_admin(self) -> "ServerConfig":
        """The settings of the admin address: grpcio; a Unix socket has no TLS, its file mode guards it."""
        host = host_of(self.admin_address)
        # Exposure was checked when these settings were made.
        own = replace(self, transport="grpcio", admin_address="", insecure_bind=True)
        if host.startswith(UNIX_PREFIX):
            return replace(own, host=host, tls_certificate=None, tls_key=None, tls_client_ca=None)
        return replace(own, host=host, port=int(self.admin_address.rpartition(":")[2]))

    @property
    def is_unix(self) -> bool:
        """Whether the public address is a Unix socket."""
        return self.host.startswith(UNIX_PREFIX)

    @property
    def is_local(self) -> bool:
        """Whether only this machine can connect to the public address."""
        return is_local(self.host)

    @property
    def with_reflection(self) -> bool:
        """Whether the public address describes the API."""
        return self.transport == "grpcio" and self.is_local if self.reflection is None else self.reflection

    def address(self, port: int) -> str:
        """Returns HOST:PORT, or unix:PATH, as gRPC and a caller write it."""
        if self.is_unix:
            return self.host
        return f"[{self.host}]:{port}" if ":" in self.host else f"{self.host}:{port}"


def _check_address(address: str) -> None:
    port = address.rpartition(":")[2]
    if not address.startswith(UNIX_PREFIX) and not (
        port.isdecimal() and int(port) <= 65535 and host_of(address)
    ):
        raise ConfigError("server.admin_address", found=address, expected="HOST:PORT or unix:PATH")
