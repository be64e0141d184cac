"""Probes and metrics: what a scrape of a real server holds."""

from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from recserve.engine import Engine, Request
from recserve.engine.client import RecommenderClient
from recserve.engine.retry import NO_RETRY
from recserve.engine.server.app import Server
from recserve.engine.server.config import ServerConfig
from recserve.engine.server.http.config import HttpConfig
from recserve.engine.server.telemetry.metrics import Histogram
from recserve.engine.wire.status import RemoteError
from tests.engine.server.http_client import HttpCaller

RECOMMEND = "/recserve.v1.Recommender/Recommend"
TIMEOUT_SECONDS = 30


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(ServerConfig(port=0, default_deadline_ms=30_000), http=HttpConfig(port=0, metrics_port=0))
    yield server
    server.stop()


def raw(url: str) -> bytes:
    with HttpCaller(url) as caller:
        code, headers, body = caller.get("/metrics")
    assert (code, headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    return body


def scrape(url: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(raw(url).decode())
        for sample in family.samples
    }


def test_live_is_not_ready(server: Server, engine: Engine) -> None:
    server.start()
    with HttpCaller(server.urls["metrics"]) as probe:
        assert probe.get("/healthz")[::2] == (200, b'{"status": "alive"}')
        assert probe.get("/readyz")[0] == 503
        server.serve(engine)
        assert probe.get("/readyz")[::2] == (200, b'{"status": "ready"}')
        server.admission.drain()
        server._not_ready()
        assert probe.get("/readyz")[0] == 503
        assert probe.get("/healthz")[0] == 200
        server._give_up()
        assert probe.get("/healthz")[::2] == (503, b'{"status": "failed"}')
    with HttpCaller(server.urls["http"]) as gateway:
        assert gateway.get("/readyz")[0] == 503
        assert gateway.get("/metrics")[0] == 404


def test_metrics_stand_on_the_gateway_when_it_is_local(engine: Engine) -> None:
    server = Server(ServerConfig(port=0), http=HttpConfig(port=0))
    server.start()
    assert list(server.urls) == ["http"]
    assert ("recserve_ready", frozenset()) in scrape(server.urls["http"])
    server.stop()


def test_a_scrape_counts_what_happened(server: Server, engine: Engine) -> None:
    address = server.start()
    assert not any(name.startswith("nv_") for name, _ in scrape(server.urls["metrics"]))
    server.serve(engine)
    known = next(user for user in engine.user_ids() if engine.history(user))
    with RecommenderClient(address, timeout=TIMEOUT_SECONDS, retry=NO_RETRY) as client:
        for user in (known, known, ""):
            client.recommend(Request(user_id=user))
        with pytest.raises(RemoteError):
            client.recommend(Request(k=0))
        client.recommend_many([Request(), Request()])
    found = scrape(server.urls["metrics"])

    def value(name: str, **labels: str) -> float:
        return found[name, frozenset(labels.items())]

    assert value("recserve_requests_total", method=RECOMMEND, code="OK") == 3
    assert value("recserve_requests_total", method=RECOMMEND, code="INVALID_ARGUMENT") == 1
    assert value("recserve_failures_total", method=RECOMMEND, reason="INVALID_REQUEST") == 1
    assert value("recserve_request_seconds_count", method=RECOMMEND) == 4
    assert value("recserve_request_seconds_bucket", method=RECOMMEND, le="+Inf") == 4
    assert value("recserve_stage_seconds_count", stage="retrieve") == 3
    assert value("recserve_batch_size_sum") == value("recserve_batcher_rows_total") == 4
    assert value("recserve_engine_cold_starts_total") == 3
    assert (value("recserve_in_flight"), value("recserve_queue_depth"), value("recserve_ready")) == (0, 0, 1)
    manifest = engine.manifest
    assert (
        value(
            "recserve_bundle_info",
            bundle_version=manifest.bundle_version,
            model=manifest.model,
            variant=manifest.default_variant,
            signature="UNCHECKED",
        )
        == 1
    )
    device = {"bundle_version": manifest.bundle_version, "device": "cpu", "fallback": "false"}
    assert value("recserve_device_info", **device) == 1
    assert value("recserve_retrieval_device_info", **device) == 1
    assert value("process_resident_memory_bytes") > 0
    assert value("process_open_fds") > 0
    assert value("process_threads") > 1
    triton = {"model": manifest.model, "version": "1"}
    # The parser gives counters the ending that Triton's do not have on the wire.
    assert b"\nnv_inference_count{" in raw(server.urls["metrics"])
    assert value("nv_inference_request_success_total", **triton) == 4
    assert value("nv_inference_request_failure_total", **triton, reason="OTHER") == 1
    assert value("nv_inference_count_total", **triton) == 5
    assert value("nv_inference_exec_count_total", **triton) == 5
    assert value("nv_inference_request_duration_us_total", **triton) > 0
    assert value("nv_inference_compute_infer_duration_us_total", **triton) > 0
    assert value("nv_inference_pending_request_count", **triton) == 0
    assert known not in str(found)


def test_buckets_hold_their_bound() -> None:
    histogram = Histogram((1.0, 2.0))
    for number in (0.5, 1.0, 1.5, 2.0, 9.0):
        histogram.add(number)
    assert histogram.buckets() == [("1.0", 2.0), ("2.0", 4.0), ("+Inf", 5.0)]
    assert histogram.total == 14.0
