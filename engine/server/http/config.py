"""The settings of the HTTP ports; checked when made."""

from dataclasses import dataclass

from recserve.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpConfig:
    """Where HTTP is spoken: JSON gateway and page on one port, metrics and probes there or on their own."""

    host: str = "127.0.0.1"
    """Address of the gateway. No TLS: keep it on loopback, or behind a TLS proxy."""

    port: int | None = None
    """Port of the gateway; 0 takes a free one, not set: no gateway."""

    metrics_host: str = "127.0.0.1"
    """Address of /metrics."""

    metrics_port: int | None = None
    """Port of /metrics (probes too); 0 takes a free one. Worker processes take this and the next ones.
    Not set: on the gateway's port where one process serves it to this machine only, else nowhere."""

    max_connections: int = 1024
    """Open connections of each port; more are answered 503."""

    def __post_init__(self) -> None:
        for name in ("port", "metrics_port"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 65535:
                raise ConfigError(f"http.{name}", found=value, expected="0 to 65535")
        if self.max_connections < 1:
            raise ConfigError("http.max_connections", found=self.max_connections, expected="1 or more")

    @property
    def is_wanted(self) -> bool:
        """Whether any port is open."""
        return self.port is not None or self.metrics_port is not None
