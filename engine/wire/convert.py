"""Protobuf messages ↔ engine types."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, fields, make_dataclass
from typing import Any, TypeVar

from google.protobuf import struct_pb2
from google.protobuf.message import DecodeError, Message

from recserve.engine.bundle.rules import Boost, Frequency, Pin, Rules
from recserve.engine.explain.explanation import EXPLAIN_NONE
from recserve.engine.types import DEFAULT_K, RankedItem, Ranking, Request, Slate, SlateItem
from recserve.engine.wire.explanations import explanation_from_message, explanation_to_message
from recserve.errors import InvalidRequest, MalformedRequest
from recserve.proto import recommender_pb2 as pb

M = TypeVar("M", bound=Message)
T = TypeVar("T")
ONE_MODEL = "empty: the page names the model of all its rows"


def new_message(kind: type[M], **fields: Any) -> M:
    """Builds a message; raises :class:`InvalidRequest` for a value that its field cannot carry."""
    try:
        return kind(**fields)
    except (TypeError, ValueError) as error:
        raise InvalidRequest(
            "request", found=str(error), expected="numbers and valid Unicode that protobuf can carry"
        ) from error


def decoded(decode: Callable[[bytes], T], data: bytes) -> T:
    """Returns what ``decode`` makes of a request; raises :class:`MalformedRequest` where it cannot."""
    try:
        return decode(data)
    except (DecodeError, ValueError) as error:
        raise MalformedRequest("request", found="not decodable", expected="a valid message") from error


def request_from_message(message: pb.RecommendRequest) -> Request:
    """Reads a request; values are checked by the engine, not here.

    Only what is set is looked at, in the order of the fields: most requests name a user and a length. An
    empty list counts as not set, as protobuf cannot tell the two apart: a caller who sends no items wants the
    stored history.
    """
    said = message.ListFields()
    if not said or said[-1][0].number <= message.K_FIELD_NUMBER:
        return _new_request(user_id=message.user_id, k=message.k if message.HasField("k") else DEFAULT_K)
    given: dict[str, Any] = {}
    for descriptor, value in said:
        read = _READERS.get(descriptor.name)
        given[descriptor.name] = value if read is None else read(value)
    given.pop("model", None)
    return _new_request(**given)


# What is frozen is slow to make: each of its fields is set by object.__setattr__.
_Draft: Any = make_dataclass(
    "_Draft",
    [
        (one.name, one.type, field(default=one.default, default_factory=one.default_factory))
        for one in fields(Request)
    ],
    slots=True,
    kw_only=True,
)


def _new_request(**given: Any) -> Request:
    """Returns ``Request(**given)`` in half the time: of another class with these slots until it is made."""
    draft = _Draft(**given)
    draft.__class__ = Request
    request: Request = draft
    return request


def request_to_message(request: Request) -> pb.RecommendRequest:
    """Writes a request; raises :class:`InvalidRequest` for a value that the wire cannot carry."""
    return new_message(
        pb.RecommendRequest,
        user_id=request.user_id,
        k=request.k,
        history=() if request.history is None else request.history,
        history_timestamps=request.history_timestamps,
        history_values=request.history_values,
        exclude=request.exclude,
        context=request.context,
        variant=request.variant,
        include_seen=request.include_seen,
        predict=request.predict,
        weights=request.weights,
        filter=request.filter,
        rules=None if request.rules is None else _rules_to_message(request.rules),
        explain="" if request.explain == EXPLAIN_NONE else request.explain,
        page_token=request.page_token,
        seed=request.seed,
        budget_ms=request.budget_ms,
        query_text=request.query_text,
    )


def rules_from_message(message: pb.Rules) -> Rules:
    """Reads rules; what is not set says nothing."""

    def given(name: str) -> Any:
        return getattr(message, name) if message.HasField(name) else None  # type: ignore[arg-type]

    return Rules(
        pins=[Pin(pin.item_id, pin.rank) for pin in message.pins],
        boosts=[Boost(boost.filter, boost.weight) for boost in message.boosts],
        caps=dict(message.caps),
        min_score=given("min_score"),
        rerank=message.rerank,
        diversity=given("diversity"),
        novelty=given("novelty"),
        candidates=given("candidates"),
        calibrate=message.calibrate,
        quotas=dict(message.quotas),
        serendipity=given("serendipity"),
        exposure=message.exposure,
        frequency=Frequency(message.frequency.impressions, message.frequency.hours)
        if message.HasField("frequency")
        else None,
    )


# Of the fields that are no plain values.
_READERS: Mapping[str, Callable[[Any], Any]] = {
    "history": tuple,
    "history_timestamps": tuple,
    "history_values": tuple,
    "exclude": tuple,
    "context": dict,
    "weights": dict,
    "rules": rules_from_message,
}


def _rules_to_message(rules: Rules) -> pb.Rules:
    return new_message(
        pb.Rules,
        pins=[new_message(pb.Pin, item_id=pin.item_id, rank=pin.rank) for pin in rules.pins],
        boosts=[new_message(pb.Boost, filter=boost.filter, weight=boost.weight) for boost in rules.boosts],
        caps=rules.caps,
        min_score=rules.min_score,
        rerank=rules.rerank,
        diversity=rules.diversity,
        novelty=rules.novelty,
        candidates=rules.candidates,
        calibrate=rules.calibrate,
        quotas=rules.quotas,
        serendipity=rules.serendipity,
        exposure=rules.exposure,
        frequency=None
        if (frequency := rules.frequency) is None
        else new_message(pb.Frequency, impressions=frequency.impressions, hours=frequency.hours),
    )


def slate_to_message(slate: Slate) -> pb.Slate:
    """Writes a slate."""
    return pb.Slate(
        items=[_item_to_message(item) for item in slate.items],
        bundle_version=slate.bundle_version,
        variant=slate.variant,
        source=slate.source,
        stage_times=[pb.StageTime(stage=name, duration_ns=ns) for name, ns in slate.stage_ns.items()],
        warnings=slate.warnings,
        arm=slate.arm,
        degraded=slate.degraded,
        slate_id=slate.slate_id,
        propensities=slate.propensities,
        explored=slate.explored,
        next_page_token=slate.next_page_token,
    )


def slate_from_message(message: pb.Slate) -> Slate:
    """Reads a slate."""
    return Slate(
        items=tuple(_item_from_message(item) for item in message.items),
        bundle_version=message.bundle_version,
        variant=message.variant,
        source=message.source,
        stage_ns={stage.stage: stage.duration_ns for stage in message.stage_times},
        warnings=tuple(message.warnings),
        arm=message.arm,
        degraded=tuple(message.degraded),
        slate_id=message.slate_id,
        propensities=tuple(message.propensities),
        explored=tuple(message.explored),
        next_page_token=message.next_page_token,
    )


def _item_to_message(item: SlateItem) -> pb.SlateItem:
    explanation = None if item.explanation is None else explanation_to_message(item.explanation)
    return pb.SlateItem(
        item_id=item.item_id,
        score=item.score,
        rank=item.rank,
        source=item.source,
        retrieval_score=item.retrieval_score,
        explanation=explanation,
    )


def _item_from_message(message: pb.SlateItem) -> SlateItem:
    explained = message.HasField("explanation")
    explanation = explanation_from_message(message.explanation) if explained else None
    source, retrieval_score = message.source, message.retrieval_score
    return SlateItem(message.rank, message.item_id, message.score, source, retrieval_score, explanation)


def page_from_message(message: pb.RecommendPageRequest) -> dict[str, Request]:
    """Reads the rows of a page; raises :class:`InvalidRequest` for a name that is given twice."""
    rows: dict[str, Request] = {}
    for i, row in enumerate(message.rows):
        if row.name in rows:
            raise InvalidRequest(f"rows[{i}].name", found=row.name, expected="another name for each row")
        if row.request.model:
            raise InvalidRequest(f"rows[{i}].request.model", found=row.request.model, expected=ONE_MODEL)
        rows[row.name] = request_from_message(row.request)
    return rows


def page_to_message(
    rows: Mapping[str, Request], model: str, caps: Mapping[str, int] | None
) -> pb.RecommendPageRequest:
    """Writes the rows of a page; raises as :func:`request_to_message`."""
    return new_message(
        pb.RecommendPageRequest,
        rows=[
            new_message(pb.PageRow, name=name, request=request_to_message(row)) for name, row in rows.items()
        ],
        model=model,
        caps=caps or {},
    )


def page_slates(message: pb.RecommendPageResponse) -> dict[str, Slate]:
    """Reads the slates of a page by the names of its rows."""
    return {row.name: slate_from_message(row.slate) for row in message.rows}


def rank_request_from_message(message: pb.RankRequest) -> Request:
    """Reads what a ranking is asked by; the candidates stay in the message."""
    return Request(
        user_id=message.user_id,
        history=tuple(message.history) or None,
        history_timestamps=tuple(message.history_timestamps),
        history_values=tuple(message.history_values),
        context=dict(message.context),
        predict=message.predict,
        weights=dict(message.weights),
    )


def rank_request_to_message(request: Request, item_ids: Sequence[str]) -> pb.RankRequest:
    """Writes a request to rank ``item_ids``; raises as :func:`request_to_message`."""
    return new_message(
        pb.RankRequest,
        user_id=request.user_id,
        item_ids=item_ids,
        history=() if request.history is None else request.history,
        history_timestamps=request.history_timestamps,
        history_values=request.history_values,
        context=request.context,
        predict=request.predict,
        weights=request.weights,
    )


def ranking_to_message(ranking: Ranking, targets: Sequence[str]) -> pb.RankResponse:
    """Writes a ranking."""
    return pb.RankResponse(
        items=[
            pb.RankedItem(
                item_id=item.item_id,
                score=item.score,
                predictions=[item.predictions[target] for target in targets],
            )
            for item in ranking.items
        ],
        targets=targets,
        unknown_item_ids=ranking.unknown_item_ids,
        bundle_version=ranking.bundle_version,
        stage_times=[pb.StageTime(stage=name, duration_ns=ns) for name, ns in ranking.stage_ns.items()],
        warnings=ranking.warnings,
    )


def ranking_from_message(message: pb.RankResponse) -> Ranking:
    """Reads a ranking."""
    return Ranking(
        items=tuple(
            RankedItem(item.item_id, item.score, dict(zip(message.targets, item.predictions, strict=True)))
            for item in message.items
        ),
        unknown_item_ids=tuple(message.unknown_item_ids),
        bundle_version=message.bundle_version,
        stage_ns={stage.stage: stage.duration_ns for stage in message.stage_times},
        warnings=tuple(message.warnings),
    )


def item_to_message(item_id: str, attributes: Mapping[str, Any]) -> pb.Item:
    """Writes an item; attributes are numbers, strings, booleans or lists of them."""
    message = pb.Item(item_id=item_id)
    message.attributes.update(attributes)
    return message


def item_from_message(message: pb.Item) -> dict[str, Any]:
    """Reads the attributes of an item (numbers arrive as float)."""
    return {
        name: list(value) if isinstance(value, struct_pb2.ListValue) else value
        for name, value in message.attributes.items()
    }
