"""``recserve.v1.Recommender``: messages in, engine calls, messages out."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from recserve.engine.batcher import Batcher
from recserve.engine.models.router import Router
from recserve.engine.pipeline import Ranked, slates
from recserve.engine.server.call import Call
from recserve.engine.server.methods import Method
from recserve.engine.server.workers import WorkerPool
from recserve.engine.types import DEFAULT_K, Request, Slate
from recserve.engine.wire.convert import item_to_message, request_from_message, slate_to_message
from recserve.engine.wire.slates import encode_ranked
from recserve.engine.wire.status import status_of
from recserve.errors import InvalidRequest, UnknownModel
from recserve.proto import recommender_pb2 as pb

PREFIX = "/" + pb.DESCRIPTOR.services_by_name["Recommender"].full_name + "/"


class Row(ABC):
    """An entry of a batch that is not a Recommend call: one row of a call in another protocol.

    ``model`` and ``version``: what is asked, "" for the default and for whichever is served; ``key``: assigns
    it to an arm.
    """

    __slots__ = ("deadline", "key", "model", "priority", "received_at", "request", "stage_ns", "version")

    deadline: float
    received_at: float
    priority: int
    stage_ns: dict[str, int]
    request: Request
    model: str
    version: str
    key: str

    @property
    @abstractmethod
    def is_done(self) -> bool:
        """Whether the row is answered already."""

    @abstractmethod
    def take(self, ranked: Ranked) -> None:
        """Takes the answer; must not raise."""

    @abstractmethod
    def fail(self, error: BaseException) -> bool:
        """Answers with an error."""

    @abstractmethod
    def expire(self) -> bool:
        """Answers that the deadline cannot be met."""


class RecommenderService:
    """Answers through ``router``: each batch, and each other call, takes the route that is current then."""

    def __init__(
        self,
        router: Router,
        pool: WorkerPool,
        on_batch: Callable[[str, int, Mapping[str, int]], None] = lambda version, n_rows, stage_ns: None,
    ) -> None:
        """``on_batch(bundle_version, n_rows, stage_ns)`` is told of every batch before it is answered."""
        self._router = router
        self._pool = pool
        self._on_batch = on_batch

    def recommend(self, entries: list[Call | Row]) -> None:
        """Answers a batch of Recommend calls and rows; a bad one is refused alone."""
        requests, targets = [], []
        for entry in entries:
            if isinstance(entry, Row):
                requests.append(entry.request)
                targets.append((entry.model, entry.version))
            else:
                requests.append(request_from_message(entry.request))
                targets.append((entry.request.model, ""))

        def keys(rows: Sequence[int]) -> list[str]:
            return [_key(entries[i]) for i in rows]

        for rows, answers in self._answer(requests, targets, keys):
            self._tell(answers)
            answered = []
            for i, answer in zip(rows, answers, strict=True):
                entry = entries[i]
                if isinstance(answer, InvalidRequest):
                    entry.fail(answer)
                elif isinstance(entry, Row):
                    entry.take(answer)
                else:
                    answered.append((entry, answer))
            if answered:
                encoded = encode_ranked([answer for _, answer in answered])
                for (call, answer), slate in zip(answered, encoded, strict=True):
                    call.stage_ns.update(answer.stage_ns)
                    call.bundle_version = answer.bundle.manifest.bundle_version
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
        entries = list(message.requests)
        results = [pb.RecommendResult()] * len(entries)

        def keys(rows: Sequence[int]) -> list[str]:
            return [entries[i].user_id or f"{call.request_id}/{i}" for i in rows]

        requests = [request_from_message(entry) for entry in entries]
        for rows, answers in self._answer(requests, [(entry.model, "") for entry in entries], keys):
            named = iter(slates([answer for answer in answers if isinstance(answer, Ranked)]))
            for i, answer in zip(rows, answers, strict=True):
                results[i] = _result(next(named) if isinstance(answer, Ranked) else answer)
        return pb.RecommendManyResponse(results=results)

    def _answer(
        self,
        requests: Sequence[Request],
        targets: Sequence[tuple[str, str]],
        keys: Callable[[Sequence[int]], list[str]],
    ) -> Iterator[tuple[Sequence[int], list[Ranked | InvalidRequest]]]:
        """Yields rows and their answers, by target (model, version) and arm; ``keys(rows)`` assigns arms."""
        asked_of: dict[tuple[str, str], list[int]] = {}
        for i, target in enumerate(targets):
            asked_of.setdefault(target, []).append(i)
        for (model, version), asked in asked_of.items():
            try:
                for rows, answers in self._router.answer(
                    [requests[i] for i in asked], partial(keys, asked), model=model, version=version
                ):
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


def _key(entry: Call | Row) -> str:
    """Returns what assigns a caller to an arm."""
    return entry.key if isinstance(entry, Row) else entry.request.user_id or entry.request_id


def _result(answer: Slate | InvalidRequest) -> pb.RecommendResult:
    if isinstance(answer, InvalidRequest):
        return pb.RecommendResult(error=status_of(answer))
    return pb.RecommendResult(slate=slate_to_message(answer))
