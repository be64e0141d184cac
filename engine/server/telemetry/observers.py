"""The observers that the settings ask for."""

from recserve.engine.server.chain import Observer
from recserve.engine.server.telemetry.access_log import AccessLog
from recserve.engine.server.telemetry.config import TelemetryConfig


def new_observers(config: TelemetryConfig) -> list[Observer]:
    """Returns them; raises :class:`ConfigError` when one is not installed."""
    observers: list[Observer] = []
    if config.access_lines_per_second:
        observers.append(AccessLog(config.access_lines_per_second))
    if config.traces:
        from recserve.engine.server.telemetry.tracing import new_tracer

        observers.append(new_tracer())
    if config.capture:
        from recserve.engine.server.telemetry.capture import Capture

        observers.append(Capture(config.capture, config.capture_share, config.capture_requests))
    return observers
