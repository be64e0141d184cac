"""The client's second tries: the pure policy, and the client against a real server that fails first."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2
from hypothesis import given
from hypothesis import strategies as st

from recserve.engine import Request
from recserve.engine.client import AsyncRecommenderClient, RecommenderClient
from recserve.engine.retry import NO_RETRY, RetryPolicy
from recserve.engine.wire.status import RemoteError, make_status, trailer_of
from recserve.errors import ConfigError

TIMEOUT_SECONDS = 30.0
UNAVAILABLE, EXHAUSTED = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED
QUICK = RetryPolicy(first_pause=0.0, jitter=0.0)


def error(code: grpc.StatusCode, retry_after: float | None = None) -> RemoteError:
    return RemoteError(code, "", "no", retry_after)


@given(
    attempt=st.integers(1, 9),
    left=st.floats(0, 60),
    asked=st.none() | st.floats(0, 60),
    code=st.sampled_from(list(grpc.StatusCode)),
    uniform=st.floats(0, 1),
)
def test_laws_of_the_pause(
    attempt: int, left: float, asked: float | None, code: grpc.StatusCode, uniform: float
) -> None:
    policy = RetryPolicy(max_attempts=5)
    pause = policy.pause(error(code, asked), attempt, left, lambda: uniform)
    if pause is None:
        own = max(min(1.0, 0.05 * 2 ** (attempt - 1)), asked or 0.0) * (1 + 0.2 * uniform)
        helps = code is UNAVAILABLE or (code is EXHAUSTED and asked is not None)
        assert attempt >= 5 or not helps or own >= left
    else:
        assert pause < left
        assert pause >= (asked or 0.0)
        assert attempt < 5
        assert code in (UNAVAILABLE, EXHAUSTED)


def test_pauses_double_up_to_a_bound() -> None:
    policy = RetryPolicy(max_attempts=9, first_pause=0.1, max_pause=0.5, jitter=0.0)
    assert [policy.pause(error(UNAVAILABLE), n, 9.0) for n in range(1, 6)] == [0.1, 0.2, 0.4, 0.5, 0.5]
    assert NO_RETRY.pause(error(UNAVAILABLE), 1, 9.0) is None


@pytest.mark.parametrize(
    "settings", [{"max_attempts": 0}, {"first_pause": -1.0}, {"jitter": float("nan")}, {"hedge_after": 0.0}]
)
def test_a_policy_checks_itself(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"retry.{next(iter(settings))}"):
        RetryPolicy(**settings)


class Flaky(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Answers call number i with ``answers[i]``, the last one for all further ones."""

    def __init__(self) -> None:
        self.answers: list[Callable[[grpc.ServicerContext], bytes]] = [good]
        self.n_calls = 0
        self.lock = threading.Lock()

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        def handle(data: bytes, context: grpc.ServicerContext) -> bytes:
            with self.lock:
                answer = self.answers[min(self.n_calls, len(self.answers) - 1)]
                self.n_calls += 1
            return answer(context)

        return grpc.unary_unary_rpc_method_handler(handle)


def good(context: grpc.ServicerContext) -> bytes:
    return b""


def failing(
    code: grpc.StatusCode, pause_seconds: int | None = None
) -> Callable[[grpc.ServicerContext], bytes]:
    def fail(context: grpc.ServicerContext) -> bytes:
        status = make_status(code, "REASON", "not now")
        if pause_seconds is not None:
            pause = duration_pb2.Duration(seconds=pause_seconds)
            status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=pause))
        context.set_trailing_metadata(trailer_of(status))
        context.abort(code, "not now")
        raise AssertionError

    return fail


@pytest.fixture
def flaky() -> Iterator[tuple[Flaky, str]]:
    handler = Flaky()
    server = grpc.server(ThreadPoolExecutor(4), handlers=[handler])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield handler, f"127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.fixture(params=["sync", "aio"])
def ask(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Asks once with a client of either kind."""

    def sync(address: str, **settings: Any) -> Any:
        with RecommenderClient(address, **{"timeout": TIMEOUT_SECONDS, **settings}) as client:
            return client.recommend(Request())

    def aio(address: str, **settings: Any) -> Any:
        async def run() -> Any:
            async with AsyncRecommenderClient(address, **{"timeout": TIMEOUT_SECONDS, **settings}) as client:
                return await client.recommend(Request())

        return asyncio.run(run())

    return sync if request.param == "sync" else aio


def test_a_server_that_fails_first_is_asked_again(flaky: tuple[Flaky, str], ask: Callable[..., Any]) -> None:
    handler, address = flaky
    handler.answers = [failing(UNAVAILABLE), failing(EXHAUSTED, 0), good]
    assert ask(address, retry=QUICK).items == ()
    assert handler.n_calls == 3


@pytest.mark.parametrize(
    ("answer", "settings", "n_calls"),
    [
        (failing(UNAVAILABLE), {"retry": QUICK}, 3),
        (failing(UNAVAILABLE), {"retry": NO_RETRY}, 1),
        (failing(EXHAUSTED), {"retry": QUICK}, 1),
        (failing(grpc.StatusCode.INTERNAL), {"retry": QUICK}, 1),
        (failing(grpc.StatusCode.INVALID_ARGUMENT), {"retry": QUICK}, 1),
        # The pause that the server asks for does not fit into the timeout.
        (failing(UNAVAILABLE, 60), {}, 1),
    ],
    ids=["three tries", "one try", "no RetryInfo", "internal", "the caller's fault", "no time"],
)
def test_other_errors_are_raised_at_once(
    flaky: tuple[Flaky, str],
    ask: Callable[..., Any],
    answer: Callable[[grpc.ServicerContext], bytes],
    settings: dict[str, Any],
    n_calls: int,
) -> None:
    handler, address = flaky
    handler.answers = [answer]
    with pytest.raises(RemoteError, match="not now"):
        ask(address, **settings)
    assert handler.n_calls == n_calls


HEDGED = RetryPolicy(max_attempts=1, hedge_after=0.02)


def test_a_hedge_answers_for_a_call_that_hangs(flaky: tuple[Flaky, str], ask: Callable[..., Any]) -> None:
    handler, address = flaky
    left = threading.Event()

    def hang(context: grpc.ServicerContext) -> bytes:
        context.add_callback(left.set)
        assert left.wait(TIMEOUT_SECONDS)
        return b""

    handler.answers = [hang, good]
    assert ask(address, retry=HEDGED).items == ()
    assert left.wait(TIMEOUT_SECONDS), "the call that lost is cancelled"


def test_the_last_error_counts_when_both_fail(flaky: tuple[Flaky, str], ask: Callable[..., Any]) -> None:
    handler, address = flaky
    second = threading.Event()

    def slow(context: grpc.ServicerContext) -> bytes:
        assert second.wait(TIMEOUT_SECONDS)
        return failing(UNAVAILABLE)(context)

    def fast(context: grpc.ServicerContext) -> bytes:
        second.set()
        return failing(UNAVAILABLE)(context)

    handler.answers = [slow, fast]
    with pytest.raises(RemoteError, match="not now"):
        ask(address, retry=HEDGED)
    assert handler.n_calls == 2


def test_a_quick_answer_needs_no_hedge(flaky: tuple[Flaky, str], ask: Callable[..., Any]) -> None:
    handler, address = flaky
    assert ask(address, retry=RetryPolicy(hedge_after=TIMEOUT_SECONDS * 2)).items == ()
    assert ask(address, retry=RetryPolicy(hedge_after=TIMEOUT_SECONDS / 2)).items == ()
    assert handler.n_calls == 2
