"""A typed client for the gRPC server, sync and asyncio; every call has a deadline.

>>> with RecommenderClient("127.0.0.1:50051") as client:
...     slate = client.recommend(Request(user_id="u42", k=10))
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import grpc

from recserve.engine.connection import AsyncClient, Client
from recserve.engine.explain.cause import WhyNot
from recserve.engine.page import PageCaps
from recserve.engine.types import DEFAULT_K, Ranking, Request, Slate
from recserve.engine.wire import convert
from recserve.engine.wire.explanations import why_not_from_message
from recserve.engine.wire.status import RemoteError, error_from_status
from recserve.proto import recommender_pb2 as pb
from recserve.proto import recommender_pb2_grpc


class RecommenderClient(Client):
    """Asks one server; may be shared by threads.

    Every method raises :class:`RemoteError` with the server's code, reason and sentence.
    ``timeout``: seconds until DEADLINE_EXCEEDED, for every call with all its tries; ``retry``: when it is
    tried again, by default after UNAVAILABLE and RESOURCE_EXHAUSTED; ``credentials``: TLS, key, token;
    ``model``: who answers, "" the server's default one.
    """

    STUB = recommender_pb2_grpc.RecommenderStub

    def wait_until_ready(self, timeout: float) -> None:
        """Returns once the server accepts connections; raises :class:`RemoteError` after the seconds."""
        try:
            grpc.channel_ready_future(self._connection.channel).result(timeout)
        except grpc.FutureTimeoutError:
            raise RemoteError(grpc.StatusCode.UNAVAILABLE, "", f"no server after {timeout:g} s") from None

    def recommend(self, request: Request) -> Slate:
        """Returns one slate."""
        return convert.slate_from_message(
            self._connection.call(self._stub.Recommend, _one(request, self._model))
        )

    def recommend_many(self, requests: Iterable[Request]) -> list[Slate | RemoteError]:
        """Returns a slate, or the error of that entry, for each request, in order."""
        message = _many(requests, self._model)
        return _results(self._connection.call(self._stub.RecommendMany, message))

    def recommend_page(self, rows: Mapping[str, Request], *, caps: PageCaps = None) -> dict[str, Slate]:
        """Returns the slates of the rows of one page by name; see Engine.recommend_page."""
        message = convert.page_to_message(rows, self._model, caps)
        return convert.page_slates(self._connection.call(self._stub.RecommendPage, message))

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
        return convert.slate_from_message(self._connection.call(self._stub.SimilarItems, message))

    def rank(self, request: Request, item_ids: Sequence[str]) -> Ranking:
        """Returns ``item_ids`` scored for ``request``, best first."""
        message = _ranked(request, item_ids, self._model)
        return convert.ranking_from_message(self._connection.call(self._stub.Rank, message))

    def why_not(self, request: Request, item_id: str) -> WhyNot:
        """Returns what keeps ``item_id`` out of the slate of ``request``."""
        message = self._connection.call(self._stub.WhyNot, _why_not(request, item_id, self._model))
        return why_not_from_message(message, item_id)

    def get_items(self, item_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Returns the attributes of the known ones among ``item_ids``."""
        return _items(self._connection.call(self._stub.GetItems, _item_ids(item_ids, self._model)))


class AsyncRecommenderClient(AsyncClient):
    """The same client for asyncio."""

    STUB = recommender_pb2_grpc.RecommenderStub

    async def recommend(self, request: Request) -> Slate:
        """Returns one slate."""
        message = _one(request, self._model)
        return convert.slate_from_message(await self._connection.call(self._stub.Recommend, message))

    async def recommend_many(self, requests: Iterable[Request]) -> list[Slate | RemoteError]:
        """Returns a slate, or the error of that entry, for each request, in order."""
        message = _many(requests, self._model)
        return _results(await self._connection.call(self._stub.RecommendMany, message))

    async def recommend_page(self, rows: Mapping[str, Request], *, caps: PageCaps = None) -> dict[str, Slate]:
        """Returns the slates of the rows of one page by name; see Engine.recommend_page."""
        message = convert.page_to_message(rows, self._model, caps)
        return convert.page_slates(await self._connection.call(self._stub.RecommendPage, message))

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
        return convert.slate_from_message(await self._connection.call(self._stub.SimilarItems, message))

    async def rank(self, request: Request, item_ids: Sequence[str]) -> Ranking:
        """Returns ``item_ids`` scored for ``request``, best first."""
        message = _ranked(request, item_ids, self._model)
        return convert.ranking_from_message(await self._connection.call(self._stub.Rank, message))

    async def why_not(self, request: Request, item_id: str) -> WhyNot:
        """Returns what keeps ``item_id`` out of the slate of ``request``."""
        message = await self._connection.call(self._stub.WhyNot, _why_not(request, item_id, self._model))
        return why_not_from_message(message, item_id)

    async def get_items(self, item_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Returns the attributes of the known ones among ``item_ids``."""
        return _items(await self._connection.call(self._stub.GetItems, _item_ids(item_ids, self._model)))


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


def _why_not(request: Request, item_id: str, model: str) -> pb.WhyNotRequest:
    return convert.new_message(pb.WhyNotRequest, request=_one(request, model), item_id=item_id)


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
