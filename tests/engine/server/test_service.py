"""The four methods over real gRPC: what the embedded engine answers, and every refusal with its status."""

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import replace

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from recserve.engine import Boost, Engine, Pin, Request, Rules, Slate
from recserve.engine.client import AsyncRecommenderClient, RecommenderClient
from recserve.engine.wire.convert import request_from_message, request_to_message
from recserve.engine.wire.slates import QUEUE
from recserve.engine.wire.status import DETAILS_KEY, RemoteError
from recserve.proto import recommender_pb2 as pb
from recserve.proto import recommender_pb2_grpc
from tests.engine.server.conftest import RunningServer

METHOD = "/recserve.v1.Recommender/"
TIMEOUT_SECONDS = 30


@pytest.fixture
def client(server: RunningServer) -> Iterator[RecommenderClient]:
    with RecommenderClient(server.address, timeout=TIMEOUT_SECONDS) as client:
        yield client


@pytest.fixture
def channel(server: RunningServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.address) as channel:
        yield channel


def fails(channel: grpc.Channel, method: str, data: bytes) -> tuple[grpc.StatusCode, str, list[object]]:
    """Sends raw bytes; returns code, message and the unpacked details of the error that must follow."""
    call = channel.unary_unary(METHOD + method)
    with pytest.raises(grpc.RpcError) as caught:
        call(data, timeout=TIMEOUT_SECONDS)
    error = caught.value
    trailer = dict(error.trailing_metadata())
    status = status_pb2.Status.FromString(trailer[DETAILS_KEY])
    assert status.message == error.details()
    kinds = (
        error_details_pb2.ErrorInfo,
        error_details_pb2.BadRequest,
        error_details_pb2.RetryInfo,
        error_details_pb2.ResourceInfo,
    )
    details: list[object] = []
    for packed in status.details:
        [kind] = [kind for kind in kinds if packed.Is(kind.DESCRIPTOR)]
        detail = kind()
        packed.Unpack(detail)
        details.append(detail)
    infos = [detail for detail in details if isinstance(detail, error_details_pb2.ErrorInfo)]
    assert len(infos) == 1
    assert infos[0].domain == "recserve"
    return error.code(), infos[0].reason, details


def test_answers_are_the_engine_s(client: RecommenderClient, engine: Engine) -> None:
    users = [user for user in engine.user_ids() if engine.history(user)][:5]
    for user in users:
        ours, theirs = (
            client.recommend(Request(user_id=user, k=7)),
            engine.recommend(Request(user_id=user, k=7)),
        )
        assert [(i.rank, i.item_id) for i in ours.items] == [(i.rank, i.item_id) for i in theirs.items]
        assert [i.score for i in ours.items] == pytest.approx([i.score for i in theirs.items], abs=1e-4)
        assert (ours.bundle_version, ours.variant, ours.source) == (
            theirs.bundle_version,
            theirs.variant,
            theirs.source,
        )
        assert list(ours.stage_ns) == [QUEUE, *theirs.stage_ns]
    item = ours.items[0].item_id
    assert client.similar_items(item, k=3).items == engine.similar_items(item, k=3).items
    attributes = client.get_items([item, "no such item"])
    assert list(attributes) == [item]
    assert attributes[item]["title"] == engine.get_items([item])[item]["title"]


def test_not_setting_k_means_ten(channel: grpc.Channel) -> None:
    stub = recommender_pb2_grpc.RecommenderStub(channel)
    assert len(stub.Recommend(pb.RecommendRequest(), timeout=TIMEOUT_SECONDS).items) == 10
    unknown = stub.GetItems(pb.GetItemsRequest(item_ids=["a", "b"]), timeout=TIMEOUT_SECONDS)
    assert list(unknown.unknown_item_ids) == ["a", "b"]


def test_history_exclude_and_warnings_travel(client: RecommenderClient, engine: Engine) -> None:
    popular = [item.item_id for item in engine.recommend(Request(k=4)).items]
    request = Request(history=[*popular[:2], "gone"], exclude=[popular[2]], k=5, context={"device": "tv"})
    ours, theirs = client.recommend(request), engine.recommend(request)
    assert ours.warnings == theirs.warnings
    assert len(ours.warnings) == 2
    assert [item.item_id for item in ours.items] == [item.item_id for item in theirs.items]
    assert client.recommend(Request(history=["gone"])).source == "popularity"


