"""``recserve.v1.Recommender``: messages in, engine calls, messages out."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

from recserve.engine.batch_run import Entry
from recserve.engine.batcher import Batcher
from recserve.engine.explain.explanation import EXPLAIN_NONE
from recserve.engine.models.router import Router, for_arm
from recserve.engine.ranked import Ranked, slates
from recserve.engine.server.call import Call
from recserve.engine.server.methods import Method
from recserve.engine.server.workers import WorkerPool
from recserve.engine.types import DEFAULT_K, Request, Slate
from recserve.engine.wire.convert import (
    item_to_message,
    page_from_message,
    rank_request_from_message,
    ranking_to_message,
    request_from_message,
    slate_to_message,
)
from recserve.engine.wire.explanations import why_not_to_message
from recserve.engine.wire.slates import QUEUE, encode_ranked
from recserve.engine.wire.status import status_of
from recserve.errors import InvalidRequest, UnknownModel
from recserve.proto import recommender_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["Recommender"]
PREFIX = "/" + SERVICE.full_name + "/"


class Row(Entry, Protocol):
    """An entry of a batch that is not a Recommend call: one row of a call in another protocol."""

    @property
    def request(self) -> Request:
        """What is asked."""

    @property
    def model(self) -> str:
        """Who is asked, "" being the default model."""

    @property
    def version(self) -> str:
        """Which version of it, "" being that of the row's arm."""

    @property
    def key(self) -> str:
        """What assigns the row to an arm."""

    def take(self, ranked: Ranked) -> None:
        """Takes the answer; must not raise."""


