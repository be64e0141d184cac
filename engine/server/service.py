"""``recserve.v1.Recommender``: messages in, engine calls, messages out."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from recserve.engine.batcher import Batcher, Entry
from recserve.engine.engine import Engine
from recserve.engine.pipeline import Ranked
from recserve.engine.server.call import Call
from recserve.engine.server.methods import Method
from recserve.engine.server.workers import WorkerPool
from recserve.engine.types import DEFAULT_K, Request, Slate
from recserve.engine.wire.convert import item_to_message, request_from_message, slate_to_message
from recserve.engine.wire.slates import encode_ranked
from recserve.engine.wire.status import status_of
from recserve.errors import InvalidRequest
from recserve.proto import recommender_pb2 as pb

PREFIX = "/" + pb.DESCRIPTOR.services_by_name["Recommender"].full_name + "/"


class Row(Entry, Protocol):
    """An entry of a batch that is not a Recommend call: one row of a call in another protocol."""

    @property
    def request(self) -> Request:
        """What is asked."""

    def take(self, ranked: Ranked) -> None:
        """Takes the answer; must not raise."""


class RecommenderService:
    """Answers from the engine that ``engine_of`` returns; asked anew for every batch and every other call."""

    def __init__(
        self,
        engine_of: Callable[[], Engine],
        pool: WorkerPool,
        on_batch: Callable[[str, int, Mapping[str, int]], None] = lambda version, n_rows, stage_ns: None,
    ) -> None:
        """``on_batch(bundle_version, n_rows, stage_ns)`` is told of every batch before it is answered."""
        self._engine_of = engine_of
        self._pool = pool
        self._on_batch = on_batch

    def recommend(self, entries: list[Call | Row]) -> None:
        """Answers a batch of Recommend calls and rows; a bad one is refused alone."""
        requests = [
            request_from_message(entry.request) if isinstance(entry, Call) else entry.request
            for entry in entries
        ]
        answers = self._engine_of().rank_each(requests)
        self._tell(answers)
        answered = []
        for entry, answer in zip(entries, answers, strict=True):
            if isinstance(answer, InvalidRequest):
                entry.fail(answer)
            elif isinstance(entry, Call):
                answered.append((entry, answer))
            else:
                entry.take(answer)
        if answered:
            slates = encode_ranked([answer for _, answer in answered])
            for (call, answer), slate in zip(answered, slates, strict=True):
                call.stage_ns.update(answer.stage_ns)
                call.reply(slate)

    def _tell(self, answers: Iterable[Ranked | InvalidRequest]) -> None:
        # The rows that were computed together (those of one variant) share their times.
        batches: dict[int, list[Ranked]] = {}
        for answer in answers:
            if isinstance(answer, Ranked):
                batches.setdefault(id(answer.stage_ns), []).append(answer)
        for rows in batches.values():
            self._on_batch(rows[0].bundle.manifest.bundle_version, len(rows), rows[0].stage_ns)

    def methods(self, batcher: Batcher[Any]) -> list[Method]:
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
