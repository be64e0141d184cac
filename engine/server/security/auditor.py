"""Writes to the audit log what the authoriser decides, and how admin actions end."""

import datetime
import threading
import time
from collections.abc import Callable

import grpc
import structlog

from recserve.engine.server.call import Call
from recserve.engine.server.chain import Observer
from recserve.engine.server.security.audit import AuditLog
from recserve.errors import CheckFailed, Unavailable

log = structlog.get_logger("recserve.server")

# Whoever floods the server with bad credentials must not fill its disk: the rest of a second is counted.
MAX_REFUSALS_PER_SECOND = 100


class Auditor(Observer):
    """One record per refusal, two per audited call (admin actions, exports and erasures of users): before it
    ("action") and after ("result").

    An audited call whose record cannot be written does not happen; other calls go on without theirs.
    """

    def __init__(self, audit_log: AuditLog, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = audit_log
        self._clock = clock
        self._lock = threading.Lock()
        self._second = 0
        self._n_refusals = 0
        self._n_skipped = 0
        self._actions: dict[Call, str] = {}

    def refused(self, call: Call, principal: str, rule: str) -> None:
        """Records that ``call`` was refused by ``rule``."""
        with self._lock:
            second = int(self._clock())
            if second != self._second:
                self._second, self._n_refusals = second, 0
            self._n_refusals += 1
            if self._n_refusals > MAX_REFUSALS_PER_SECOND:
                self._n_skipped += 1
                return
            skipped, self._n_skipped = self._n_skipped, 0
        try:
            self._append("refusal", call, principal, rule, authorised=False, skipped=skipped)
        except (OSError, CheckFailed) as error:
            log.error("audit record lost", method=call.method.path, error=str(error))

    def permitted(self, call: Call, principal: str, rule: str) -> None:
        """Records an audited call before it happens; raises :class:`Unavailable` when that fails."""
        try:
            self._append("action", call, principal, rule, authorised=True, durable=True)
        except (OSError, CheckFailed) as error:
            log.error(
                "audit log failed, audited calls are refused", method=call.method.path, error=str(error)
            )
            raise Unavailable(
                "audit log", found="not writable", expected="writable", cure="The server's log has the cause."
            ) from error
        self._actions[call] = principal

    def on_answered(self, call: Call, code: grpc.StatusCode, seconds: float) -> None:
        """Records how an audited call ended."""
        principal = self._actions.pop(call, None) if self._actions else None
        if principal is not None:
            try:
                self._append("result", call, principal, "", authorised=True, result=code.name, durable=True)
            except (OSError, CheckFailed) as error:
                log.error("audit record lost", method=call.method.path, result=code.name, error=str(error))

    def close(self) -> None:
        """Accounts for the refusals that were only counted."""
        with self._lock:
            skipped, self._n_skipped = self._n_skipped, 0
        if skipped:
            try:
                self._log.append({"time": _now(), "event": "skipped refusals", "skipped": skipped})
            except (OSError, CheckFailed) as error:
                log.error("audit record lost", skipped=skipped, error=str(error))

    def _append(
        self,
        event: str,
        call: Call,
        principal: str,
        rule: str,
        *,
        authorised: bool,
        durable: bool = False,
        result: str = "",
        skipped: int = 0,
    ) -> None:
        record: dict[str, object] = {
            "time": _now(),
            "event": event,
            "method": call.method.path,
            "principal": principal,
            "rule": rule,
            "authorised": authorised,
            "peer": call.peer,
            "request_id": call.request_id,
            "result": result,
        }
        if skipped:
            record["skipped"] = skipped
        self._log.append(record, durable=durable)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