def test_explanations_travel(client: RecommenderClient, engine: Engine) -> None:
    for level in ("fast", "exact"):
        request = Request(user_id=engine.user_ids()[3], k=3, explain=level)
        [ours, many], theirs = (
            (client.recommend(request), client.recommend_many([request])[0]),
            engine.recommend(request),
        )
        assert isinstance(many, Slate)
        for slate in (ours, many):
            for item, expected in zip(slate.items, theirs.items, strict=True):
                assert item.explanation is not None
                assert expected.explanation is not None
                assert item.explanation.reasons == expected.explanation.reasons
                assert item.explanation.base == pytest.approx(expected.explanation.base, abs=1e-4)
    assert client.recommend(Request(k=1)).items[0].explanation is None


def test_why_not_travels(client: RecommenderClient, engine: Engine) -> None:
    user = engine.user_ids()[3]
    request = Request(user_id=user, k=3, filter="price < 60", exclude=engine.history(user)[:1])
    for item_id in [
        *engine.history(user),
        *(item.item_id for item in engine.recommend(Request(k=20)).items),
        "?",
    ]:
        ours, theirs = client.why_not(request, item_id), engine.why_not(request, item_id)
        assert replace(ours, numbers={}) == replace(theirs, numbers={})
        assert dict(ours.numbers) == pytest.approx(dict(theirs.numbers), abs=1e-4)


def test_filters_travel(client: RecommenderClient, engine: Engine) -> None:
    request = Request(k=4, filter="category = 'Kitchen' and price < 1000")
    ours, theirs = client.recommend(request), engine.recommend(request)
    assert ours.items == theirs.items
    categories = {values["category"] for values in client.get_items([i.item_id for i in ours.items]).values()}
    assert categories == {"Kitchen"}
    few = client.recommend(Request(k=3, filter="price < 0"))
    assert (few.items, few.warnings) == ((), ("filter, rules and exclusions left 0 of 3 items",))
    item = ours.items[0].item_id
    similar = client.similar_items(item, k=3, filter="category = 'Kitchen'")
    assert similar.items == engine.similar_items(item, k=3, filter="category = 'Kitchen'").items


def test_rules_travel(client: RecommenderClient, engine: Engine) -> None:
    best = [item.item_id for item in engine.recommend(Request(k=9)).items]
    rules = Rules(
        pins=[Pin(best[7], 2)],
        boosts=[Boost("price < 20", 0.25)],
        caps={"category": 1},
        min_score=-5.5,
        rerank="mmr",
        diversity=0.1,
        novelty=0.0,
        candidates=60,
    )
    request = Request(user_id=next(iter(engine.user_ids())), k=5, rules=rules)
    assert request_from_message(request_to_message(request)) == request
    assert client.recommend(request).items == engine.recommend(request).items
    assert client.recommend(request).items[1].item_id == best[7]
    with pytest.raises(RemoteError, match=r"rules\.caps is brandt"):
        client.recommend(Request(rules=Rules(caps={"brandt": 1})))