class RecommenderService:
    """Answers through ``router``: each batch, and each other call, takes the route that is current then."""

    def __init__(
        self,
        router: Router,
        pool: WorkerPool,
        on_batch: Callable[[str, str, int, Mapping[str, int]], None] = lambda model, version, n, stages: None,
    ) -> None:
        """``on_batch(model, version, n_rows, stage_ns)`` is told of every batch before it is answered."""
        self._router = router
        self._pool = pool
        self._on_batch = on_batch

    def recommend(self, entries: list[Call | Row]) -> None:
        """Answers a batch of Recommend calls and rows; a bad one is refused alone."""
        self._recommend(entries)

    def recommend_smaller(self, entries: list[Call | Row]) -> None:
        """Does what :meth:`recommend` does, with less: see Engine.rank_each."""
        self._recommend(entries, smaller=True)

    def recommend_degraded(self, entries: list[Call | Row]) -> None:
        """Does what :meth:`recommend` does, without the model: popular items, marked as degraded."""
        self._recommend(entries, degraded=True)

    def _recommend(self, entries: list[Call | Row], **effort: bool) -> None:
        asked = [_asked(entry) for entry in entries]
        deadlines = [_deadline(entry, one.request) for entry, one in zip(entries, asked, strict=True)]
        for rows, answers in self._answer(asked, deadlines, **effort):
            answered = []
            for i, answer in zip(rows, answers, strict=True):
                entry = entries[i]
                if isinstance(answer, InvalidRequest):
                    entry.fail(answer)
                elif isinstance(entry, Call):
                    answered.append((entry, answer))
                else:
                    entry.take(answer)
            if answered:
                waited = [call.stage_ns[QUEUE] for call, _ in answered]
                encoded = encode_ranked([answer for _, answer in answered], waited)
                for (call, answer), slate in zip(answered, encoded, strict=True):
                    call.stage_ns.update(answer.stage_ns)
                    call.served_by = (self._name(call.request.model), answer.bundle.manifest.bundle_version)
                    call.reply(slate)

    def model_of(self, entry: Call | Row) -> str:
        """Returns the name of the model that answers ``entry``."""
        return self._name(entry.request.model if isinstance(entry, Call) else entry.model)

    def _tell(self, model: str, answers: Iterable[Ranked | InvalidRequest]) -> None:
        # The rows that were computed together (those of one variant) share their times.
        batches: dict[int, list[Ranked]] = {}
        for answer in answers:
            if isinstance(answer, Ranked):
                batches.setdefault(id(answer.stage_ns), []).append(answer)
        for rows in batches.values():
            version = rows[0].bundle.manifest.bundle_version
            self._on_batch(self._name(model), version, len(rows), rows[0].stage_ns)

    def _name(self, model: str) -> str:
        return model or self._router.registry.default_model

    def methods(self, batcher: Batcher[Any]) -> list[Method]:
        """Returns the rows of the service; ``batcher`` runs :meth:`recommend`."""
        recommend = Method(
            path=PREFIX + "Recommend",
            request=pb.RecommendRequest,
            response=pb.Slate,
            handler=batcher.submit,
            scope="recommend",
            http="/v1/recommend",
            is_batched=True,
            encode=bytes,  # The batch writes them: encode_ranked.
            also_scope=_explain_scope,
        )
        return [
            recommend,
            self._plain(
                "RecommendMany",
                self._recommend_many,
                "recommend-many",
                also_scope=lambda message: _explain_scope(*message.requests),
                weight=lambda message: len(message.requests),
            ),
            self._plain(
                "RecommendPage",
                self._recommend_page,
                "recommend-page",
                also_scope=lambda message: _explain_scope(*(row.request for row in message.rows)),
                weight=lambda message: len(message.rows),
            ),
            self._plain("SimilarItems", self._similar_items, "similar-items"),
            self._plain("Rank", self._rank, "rank"),
            self._plain("WhyNot", self._why_not, "why-not", scope="explain"),
            self._plain("GetItems", self._get_items, "items", scope="items:read"),
        ]

    def _plain(
        self,
        name: str,
        work: Callable[..., Any],
        route: str,
        *,
        scope: str = "recommend",
        also_scope: Callable[[Any], str] | None = None,
        weight: Callable[[Any], int] | None = None,
    ) -> Method:
        """Returns the row of a method that the pool runs; the .proto file says what its messages are."""
        method = SERVICE.methods_by_name[name]
        return Method(
            path=PREFIX + name,
            request=getattr(pb, method.input_type.name),
            response=getattr(pb, method.output_type.name),
            handler=self._pool.plain(work),
            scope=scope,
            http=f"/v1/{route}",
            also_scope=also_scope,
            weight=weight,
        )

    def _recommend_many(self, message: pb.RecommendManyRequest, call: Call) -> pb.RecommendManyResponse:
        results = [pb.RecommendResult()] * len(message.requests)
        asked = [
            Asked(entry.model, "", request_from_message(entry), entry.user_id or f"{call.request_id}/{i}")
            for i, entry in enumerate(message.requests)
        ]
        deadlines = [_deadline(call, one.request) for one in asked]
        for rows, answers in self._answer(asked, deadlines):
            named = iter(slates([answer for answer in answers if isinstance(answer, Ranked)]))
            for i, answer in zip(rows, answers, strict=True):
                results[i] = _result(next(named) if isinstance(answer, Ranked) else answer)
        return pb.RecommendManyResponse(results=results)

    def _answer(
        self, asked: Sequence["Asked"], deadlines: Sequence[float], **effort: bool
    ) -> Iterator[tuple[Sequence[int], list[Ranked | InvalidRequest]]]:
        """Yields rows and their answers, by model, version and arm."""
        for (model, version), group in _by_target(asked):
            requests = [asked[i].request for i in group]
            try:
                keys = partial(_keys_of, asked, group)
                answered = self._router.answer(
                    requests,
                    keys,
                    model=model,
                    version=version,
                    deadlines=[deadlines[i] for i in group],
                    **effort,
                )
                for rows, answers in answered:
                    self._tell(model, answers)
                    yield [group[row] for row in rows], answers
            except UnknownModel as error:
                yield group, [error] * len(group)

    def _recommend_page(self, message: pb.RecommendPageRequest, call: Call) -> pb.RecommendPageResponse:
        rows = page_from_message(message)
        # The rows of a page are one caller's.
        key = next((row.user_id for row in rows.values() if row.user_id), call.request_id)
        deadline = min([call.deadline, *(_deadline(call, row) for row in rows.values())])
        caps = dict(message.caps)
        answers = self._router.answer_page(rows, key, model=message.model, caps=caps, deadline=deadline)
        self._tell(message.model, answers)
        for answer in answers[:1]:
            call.stage_ns.update(answer.stage_ns)
        named = zip(rows, slates(answers), strict=True)
        return pb.RecommendPageResponse(
            rows=[pb.PageSlate(name=name, slate=slate_to_message(slate)) for name, slate in named]
        )

    def _similar_items(self, message: pb.SimilarItemsRequest, call: Call) -> pb.Slate:
        k = message.k if message.HasField("k") else DEFAULT_K
        with self._router.registry.lease(message.model) as lease:
            slate = lease.engine().similar_items(
                message.item_id,
                k,
                exclude=list(message.exclude),
                variant=message.variant,
                filter=message.filter,
            )
        call.stage_ns.update(slate.stage_ns)
        return slate_to_message(slate)

    def _rank(self, message: pb.RankRequest, call: Call) -> pb.RankResponse:
        with self._router.registry.lease(message.model) as lease:
            [(arm, _)] = lease.route.assign([message.user_id or call.request_id])
            engine = lease.engine(arm)
            ranking = engine.rank(rank_request_from_message(message), list(message.item_ids))
            targets = engine.manifest.ranker.targets if engine.manifest.ranker else []
        call.stage_ns.update(ranking.stage_ns)
        return ranking_to_message(ranking, targets)

    def _why_not(self, message: pb.WhyNotRequest, call: Call) -> pb.WhyNotResponse:
        request = request_from_message(message.request)
        with self._router.registry.lease(message.request.model) as lease:
            [(arm, _)] = lease.route.assign([request.user_id or call.request_id])
            return why_not_to_message(lease.engine(arm).why_not(for_arm(request, arm), message.item_id))

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


