"""Access lines and spans: what they say, and what they must never hold."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
import structlog
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from recserve.engine import Engine
from recserve.engine.server.app import Server
from recserve.engine.server.call import Call
from recserve.engine.server.chain import Observer
from recserve.engine.server.config import ServerConfig
from recserve.engine.server.http.config import HttpConfig
from recserve.engine.server.telemetry.access_log import AccessLog
from recserve.engine.server.telemetry.config import TelemetryConfig
from recserve.engine.server.telemetry.observers import new_observers
from recserve.engine.server.telemetry.tracing import Tracer, new_tracer
from recserve.errors import ConfigError
from recserve.proto import recommender_pb2 as pb
from recserve.proto import recommender_pb2_grpc
from tests.engine.server.http_client import HttpCaller
from tests.engine.server.local import LocalCall, echo_method

TIMEOUT_SECONDS = 30
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE_ID}-b7ad6b7169203331-01"
UNSAMPLED = f"00-{TRACE_ID}-b7ad6b7169203331-00"
CANARIES = pb.RecommendRequest(
    user_id="canary-user", history=["canary-item"], exclude=["canary-out"], context={"canary-key": "canary"}
)


@pytest.fixture
def serve(transport: str, engine: Engine) -> Iterator[Callable[..., tuple[Server, str]]]:
    servers: list[Server] = []

    def make(*observers: Observer) -> tuple[Server, str]:
        config = ServerConfig(port=0, transport=transport, default_deadline_ms=30_000)
        server = Server(config, observers=observers, http=HttpConfig(port=0))
        servers.append(server)
        address = server.start()
        server.serve(engine)
        return server, address

    yield make
    for server in servers:
        server.stop()


@pytest.fixture
def spans() -> tuple[InMemorySpanExporter, Tracer]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return exporter, Tracer(provider)


@pytest.fixture
def lines() -> Iterator[list[dict[str, Any]]]:
    with structlog.testing.capture_logs() as captured:
        yield captured


def ask(address: str, message: pb.RecommendRequest, *metadata: tuple[str, str]) -> dict[str, str]:
    """Sends one call; returns its trailing metadata."""
    with grpc.insecure_channel(address) as channel:
        stub = recommender_pb2_grpc.RecommenderStub(channel)
        _, call = stub.Recommend.with_call(message, timeout=TIMEOUT_SECONDS, metadata=metadata)
        return dict(call.trailing_metadata())


def test_each_request_has_a_line_that_names_nobody(
    serve: Callable[..., tuple[Server, str]], lines: list[dict[str, Any]]
) -> None:
    server, address = serve(AccessLog(100))
    trailer = ask(address, CANARIES, ("x-request-id", "caller-7"))
    assert trailer["x-request-id"] == "caller-7"
    generated = ask(address, CANARIES)["x-request-id"]
    with HttpCaller(server.urls["http"]) as caller:
        caller.post("/v1/similar-items", {"itemId": "canary-item"}, x_request_id="caller-8")
        caller.get("/healthz")
    written = [line for line in lines if line["event"] == "request"]
    assert [line["request_id"] for line in written] == ["caller-7", generated, "caller-8"]
    assert [line["code"] for line in written] == ["OK", "OK", "NOT_FOUND"]
    assert written[2]["reason"] == "UNKNOWN_ITEM"
    assert written[0]["method"] == "/recserve.v1.Recommender/Recommend"
    assert written[0]["ms"] > 0
    assert "retrieve" in written[0]["stages_ms"]
    assert "canary" not in json.dumps(lines, default=str)


def test_an_id_that_nobody_knows_is_not_made_up(serve: Callable[..., tuple[Server, str]]) -> None:
    _, address = serve()
    assert "x-request-id" not in ask(address, CANARIES)
    with pytest.raises(grpc.RpcError) as caught:
        ask(address, pb.RecommendRequest(k=0), ("x-request-id", "caller-9"))
    assert dict(caught.value.trailing_metadata())["x-request-id"] == "caller-9"


def test_lines_are_bounded_and_say_how_many_are_missing(lines: list[dict[str, Any]]) -> None:
    now = 5.0
    log = AccessLog(2, clock=lambda: now)
    call = LocalCall(echo_method(print))
    for _ in range(5):
        log.on_answered(call, grpc.StatusCode.OK, 0.001)
    now = 6.0
    log.on_answered(call, grpc.StatusCode.OK, 0.001)
    log.on_answered(LocalCall(echo_method(print, scope="health")), grpc.StatusCode.OK, 0.001)
    assert [line.get("left_out", 0) for line in lines] == [0, 0, 3]


def test_a_request_is_a_span_with_its_stages(
    serve: Callable[..., tuple[Server, str]], spans: tuple[InMemorySpanExporter, Tracer]
) -> None:
    exporter, tracer = spans
    server, address = serve(tracer)
    ask(address, CANARIES, ("traceparent", PARENT), ("x-request-id", "caller-7"))
    finished = exporter.get_finished_spans()
    [root] = [span for span in finished if span.kind is SpanKind.SERVER]
    stages = [span for span in finished if span is not root]
    assert root.name == "recserve.v1.Recommender/Recommend"
    assert f"{root.context.trace_id:032x}" == TRACE_ID
    assert f"{root.parent.span_id:016x}" == PARENT.split("-")[2]
    assert root.attributes["rpc.grpc.status_code"] == 0
    assert root.attributes["recserve.request_id"] == "caller-7"
    assert {"queue", "encode", "retrieve"} <= {span.name for span in stages}
    assert all(span.parent.span_id == root.context.span_id for span in stages)
    assert all(root.start_time <= span.start_time <= span.end_time <= root.end_time for span in stages)
    assert "canary" not in "".join(span.to_json() for span in finished)
    exporter.clear()

    ask(address, CANARIES, ("traceparent", UNSAMPLED))
    assert exporter.get_finished_spans() == ()
    with HttpCaller(server.urls["http"]) as caller:
        caller.post("/v1/similar-items", {"itemId": "canary-item"}, traceparent=PARENT)
    [refused] = exporter.get_finished_spans()
    assert f"{refused.context.trace_id:032x}" == TRACE_ID
    assert refused.attributes["error.type"] == "UNKNOWN_ITEM"
    # The caller's fault is no error of the server.
    assert refused.status.status_code is StatusCode.UNSET
    assert "canary" not in refused.to_json()


def test_a_fault_of_the_server_is_an_error(spans: tuple[InMemorySpanExporter, Tracer]) -> None:
    exporter, tracer = spans
    call = LocalCall(echo_method(print), metadata=[("traceparent", "junk")])
    call.reason = "INTERNAL"
    tracer.on_answered(call, grpc.StatusCode.INTERNAL, 0.5)
    tracer.on_answered(LocalCall(echo_method(print, scope="health")), grpc.StatusCode.OK, 0.1)
    [span] = exporter.get_finished_spans()
    assert span.status.status_code is StatusCode.ERROR
    assert span.parent is None
    assert span.end_time - span.start_time == pytest.approx(0.5e9)


def test_traces_are_off_unless_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [type(one) for one in new_observers(TelemetryConfig())] == [AccessLog]
    assert new_observers(TelemetryConfig(access_lines_per_second=0)) == []
    with pytest.raises(ConfigError, match="access_lines_per_second"):
        TelemetryConfig(access_lines_per_second=-1)
    monkeypatch.setenv("OTEL_SERVICE_NAME", "shop")
    [tracer] = new_observers(TelemetryConfig(access_lines_per_second=0, traces=True))
    assert isinstance(tracer, Tracer)
    assert tracer._provider.resource.attributes["service.name"] == "shop"
    tracer.close()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")
    with pytest.raises(ConfigError, match="expected grpc"):
        new_tracer()


def test_a_failed_call_has_its_reason(lines: list[dict[str, Any]]) -> None:
    call: Call = LocalCall(echo_method(print))
    call.fail(KeyError("x"))
    assert call.reason == "INTERNAL"
    [line] = lines
    assert line["request_id"] == call.request_id
