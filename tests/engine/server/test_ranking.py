"""Rank over both transports and HTTP: the answers of the embedded engine, and the refusals."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from recserve.engine import Engine, Request
from recserve.engine.batch_policy import BatcherConfig
from recserve.engine.client import AsyncRecommenderClient, RecommenderClient
from recserve.engine.server.app import Server
from recserve.engine.server.config import ServerConfig
from recserve.engine.server.http.config import HttpConfig
from recserve.engine.wire.status import RemoteError
from tests.engine.server.conftest import RunningServer
from tests.engine.server.http_client import HttpCaller

TIMEOUT_SECONDS = 30


@pytest.fixture(scope="module")
def ranking_engine(two_stage_folder: Path) -> Iterator[Engine]:
    with Engine.load(two_stage_folder) as engine:
        yield engine


@pytest.fixture
def client(
    start: Callable[..., RunningServer], ranking_engine: Engine
) -> Iterator[tuple[RecommenderClient, str]]:
    server = start(default_deadline_ms=30_000)
    server.serve(ranking_engine)
    with RecommenderClient(server.address, timeout=TIMEOUT_SECONDS) as client:
        yield client, server.address


def test_rank_and_recommend_are_the_engine_s(
    client: tuple[RecommenderClient, str], ranking_engine: Engine
) -> None:
    caller, address = client
    user = ranking_engine.user_ids()[0]
    moment = {"hour": "20", "weekday": "5"}
    ids = [item.item_id for item in ranking_engine.recommend(Request(user_id=user, k=30)).items]
    for request in (
        Request(user_id=user, context=moment),
        Request(user_id=user, predict="rating", context=moment),
        Request(history=ids[:3], weights={"click": 1.0, "price": -0.01}, context=moment),
    ):
        ours, theirs = (
            ranking_engine.rank(request, [*ids, "no such"]),
            caller.rank(request, [*ids, "no such"]),
        )
        assert [item.item_id for item in theirs.items] == [item.item_id for item in ours.items]
        for mine, yours in zip(ours.items, theirs.items, strict=True):
            assert yours.score == pytest.approx(mine.score, rel=1e-5)
            assert yours.predictions == pytest.approx(mine.predictions, rel=1e-5)
        assert theirs.unknown_item_ids == ("no such",)
        assert theirs.bundle_version == ours.bundle_version
        assert "rank" in theirs.stage_ns
        slate = caller.recommend(request)
        assert [item.item_id for item in slate.items] == [
            item.item_id for item in ranking_engine.recommend(request).items
        ]

    async def ask() -> list[str]:
        async with AsyncRecommenderClient(address, timeout=TIMEOUT_SECONDS) as other:
            ranking = await other.rank(Request(user_id=user, context=moment), ids)
            return [item.item_id for item in ranking.items]

    assert asyncio.run(ask()) == [
        item.item_id for item in ranking_engine.rank(Request(user_id=user, context=moment), ids).items
    ]


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        (Request(predict="margin"), "predict is margin"),
        (Request(weights={"click": float("inf")}), r"weights\[click\] is inf"),
        (Request(context={"hour": "noon"}), r"context\[hour\] is noon"),
    ],
)
def test_what_cannot_be_ranked_is_an_invalid_argument(
    client: tuple[RecommenderClient, str], request_: Request, sentence: str
) -> None:
    caller, _ = client
    for ask in (lambda: caller.rank(request_, ["item-1"]), lambda: caller.recommend(request_)):
        with pytest.raises(RemoteError, match=sentence) as caught:
            ask()
        assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT


def test_a_bundle_without_a_ranker_is_an_invalid_argument(server: RunningServer) -> None:
    with (
        RecommenderClient(server.address, timeout=TIMEOUT_SECONDS) as caller,
        pytest.raises(RemoteError, match="without a ranker"),
    ):
        caller.rank(Request(), ["item-1"])


def test_rank_over_http(ranking_engine: Engine) -> None:
    config = ServerConfig(port=0, default_deadline_ms=30_000)
    server = Server(config, BatcherConfig(max_size=1), http=HttpConfig(port=0))
    server.start()
    try:
        server.serve(ranking_engine)
        ids = [item.item_id for item in ranking_engine.recommend(Request(k=5)).items]
        with HttpCaller(server.urls["http"]) as caller:
            code, _, reply = caller.post("/v1/rank", {"itemIds": ids, "predict": "rating"})
        assert code == 200
        ours = ranking_engine.rank(Request(predict="rating"), ids)
        assert [item["itemId"] for item in reply["items"]] == [item.item_id for item in ours.items]
        assert reply["targets"] == ["click", "rating"]
    finally:
        server.stop()
