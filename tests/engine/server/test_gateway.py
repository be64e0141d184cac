"""The JSON gateway over real HTTP: the same answers and refusals as gRPC, and what HTTP itself refuses."""

import json
import socket
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import grpc
import jsonschema
import pytest
from openapi_spec_validator import validate

from recserve.engine import Engine, Request
from recserve.engine.batch_policy import BatcherConfig
from recserve.engine.server.app import Server
from recserve.engine.server.call import Call
from recserve.engine.server.config import ServerConfig
from recserve.engine.server.http.config import HttpConfig
from recserve.engine.server.http.errors import HTTP_CODES
from recserve.engine.server.http.openapi import openapi
from recserve.engine.server.http.page import EXAMPLES
from recserve.engine.server.methods import Method
from recserve.engine.wire.status import STATUS_TABLE
from recserve.errors import ConfigError, PermissionDenied, RecserveError
from recserve.proto import recommender_pb2 as pb
from tests.engine.server.http_client import HttpCaller, reason_of
from tests.engine.server.local import new_error

ROUTES = (
    "/v1/recommend",
    "/v1/recommend-many",
    "/v1/recommend-page",
    "/v1/similar-items",
    "/v1/rank",
    "/v1/why-not",
    "/v1/items",
)


def new_server(**settings: Any) -> Server:
    config = ServerConfig(port=0, **{"default_deadline_ms": 30_000, **settings})
    return Server(config, BatcherConfig(max_size=1), http=HttpConfig(port=0))


@pytest.fixture
def server(engine: Engine) -> Iterator[Server]:
    server = new_server()
    server.start()
    server.serve(engine)
    yield server
    server.stop()


@pytest.fixture
def caller(server: Server) -> Iterator[HttpCaller]:
    with HttpCaller(server.urls["http"]) as caller:
        yield caller


def test_answers_are_the_engine_s_on_one_connection(caller: HttpCaller, engine: Engine) -> None:
    user = engine.user_ids()[0]
    code, headers, slate = caller.post("/v1/recommend", {"userId": user, "k": 4})
    ours = engine.recommend(Request(user_id=user, k=4))
    assert (code, headers["content-type"]) == (200, "application/json")
    assert [item["itemId"] for item in slate["items"]] == [item.item_id for item in ours.items]
    assert (slate["bundleVersion"], slate["warnings"]) == (ours.bundle_version, [])
    _, _, explained = caller.post("/v1/recommend", {"userId": user, "k": 1, "explain": "fast"})
    [why] = explained["items"]
    assert why["explanation"]["method"] == "similarity"
    assert {reason["code"] for reason in why["explanation"]["reasons"]} <= set(pb.Reason.Code.keys())
    item = ours.items[0].item_id
    _, _, why = caller.post("/v1/why-not", {"request": {"userId": user}, "itemId": item})
    assert (why["cause"], why["numbers"]["rank"]) == ("IN_SLATE", 1)
    _, _, similar = caller.post("/v1/similar-items", {"item_id": item, "k": 2})
    assert [found["itemId"] for found in similar["items"]] == [
        found.item_id for found in engine.similar_items(item, 2).items
    ]
    _, _, items = caller.post("/v1/items", {"itemIds": [item, "none such"]})
    assert items["items"][0]["attributes"]["title"] == engine.get_items([item])[item]["title"]
    assert items["unknownItemIds"] == ["none such"]
    _, _, many = caller.post("/v1/recommend-many", {"requests": [{"k": 2}, {"k": 0}]})
    assert len(many["results"][0]["slate"]["items"]) == 2
    assert reason_of(many["results"][1]["error"]) == "INVALID_REQUEST"


