"""The settings of what the server remembers; checked when made."""

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from recserve.errors import ConfigError, nearest

SHARED_SCHEMES = ("redis", "rediss", "postgresql")
SCHEMES = ("sqlite", "memory", *SHARED_SCHEMES)
DURABILITIES = ("power", "process")
SQLITE_PREFIX = "sqlite:///"


@dataclass(frozen=True, slots=True, kw_only=True)
class StateConfig:
    """Where events of users are kept, how safely and for how long."""

    url: str = ""
    """sqlite:///PATH (four slashes: an absolute one), memory://, or for several servers redis://HOST:PORT/NUMBER,
    rediss://… (TLS) or postgresql://USER@HOST:PORT/NAME. Not set: no feedback service."""

    durability: str = "power"
    """What an event that was answered with OK survives: power (a power failure), process (the server's death;
    a power failure may cost the last moments). Redis is asked for its own settings instead."""

    key_file: Path | None = None
    """The master keys (engine/state/master.py), unless the environment has RECSERVE_STATE_KEY. Not set:
    PATH.master beside an SQLite log, made at the first start."""

    retention_days: int = 90
    """How long events are kept: older ones are removed every hour."""

    require_consent: bool = False
    """Whether an event that brings no consent is not kept. Else the caller vouches for it."""

    source: str = ""
    """kafka://BROKER:PORT/TOPIC?SETTING=VALUE: its events are recorded too. Settings are librdkafka's."""

    sink: str = ""
    """The same, of another topic: events whose users agreed to exports are published there."""

    commit_events: int = 256
    """Events that one commit takes at most, unless a single call brings more."""

    max_events: int = 1000
    """Events that one call may bring."""

    max_waiting_calls: int = 64
    """Calls that may wait for the disk; more are refused, so that a slow one never holds up other methods."""

    record_stream: bool | None = None
    """Whether RecordStream is served. Not set: where the transport can (grpcio)."""

    def __post_init__(self) -> None:
        scheme = self.scheme
        if self.url and scheme not in SCHEMES:
            raise ConfigError(
                "state.url",
                found=self.shown_url,
                expected=f"one of {', '.join(f'{name}://…' for name in SCHEMES)}",
                cure=nearest(scheme, SCHEMES),
            )
        if scheme == "sqlite" and not self.path:
            raise ConfigError("state.url", found=self.url, expected="sqlite:///PATH")
        if (self.source or self.sink) and (not self.url or self.source == self.sink):
            raise ConfigError(
                "state.source and state.sink",
                found="the same topic" if self.url else "given without state.url",
                expected="different topics, beside a log",
            )
        if self.durability not in DURABILITIES:
            raise ConfigError(
                "state.durability", found=self.durability, expected=f"one of {', '.join(DURABILITIES)}"
            )
        for name in ("retention_days", "commit_events", "max_events", "max_waiting_calls"):
            if getattr(self, name) < 1:
                raise ConfigError(f"state.{name}", found=getattr(self, name), expected="1 or more")

    @property
    def scheme(self) -> str:
        """What the URL begins with."""
        return urlsplit(self.url).scheme

    @property
    def is_memory(self) -> bool:
        """Whether the log ends with the server."""
        return self.scheme == "memory"

    @property
    def is_shared(self) -> bool:
        """Whether several servers may use the log."""
        return self.scheme in SHARED_SCHEMES

    @property
    def shown_url(self) -> str:
        """The URL without user, password and options: they may be secrets."""
        place = urlsplit(self.url).netloc
        return self.url.partition("?")[0].replace(place, place.rpartition("@")[2], 1)

    @property
    def path(self) -> str:
        """The file of a log on this machine, "" for none."""
        return self.url.removeprefix(SQLITE_PREFIX) if self.url.startswith(SQLITE_PREFIX) else ""

    @property
    def master_file(self) -> Path:
        """The file of the master keys; it need not be there when the environment has them."""
        return self.key_file or Path(f"{self.path}.master")
