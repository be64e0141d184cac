"""The client by itself: deadlines on every call, and errors of servers that are not ours."""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from recserve.engine import InvalidRequest, Request
from recserve.engine.client import AsyncRecommenderClient, RecommenderClient
from recserve.engine.wire.status import DETAILS_KEY, RemoteError

METHODS = ("Recommend", "RecommendMany", "RecommendPage", "SimilarItems", "WhyNot", "GetItems")


class Recorder(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Answers every method with an empty message; keeps each method's name and remaining seconds."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, float | None]] = []
        self.answer: Callable[[grpc.ServicerContext], bytes] = lambda context: b""

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        def handle(data: bytes, context: grpc.ServicerContext) -> bytes:
            self.calls.append((details.method.rpartition("/")[2], context.time_remaining()))
            return self.answer(context)

        return grpc.unary_unary_rpc_method_handler(handle)


@pytest.fixture
def recorder() -> Iterator[tuple[Recorder, str]]:
    handler = Recorder()
    server = grpc.server(ThreadPoolExecutor(2), handlers=[handler])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield handler, f"127.0.0.1:{port}"
    server.stop(None).wait()


def ask_everything(client: RecommenderClient) -> None:
    client.recommend(Request())
    client.recommend_many([Request()])
    client.recommend_page({"row": Request()})
    client.similar_items("i")
    client.why_not(Request(), "i")
    client.get_items(["i"])


async def ask_everything_async(client: AsyncRecommenderClient) -> None:
    async with client:
        await client.recommend(Request())
        await client.recommend_many([Request()])
        await client.recommend_page({"row": Request()})
        await client.similar_items("i")
        await client.why_not(Request(), "i")
        await client.get_items(["i"])


@pytest.mark.parametrize(
    ("settings", "seconds"),
    [({}, RecommenderClient.TIMEOUT_SECONDS), ({"timeout": 45.0}, 45.0)],
    ids=["default", "set"],
)
@pytest.mark.parametrize("kind", ["sync", "aio"])
def test_every_call_has_a_deadline(
    recorder: tuple[Recorder, str], kind: str, settings: dict[str, float], seconds: float
) -> None:
    handler, address = recorder
    if kind == "sync":
        with RecommenderClient(address, **settings) as client:
            # The first call may need longer than a second to connect on a busy machine.
            client.wait_until_ready(30)
            ask_everything(client)
    else:

        async def ask() -> None:
            await ask_everything_async(AsyncRecommenderClient(address, **settings))

        asyncio.run(ask())
    assert [method for method, _ in handler.calls] == list(METHODS)
    # The wire rounds a deadline up.
    assert all(remaining is not None and 0 < remaining < 1.1 * seconds for _, remaining in handler.calls)


@pytest.mark.parametrize("details", [(), ((DETAILS_KEY, b"\xff\xff junk"),)], ids=["none", "junk"])
def test_errors_of_another_server_keep_code_and_text(
    recorder: tuple[Recorder, str], details: tuple[tuple[str, bytes], ...]
) -> None:
    handler, address = recorder

    def fail(context: grpc.ServicerContext) -> bytes:
        context.set_trailing_metadata(details)
        context.abort(grpc.StatusCode.PERMISSION_DENIED, "not for you")
        raise AssertionError

    handler.answer = fail
    with RecommenderClient(address, timeout=30) as client, pytest.raises(RemoteError) as caught:
        client.recommend(Request())
    error = caught.value
    assert (error.code, error.reason) == (grpc.StatusCode.PERMISSION_DENIED, "")
    assert str(error) == "not for you (PERMISSION_DENIED)"
    assert error.exit_code == 1


BAD: dict[str, dict[str, Any]] = {
    "k beyond 32 bits": {"k": 2**40},
    "k that is text": {"k": "ten"},
    "lone surrogate": {"user_id": "\ud800"},
    "number for an id": {"history": [3]},
    "time beyond 64 bits": {"history": ["i"], "history_timestamps": [2**70]},
}


@pytest.mark.parametrize("fields", BAD.values(), ids=BAD.keys())
def test_what_the_wire_cannot_carry_is_an_invalid_request(fields: dict[str, Any]) -> None:
    with RecommenderClient("127.0.0.1:1") as client:
        with pytest.raises(InvalidRequest, match=r"request is .*; expected numbers and valid Unicode"):
            client.recommend(Request(**fields))
        with pytest.raises(InvalidRequest):
            client.recommend_many([Request(), Request(**fields)])


def test_so_are_wrong_items() -> None:
    with RecommenderClient("127.0.0.1:1") as client:
        with pytest.raises(InvalidRequest):
            client.similar_items("i", k=2**40)
        with pytest.raises(InvalidRequest):
            client.get_items(["\ud800"])


def test_the_async_client_says_that_nobody_is_there() -> None:
    async def ask() -> None:
        async with AsyncRecommenderClient("127.0.0.1:1", timeout=30) as client:
            await client.recommend(Request())

    with pytest.raises(RemoteError) as caught:
        asyncio.run(ask())
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    assert caught.value.exit_code == 4
