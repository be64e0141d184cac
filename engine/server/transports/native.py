"""gRPC by pygrpc-native: HTTP/2 in Rust, outside the interpreter lock; calls arrive in batches.

Plain text only (loopback, a Unix socket, or behind a TLS proxy); unary calls and reply streams. A message
over the limit is refused after it has been received, and connections are not counted: keep strangers away
with the proxy. The names of trailers that start with "grpc-" are its own, so no pushback is sent.
"""

import threading
import time
from typing import Any

import structlog
from google.rpc import status_pb2

from recserve.engine.server.call import Call
from recserve.engine.server.chain import Chain
from recserve.engine.server.config import ServerConfig
from recserve.engine.server.methods import Method, MethodTable, Shape
from recserve.engine.server.transports import Receivers, guard_socket, one_receiver
from recserve.engine.threads import Crew
from recserve.engine.wire.status import trailer_of
from recserve.errors import ConfigError, Overloaded

log = structlog.get_logger("recserve.server")

CARRIED = frozenset({Shape.UNARY, Shape.SERVER_STREAM})
# Calls that come to Python with one crossing of the interpreter lock.
RECEIVE_BATCH = 64
# Of several threads that wait for calls the front wakes one when it closes; the others see it so much later.
RECEIVE_MS = 100
# More keep a core from the engine without making a server of few cores faster.
IO_THREADS = 1
# A peer that is gone without a word is noticed by a ping that nobody answers.
KEEPALIVE_SECONDS = 60


class NativeTransport:
    """Unary and server-streaming methods on one address, without a thread or a task per call."""

    def __init__(
        self,
        chain: Chain,
        config: ServerConfig,
        methods: MethodTable,
        *,
        reuse_port: bool = False,
        receivers: Receivers = one_receiver,
    ) -> None:
        """``receivers``: starts the threads that receive."""
        methods.check_shapes("native", CARRIED)
        if not config.is_local:
            raise ConfigError(
                "server.host",
                found=config.host,
                expected="loopback or unix:PATH with --transport native",
                cure="It has no TLS: put a TLS proxy in front of it, or use --transport grpcio.",
            )
        self._native = _import_native()
        self._chain = chain
        self._config = config
        self._reuse_port = reuse_port
        self._methods = list(methods)
        # By the front's id; a call leaves when it is answered or cancelled.
        self._calls: dict[int, _NativeCall] = {}
        # Held from the receipt of calls until they are known: another thread may hear that one is cancelled.
        self._receiving = threading.Lock()
        self._front: Any = None
        self._receivers = receivers
        self._crew: Crew | None = None

    def start(self) -> str:
        """Binds and accepts calls; returns the address."""
        address = self._config.address(self._config.port)
        try:
            self._front = self._native.NativeGrpcFront(
                address,
                [(method.path, method.shape.streams_replies) for method in self._methods],
                io_threads=IO_THREADS,
                call_details=True,
                max_concurrent_streams=self._config.max_streams,
                keepalive_time_ms=KEEPALIVE_SECONDS * 1000,
                reuse_port=self._reuse_port,
            )
            self._front.start()
        except OSError as error:
            raise ConfigError(
                "server address", found=address, expected="free to bind", cure="Choose another --port."
            ) from error
        guard_socket(address)
        self._crew = self._receivers(self._receive)
        return self._config.address(self._front.bound_port)

    def stop(self, grace_seconds: float) -> None:
        """Gives open calls the seconds, closes."""
        if self._crew is None:
            return
        for seconds in self._chain.admission.pauses_until_quiet():
            time.sleep(seconds)
        deadline = time.monotonic() + grace_seconds
        while self._calls and time.monotonic() < deadline:
            time.sleep(0.01)
        self._front.close()
        self._crew.join()
        self._crew = None
        for call in list(self._calls.values()):
            call.cancel()

    def _receive(self) -> bool:
        """Waits for calls, for a while, and dispatches them; False when the front is closed."""
        calls, methods, event_call = self._calls, self._methods, self._native.EVENT_CALL
        new: dict[int, _NativeCall] = {}
        with self._receiving:
            events = self._front.recv_batch_details(RECEIVE_BATCH, RECEIVE_MS)
            if events is None:
                return False
            for kind, call_id, method_id, _, _, details in events:
                if kind == event_call:
                    new[call_id] = _NativeCall(methods[method_id], self, call_id, details)
            calls.update(new)
        for kind, call_id, method_id, payload, _, _ in events:
            try:
                if kind == event_call:
                    self._chain.dispatch(new[call_id], payload)
                elif (gone := calls.pop(call_id, None)) is not None:
                    gone.cancel()
            except Exception:
                # Of one call; without this thread there would be no others.
                log.exception("call failed in the transport", method=methods[method_id].path)
        return True

    def reply(self, call_id: int, data: bytes, echo: tuple[tuple[str, str], ...]) -> None:
        """Sends the one reply of a call."""
        self._calls.pop(call_id, None)
        self._front.respond(call_id, data, trailing_metadata=echo or None)

    def fail(self, call_id: int, status: status_pb2.Status, echo: tuple[tuple[str, str], ...]) -> None:
        """Ends a call with a status."""
        self._calls.pop(call_id, None)
        self._front.fail(call_id, status.code, status.message, trailer_of(status) + echo)

    def send(self, call: Call, call_id: int, data: bytes) -> None:
        """Sends one message of a reply stream; a reader too slow for its buffer loses the stream."""
        sent = self._front.stream_try_send(call_id, data)
        if sent == self._native.STREAM_FULL:
            call.fail(Overloaded("reader", found="too slow", expected="reading", cure="Ask again."))
        elif sent == self._native.STREAM_CLOSED:
            self._calls.pop(call_id, None)
            call.cancel()

    def end(self, call_id: int) -> None:
        """Ends a reply stream well."""
        self._calls.pop(call_id, None)
        self._front.stream_end(call_id)


class _NativeCall(Call):
    __slots__ = ("_call_id", "_transport")

    def __init__(self, method: Method, transport: NativeTransport, call_id: int, details: Any) -> None:
        metadata, peer, seconds = details
        super().__init__(method, metadata=metadata, peer=peer, seconds=seconds)
        self._transport = transport
        self._call_id = call_id

    def _send_reply(self, data: bytes) -> None:
        self._transport.reply(self._call_id, data, self.echo())

    def _send_failure(self, status: status_pb2.Status) -> None:
        self._transport.fail(self._call_id, status, self.echo())

    def _send_message(self, data: bytes) -> None:
        self._transport.send(self, self._call_id, data)

    def _send_end(self) -> None:
        self._transport.end(self._call_id)


def _import_native() -> Any:
    try:
        import pygrpc_native
    except ImportError as error:
        raise ConfigError(
            "server.transport",
            found="native without pygrpc-native",
            expected="an installation with the extra [native]",
            cure="Run: pip install 'recserve[native]'",
        ) from error
    return pygrpc_native