def test_a_bad_entry_fails_alone(client: RecommenderClient) -> None:
    requests = [Request(k=3), Request(k=0), Request(user_id="x" * 300), Request(k=2)]
    first, second, third, fourth = client.recommend_many(requests)
    assert isinstance(second, RemoteError)
    assert isinstance(third, RemoteError)
    assert (second.code, second.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert "k is 0; expected 1 to 1000" in str(second)
    assert [len(slate.items) for slate in (first, fourth)] == [3, 2]  # type: ignore[union-attr]


def test_the_async_client_does_the_same(server: RunningServer, engine: Engine) -> None:
    async def ask() -> None:
        async with AsyncRecommenderClient(server.address, timeout=TIMEOUT_SECONDS) as client:
            slates = await asyncio.gather(*(client.recommend(Request(k=k)) for k in (1, 2, 3)))
            assert [len(slate.items) for slate in slates] == [1, 2, 3]
            many = await client.recommend_many([Request(k=0), Request(k=1)])
            assert isinstance(many[0], RemoteError)
            item = slates[0].items[0].item_id
            assert (await client.similar_items(item, k=2)).items == engine.similar_items(item, k=2).items
            assert list(await client.get_items([item])) == [item]
            page = await client.recommend_page({"a": Request(k=2), "b": Request(k=2)})
            assert len({item.item_id for slate in page.values() for item in slate.items}) == 4
            with pytest.raises(RemoteError, match="k is -1"):
                await client.recommend(Request(k=-1))

    asyncio.run(ask())


BAD = {
    "k of zero": ("Recommend", pb.RecommendRequest(k=0), "k"),
    "k of minus one": ("Recommend", pb.RecommendRequest(k=-1), "k"),
    "k of a million": ("Recommend", pb.RecommendRequest(k=1_000_000), "k"),
    "an id of 10 kB": ("Recommend", pb.RecommendRequest(user_id="x" * 10_000), "user_id"),
    "an empty history id": ("Recommend", pb.RecommendRequest(history=[""]), "history[0]"),
    "a filter that does not parse": ("Recommend", pb.RecommendRequest(filter="price <"), "filter"),
    "a filter of an unknown attribute": ("Recommend", pb.RecommendRequest(filter="colour = 'red'"), "filter"),
    "a bad request of a question": ("WhyNot", pb.WhyNotRequest(request={"k": 0}, item_id="x"), "k"),
    "a question about nothing": ("WhyNot", pb.WhyNotRequest(), "item_id"),
    "a filter for similar items": ("SimilarItems", pb.SimilarItemsRequest(item_id="x", filter="("), "filter"),
    "an unknown variant": ("Recommend", pb.RecommendRequest(variant="int4"), "variant"),
    "a page token of somebody else": ("Recommend", pb.RecommendRequest(page_token="eHl6"), "page_token"),
    "a row that is bad": (
        "RecommendPage",
        pb.RecommendPageRequest(rows=[{"name": "a", "request": {"k": 0}}]),
        "rows[a].k",
    ),
    "a row named twice": (
        "RecommendPage",
        pb.RecommendPageRequest(rows=[{"name": "a"}, {"name": "a"}]),
        "rows[1].name",
    ),
    "a row with a model": (
        "RecommendPage",
        pb.RecommendPageRequest(rows=[{"name": "a", "request": {"model": "m"}}]),
        "rows[0].request.model",
    ),
    "too many requests": ("RecommendMany", pb.RecommendManyRequest(requests=[{}] * 257), "requests"),
    "too many items": ("GetItems", pb.GetItemsRequest(item_ids=["a"] * 1001), "item_ids"),
    "no item": ("SimilarItems", pb.SimilarItemsRequest(), "item_id"),
}


@pytest.mark.parametrize(("method", "message", "field"), BAD.values(), ids=BAD.keys())
def test_bad_requests_name_their_field(
    channel: grpc.Channel, method: str, message: object, field: str
) -> None:
    code, reason, details = fails(channel, method, message.SerializeToString())  # type: ignore[attr-defined]
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    [bad] = [detail for detail in details if isinstance(detail, error_details_pb2.BadRequest)]
    assert [violation.field for violation in bad.field_violations] == [field]


def test_an_unknown_item_is_not_found(channel: grpc.Channel) -> None:
    message = pb.SimilarItemsRequest(item_id="no such item").SerializeToString()
    assert fails(channel, "SimilarItems", message)[:2] == (grpc.StatusCode.NOT_FOUND, "UNKNOWN_ITEM")


@pytest.mark.parametrize(
    "method", ["Recommend", "RecommendMany", "RecommendPage", "SimilarItems", "WhyNot", "GetItems"]
)
@pytest.mark.parametrize(
    "data", [b"\xff\xff\xff", b"\x0a\x05ab", b"\x0a\x02\xc3\x28"], ids=["junk", "cut", "utf8"]
)
def test_malformed_bytes_are_the_caller_s_fault(channel: grpc.Channel, method: str, data: bytes) -> None:
    assert fails(channel, method, data)[:2] == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST")


def test_a_message_over_the_limit_is_refused_and_the_next_is_answered(client: RecommenderClient) -> None:
    with pytest.raises(RemoteError) as caught:
        client.recommend(Request(history=["x" * 200] * 10_000))
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert client.recommend(Request(k=1)).items


def test_nothing_internal_reaches_the_caller(
    channel: grpc.Channel,
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(requests: list[Request], **options: bool) -> None:
        raise ValueError("/secret/path token=xyz")

    monkeypatch.setattr(engine, "rank_each", fail)
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(METHOD + "Recommend")(b"", timeout=TIMEOUT_SECONDS)
    error = caught.value
    assert error.code() is grpc.StatusCode.INTERNAL
    wire = json.dumps([error.details(), [[key, str(value)] for key, value in error.trailing_metadata()]])
    assert "secret" not in wire
    assert "xyz" not in wire
    error_id = error.details().split()[-1].rstrip(".")
    captured = capsys.readouterr()
    assert error_id in captured.out + captured.err


def test_a_server_that_is_not_there_is_unavailable(start: Callable[..., RunningServer]) -> None:
    with RecommenderClient("127.0.0.1:1", timeout=TIMEOUT_SECONDS) as client:
        with pytest.raises(RemoteError) as caught:
            client.recommend(Request())
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE
        assert caught.value.exit_code == 4
        with pytest.raises(RemoteError, match="no server"):
            client.wait_until_ready(0.01)
