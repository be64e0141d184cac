"""How much one caller may ask: the bucket by its laws, and a server that says how long to wait."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from recserve.engine import Engine, Request
from recserve.engine.client import RecommenderClient
from recserve.engine.credentials import Credentials
from recserve.engine.retry import NO_RETRY
from recserve.engine.server.methods import Method, Shape
from recserve.engine.server.security.caller_limits import Buckets, CallerLimit, CallerLimits
from recserve.engine.server.security.keys import create_key
from recserve.engine.server.security.policy import read_policy
from recserve.engine.wire.status import DETAILS_KEY, PUSHBACK_KEY, RemoteError
from recserve.errors import ConfigError, RateLimited
from recserve.proto import recommender_pb2 as pb
from recserve.proto import recommender_pb2_grpc
from tests.engine.server.conftest import RunningServer
from tests.engine.server.local import LocalCall, echo_method

TIMEOUT_SECONDS = 30


@given(
    st.floats(0.1, 1000),
    st.integers(1, 50),
    st.lists(st.floats(0, 2), min_size=1, max_size=80),
)
def test_never_more_than_the_burst_and_the_rate_and_who_waits_is_let_in(
    per_second: float, burst: int, gaps: list[float]
) -> None:
    buckets, limit = Buckets(), CallerLimit(per_second=per_second, burst=burst)
    now, taken = 1000.0, []
    for gap in gaps:
        now += gap
        wait = buckets.take("a", limit, now)
        if not wait:
            taken.append(now)
        else:
            assert 0 < wait <= 1 / per_second + 1e-6
            now += wait
            assert buckets.take("a", limit, now) == 0
            taken.append(now)
    for i, start in enumerate(taken):
        for n, end in enumerate(taken[i:], start=1):
            assert n <= burst + (end - start) * per_second + 1e-3


def test_one_caller_s_bucket_is_no_other_s_and_what_was_not_counted_at_first_is_paid_later() -> None:
    buckets, limit = Buckets(), CallerLimit(per_second=10, burst=2)
    assert [buckets.take("a", limit, 0.0) == 0 for _ in range(3)] == [True, True, False]
    assert buckets.take("b", limit, 0.0) == 0
    buckets.charge("b", limit, 20, 0.0)
    assert buckets.take("b", limit, 1.9) == pytest.approx(0.1)


def test_memory_is_bounded_whoever_calls() -> None:
    buckets, limit = Buckets(max_callers=100), CallerLimit(per_second=1, burst=1)
    for i in range(10_000):
        buckets.take(f"caller {i}", limit, float(i) * 1e-3)
    assert len(buckets) == 100
    # The newest are still known.
    assert buckets.take("caller 9999", limit, 10.0) > 0


def local_call(handler: Method, name: str) -> LocalCall:
    call = LocalCall(handler)
    call.principal = name
    return call


def test_calls_in_flight_are_bounded_by_caller() -> None:
    limits = CallerLimits(lambda: {"*": CallerLimit(in_flight=2)})
    method = echo_method(lambda request, call: None)
    first, second, third = (local_call(method, "key:a") for _ in range(3))
    limits.enter(first)
    limits.enter(second)
    with pytest.raises(RateLimited, match=r"in flight is 2; expected below 2"):
        limits.enter(third)
    limits.enter(local_call(method, "key:b"))
    first.reply(b"")
    limits.enter(third)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('"*" = 5', r"limits \* is 5; expected a table"),
        ('"*" = { per_minute = 5 }', "per_minute is unknown"),
        ('"*" = { per_second = 5 }', "burst is 0"),
        ('"*" = { per_second = -1, burst = 1 }', "per_second is -1"),
        ('"*" = { per_second = "x", burst = 1 }', "per_second is x"),
        ('"*" = { per_second = inf, burst = 1 }', "per_second is inf"),
        ('"*" = { per_second = 1, burst = true }', "burst is True"),
    ],
)
def test_a_wrong_limit_is_refused(tmp_path: Path, line: str, words: str) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text(f"[limits]\n{line}\n")
    with pytest.raises(ConfigError, match=words):
        read_policy(policy)


@pytest.fixture
def limited(
    start: Callable[..., RunningServer], engine: Engine, tmp_path: Path
) -> tuple[RunningServer, Callable[[], Credentials]]:
    """A server whose callers may ask three times, and again after a long time; who makes new callers."""
    keys, policy = tmp_path / "keys.toml", tmp_path / "policy.toml"
    names = iter(range(10))

    def new_caller() -> Credentials:
        name = f"caller{next(names)}"
        return Credentials(token=create_key(keys, name, ["recommend"], 1)[1])

    new_caller()
    limit = "{ per_second = 0.01, burst = 3 }"
    policy.write_text(f'public = ["health"]\n[keys]\nfile = "keys.toml"\n[limits]\n"*" = {limit}\n')
    callers = [new_caller() for _ in range(3)]
    server = start(policy=policy, default_deadline_ms=30_000)
    server.serve(engine)
    return server, iter(callers).__next__


def test_a_server_says_how_long_to_wait(limited: tuple[RunningServer, Any], transport: str) -> None:
    server, caller = limited
    credentials = caller()
    with grpc.insecure_channel(server.address) as channel:
        stub = recommender_pb2_grpc.RecommenderStub(channel)
        ask: dict[str, Any] = {"timeout": TIMEOUT_SECONDS, "metadata": credentials.metadata()}
        for _ in range(3):
            assert stub.Recommend(pb.RecommendRequest(k=1), **ask).items
        with pytest.raises(grpc.RpcError) as caught:
            stub.Recommend(pb.RecommendRequest(k=1), **ask)
    trailer = dict(caught.value.trailing_metadata())  # type: ignore[attr-defined]
    status = status_pb2.Status.FromString(trailer[DETAILS_KEY])
    info, quota, pause = (
        error_details_pb2.ErrorInfo(),
        error_details_pb2.QuotaFailure(),
        error_details_pb2.RetryInfo(),
    )
    assert [detail.Unpack(to) for detail, to in zip(status.details, (info, quota, pause), strict=True)]
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # type: ignore[attr-defined]
    assert info.reason == "RATE_LIMITED"
    assert quota.violations[0].subject == "caller"
    assert 30 < pause.retry_delay.seconds < 100
    if transport == "grpcio":
        assert abs(int(trailer[PUSHBACK_KEY]) - pause.retry_delay.ToMilliseconds()) <= 1


def test_a_caller_over_its_limit_costs_nobody_else_and_many_requests_count_as_many(
    limited: tuple[RunningServer, Any],
) -> None:
    server, caller = limited
    greedy, other = (
        RecommenderClient(server.address, timeout=TIMEOUT_SECONDS, credentials=caller(), retry=NO_RETRY)
        for _ in range(2)
    )
    with greedy, other:
        assert len(greedy.recommend_many([Request(k=1)] * 3)) == 3
        for _ in range(2):
            with pytest.raises(RemoteError, match="your rate of calls") as caught:
                greedy.recommend(Request(k=1))
            assert caught.value.reason == "RATE_LIMITED"
            assert caught.value.retry_after is not None
        assert other.recommend(Request(k=1)).items
    # Health is nobody's share.
    with grpc.insecure_channel(server.address) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        for _ in range(10):
            assert check(b"", timeout=TIMEOUT_SECONDS) is not None


def test_what_has_a_weight_is_unary(engine: Engine, start: Callable[..., RunningServer]) -> None:
    weighed = [method for method in start().server.chain.methods if method.weight is not None]
    assert {method.path.rpartition("/")[2] for method in weighed} == {
        "RecommendMany",
        "RecommendPage",
        "ModelInfer",
    }
    assert {method.shape for method in weighed} == {Shape.UNARY}
