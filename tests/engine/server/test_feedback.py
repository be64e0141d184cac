"""``recserve.v1.Feedback`` over both transports and the JSON gateway, with a real log."""

import asyncio
import http.client
import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import grpc
import numpy as np
import pytest

from recserve.engine import Engine, EngineConfig, Request
from recserve.engine.client import RecommenderClient
from recserve.engine.feedback_client import AsyncFeedbackClient, FeedbackClient, impressions, new_event
from recserve.engine.retry import NO_RETRY
from recserve.engine.server.app import Server
from recserve.engine.server.config import ServerConfig
from recserve.engine.server.feedback import PREFIX, SERVICE
from recserve.engine.server.health import NOT_SERVING, SERVING
from recserve.engine.server.http.config import HttpConfig
from recserve.engine.server.remembering import Remembering
from recserve.engine.state.config import StateConfig
from recserve.engine.state.sqlite_store import SqliteStore
from recserve.engine.wire.status import RemoteError
from recserve.errors import ConfigError, StorageFailed, StorageFull
from tests.engine.server.conftest import RunningServer

pytest.importorskip("apsw")
pytest.importorskip("cryptography")
TIMEOUT_SECONDS = 30.0
Start = Callable[..., Server]
ADDRESSES: WeakKeyDictionary[Server, str] = WeakKeyDictionary()


def address(server: Server) -> str:
    return ADDRESSES[server]


@pytest.fixture
def start_state(transport: str, bundle_folder: Path, tmp_path: Path) -> Iterator[Start]:
    """Starts warm servers over one log in a temporary folder; ``state`` are settings of the log."""
    with ExitStack() as stack:

        def make(http: HttpConfig | None = None, **state: Any) -> Server:
            config = ServerConfig(port=0, transport=transport, default_deadline_ms=30_000)
            settings = StateConfig(**{"url": f"sqlite:///{tmp_path}/events", **state})
            remembering = stack.enter_context(Remembering(settings, EngineConfig(), config))
            server = Server(config, router=remembering.router, extra_methods=remembering.methods(), http=http)
            remembering.tell(server.health)
            ADDRESSES[server] = server.start()
            stack.callback(server.stop)
            remembering.load()
            server.serve(Engine.load(bundle_folder, observed=remembering.observed))
            return server

        yield make


@pytest.fixture
def server(start_state: Start) -> Server:
    return start_state()


@pytest.fixture
def client(server: Server) -> Iterator[FeedbackClient]:
    with FeedbackClient(address(server), timeout=TIMEOUT_SECONDS, retry=NO_RETRY) as client:
        yield client


def test_the_next_request_sees_the_event(server: Server, client: FeedbackClient) -> None:
    with RecommenderClient(address(server), timeout=TIMEOUT_SECONDS) as recommender:
        first = recommender.recommend(Request(user_id="somebody", k=3))
        assert first.source == "popularity"
        chosen = first.items[0].item_id
        recorded = client.record([new_event(user_id="somebody", item_id=chosen, timestamp=7)])
        assert (recorded.durability, recorded.n_stored) == ("power", 1)
        again = recommender.recommend(Request(user_id="somebody", k=3))
        assert again.source == "model"
        assert chosen not in [item.item_id for item in again.items]
    assert client.history("somebody") == [(chosen, 7)]
    assert client.history("nobody") == []


def test_one_call_tells_what_became_of_each_event(client: FeedbackClient) -> None:
    good, other = (new_event(user_id="u", item_id=item) for item in ("unknown-item", "other"))
    bad = new_event(user_id="u", item_id="i", value=float("nan"))
    withheld = new_event(user_id="u", item_id="i", purposes=0)
    recorded = client.record([good, bad, withheld, good, other])
    assert (recorded.n_stored, recorded.n_withheld, recorded.duplicates) == (2, 1, (3,))
    [(position, error)] = recorded.refused
    assert (position, error.reason, error.code) == (1, "INVALID_REQUEST", grpc.StatusCode.INVALID_ARGUMENT)
    assert client.record([]).n_stored == 0
    clash = new_event(user_id="u", item_id="another", event_id=good.event_id)
    [(_, error)] = client.record([clash]).refused
    assert (error.code, error.reason) == (grpc.StatusCode.ALREADY_EXISTS, "ALREADY_RECORDED")


def test_too_many_events_are_refused(start_state: Start) -> None:
    server = start_state(max_events=2)
    many = [new_event(user_id="u", item_id="i")] * 3
    with (
        FeedbackClient(address(server), timeout=TIMEOUT_SECONDS) as client,
        pytest.raises(RemoteError, match="events is 3 long; expected at most 2"),
    ):
        client.record(many)


def test_consent_may_be_required(start_state: Start) -> None:
    server = start_state(require_consent=True)
    with FeedbackClient(address(server), timeout=TIMEOUT_SECONDS) as client:
        assert client.record([new_event(user_id="u", item_id="i")]).n_withheld == 1
        assert client.record([new_event(user_id="u", item_id="i", purposes=7)]).n_stored == 1