@pytest.mark.parametrize("kind", STATUS_TABLE, ids=lambda kind: kind.__name__)
def test_every_row_of_the_status_table_has_its_http_code(
    server: Server,
    caller: HttpCaller,
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    kind: type[RecserveError],
) -> None:
    row = STATUS_TABLE[kind]
    raised = new_error(kind)

    def fail(*ignored: Any, **also: Any) -> None:
        raise raised

    monkeypatch.setattr(engine, "similar_items", fail)
    code, headers, status = caller.post("/v1/similar-items", {"itemId": "x"})
    assert code == (413 if row.reason == "MESSAGE_TOO_LARGE" else HTTP_CODES[row.code])
    reason = str(getattr(raised, "reason", row.reason))
    assert (status["code"], reason_of(status)) == (row.code.value[0], reason)
    assert ("retry-after" in headers) == row.retry


def test_what_is_not_ours_is_500_and_says_nothing(
    caller: HttpCaller, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*ignored: Any, **also: Any) -> None:
        raise KeyError("/secret")

    monkeypatch.setattr(engine, "similar_items", fail)
    code, _, status = caller.post("/v1/similar-items", {"itemId": "x"})
    assert (code, reason_of(status)) == (500, "INTERNAL")
    assert "secret" not in json.dumps(status)


def test_a_bad_body_names_its_fault_and_the_next_is_answered(caller: HttpCaller) -> None:
    code, _, status = caller.post("/v1/recommend", b'{"userld": "u"}')
    assert (code, reason_of(status)) == (400, "MALFORMED_REQUEST")
    assert "Did you mean 'userId'?" in status["message"]
    assert caller.post("/v1/recommend", {"k": 1})[0] == 200


def test_http_refuses_what_is_not_a_request(caller: HttpCaller) -> None:
    code, headers, body = caller.get("/v1/recommend")
    assert (code, headers["allow"], reason_of(json.loads(body))) == (405, "POST", "METHOD_NOT_ALLOWED")
    assert caller.ask("HEAD", "/healthz")[::2] == (200, b"")
    assert reason_of(json.loads(caller.get("/v1/nothing")[2])) == "UNKNOWN_ROUTE"
    for headers_given in (
        {"content_type": "text/plain"},
        {"content_type": "application/json; charset=latin-1"},
        {"content_encoding": "gzip"},
    ):
        code, _, status = caller.post("/v1/recommend", {}, **headers_given)
        assert (code, reason_of(status)) == (415, "UNSUPPORTED_CONTENT_TYPE")
    assert caller.post("/v1/recommend", {}, content_type='Application/JSON; charset="UTF-8"')[0] == 200


@pytest.mark.parametrize("announced", [True, False], ids=["announced", "chunked"])
def test_a_body_over_the_limit_is_refused(engine: Engine, announced: bool) -> None:
    server = new_server(max_message_bytes=1000)
    server.start()
    try:
        server.serve(engine)
        with HttpCaller(server.urls["http"]) as caller:
            body = b" " * 2000
            given_body: Any = body if announced else iter([body[:999], body[999:]])
            caller.connection.request(
                "POST",
                "/v1/recommend",
                given_body,
                {"content-type": "application/json"},
                encode_chunked=not announced,
            )
            answer = caller.connection.getresponse()
            assert (answer.status, reason_of(json.loads(answer.read()))) == (413, "MESSAGE_TOO_LARGE")
        with HttpCaller(server.urls["http"]) as caller:
            assert caller.post("/v1/recommend", {"k": 1})[0] == 200
    finally:
        server.stop()


