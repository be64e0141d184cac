"""gRPC by grpcio: grpc.aio on an event loop (uvloop) of its own thread."""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

import grpc
import uvloop
from google.rpc import status_pb2

from recserve.engine.server.call import Call
from recserve.engine.server.chain import Chain
from recserve.engine.server.config import ServerConfig
from recserve.engine.server.methods import Method, MethodTable, Shape
from recserve.engine.server.security.tls import ServerTls
from recserve.engine.server.transports import guard_socket
from recserve.engine.wire.status import grpc_code, pushback_of, trailer_of
from recserve.errors import ConfigError

# Who has asked nothing for so long connects again when it does.
IDLE_SECONDS = 300
# A peer that is gone without a word is noticed by a ping that nobody answers.
PING_AFTER_SECONDS, PING_TIMEOUT_SECONDS = 60, 20
AGE_GRACE_SECONDS = 30


class GrpcioTransport:
    """All shapes, on one port."""

    def __init__(
        self, chain: Chain, config: ServerConfig, methods: MethodTable, *, reuse_port: bool = False
    ) -> None:
        methods.check_shapes("grpcio", frozenset(Shape))
        self._chain = chain
        self._config = config
        self._methods = methods
        self._tls = ServerTls(config.tls) if config.tls is not None else None
        self._reuse_port = reuse_port
        self._loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
        self._mailbox = _Mailbox(self._loop)
        self._server: Any = None
        self._thread = threading.Thread(target=self._run, name="recserve-grpcio", daemon=True)

    def start(self) -> str:
        """Binds and accepts calls; returns HOST:PORT."""
        self._thread.start()
        return str(self._call(self._start()))

    def stop(self, grace_seconds: float) -> None:
        """Accepts nothing new, gives open calls the seconds, closes."""
        if not self._thread.is_alive():
            return
        self._call(self._stop(grace_seconds))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _call(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _start(self) -> str:
        self._server = grpc.aio.server(options=_options(self._config, self._reuse_port))
        self._server.add_generic_rpc_handlers(
            (_Handlers(self._chain, self._methods, self._mailbox, self._tls),)
        )
        address = self._config.address(self._config.port)
        try:
            if self._tls is not None:
                port = self._server.add_secure_port(address, self._tls.credentials())
            else:
                port = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise ConfigError(
                "server address", found=address, expected="free to bind", cure="Choose another --port."
            ) from error
        guard_socket(address)
        await self._server.start()
        return self._config.address(int(port))

    async def _stop(self, grace_seconds: float) -> None:
        for seconds in self._chain.admission.pauses_until_quiet():
            await asyncio.sleep(seconds)
        await self._server.stop(grace_seconds)


def _options(config: ServerConfig, reuse_port: bool) -> list[tuple[str, int]]:
    options = {
        "grpc.so_reuseport": int(reuse_port),
        "grpc.max_allowed_incoming_connections": config.max_connections,
        "grpc.max_concurrent_streams": config.max_streams,
        "grpc.max_connection_idle_ms": IDLE_SECONDS * 1000,
        "grpc.keepalive_time_ms": PING_AFTER_SECONDS * 1000,
        "grpc.keepalive_timeout_ms": PING_TIMEOUT_SECONDS * 1000,
        # Of a ping alone; its default of a minute counts where anything else comes within the other one.
        "grpc.http2.ping_timeout_ms": PING_TIMEOUT_SECONDS * 1000,
        "grpc.keepalive_permit_without_calls": 1,
        # The chain refuses what is over the limit; a byte more lets it see that.
        "grpc.max_receive_message_length": config.max_message_bytes + 1,
        # Between the two the core drops calls at random. Admission is ours, with a status that says so: as
        # many as may wait by default hear that after more than a second.
        "grpc.server.max_pending_requests": config.max_pending,
        "grpc.server.max_pending_requests_hard_limit": config.max_pending,
    }
    if config.connection_age_seconds:
        options["grpc.max_connection_age_ms"] = int(config.connection_age_seconds * 1000)
        options["grpc.max_connection_age_grace_ms"] = AGE_GRACE_SECONDS * 1000
    return list(options.items())


class _Mailbox:
    """Brings answers from worker threads to the loop: one wake-up for all that are waiting."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._thread_id = 0
        self._waiting: deque[tuple[asyncio.Future[Any], Any]] = deque()
        # Whether a wake-up is on its way; at worst (two threads at once) there is one too many.
        self._scheduled = False

    def put(self, future: "asyncio.Future[Any]", value: Any) -> None:
        """Resolves ``future`` on the loop; any thread."""
        self._waiting.append((future, value))
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._scheduled = False
        waiting = self._waiting
        while waiting:
            future, value = waiting.popleft()
            if not future.done():
                future.set_result(value)


class _UnaryCall(Call):
    __slots__ = ("_mailbox", "answer")

    def __init__(
        self,
        method: Method,
        metadata: Sequence[tuple[str, str | bytes]],
        context: Any,
        identities: Sequence[str],
        mailbox: _Mailbox,
        answer: Any,
    ) -> None:
        super().__init__(
            method,
            metadata=metadata,
            peer=context.peer(),
            seconds=context.time_remaining(),
            identities=identities,
        )
        self._mailbox = mailbox
        self.answer = answer

    def _send_reply(self, data: bytes) -> None:
        self._mailbox.put(self.answer, data)

    def _send_failure(self, status: status_pb2.Status) -> None:
        self._mailbox.put(self.answer, status)


class _StreamCall(Call):
    """A call whose replies (bytes), end (None) and failure (status) go through a queue to its coroutine."""

    __slots__ = ("_loop", "_queue")

    def __init__(
        self, method: Method, context: Any, identities: Sequence[str], loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(
            method,
            metadata=context.invocation_metadata(),
            peer=context.peer(),
            seconds=context.time_remaining(),
            identities=identities,
        )
        self._loop = loop
        self._queue: asyncio.Queue[bytes | status_pb2.Status | None] = asyncio.Queue()

    async def next(self) -> bytes | status_pb2.Status | None:
        return await self._queue.get()

    def _put(self, item: bytes | status_pb2.Status | None) -> None:
        self._loop.call_soon_threadsafe(self._queue.put_nowait, item)

    def _send_reply(self, data: bytes) -> None:
        self._put(data)
        self._put(None)

    def _send_failure(self, status: status_pb2.Status) -> None:
        self._put(status)

    def _send_message(self, data: bytes) -> None:
        self._put(data)

    def _send_end(self) -> None:
        self._put(None)


class _Handlers(grpc.GenericRpcHandler):
    """Gives the core a handler for each method of the table."""

    def __init__(self, chain: Chain, methods: MethodTable, mailbox: _Mailbox, tls: ServerTls | None) -> None:
        self._chain = chain
        self._identities = tls.identities if tls is not None else _no_identities
        self._mailbox = mailbox
        self._loop = asyncio.get_running_loop()
        # Requests arrive as bytes: the chain decodes, so that bad ones get our status.
        self._handlers = {method.path: self._handler(method) for method in methods}

    def service(self, details: Any) -> Any:
        handler = self._handlers.get(details.method)
        return handler(details.invocation_metadata) if handler is not None else None

    def _handler(self, method: Method) -> Callable[[Any], Any]:
        if method.shape is Shape.UNARY:
            return partial(_Unary, self, method)
        handler = self._streaming(method)
        return lambda metadata: handler

    def _streaming(self, method: Method) -> Any:
        if method.shape is Shape.SERVER_STREAM:
            return grpc.unary_stream_rpc_method_handler(self._server_stream(method))
        if method.shape is Shape.CLIENT_STREAM:
            return grpc.stream_unary_rpc_method_handler(self._client_stream(method))
        return grpc.stream_stream_rpc_method_handler(self._bidirectional(method))

    def _server_stream(self, method: Method) -> Callable[[bytes, Any], AsyncIterator[bytes]]:
        async def server_stream(data: bytes, context: Any) -> AsyncIterator[bytes]:
            call = _StreamCall(method, context, self._identities(context), self._loop)
            self._chain.dispatch(call, data)
            try:
                async for reply in _replies(call, context):
                    yield reply
            finally:
                call.cancel()

        return server_stream

    def _client_stream(self, method: Method) -> Callable[[Any, Any], Awaitable[bytes]]:
        async def client_stream(requests: AsyncIterator[bytes], context: Any) -> bytes:
            async for reply in bidirectional(requests, context):
                return reply
            raise AssertionError("a client stream has one reply")  # abort() has raised otherwise

        bidirectional = self._bidirectional(method)
        return client_stream

    def _bidirectional(self, method: Method) -> Callable[[Any, Any], AsyncIterator[bytes]]:
        async def bidirectional(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
            call = _StreamCall(method, context, self._identities(context), self._loop)
            consumer = self._chain.open(call)
            reader = asyncio.ensure_future(self._read(call, consumer, requests)) if consumer else None
            try:
                async for reply in _replies(call, context):
                    yield reply
            finally:
                call.cancel()
                if reader is not None:
                    reader.cancel()

        return bidirectional

    async def _read(self, call: Call, consumer: Any, requests: AsyncIterator[bytes]) -> None:
        async for data in requests:
            ready = self._chain.feed(call, consumer, data)
            if isinstance(ready, Future):
                await asyncio.wrap_future(ready)
            if call.is_done:
                return
        self._chain.end(call, consumer)


class _Unary:
    """The handler of one unary call, which has its metadata: who asks the context has them made once more."""

    __slots__ = ("_handlers", "_metadata", "_method")

    request_streaming = response_streaming = False
    # As bytes, as above.
    request_deserializer = response_serializer = None

    def __init__(self, handlers: _Handlers, method: Method, metadata: Any) -> None:
        self._handlers, self._method, self._metadata = handlers, method, metadata

    async def unary_unary(self, data: bytes, context: Any) -> bytes:
        of = self._handlers
        call = _UnaryCall(
            self._method,
            self._metadata,
            context,
            of._identities(context),
            of._mailbox,
            of._loop.create_future(),
        )
        of._chain.dispatch(call, data)
        try:
            answer = await call.answer
        except asyncio.CancelledError:
            call.cancel()
            raise
        if type(answer) is bytes:
            if echo := call.echo():
                context.set_trailing_metadata(echo)
            return answer
        return await _abort(context, answer, call)


def _no_identities(context: Any) -> tuple[str, ...]:
    return ()


async def _replies(call: _StreamCall, context: Any) -> AsyncIterator[bytes]:
    while (item := await call.next()) is not None:
        if isinstance(item, status_pb2.Status):
            await _abort(context, item, call)
        else:
            yield item


async def _abort(context: Any, status: status_pb2.Status, call: Call) -> bytes:
    trailer = (*trailer_of(status), *pushback_of(status), *call.echo())
    await context.abort(grpc_code(status), status.message, trailer)
    raise grpc.aio.AbortError  # abort() has raised already; this tells the type checker.