def test_a_user_gets_all_that_is_recorded_of_them_in_pages(
    client: FeedbackClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recserve.engine.server.feedback.MAX_PAGE", 2)
    events = [
        new_event(user_id="u", item_id=f"i{i}", action="rating", value=i / 2, context={"page": "ü"}, rank=i)
        for i in range(5)
    ]
    client.record(events)
    client.record([new_event(user_id="v", item_id="i")])
    exported = list(client.export_user("u"))
    assert [(one.item_id, one.event_id, one.value, one.context, one.rank) for one in exported] == [
        (one.item_id, one.event_id, one.value, one.context, one.rank) for one in events
    ]
    assert {one.user_id for one in exported} == {""}


def test_what_was_shown_is_reported_by_slate(
    server: Server, client: FeedbackClient, tmp_path: Path, run_cli: Callable[..., tuple[int, str, str]]
) -> None:
    with RecommenderClient(address(server), timeout=TIMEOUT_SECONDS) as recommender:
        slates = {f"u{i}": recommender.recommend(Request(user_id=f"u{i}", k=4)) for i in range(6)}
        [again] = recommender.recommend_many([Request(user_id="u0", k=4)])
        similar = recommender.similar_items(again.items[0].item_id, 2)
    ids = [slate.slate_id for slate in (*slates.values(), again, similar)]
    assert all(ids)
    assert len(set(ids)) == len(ids)
    for user, slate in slates.items():
        told = impressions(slate, user_id=user)
        assert client.record(told).n_stored == 4
        assert client.record(impressions(slate, user_id=user)).duplicates == (0, 1, 2, 3)
        clicked = slate.items[0 if user < "u4" else 2]
        event = new_event(user_id=user, item_id=clicked.item_id, slate_id=slate.slate_id)
        client.record([event])
    log = f"sqlite:///{tmp_path}/events"
    _, out, _ = run_cli("report", "--state", log, "--json", "--min-users", 5)
    [group] = json.loads(out)["groups"]
    assert (group["variant"], group["n_users"], group["n_impressions"]) == (slates["u0"].variant, 6, 24)
    assert group["ctr"]["value"] == pytest.approx(6 / 24)
    assert [row["ctr"]["value"] for row in group["ranks"]] == pytest.approx([4 / 6, 0, 2 / 6, 0])


def test_an_erased_user_is_nobody(server: Server, client: FeedbackClient) -> None:
    with RecommenderClient(address(server), timeout=TIMEOUT_SECONDS) as recommender:
        cold = recommender.recommend(Request(user_id="nobody", k=5))
        client.record([new_event(user_id="somebody", item_id=cold.items[0].item_id)])
        assert client.erase_user("somebody") == 1
        assert recommender.recommend(Request(user_id="somebody", k=5)).items == cold.items
    assert client.history("somebody") == []
    assert list(client.export_user("somebody")) == []
    [(_, error)] = client.record([new_event(user_id="somebody", item_id="i")]).refused
    assert error.reason == "USER_ERASED"
    assert client.erase_user("somebody") == 0


@contextmanager
def calls_about(address: str) -> Iterator[Callable[[str, str], bytes]]:
    """Yields what asks a method about a user and returns the bytes of the reply."""
    with grpc.insecure_channel(address) as channel:
        asks = {name: channel.unary_unary(PREFIX + name) for name in ("GetHistory", "ExportUser")}
        yield lambda name, user: bytes(asks[name](b"\x0a" + bytes([len(user)]) + user.encode(), timeout=30))


def test_no_reply_tells_an_erased_user_from_nobody(server: Server, client: FeedbackClient) -> None:
    client.record([new_event(user_id="erased", item_id="i"), new_event(user_id="silent", item_id="i")])
    client.erase_user("erased")
    with calls_about(address(server)) as ask:
        for name in ("GetHistory", "ExportUser"):
            assert ask(name, "erased") == ask(name, "nobody") == b""
        # It does tell those apart who are there.
        assert ask("ExportUser", "silent")


@pytest.mark.slow
def test_no_time_tells_an_erased_user_from_nobody(server: Server, client: FeedbackClient) -> None:
    client.record([new_event(user_id="erased", item_id="i")])
    client.erase_user("erased")
    rng, seconds = np.random.default_rng(0), np.empty((5_000, 2))
    with calls_about(address(server)) as ask:
        for row in seconds:
            for which in rng.permutation(2):
                begun = time.perf_counter()
                ask("GetHistory", ("erased", "nobody")[which])
                row[which] = time.perf_counter() - begun
    # Mann-Whitney: the sum of ranks of one of two samples, as a normal variable; p = 0.01 is at 2.58.
    n = len(seconds)
    ranks = np.argsort(np.argsort(seconds, axis=None)).reshape(n, 2)
    z = (ranks[:, 0].sum() - n * (2 * n - 1) / 2) / np.sqrt(n * n * (2 * n + 1) / 12)
    assert abs(z) < 2.58


def test_a_user_of_the_bundle_can_be_erased(server: Server, client: FeedbackClient, engine: Engine) -> None:
    user = engine.user_ids()[0]
    assert client.history(user)
    client.erase_user(user)
    assert client.history(user) == []


@pytest.mark.parametrize(
    ("error", "reason", "status"),
    [
        (StorageFull("disk", found="full", expected="room"), "STORAGE_FULL", SERVING),
        (StorageFailed("log", found="failing", expected="writable"), "STORAGE_FAILED", NOT_SERVING),
    ],
)
def test_a_disk_in_trouble_stops_feedback_only(
    server: Server,
    client: FeedbackClient,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    reason: str,
    status: int,
) -> None:
    def fail(store: SqliteStore, rows: object) -> list[bool]:
        raise error

    monkeypatch.setattr(SqliteStore, "append", fail)
    with pytest.raises(RemoteError) as caught:
        client.record([new_event(user_id="u", item_id="i")])
    assert caught.value.reason == reason
    assert server.health.status(SERVICE) == status
    assert server.health.status("") == SERVING
    with RecommenderClient(address(server), timeout=TIMEOUT_SECONDS) as recommender:
        assert recommender.recommend(Request(user_id="u")).items


def test_a_stream_records_batch_after_batch(server: Server, client: FeedbackClient, transport: str) -> None:
    batches = [[new_event(user_id="u", item_id=f"{i}-{j}") for j in range(3)] for i in range(20)]
    if transport == "native":
        # It carries no streams of requests: the method is not there, and who insists is told at the start.
        with pytest.raises(RemoteError) as caught:
            list(client.record_stream(batches))
        assert caught.value.code is grpc.StatusCode.UNIMPLEMENTED
        return
    assert [one.n_stored for one in client.record_stream(batches)] == [3] * 20
    exported = [one.item_id for one in client.export_user("u")]
    assert exported == [f"{i}-{j}" for i in range(20) for j in range(3)]
    too_many = [batches[0], [new_event(user_id="u", item_id="i")] * 1001]
    with pytest.raises(RemoteError, match="events is 1001 long"):
        list(client.record_stream(too_many))


# No message; and a user id that is not UTF-8.
@pytest.mark.parametrize("data", [b"\xff", b"\x0a\x03\x0a\x01\xff"])
def test_what_cannot_be_read_is_refused_and_the_log_goes_on(
    server: Server, client: FeedbackClient, transport: str, data: bytes
) -> None:
    with grpc.insecure_channel(address(server)) as channel:
        # Without serialisers: bytes.
        record = channel.unary_unary(PREFIX + "Record")
        calls = [lambda: record(data, timeout=TIMEOUT_SECONDS)]
        if transport != "native":
            stream = channel.stream_stream(PREFIX + "RecordStream")
            calls.append(lambda: list(stream(iter([b"", data, b""]), timeout=TIMEOUT_SECONDS)))
        for call in calls:
            with pytest.raises(grpc.RpcError, match="request is not decodable") as caught:
                call()
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert client.record([new_event(user_id="u", item_id="i")]).n_stored == 1


def test_a_transport_without_streams_says_so_at_the_start(start_state: Start, transport: str) -> None:
    if transport == "native":
        with pytest.raises(ConfigError, match=r"RecordStream over transport native is bidirectional"):
            start_state(record_stream=True)
    else:
        server = start_state(record_stream=False)
        assert server.chain.methods.get(f"/{SERVICE}/RecordStream") is None


def test_the_asyncio_client_does_the_same(server: Server) -> None:
    async def session() -> tuple[int, list[tuple[str, int]], int]:
        async with AsyncFeedbackClient(address(server), timeout=TIMEOUT_SECONDS) as client:
            recorded = await client.record([new_event(user_id="u", item_id="no-item")])
            return recorded.n_stored, await client.history("u"), await client.erase_user("u")

    assert asyncio.run(session()) == (1, [], 1)


def test_the_gateway_records_too(start_state: Start, engine: Engine) -> None:
    server = start_state(HttpConfig(port=0))
    item = engine.recommend(Request(k=1)).items[0].item_id
    connection = http.client.HTTPConnection(server.urls["http"].removeprefix("http://"), timeout=30)

    def post(path: str, body: object) -> Any:
        connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
        return json.loads(connection.getresponse().read())

    event = {"userId": "u", "itemId": item, "timestamp": "5", "eventId": "e"}
    first = post("/v1/events", {"events": [event]})
    assert first == {"durability": "POWER", "stored": 1, "duplicates": [], "withheld": 0, "refused": []}
    assert post("/v1/events", {"events": [event]})["duplicates"] == [0]
    assert post("/v1/history", {"userId": "u"}) == {"itemIds": [item], "timestamps": ["5"]}
    assert post("/v1/export-user", {"userId": "u"})["events"][0]["eventId"] == "e"
    assert post("/v1/erase-user", {"userId": "u"}) == {"erasedEvents": "1"}
    connection.close()


def test_without_a_log_there_is_no_service(start: Callable[..., RunningServer]) -> None:
    server = start()
    with (
        FeedbackClient(server.address, timeout=TIMEOUT_SECONDS) as client,
        pytest.raises(RemoteError) as caught,
    ):
        client.record([new_event(user_id="u", item_id="i")])
    assert caught.value.code is grpc.StatusCode.UNIMPLEMENTED
