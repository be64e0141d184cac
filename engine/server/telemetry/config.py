"""The settings of logs and traces; checked when made."""

from dataclasses import dataclass
from pathlib import Path

from recserve.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetryConfig:
    """What the server tells about each request."""

    access_lines_per_second: int = 100
    """Most log lines about requests per second, one each; the next line counts those left out. 0: none."""

    traces: bool = False
    """Sends OpenTelemetry spans (the extra [otel]); where to and how many is said by OTEL_* variables."""

    capture: Path | None = None
    """Parquet file for a sample of the traffic, which `recserve bench load --trace` replays: when, what kind,
    how large, and pseudonyms that hold for this run only. It appears when it is full or the server stops."""

    capture_share: float = 0.01
    """Share of the requests that are captured."""

    capture_requests: int = 1_000_000
    """Most requests that are captured, about 16 bytes each."""

    def __post_init__(self) -> None:
        if not 0 < self.capture_share <= 1:
            raise ConfigError(
                "telemetry.capture_share", found=self.capture_share, expected="above 0, at most 1"
            )
        if self.capture_requests < 1:
            raise ConfigError("telemetry.capture_requests", found=self.capture_requests, expected="1 or more")
        if self.access_lines_per_second < 0:
            raise ConfigError(
                "telemetry.access_lines_per_second",
                found=self.access_lines_per_second,
                expected="0 or more",
            )
