"""The settings of logs and traces; checked when made."""

from dataclasses import dataclass

from recserve.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetryConfig:
    """What the server tells about each request."""

    access_lines_per_second: int = 100
    """Most log lines about requests per second, one each; the next line counts those left out. 0: none."""

    traces: bool = False
    """Sends OpenTelemetry spans (the extra [otel]); where to and how many is said by OTEL_* variables."""

    def __post_init__(self) -> None:
        if self.access_lines_per_second < 0:
            raise ConfigError(
                "telemetry.access_lines_per_second",
                found=self.access_lines_per_second,
                expected="0 or more",
            )
