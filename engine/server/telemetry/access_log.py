"""One log line per request: when, what, how it ended and where its time went; never who asked for what."""

import threading
import time
from collections.abc import Callable

import grpc
import structlog

from recserve.engine.server.call import Call
from recserve.engine.server.chain import Observer

log = structlog.get_logger("recserve.access")


class AccessLog(Observer):
    """Writes at most ``lines_per_second``; a line says how many were left out since the one before.

    Neither ids of users or items nor the caller's address: the request id joins a line with the caller's
    own records.
    """

    def __init__(self, lines_per_second: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._lines_per_second = lines_per_second
        self._clock = clock
        # Guards the fields below.
        self._lock = threading.Lock()
        self._second = 0
        self._n_written = 0
        self._n_left_out = 0

    def on_answered(self, call: Call, code: grpc.StatusCode, seconds: float) -> None:
        """Writes the line of a call, unless there were enough in this second. Health checks have none."""
        if call.method.scope == "health":
            return
        left_out = self._take_turn()
        if left_out is None:
            return
        extra = {"left_out": left_out} if left_out else {}
        log.info(
            "request",
            request_id=call.request_id,
            method=call.method.path,
            code=code.name,
            **({"reason": call.reason} if call.reason else {}),
            ms=round(seconds * 1e3, 3),
            stages_ms={stage: round(ns / 1e6, 3) for stage, ns in call.stage_ns.items()},
            **extra,
        )

    def _take_turn(self) -> int | None:
        """Returns how many lines were left out before this one, None when this one is left out too."""
        second = int(self._clock())
        with self._lock:
            if second != self._second:
                self._second, self._n_written = second, 0
            if self._n_written >= self._lines_per_second:
                self._n_left_out += 1
                return None
            self._n_written += 1
            left_out, self._n_left_out = self._n_left_out, 0
            return left_out
