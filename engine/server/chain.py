"""What every method passes on every transport; methods.py tells the whole way."""

import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import grpc
import structlog

from recserve.engine.server.admission import Admission
from recserve.engine.server.call import ANONYMOUS, Call
from recserve.engine.server.methods import Consumer, MethodTable, Shape
from recserve.engine.wire.convert import decoded
from recserve.errors import MessageTooLarge

if TYPE_CHECKING:
    from recserve.engine.server.security.caller_limits import CallerLimits

log = structlog.get_logger("recserve.server")

# How late a deadline may be noticed that the transport does not watch itself.
SWEEP_SECONDS = 0.02


class Observer:
    """Sees every call (metrics, traces, audit). Called on any thread; must neither block nor raise."""

    def on_admitted(self, call: Call) -> None:
        """The call passed authorisation and admission and is about to be decoded."""

    def on_answered(self, call: Call, code: grpc.StatusCode, seconds: float) -> None:
        """The call is done, ``seconds`` after its arrival; ``call.stage_ns`` has the stages.

        Refused calls come here too, without :meth:`on_admitted`. The reply is sent just after.
        """

    def close(self) -> None:
        """The server has stopped: no call comes any more."""


def everybody(call: Call, scope: str = "") -> Any:
    """The authorising hook of a server without authentication."""
    return ANONYMOUS


def _sees_admitted(observer: Observer) -> bool:
    return type(observer).on_admitted is not Observer.on_admitted


class Chain:
    """Authorises, admits, decodes and hands over calls; watches their deadlines.

    ``principal_of(call)`` returns who calls, or raises (Unauthenticated, PermissionDenied); with a second
    argument, another scope than the method's is asked for.
    """

    def __init__(
        self,
        methods: MethodTable,
        admission: Admission,
        *,
        default_deadline_seconds: float,
        max_message_bytes: int,
        principal_of: Callable[..., Any] = everybody,
        limits: "CallerLimits | None" = None,
        observers: Sequence[Observer] = (),
    ) -> None:
        self.methods = methods
        self.admission = admission
        self._default_deadline_seconds = default_deadline_seconds
        self._max_message_bytes = max_message_bytes
        self._principal_of = principal_of
        self._limits = limits
        self._observers = tuple(observers)
        self._on_admitted = [one.on_admitted for one in observers if _sees_admitted(one)]
        self._closed = threading.Event()
        self._sweeper = threading.Thread(target=self._sweep, name="recserve-deadlines", daemon=True)
        self._sweeper.start()

    def dispatch(self, call: Call, data: bytes) -> None:
        """Takes a call with one request message; the answer comes through ``call``, now or later."""
        try:
            self._enter(call)
            call.request = request = self._decode(call, data)
            also = call.method.also_scope
            if also is not None and (scope := also(request)):
                self._principal_of(call, scope)
            if self._limits is not None and call.method.weight is not None:
                self._limits.charge(call, call.method.weight(request) - 1)
            call.method.handler(request, call)
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller gets a status
            call.fail(error)

    def open(self, call: Call) -> Consumer | None:
        """Takes a call that streams requests; returns who takes them, None when the call was refused."""
        try:
            self._enter(call)
            consumer: Consumer = call.method.handler(call)
        except Exception as error:  # noqa: BLE001 - as above
            call.fail(error)
            return None
        return consumer

    def feed(self, call: Call, consumer: Consumer, data: bytes) -> Any:
        """Hands the next message of a streaming caller over; returns what :meth:`Consumer.message` does."""
        try:
            return consumer.message(self._decode(call, data))
        except Exception as error:  # noqa: BLE001 - as above
            call.fail(error)
            return None

    def end(self, call: Call, consumer: Consumer) -> None:
        """The streaming caller has sent everything."""
        try:
            consumer.end()
        except Exception as error:  # noqa: BLE001 - as above
            call.fail(error)

    def answered(self, call: Call, code: grpc.StatusCode) -> None:
        """Told by each call when it is done, before the reply is sent."""
        if call.method.is_admitted:
            self.admission.leave(call)
        if self._observers:
            seconds = time.monotonic() - call.received_at
            for observer in self._observers:
                try:
                    observer.on_answered(call, code, seconds)
                except Exception:
                    # The call must be answered whatever happens to the one who watches.
                    log.exception("observer failed", observer=type(observer).__name__)

    def close(self) -> None:
        """Stops watching deadlines; tells the observers that there will be no more calls."""
        self._closed.set()
        self._sweeper.join()
        for observer in self._observers:
            observer.close()

    def _enter(self, call: Call) -> None:
        call._chain = self
        method = call.method
        if not call.deadline:
            # A stream lasts as long as its caller wants.
            is_unary = method.shape is Shape.UNARY
            call.deadline = call.received_at + (self._default_deadline_seconds if is_unary else math.inf)
        # Who may not ask costs neither a place nor a decoding.
        call.principal = self._principal_of(call)
        if method.is_admitted:
            if self._limits is not None:
                self._limits.enter(call)
            self.admission.enter(call)
            if call.is_done:
                # Cancelled before it had a place, which nobody else would give back.
                self.admission.leave(call)
        for on_admitted in self._on_admitted:
            on_admitted(call)

    def _decode(self, call: Call, data: bytes) -> Any:
        if len(data) > self._max_message_bytes:
            raise MessageTooLarge(
                "request", found=f"{len(data)} bytes long", expected=f"at most {self._max_message_bytes}"
            )
        return decoded(call.method.decode, data)

    def _sweep(self) -> None:
        while not self._closed.wait(SWEEP_SECONDS):
            self.admission.expire(time.monotonic())