class Asked(NamedTuple):
    """A request with the model and version that it names and what assigns it to an arm."""

    model: str
    version: str
    request: Request
    key: str


def _explain_scope(*messages: pb.RecommendRequest) -> str:
    """Explanations name items of a stored history: more than a slate tells."""
    for message in messages:
        if message.explain and message.explain != EXPLAIN_NONE:
            return "explain"
    return ""


def _asked(entry: Call | Row) -> Asked:
    if isinstance(entry, Call):
        message = entry.request
        return Asked(message.model, "", request_from_message(message), message.user_id or entry.request_id)
    return Asked(entry.model, entry.version, entry.request, entry.key)


def _deadline(entry: Call | Row, request: Request) -> float:
    """Returns when an answer is late: after the call's deadline or its budget, from its arrival on."""
    if request.budget_ms is None or not isinstance(entry, Call):
        return entry.deadline
    return min(entry.deadline, entry.received_at + request.budget_ms / 1000)


def _keys_of(asked: Sequence[Asked], rows: Sequence[int]) -> list[str]:
    return [asked[i].key for i in rows]


def _by_target(asked: Sequence[Asked]) -> list[tuple[tuple[str, str], Sequence[int]]]:
    """Groups rows by the model and version that they name."""
    rows: dict[tuple[str, str], list[int]] = {}
    for i, one in enumerate(asked):
        rows.setdefault((one.model, one.version), []).append(i)
    return list(rows.items())


def _result(answer: Slate | InvalidRequest) -> pb.RecommendResult:
    if isinstance(answer, InvalidRequest):
        return pb.RecommendResult(error=status_of(answer))
    return pb.RecommendResult(slate=slate_to_message(answer))
