"""Captured traffic: what happened is in the file, who it was is not, and it can be asked again."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pyarrow.parquet as pq
import pytest

from recserve.engine import Engine, EngineConfig, Request
from recserve.engine.bundle import open_bundle
from recserve.engine.client import RecommenderClient
from recserve.engine.feedback_client import FeedbackClient, new_event
from recserve.engine.rehearsal import captured
from recserve.engine.server.app import Server
from recserve.engine.server.config import ServerConfig
from recserve.engine.server.remembering import Remembering
from recserve.engine.server.telemetry.capture import BLOCK, Capture
from recserve.engine.server.telemetry.config import TelemetryConfig
from recserve.engine.server.telemetry.observers import new_observers
from recserve.engine.state.config import StateConfig
from recserve.engine.traces import NOBODY, read_trace
from recserve.errors import ConfigError, DataError
from recserve.proto import recommender_pb2 as pb
from tests.engine.server.local import LocalCall, echo_method

pytest.importorskip("apsw")
RECOMMEND = echo_method(lambda request, call: None, path="/recserve.v1.Recommender/Recommend")
RunCli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def serve(transport: str, bundle_folder: Path) -> Iterator[Callable[..., tuple[Server, str]]]:
    """Starts servers with events and with the settings of a capture."""
    with ExitStack() as stack:

        def make(**settings: Any) -> tuple[Server, str]:
            config = ServerConfig(port=0, transport=transport, default_deadline_ms=30_000)
            state = StateConfig(url="memory://")
            remembering = stack.enter_context(Remembering(state, EngineConfig(), config))
            server = Server(
                config,
                router=remembering.router,
                extra_methods=remembering.methods(),
                observers=new_observers(TelemetryConfig(access_lines_per_second=0, **settings)),
            )
            stack.callback(server.stop)
            address = server.start()
            remembering.load()
            server.serve(Engine.load(bundle_folder, observed=remembering.observed))
            return server, address

        yield make


def answered(capture: Capture, user: str) -> None:
    """Shows one request to ``capture``."""
    call = LocalCall(RECOMMEND)
    call.request = pb.RecommendRequest(user_id=user)
    capture.on_answered(call, grpc.StatusCode.OK, 0.0)


def test_a_trace_has_what_was_asked_and_names_nobody(
    serve: Callable[..., tuple[Server, str]], tmp_path: Path
) -> None:
    path = tmp_path / "trace.parquet"
    server, address = serve(capture=path, capture_share=1.0)
    with RecommenderClient(address) as client, FeedbackClient(address) as feedback:
        first = client.recommend(Request(user_id="canary-user", k=4)).items[0].item_id
        client.recommend(Request(user_id="canary-other", k=3, history=[first, first]))
        client.recommend(Request(k=2))
        client.similar_items(first, k=5)
        feedback.record([new_event(user_id="canary-user", item_id=first)] * 2)
    server.stop()
    trace = read_trace(path)
    assert list(trace.kinds) == ["recommend", "recommend", "recommend", "similar", "feedback"]
    assert trace.k.tolist() == [4, 3, 2, 5, 0]
    assert trace.n_items.tolist() == [0, 2, 0, 0, 2]
    user, other, nobody, item, again = trace.subjects.tolist()
    assert user == again
    assert nobody == NOBODY
    assert len({user, other, item, nobody}) == 4
    assert trace.seconds[0] == 0
    assert (np.diff(trace.seconds) >= 0).all()
    assert "canary" not in str(pq.read_table(path).to_pydict())
    assert b"canary" not in path.read_bytes()


def test_traffic_goes_round_capture_replay_and_capture(
    serve: Callable[..., tuple[Server, str]], tmp_path: Path, bundle_folder: Path, run_cli: RunCli
) -> None:
    first, second, saved = (tmp_path / name for name in ("first.parquet", "second.parquet", "r.json"))
    server, address = serve(capture=first, capture_share=1.0)
    common = ["--bundle", bundle_folder, "--warmup", 0, "--timeout", 20, "--out", saved]
    mixed = ["--mix", "recommend:5,similar:2,feedback:3", "--rate", 400, "--requests", 200]
    code, _, _ = run_cli("bench", "load", f"grpc://{address}", *mixed, *common)
    server.stop()
    [asked] = json.loads(saved.read_text())["points"]
    assert (code, asked["errors"], asked["client"]["unreadable"]) == (0, {}, 0)
    assert sum(kind["requests"] for kind in asked["kinds"].values()) == 200
    server, address = serve(capture=second, capture_share=1.0)
    code, _, _ = run_cli("bench", "load", f"grpc://{address}", "--trace", first, "--rate", 800, *common)
    server.stop()
    [again] = json.loads(saved.read_text())["points"]
    assert (code, again["errors"], again["arrivals"]) == (0, {}, "recorded")
    one, two = read_trace(first), read_trace(second)
    assert {name: kind["requests"] for name, kind in again["kinds"].items()} == {
        name: list(one.kinds).count(name) for name in again["kinds"]
    }
    # Who came as often as whom; the names are others.
    counts = [sorted(np.unique(trace.subjects, return_counts=True)[1]) for trace in (one, two)]
    assert counts[0] == counts[1]
    assert not set(one.subjects.tolist()) & set(two.subjects.tolist())
    assert sorted(one.k) == sorted(two.k)


def test_a_full_trace_appears_while_the_server_runs_and_holds_no_more(tmp_path: Path) -> None:
    path = tmp_path / "trace.parquet"
    capture = Capture(path, 1.0, BLOCK + 5)
    for i in range(BLOCK + 100):
        answered(capture, f"user {i % 7}")
    capture._writer.join(30)
    trace = read_trace(path)
    assert len(trace.seconds) == BLOCK + 5
    assert len(set(trace.subjects.tolist())) == 7
    capture.close()
    assert len(read_trace(path).seconds) == BLOCK + 5


def test_the_sample_is_about_as_large_as_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "trace.parquet"
    capture = Capture(path, 0.25, 10**6)
    for _ in range(4000):
        answered(capture, "somebody")
    capture.close()
    # Six standard deviations.
    assert abs(len(read_trace(path).seconds) - 1000) < 6 * np.sqrt(4000 * 0.25 * 0.75)


def test_a_capture_that_cannot_be_written_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"telemetry\.capture is"):
        Capture(tmp_path / "nowhere" / "trace.parquet", 1.0, 10)
    with pytest.raises(ConfigError, match="capture_share"):
        TelemetryConfig(capture_share=1.5)


def test_other_files_are_no_traces(tmp_path: Path) -> None:
    path = tmp_path / "trace.parquet"
    path.write_bytes(b"something else")
    with pytest.raises(DataError, match="no Parquet file"):
        read_trace(path)


def test_an_engine_rehearses_what_was_captured(bundle_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "trace.parquet"
    capture = Capture(path, 1.0, 100)
    for i in range(40):
        call = LocalCall(RECOMMEND)
        call.request = pb.RecommendRequest(user_id=f"user {i % 5}", k=2000, history=["x"] * (i % 2 * 99))
        capture.on_answered(call, grpc.StatusCode.OK, 0.0)
    capture.close()
    bundle = open_bundle(bundle_folder)
    batches = list(captured(bundle, EngineConfig(warmup_trace=path)))
    assert [len(batch) for batch in batches] == [16, 16, 8]
    requests = [request for batch in batches for request in batch]
    assert len({request.user_id for request in requests}) == 5
    assert {request.k for request in requests} == {1000}
    assert {len(request.history or ()) for request in requests} == {0, bundle.manifest.inputs.max_history}
    with Engine.load(bundle_folder, EngineConfig(warmup_trace=path)) as engine:
        assert engine.stats()["requests"] == 0
        positions = engine.stats()["encoded_positions"]
    with Engine.load(bundle_folder) as engine:
        assert engine.stats()["encoded_positions"] < positions
    assert list(captured(bundle, EngineConfig())) == []
