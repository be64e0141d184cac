"""``recserve.v1.Recommender``: messages in, engine calls, messages out."""

from collections.abc import Callable

from recserve.engine.batcher import Batcher
from recserve.engine.engine import Engine
from recserve.engine.server.call import Call
from recserve.engine.server.methods import Method
from recserve.engine.server.workers import WorkerPool
from recserve.engine.types import DEFAULT_K, Slate
from recserve.engine.wire.convert import item_to_message, request_from_message, slate_to_message
from recserve.engine.wire.slates import encode_ranked
from recserve.engine.wire.status import status_of
from recserve.errors import InvalidRequest
from recserve.proto import recommender_pb2 as pb

PREFIX = "/" + pb.DESCRIPTOR.services_by_name["Recommender"].full_name + "/"


class RecommenderService:
    """Answers from the engine that ``engine_of`` returns; asked anew for every batch and every other call."""

    def __init__(self, engine_of: Callable[[], Engine], pool: WorkerPool) -> None:
        self._engine_of = engine_of
        self._pool = pool

    def recommend(self, calls: list[Call]) -> None:
        """Answers a batch of Recommend calls; a bad one is refused alone."""
        requests = [request_from_message(call.request) for call in calls]
        answers = self._engine_of().rank_each(requests)
        answered = []
        for call, answer in zip(calls, answers, strict=True):
            if isinstance(answer, InvalidRequest):
                call.fail(answer)
            else:
                answered.append((call, answer))
        if answered:
            slates = encode_ranked([answer for _, answer in answered])
            for (call, answer), slate in zip(answered, slates, strict=True):
                call.stage_ns.update(answer.stage_ns)
                call.reply(slate)

    def methods(self, batcher: Batcher[Call]) -> list[Method]:
        """Returns the rows of the service; ``batcher`` runs :meth:`recommend`."""
        return [
            Method(
                path=PREFIX + "Recommend",
                request=pb.RecommendRequest,
                response=pb.Slate,
                handler=batcher.submit,
                scope="recommend",
                http="/v1/recommend",
                is_batched=True,
                encode=bytes,  # The batch writes them: encode_ranked.
            ),
            Method(
                path=PREFIX + "RecommendMany",
                request=pb.RecommendManyRequest,
                response=pb.RecommendManyResponse,
                handler=self._pool.plain(self._recommend_many),
                scope="recommend",
                http="/v1/recommend-many",
            ),
            Method(
                path=PREFIX + "SimilarItems",
                request=pb.SimilarItemsRequest,
                response=pb.Slate,
                handler=self._pool.plain(self._similar_items),
                scope="recommend",
                http="/v1/similar-items",
            ),
            Method(
                path=PREFIX + "GetItems",
                request=pb.GetItemsRequest,
                response=pb.GetItemsResponse,
                handler=self._pool.plain(self._get_items),
                scope="items:read",
                http="/v1/items",
            ),
        ]

    def _recommend_many(self, message: pb.RecommendManyRequest, call: Call) -> pb.RecommendManyResponse:
        requests = [request_from_message(entry) for entry in message.requests]
        answers = self._engine_of().recommend_each(requests)
        return pb.RecommendManyResponse(results=[_result(answer) for answer in answers])

    def _similar_items(self, message: pb.SimilarItemsRequest, call: Call) -> pb.Slate:
        k = message.k if message.HasField("k") else DEFAULT_K
        slate = self._engine_of().similar_items(
            message.item_id, k, exclude=list(message.exclude), variant=message.variant
        )
        call.stage_ns.update(slate.stage_ns)
        return slate_to_message(slate)

    def _get_items(self, message: pb.GetItemsRequest, call: Call) -> pb.GetItemsResponse:
        item_ids = list(message.item_ids)
        found = self._engine_of().get_items(item_ids)
        return pb.GetItemsResponse(
            items=[item_to_message(id_, found[id_]) for id_ in item_ids if id_ in found],
            unknown_item_ids=[id_ for id_ in item_ids if id_ not in found],
        )


def _result(answer: Slate | InvalidRequest) -> pb.RecommendResult:
    if isinstance(answer, InvalidRequest):
        return pb.RecommendResult(error=status_of(answer))
    return pb.RecommendResult(slate=slate_to_message(answer))
