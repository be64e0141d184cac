"""A connection to one server: every call has a deadline, is tried again where that helps, maybe hedged."""

import asyncio
import queue
import time
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any, ClassVar, Self

import grpc

from recserve.engine.credentials import Credentials
from recserve.engine.retry import RetryPolicy
from recserve.engine.wire.status import error_from_call

PLAIN = Credentials()
DEFAULT_RETRY = RetryPolicy()
# The largest answers (256 slates of 1000) exceed gRPC's default of 4 MiB.
CHANNEL_OPTIONS = (("grpc.max_receive_message_length", -1),)


class Connection:
    """A channel for clients of one service; may be shared by threads."""

    def __init__(self, target: str, *, timeout: float, credentials: Credentials, retry: RetryPolicy) -> None:
        """``timeout``: seconds of a call with all its tries."""
        self.channel = open_channel(grpc, target, credentials)
        self.metadata = credentials.metadata
        self.timeout = timeout
        self._retry = retry

    def call(self, method: Any, message: Any) -> Any:
        """Calls a method of a stub; raises :class:`RemoteError` when no try is answered well."""
        deadline = time.monotonic() + self.timeout
        attempt = 0
        while True:
            attempt += 1
            try:
                return self._try(method, message, deadline - time.monotonic())
            except grpc.RpcError as error:
                remote = error_from_call(error)
                pause = self._retry.pause(remote, attempt, deadline - time.monotonic())
                if pause is None:
                    raise remote from None
            time.sleep(pause)

    def _try(self, method: Any, message: Any, seconds: float) -> Any:
        metadata = self.metadata()
        if self._retry.hedge_after is None or self._retry.hedge_after >= seconds:
            return method(message, timeout=seconds, metadata=metadata)
        ask = partial(method.future, message, metadata=metadata)
        return _hedged(ask, seconds, self._retry.hedge_after)


class AsyncConnection:
    """The same for asyncio."""

    def __init__(self, target: str, *, timeout: float, credentials: Credentials, retry: RetryPolicy) -> None:
        """``timeout``: seconds of a call with all its tries."""
        self.channel = open_channel(grpc.aio, target, credentials)
        self.metadata = credentials.metadata
        self.timeout = timeout
        self._retry = retry

    async def call(self, method: Any, message: Any) -> Any:
        """Calls a method of a stub; raises :class:`RemoteError` when no try is answered well."""
        deadline = time.monotonic() + self.timeout
        attempt = 0
        while True:
            attempt += 1
            try:
                return await self._try(method, message, deadline - time.monotonic())
            except grpc.RpcError as error:
                remote = error_from_call(error)
                pause = self._retry.pause(remote, attempt, deadline - time.monotonic())
                if pause is None:
                    raise remote from None
            await asyncio.sleep(pause)

    async def _try(self, method: Any, message: Any, seconds: float) -> Any:
        ask = partial(method, message, metadata=self.metadata())
        if self._retry.hedge_after is None or self._retry.hedge_after >= seconds:
            return await ask(timeout=seconds)
        return await _hedged_async(ask, seconds, self._retry.hedge_after)


class _Client:
    """What all clients have: the stub of a service on a connection, and the model that answers.

    ``timeout``: seconds of a call with all its tries, those of the class unless given.
    """

    TIMEOUT_SECONDS: ClassVar[float] = 1.0
    STUB: ClassVar[Any]
    CONNECTION: ClassVar[Any]

    def __init__(
        self,
        target: str,
        *,
        timeout: float | None = None,
        credentials: Credentials = PLAIN,
        retry: RetryPolicy = DEFAULT_RETRY,
        model: str = "",
    ) -> None:
        seconds = self.TIMEOUT_SECONDS if timeout is None else timeout
        self._connection = self.CONNECTION(target, timeout=seconds, credentials=credentials, retry=retry)
        self._stub = self.STUB(self._connection.channel)
        self._model = model


class Client(_Client):
    """A client that blocks; leaving its ``with`` block closes it."""

    CONNECTION = Connection

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection."""
        self._connection.channel.close()


class AsyncClient(_Client):
    """The same for asyncio."""

    CONNECTION = AsyncConnection

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connection."""
        await self._connection.channel.close()


def _hedged(ask: Callable[..., Any], seconds: float, hedge_after: float) -> Any:
    """Sends the call by ``ask(timeout=…)``, and once more after ``hedge_after``.

    Returns the first good answer; raises the last error when there is none.
    """
    deadline = time.monotonic() + seconds
    done: queue.SimpleQueue[Any] = queue.SimpleQueue()
    calls = [ask(timeout=seconds)]
    calls[0].add_done_callback(done.put)
    try:
        try:
            call = done.get(timeout=hedge_after)
        except queue.Empty:
            calls.append(ask(timeout=max(0.0, deadline - time.monotonic())))
            calls[1].add_done_callback(done.put)
            call = done.get()
            if call.code() is not grpc.StatusCode.OK:
                call = done.get()
        return call.result()
    finally:
        for call in calls:
            call.cancel()


async def _hedged_async(method: Callable[..., Any], seconds: float, hedge_after: float) -> Any:
    deadline = time.monotonic() + seconds

    async def ask(timeout: float) -> Any:
        return await method(timeout=timeout)

    tasks = [asyncio.ensure_future(ask(seconds))]
    try:
        done, _ = await asyncio.wait(tasks, timeout=hedge_after)
        if not done:
            tasks.append(asyncio.ensure_future(ask(max(0.0, deadline - time.monotonic()))))
            done, others = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if others and all(task.exception() is not None for task in done):
                done, _ = await asyncio.wait(others)
        good = [task for task in done if task.exception() is None]
        return (good or list(done))[0].result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def open_channel(library: Any, target: str, credentials: Credentials = PLAIN) -> Any:
    """Opens a channel; ``library``: grpc or grpc.aio."""
    credentials.check(target)
    options = CHANNEL_OPTIONS + credentials.options()
    if (tls := credentials.channel()) is None:
        return library.insecure_channel(target, options)
    return library.secure_channel(target, tls, options)
