"""One call on its way through the server, whatever carries it. How to use one: methods.py."""

import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import structlog
from google.protobuf.message import EncodeError
from google.rpc import status_pb2

from recserve.engine.server.methods import Method, Shape
from recserve.engine.wire.status import (
    REASON_INTERNAL,
    grpc_code,
    make_status,
    reason_for,
    reason_of,
    status_of,
)
from recserve.errors import DeadlineExceeded, RecserveError

if TYPE_CHECKING:
    from recserve.engine.server.chain import Chain

log = structlog.get_logger("recserve.server")

REQUEST_ID_HEADER = "x-request-id"
REASON_CANCELLED = "CANCELLED"
MAX_REQUEST_ID_CHARACTERS = 64
ANONYMOUS = "anonymous"

T = TypeVar("T")


# Not an ABC: those take six times as long to tell a call from a row of another protocol.
class Call:
    """One call; a transport makes a subclass with the two or four ways in which it answers.

    Answered exactly once: of several ``reply``, ``fail``, ``cancel`` on any threads the first one wins,
    and tells so by returning True.
    """

    __slots__ = (
        "_callbacks",
        "_chain",
        "_open",
        "_request_id",
        "deadline",
        "identities",
        "metadata",
        "method",
        "peer",
        "principal",
        "priority",
        "reason",
        "received_at",
        "request",
        "served_by",
        "stage_ns",
        "was_cancelled",
    )

    def __init__(
        self,
        method: Method,
        *,
        metadata: Sequence[tuple[str, str | bytes]] = (),
        peer: str = "",
        seconds: float | None = None,
        identities: Sequence[str] = (),
    ) -> None:
        """``seconds``: until the caller's deadline, None when it set none.

        ``identities``: names of its verified certificate, as security/policy.py writes them.
        """
        self.method = method
        self.metadata = metadata
        self.peer = peer
        self.identities = identities
        self.principal: Any = ANONYMOUS
        self.priority = method.priority
        self.request: Any = None
        self.received_at = time.monotonic()
        self.deadline = self.received_at + seconds if seconds is not None else 0.0
        self.stage_ns: dict[str, int] = {}
        # Model and version that answer, None until that is known; for the observers.
        self.served_by: tuple[str, str] | None = None
        # Why it failed: a reason of the status table, "" for a good answer.
        self.reason = ""
        self.was_cancelled = False
        # Whoever pops the one element answers: list.pop is atomic.
        self._open = [True]
        self._callbacks: list[Callable[[], None]] | None = None
        self._request_id = ""
        self._chain: Chain | None = None

    def header(self, name: str) -> str | bytes | None:
        """Returns the first value of a metadata key (lower case), bytes for a ``-bin`` key, or None."""
        for key, value in self.metadata:
            if key == name:
                return value
        return None

    @property
    def request_id(self) -> str:
        """The caller's ``x-request-id`` where it is at most 64 printable ASCII characters, else a new id."""
        if not self._request_id:
            given = self.header(REQUEST_ID_HEADER)
            fine = isinstance(given, str) and 0 < len(given) <= MAX_REQUEST_ID_CHARACTERS
            if fine and isinstance(given, str) and given.isascii() and given.isprintable():
                self._request_id = given
            else:
                self._request_id = uuid.uuid4().hex
        return self._request_id

    def echo(self) -> tuple[tuple[str, str], ...]:
        """Returns the trailing metadata with the request id, where somebody knows it (caller, log, trace)."""
        if self._request_id or self.header(REQUEST_ID_HEADER) is not None:
            return ((REQUEST_ID_HEADER, self.request_id),)
        return ()

    @property
    def is_done(self) -> bool:
        """Whether the call is answered, cancelled or expired: work for it is wasted."""
        return not self._open

    def on_done(self, callback: Callable[[], None]) -> None:
        """Runs ``callback`` once the call is done, on the thread that ends it; at once when it is already."""
        if self._callbacks is None:
            self._callbacks = []
        self._callbacks.append(callback)
        if not self._open:
            self._run_callbacks()

    def reply(self, message: Any) -> bool:
        """Answers with ``message``, or with INTERNAL when it cannot be encoded."""
        if not self._open:
            return False
        try:
            data = self.method.encode(message)
        except (EncodeError, TypeError, ValueError, AttributeError) as error:
            return self.fail(error)
        if not self._end(grpc.StatusCode.OK):
            return False
        self._send_reply(data)
        return True

    def fail(self, error: BaseException) -> bool:
        """Answers with the status of ``error``; what is not one of ours is logged and says nothing."""
        if not self._open:
            return False
        status = self._status(error)
        if not self._end(grpc_code(status)):
            return False
        self._send_failure(status)
        return True

    def expire(self) -> bool:
        """Answers DEADLINE_EXCEEDED."""
        milliseconds = (self.deadline - self.received_at) * 1000
        return self.fail(
            DeadlineExceeded(
                "answer",
                found="not ready",
                expected=f"within {milliseconds:.0f} ms",
                cure="Allow more time.",
            )
        )

    def cancel(self) -> bool:
        """The caller has left (or its own deadline has passed): nothing is sent."""
        if not self._open:
            return False
        late = time.monotonic() >= self.deadline > 0
        self.reason = reason_of(DeadlineExceeded) if late else REASON_CANCELLED
        self.was_cancelled = self._end(
            grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED
        )
        return self.was_cancelled

    def send(self, message: Any) -> bool:
        """Sends one message of a reply stream; False when the caller has left."""
        if not self._open:
            return False
        self._send_message(self.method.encode(message))
        return True

    def finish(self) -> bool:
        """Ends a reply stream well."""
        if not self._end(grpc.StatusCode.OK):
            return False
        self._send_end()
        return True

    def _end(self, code: grpc.StatusCode) -> bool:
        try:
            self._open.pop()
        except IndexError:
            return False
        if self._chain is not None:
            self._chain.answered(self, code)
        if self._callbacks is not None:
            self._run_callbacks()
        return True

    def _run_callbacks(self) -> None:
        callbacks = self._callbacks or []
        while callbacks:
            try:
                callback = callbacks.pop()
            except IndexError:
                return  # Another thread ran the last one.
            callback()

    def _status(self, error: BaseException) -> status_pb2.Status:
        self.reason = reason_for(error)
        if isinstance(error, RecserveError):
            status = status_of(error)
            if status.code != grpc.StatusCode.INTERNAL.value[0]:
                return status
        error_id = uuid.uuid4().hex[:12]
        log.error(
            "request failed",
            method=self.method.path,
            request_id=self.request_id,
            error_id=error_id,
            exc_info=error,
        )
        message = f"The server failed; its log has the cause under {error_id}."
        return make_status(grpc.StatusCode.INTERNAL, REASON_INTERNAL, message)

    def _send_reply(self, data: bytes) -> None:
        """Sends the one reply; any thread, exactly once."""
        raise NotImplementedError

    def _send_failure(self, status: status_pb2.Status) -> None:
        """Sends a failure with its details; any thread, exactly once."""
        raise NotImplementedError

    def _send_message(self, data: bytes) -> None:
        raise TypeError(f"{self.method.path} is {Shape.UNARY.value}: it has one reply")

    def _send_end(self) -> None:
        raise TypeError(f"{self.method.path} is {Shape.UNARY.value}: it has one reply")


def answer_later(call: Call, future: Future[T], message_of: Callable[[T], Any]) -> None:
    """Answers ``call`` with the message of what ``future`` brings, on whatever thread that does."""

    def answer(done: Future[T]) -> None:
        try:
            call.reply(message_of(done.result()))
        except Exception as error:  # noqa: BLE001 - the caller gets a status for whatever it is
            call.fail(error)

    future.add_done_callback(answer)
