"""Structured logs on stderr: lines for a person on a terminal, JSON for a machine elsewhere."""

import sys

import structlog


def configure_logs() -> None:
    """Sets structlog up for this process; called by the command line only, never by the library."""
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(pad_event_to=0, exception_formatter=structlog.dev.plain_traceback)
        if sys.stderr.isatty()
        else structlog.processors.JSONRenderer(ensure_ascii=False)
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        # A line is one write: several workers share the file.
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
    )