@pytest.mark.parametrize(
    "header", [{"grpc_timeout": "5"}, {"grpc_timeout": "123456789m"}, {"x_deadline_ms": "-1"}], ids=str
)
def test_a_wrong_deadline_is_refused(caller: HttpCaller, header: dict[str, str]) -> None:
    code, _, status = caller.post("/v1/recommend", {}, **header)
    assert (code, reason_of(status)) == (400, "INVALID_HEADER")


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"grpc_timeout": "20S"}, 20.0),
        ({"grpc_timeout": "15000m"}, 15.0),
        ({"x_deadline_ms": "7000"}, 7.0),
        ({"x_deadline_ms": "7000", "grpc_timeout": "1M"}, 7.0),
        ({}, 30.0),
    ],
    ids=str,
)
def test_the_caller_s_deadline_counts(
    server: Server,
    caller: HttpCaller,
    monkeypatch: pytest.MonkeyPatch,
    headers: dict[str, str],
    seconds: float,
) -> None:
    seen: list[float] = []

    def note(call: Call) -> None:
        seen.append(call.deadline - call.received_at)

    monkeypatch.setattr(server.chain, "_principal_of", note)
    assert caller.post("/v1/recommend", {"k": 1}, **headers)[0] == 200
    assert seen == [pytest.approx(seconds)]


