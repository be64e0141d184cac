"""A typed client for the gRPC server, sync and asyncio; every call has a deadline.

>>> with RecommenderClient("127.0.0.1:50051") as client:
...     slate = client.recommend(Request(user_id="u42", k=10))
"""

import asyncio
import queue
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from types import TracebackType
from typing import Any

import grpc

from recserve.engine.credentials import Credentials
from recserve.engine.retry import RetryPolicy
from recserve.engine.types import DEFAULT_K, Ranking, Request, Slate
from recserve.engine.wire import convert
from recserve.engine.wire.status import RemoteError, error_from_call, error_from_status
from recserve.proto import recommender_pb2 as pb
from recserve.proto import recommender_pb2_grpc

DEFAULT_TIMEOUT_SECONDS = 1.0
PLAIN = Credentials()
DEFAULT_RETRY = RetryPolicy()
# The largest answers (256 slates of 1000) exceed gRPC's default of 4 MiB.
CHANNEL_OPTIONS = (("grpc.max_receive_message_length", -1),)


class RecommenderClient:
    """Asks one server; may be shared by threads.

    Every method raises :class:`RemoteError` with the server's code, reason and sentence.
    ``timeout``: seconds until DEADLINE_EXCEEDED, for every call with all its tries; ``retry``: when it is
    tried again, by default after UNAVAILABLE and RESOURCE_EXHAUSTED; ``credentials``: TLS, key, token;
    ``model``: who answers, "" the server's default one.
    """

    def __init__(
        self,
        target: str,
        *,
        timeout: float = DEFAULT_TIMEOUT_SECONDS,
        credentials: Credentials = PLAIN,
        retry: RetryPolicy = DEFAULT_RETRY,
        model: str = "",
    ) -> None:
        self._channel = open_channel(grpc, target, credentials)
        self._metadata = credentials.metadata
        self._retry = retry
        self._stub = recommender_pb2_grpc.RecommenderStub(self._channel)
        self._timeout = timeout
        self._model = model

    def __enter__(self) -> "RecommenderClient":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection."""
        self._channel.close()

    def wait_until_ready(self, timeout: float) -> None:
        """Returns once the server accepts connections; raises :class:`RemoteError` after the seconds."""
        try:
            grpc.channel_ready_future(self._channel).result(timeout)
        except grpc.FutureTimeoutError:
            raise RemoteError(grpc.StatusCode.UNAVAILABLE, "", f"no server after {timeout:g} s") from None

    def recommend(self, request: Request) -> Slate:
        """Returns one slate."""
        return convert.slate_from_message(self._call(self._stub.Recommend, _one(request, self._model)))

    def recommend_many(self, requests: Iterable[Request]) -> list[Slate | RemoteError]:
        """Returns a slate, or the error of that entry, for each request, in order."""
        message = _many(requests, self._model)
        return _results(self._call(self._stub.RecommendMany, message))

    def similar_items(
        self,
        item_id: str,
        k: int = DEFAULT_K,
        *,
        exclude: Sequence[str] = (),
        variant: str = "",
        filter: str = "",
    ) -> Slate:
        """Returns the items nearest to ``item_id``; ``filter`` as that of a request."""
        message = _similar(item_id, k, exclude, variant, filter, self._model)
        return convert.slate_from_message(self._call(self._stub.SimilarItems, message))

    def rank(self, request: Request, item_ids: Sequence[str]) -> Ranking:
        """Returns ``item_ids`` scored for ``request``, best first."""
        message = _ranked(request, item_ids, self._model)
        return convert.ranking_from_message(self._call(self._stub.Rank, message))

    def get_items(self, item_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Returns the attributes of the known ones among ``item_ids``."""
        return _items(self._call(self._stub.GetItems, _item_ids(item_ids, self._model)))

    def _call(self, method: Any, message: Any) -> Any:
        deadline = time.monotonic() + self._timeout
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
        metadata = self._metadata()
        if self._retry.hedge_after is None or self._retry.hedge_after >= seconds:
            return method(message, timeout=seconds, metadata=metadata)
        ask = partial(method.future, message, metadata=metadata)
        return _hedged(ask, seconds, self._retry.hedge_after)


