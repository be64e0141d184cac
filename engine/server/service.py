"""``recserve.v1.Recommender``: messages in, engine calls, messages out."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from recserve.engine.batcher import Batcher
from recserve.engine.models.router import Router
from recserve.engine.pipeline import Ranked, slates
from recserve.engine.server.call import Call
from recserve.engine.server.methods import Method
from recserve.engine.server.workers import WorkerPool
from recserve.engine.types import DEFAULT_K, Slate
from recserve.engine.wire.convert import item_to_message, request_from_message, slate_to_message
from recserve.engine.wire.slates import encode_ranked
from recserve.engine.wire.status import status_of
from recserve.errors import InvalidRequest, UnknownModel
from recserve.proto import recommender_pb2 as pb

PREFIX = "/" + pb.DESCRIPTOR.services_by_name["Recommender"].full_name + "/"


class RecommenderService:
    """Answers through ``router``: each batch, and each other call, takes the route that is current then."""

    def __init__(self, router: Router, pool: WorkerPool) -> None:
        self._router = router
        self._pool = pool

    def recommend(self, calls: list[Call]) -> None:
        """Answers a batch of Recommend calls; a bad one is refused alone."""

        def keys(rows: Sequence[int]) -> list[str]:
            return [calls[i].request.user_id or calls[i].request_id for i in rows]

        for rows, answers in self._answer([call.request for call in calls], keys):
            answered = []
            for i, answer in zip(rows, answers, strict=True):
                if isinstance(answer, InvalidRequest):
                    calls[i].fail(answer)
                else:
                    answered.append((calls[i], answer))
            if answered:
                encoded = encode_ranked([answer for _, answer in answered])
                for (call, answer), slate in zip(answered, encoded, strict=True):
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
        entries = list(message.requests)
        results = [pb.RecommendResult()] * len(entries)

        def keys(rows: Sequence[int]) -> list[str]:
            return [entries[i].user_id or f"{call.request_id}/{i}" for i in rows]

        for rows, answers in self._answer(entries, keys):
            named = iter(slates([answer for answer in answers if isinstance(answer, Ranked)]))
            for i, answer in zip(rows, answers, strict=True):
                results[i] = _result(next(named) if isinstance(answer, Ranked) else answer)
        return pb.RecommendManyResponse(results=results)

    def _answer(
        self, messages: Sequence[pb.RecommendRequest], keys: Callable[[Sequence[int]], list[str]]
    ) -> Iterator[tuple[Sequence[int], list[Ranked | InvalidRequest]]]:
        """Yields rows and their answers, by model and arm; ``keys(rows)`` assigns callers to arms."""
        for model, asked in _by_model(messages):
            requests = [request_from_message(messages[i]) for i in asked]
            try:
                for rows, answers in self._router.answer(requests, partial(keys, asked), model=model):
                    yield [asked[row] for row in rows], answers
            except UnknownModel as error:
                yield asked, [error] * len(asked)

    def _similar_items(self, message: pb.SimilarItemsRequest, call: Call) -> pb.Slate:
        k = message.k if message.HasField("k") else DEFAULT_K
        with self._router.registry.lease(message.model) as lease:
            slate = lease.engine().similar_items(
                message.item_id, k, exclude=list(message.exclude), variant=message.variant
            )
        call.stage_ns.update(slate.stage_ns)
        return slate_to_message(slate)

    def _get_items(self, message: pb.GetItemsRequest, call: Call) -> pb.GetItemsResponse:
        item_ids = list(message.item_ids)
        found: dict[str, dict[str, Any]] = {}
        with self._router.registry.lease(message.model) as lease:
            # A slate of another arm may have items that the baseline does not know.
            for engine in lease.engines():
                found = {**engine.get_items([id_ for id_ in item_ids if id_ not in found]), **found}
        return pb.GetItemsResponse(
            items=[item_to_message(id_, found[id_]) for id_ in item_ids if id_ in found],
            unknown_item_ids=[id_ for id_ in item_ids if id_ not in found],
        )


def _by_model(messages: Sequence[pb.RecommendRequest]) -> list[tuple[str, Sequence[int]]]:
    """Groups rows by the model that they name."""
    rows: dict[str, list[int]] = {}
    for i, message in enumerate(messages):
        rows.setdefault(message.model, []).append(i)
    return list(rows.items())


def _result(answer: Slate | InvalidRequest) -> pb.RecommendResult:
    if isinstance(answer, InvalidRequest):
        return pb.RecommendResult(error=status_of(answer))
    return pb.RecommendResult(slate=slate_to_message(answer))
