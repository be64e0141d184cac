"""The Recommender service: messages in, engine calls on the worker pool, messages out."""

import grpc

from recserve.engine.engine import Engine
from recserve.engine.server.config import ServerConfig
from recserve.engine.server.workers import WorkerPool
from recserve.engine.types import DEFAULT_K, Request, Slate
from recserve.engine.wire.convert import item_to_message, request_from_message, slate_to_message
from recserve.engine.wire.status import status_of
from recserve.errors import InvalidRequest, Unavailable
from recserve.proto import recommender_pb2 as pb
from recserve.proto import recommender_pb2_grpc


class RecommenderService(recommender_pb2_grpc.RecommenderServicer):
    """Answers ``recserve.v1.Recommender`` from one engine, UNAVAILABLE until :meth:`serve` gives it."""

    def __init__(self, pool: WorkerPool, config: ServerConfig) -> None:
        self._warm_engine: Engine | None = None
        self._pool = pool
        self._config = config

    def serve(self, engine: Engine) -> None:
        """Answers from ``engine`` from now on."""
        self._warm_engine = engine

    @property
    def _engine(self) -> Engine:
        if self._warm_engine is None:
            raise Unavailable("server", found="loading", expected="warm", cure="Try again after a moment.")
        return self._warm_engine

    async def Recommend(self, message: pb.RecommendRequest, context: grpc.aio.ServicerContext) -> pb.Slate:
        request = request_from_message(message)
        return await self._pool.run(
            lambda: slate_to_message(self._engine.recommend(request)), self._seconds(context)
        )

    async def RecommendMany(
        self, message: pb.RecommendManyRequest, context: grpc.aio.ServicerContext
    ) -> pb.RecommendManyResponse:
        requests = [request_from_message(entry) for entry in message.requests]
        return await self._pool.run(lambda: self._recommend_many(requests), self._seconds(context))

    def _recommend_many(self, requests: list[Request]) -> pb.RecommendManyResponse:
        answers = self._engine.recommend_each(requests)
        return pb.RecommendManyResponse(results=[_result(answer) for answer in answers])

    async def SimilarItems(
        self, message: pb.SimilarItemsRequest, context: grpc.aio.ServicerContext
    ) -> pb.Slate:
        k = message.k if message.HasField("k") else DEFAULT_K
        return await self._pool.run(
            lambda: slate_to_message(
                self._engine.similar_items(
                    message.item_id, k, exclude=list(message.exclude), variant=message.variant
                )
            ),
            self._seconds(context),
        )

    async def GetItems(
        self, message: pb.GetItemsRequest, context: grpc.aio.ServicerContext
    ) -> pb.GetItemsResponse:
        item_ids = list(message.item_ids)
        return await self._pool.run(lambda: self._get_items(item_ids), self._seconds(context))

    def _get_items(self, item_ids: list[str]) -> pb.GetItemsResponse:
        found = self._engine.get_items(item_ids)
        return pb.GetItemsResponse(
            items=[item_to_message(id_, found[id_]) for id_ in item_ids if id_ in found],
            unknown_item_ids=[id_ for id_ in item_ids if id_ not in found],
        )

    def _seconds(self, context: grpc.aio.ServicerContext) -> float:
        remaining = context.time_remaining()
        return float(self._config.default_deadline_ms / 1000 if remaining is None else remaining)


def _result(answer: Slate | InvalidRequest) -> pb.RecommendResult:
    if isinstance(answer, InvalidRequest):
        return pb.RecommendResult(error=status_of(answer))
    return pb.RecommendResult(slate=slate_to_message(answer))