class AsyncRecommenderClient:
    """The same client for asyncio."""

    def __init__(
        self,
        target: str,
        *,
        timeout: float = DEFAULT_TIMEOUT_SECONDS,
        credentials: Credentials = PLAIN,
        retry: RetryPolicy = DEFAULT_RETRY,
        model: str = "",
    ) -> None:
        self._channel = open_channel(grpc.aio, target, credentials)
        self._metadata = credentials.metadata
        self._retry = retry
        self._stub = recommender_pb2_grpc.RecommenderStub(self._channel)
        self._timeout = timeout
        self._model = model

    async def __aenter__(self) -> "AsyncRecommenderClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connection."""
        await self._channel.close()

    async def recommend(self, request: Request) -> Slate:
        """Returns one slate."""
        message = _one(request, self._model)
        return convert.slate_from_message(await self._call(self._stub.Recommend, message))

    async def recommend_many(self, requests: Iterable[Request]) -> list[Slate | RemoteError]:
        """Returns a slate, or the error of that entry, for each request, in order."""
        message = _many(requests, self._model)
        return _results(await self._call(self._stub.RecommendMany, message))

    async def similar_items(
        self,
        item_id: str,
        k: int = DEFAULT_K,
        *,
        exclude: Sequence[str] = (),
        variant: str = "",
        filter: str = "",
    ) -> Slate:
        """Returns the items nearest to ``item_id``; ``filter`` as that of a request."""
        message = _similar(item_id, k, exclude, variant, filter, self._model)
        return convert.slate_from_message(await self._call(self._stub.SimilarItems, message))

    async def rank(self, request: Request, item_ids: Sequence[str]) -> Ranking:
        """Returns ``item_ids`` scored for ``request``, best first."""
        message = _ranked(request, item_ids, self._model)
        return convert.ranking_from_message(await self._call(self._stub.Rank, message))

    async def get_items(self, item_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Returns the attributes of the known ones among ``item_ids``."""
        return _items(await self._call(self._stub.GetItems, _item_ids(item_ids, self._model)))

    async def _call(self, method: Any, message: Any) -> Any:
        deadline = time.monotonic() + self._timeout
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
        ask = partial(method, message, metadata=self._metadata())
        if self._retry.hedge_after is None or self._retry.hedge_after >= seconds:
            return await ask(timeout=seconds)
        return await _hedged_async(ask, seconds, self._retry.hedge_after)


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


def _one(request: Request, model: str) -> pb.RecommendRequest:
    message = convert.request_to_message(request)
    message.model = model
    return message


def _many(requests: Iterable[Request], model: str) -> pb.RecommendManyRequest:
    return pb.RecommendManyRequest(requests=[_one(request, model) for request in requests])


def _similar(
    item_id: str, k: int, exclude: Sequence[str], variant: str, filter: str, model: str
) -> pb.SimilarItemsRequest:
    fields = {"item_id": item_id, "k": k, "exclude": exclude, "variant": variant}
    return convert.new_message(pb.SimilarItemsRequest, **fields, filter=filter, model=model)


def _ranked(request: Request, item_ids: Sequence[str], model: str) -> pb.RankRequest:
    message = convert.rank_request_to_message(request, item_ids)
    message.model = model
    return message


def _item_ids(item_ids: Sequence[str], model: str) -> pb.GetItemsRequest:
    return convert.new_message(pb.GetItemsRequest, item_ids=item_ids, model=model)


def _results(message: pb.RecommendManyResponse) -> list[Slate | RemoteError]:
    return [
        convert.slate_from_message(result.slate)
        if result.HasField("slate")
        else error_from_status(result.error)
        for result in message.results
    ]


def _items(message: pb.GetItemsResponse) -> dict[str, dict[str, Any]]:
    return {item.item_id: convert.item_from_message(item) for item in message.items}