def test_a_call_whose_time_is_over_is_504(
    caller: HttpCaller, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = threading.Event()
    monkeypatch.setattr(engine, "get_items", lambda ids: opened.wait(30) and {})
    code, _, status = caller.post("/v1/items", {"itemIds": ["a"]}, x_deadline_ms="1")
    opened.set()
    assert (code, reason_of(status)) == (504, "DEADLINE_EXCEEDED")


def test_a_caller_who_leaves_cancels_its_call(
    server: Server, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, done, opened = threading.Event(), threading.Event(), threading.Event()
    ended: list[bool] = []

    def held(*ignored: Any) -> dict[str, Any]:
        [call] = server.admission._calls
        call.on_done(lambda: (ended.append(True), done.set()))
        entered.set()
        assert opened.wait(30)
        return {}

    monkeypatch.setattr(engine, "get_items", held)
    host, port = server.urls["http"].removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as plain:
        plain.sendall(
            b"POST /v1/items HTTP/1.1\r\nhost: x\r\n"
            b"content-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
        )
        assert entered.wait(30)
    assert done.wait(30)
    opened.set()
    assert server.admission.in_flight == 0


def test_the_hook_sees_http_calls_too(
    server: Server, caller: HttpCaller, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody(call: Call) -> None:
        assert call.header("authorization") == "Bearer t"
        raise PermissionDenied("caller", found="a stranger", expected=call.method.scope)

    monkeypatch.setattr(server.chain, "_principal_of", nobody)
    code, _, status = caller.post("/v1/recommend", {}, authorization="Bearer t")
    assert (code, reason_of(status)) == (403, "PERMISSION_DENIED")


def test_the_request_id_comes_back(caller: HttpCaller) -> None:
    assert caller.post("/v1/recommend", {}, x_request_id="abc-1")[1]["x-request-id"] == "abc-1"
    generated = caller.post("/v1/recommend", {"k": 0})[1]["x-request-id"]
    assert len(generated) == 32


def test_every_unary_method_with_a_path_is_a_route_and_described() -> None:
    extra = Method(
        path="/test.More/Ask",
        request=pb.GetItemsRequest,
        response=pb.GetItemsResponse,
        handler=lambda request, call: call.reply(pb.GetItemsResponse(unknown_item_ids=request.item_ids)),
        scope="test",
        http="/v1/more",
    )
    server = Server(ServerConfig(port=0), extra_methods=[extra], http=HttpConfig(port=0))
    server.start()
    try:
        with HttpCaller(server.urls["http"]) as caller:
            assert caller.post("/v1/more", {"itemIds": ["a"]})[2]["unknownItemIds"] == ["a"]
            assert "/v1/more" in json.loads(caller.get("/openapi.json")[2])["paths"]
            assert b"/v1/more" in caller.get("/")[2]
    finally:
        server.stop()
    with pytest.raises(ConfigError, match=r"expected /PATH of a unary method"):
        Method(path="/a.B/C", request=pb.Slate, response=pb.Slate, handler=print, scope="x", http="no-slash")


def test_admin_methods_are_no_routes() -> None:
    admin = Method(
        path="/test.Admin/Load",
        request=pb.GetItemsRequest,
        response=pb.GetItemsResponse,
        handler=lambda request, call: call.reply(pb.GetItemsResponse()),
        scope="model:admin",
        http="/v1/load",
    )
    server = Server(ServerConfig(port=0), extra_methods=[admin], http=HttpConfig(port=0))
    server.start()
    try:
        with HttpCaller(server.urls["http"]) as caller:
            assert caller.post("/v1/load", {})[0] == 404
            assert b"/v1/load" not in caller.get("/openapi.json")[2] + caller.get("/")[2]
    finally:
        server.stop()


def test_the_openapi_document_is_valid_and_describes_the_answers(server: Server, caller: HttpCaller) -> None:
    document = json.loads(caller.get("/openapi.json")[2])
    validate(document)
    assert tuple(document["paths"]) == ROUTES
    assert document == openapi(server.chain.methods)
    fields = document["components"]["schemas"]["recserve.v1.RecommendRequest"]["properties"]
    assert "newest last" in fields["history"]["description"]

    def check(kind: str, value: Any) -> None:
        schema = {"$ref": f"#/components/schemas/{kind}", "components": document["components"]}
        jsonschema.Draft202012Validator(schema).validate(value)

    check("recserve.v1.Slate", caller.post("/v1/recommend", {})[2])
    check("google.rpc.Status", caller.post("/v1/recommend", {"k": 0})[2])
    check("recserve.v1.GetItemsResponse", caller.post("/v1/items", {"itemIds": ["a"]})[2])
    check(
        "recserve.v1.RecommendManyResponse",
        caller.post("/v1/recommend-many", {"requests": [{"k": 0}, {}]})[2],
    )
    with pytest.raises(jsonschema.ValidationError):
        check("recserve.v1.Slate", {})


class Markup(HTMLParser):
    VOID = ("meta",)

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.labels: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given_attrs = dict(attrs)
        if tag not in self.VOID:
            self.open.append(tag)
        self.ids += [given_attrs["id"] or ""] if "id" in given_attrs else []
        self.labels += [given_attrs["for"] or ""] if "for" in given_attrs else []
        self.addresses += [str(given_attrs[name]) for name in ("src", "href") if name in given_attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_nothing_from_elsewhere(caller: HttpCaller) -> None:
    code, headers, body = caller.get("/docs")
    assert (code, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "default-src 'none'" in headers["content-security-policy"]
    markup = Markup()
    markup.feed(body.decode())
    assert markup.open == []
    assert len(set(markup.ids)) == len(markup.ids)
    assert markup.labels
    assert set(markup.labels) <= set(markup.ids)
    assert all(address.startswith("/") for address in markup.addresses)
    assert all(route.encode() in body for route in ROUTES)
    assert tuple(EXAMPLES) == ROUTES


@pytest.mark.parametrize("route", ROUTES)
def test_the_examples_of_the_page_are_requests(caller: HttpCaller, route: str) -> None:
    code, _, answer = caller.post(route, EXAMPLES[route])
    # The bundle of these tests has no ranker.
    assert code == 200 or reason_of(answer) == "UNKNOWN_ITEM" or "without a ranker" in answer["message"]


def test_ports_say_what_is_wrong_with_them(engine: Engine) -> None:
    with pytest.raises(ConfigError, match=r"http\.host"):
        Server(ServerConfig(port=0), http=HttpConfig(host="0.0.0.0", port=0))
    with pytest.raises(ConfigError, match=r"http\.metrics_host"):
        Server(ServerConfig(port=0), http=HttpConfig(metrics_host="0.0.0.0", metrics_port=0))
    with pytest.raises(ConfigError, match=r"http\.port"):
        HttpConfig(port=-1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server = Server(ServerConfig(port=0), http=HttpConfig(port=taken.getsockname()[1]))
        with pytest.raises(ConfigError, match="expected free to bind"):
            server.start()
        server.stop()


def test_codes_cover_all_of_grpc() -> None:
    assert set(HTTP_CODES) == set(grpc.StatusCode)
