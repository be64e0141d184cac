"""The seam by itself: what every method passes on every transport, each step with the fault it is for."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recserve.engine.server.admission import Admission
from recserve.engine.server.call import Call
from recserve.engine.server.chain import Chain, Observer
from recserve.engine.server.methods import Method, MethodTable, Shape
from recserve.errors import (
    ConfigError,
    DeadlineExceeded,
    MalformedRequest,
    MessageTooLarge,
    Overloaded,
    PermissionDenied,
    Unavailable,
)
from tests.engine.server.local import LocalCall, echo_method

TIMEOUT_SECONDS = 30


class Recorder(Observer):
    def __init__(self) -> None:
        self.admitted: list[Call] = []
        self.answered: list[tuple[Call, grpc.StatusCode]] = []

    def on_admitted(self, call: Call) -> None:
        self.admitted.append(call)

    def on_answered(self, call: Call, code: grpc.StatusCode, seconds: float) -> None:
        assert seconds >= 0
        self.answered.append((call, code))


def reply_at_once(request: bytes, call: Call) -> None:
    call.reply(request)


def keep(request: bytes, call: Call) -> None:
    """A handler that answers later."""


class Bench:
    """A chain around one method, with an observer."""

    def __init__(self, method: Method, **settings: Any) -> None:
        self.method = method
        self.observer = Recorder()
        self.admission = Admission(max_in_flight=2)
        limits: dict[str, Any] = {"default_deadline_seconds": 1000.0, "max_message_bytes": 100, **settings}
        self.chain = Chain(MethodTable([method]), self.admission, observers=[self.observer], **limits)

    def ask(self, data: bytes = b"hello", **fields: Any) -> LocalCall:
        call = LocalCall(self.method, **fields)
        self.chain.dispatch(call, data)
        return call


@pytest.fixture
def bench() -> Iterator[Any]:
    benches: list[Bench] = []

    def make(method: Method, **settings: Any) -> Bench:
        benches.append(Bench(method, **settings))
        return benches[-1]

    yield make
    for made in benches:
        made.chain.close()


def test_a_call_goes_through_and_is_observed_once(bench: Any) -> None:
    made = bench(echo_method(reply_at_once))
    call = made.ask(metadata=(("x-request-id", "r-1"), ("other", "x")), peer="ipv4:1")
    assert call.result() == b"hello"
    assert (call.request_id, call.header("other"), call.header("none")) == ("r-1", "x", None)
    assert made.observer.admitted == [call]
    assert made.observer.answered == [(call, grpc.StatusCode.OK)]
    assert made.admission.in_flight == 0
    assert not call.reply(b"again")
    assert not call.fail(ValueError())
    assert not call.cancel()
    assert call.n_answers == 1


@pytest.mark.parametrize("given_id", ["", "x" * 65, "new\nline", "ünïcode", b"bytes"])
def test_an_id_that_could_forge_a_log_line_is_replaced(given_id: str | bytes) -> None:
    call = LocalCall(echo_method(keep), metadata=(("x-request-id", given_id),))
    assert len(call.request_id) == 32
    assert call.request_id == call.request_id


def test_bytes_that_are_not_the_message_are_refused(bench: Any) -> None:
    made = bench(echo_method(reply_at_once))
    with pytest.raises(MalformedRequest, match="request is not decodable"):
        made.ask(b"bad").result()
    with pytest.raises(MessageTooLarge, match="101 bytes long; expected at most 100"):
        made.ask(b"x" * 101).result()
    assert made.admission.in_flight == 0


def test_who_may_not_ask_is_neither_admitted_nor_decoded(bench: Any) -> None:
    def refuse(call: Call) -> None:
        raise PermissionDenied("scope", found="none", expected=call.method.scope)

    made = bench(echo_method(reply_at_once), principal_of=refuse)
    with pytest.raises(PermissionDenied):
        made.ask(b"bad").result()
    assert made.observer.admitted == []
    assert [code for _, code in made.observer.answered] == [grpc.StatusCode.PERMISSION_DENIED]


def test_the_principal_is_on_the_call(bench: Any) -> None:
    made = bench(echo_method(reply_at_once), principal_of=lambda call: call.header("who"))
    assert made.ask(metadata=(("who", "ann"),)).principal == "ann"


def test_admission_is_bounded_and_drains(bench: Any) -> None:
    made = bench(echo_method(keep))
    first, second = made.ask(), made.ask()
    with pytest.raises(Overloaded, match="requests in flight is 2; expected below 2"):
        made.ask().result()
    assert second.cancel()
    assert second.was_cancelled
    third = made.ask()
    made.admission.drain()
    with pytest.raises(Unavailable, match="server is shutting down"):
        made.ask().result()
    assert not made.admission.wait_until_idle(0)
    assert first.reply(b"1")
    assert third.reply(b"3")
    assert made.admission.wait_until_idle(TIMEOUT_SECONDS)


def test_what_is_not_admitted_is_answered_at_any_load(bench: Any) -> None:
    made = bench(echo_method(reply_at_once, is_admitted=False))
    for _ in range(2):
        made.admission.enter(LocalCall(echo_method(keep)))
    assert made.ask().result() == b"hello"
    made.admission.drain()
    assert made.ask().result() == b"hello"


def test_deadlines_are_the_caller_s_or_the_default(bench: Any) -> None:
    made = bench(echo_method(keep))
    own, default = made.ask(seconds=10.0), made.ask()
    assert own.deadline == pytest.approx(own.received_at + 10)
    assert default.deadline == pytest.approx(default.received_at + 1000)
    assert made.admission.expire(own.deadline) == 1
    with pytest.raises(DeadlineExceeded, match="within 10000 ms"):
        own.result()
    assert not default.is_done
    assert made.admission.expire(default.deadline) == 1


def test_the_chain_watches_deadlines_itself(bench: Any) -> None:
    made = bench(echo_method(keep), default_deadline_seconds=0.001)
    with pytest.raises(DeadlineExceeded, match="within 1 ms"):
        made.ask().result()


def test_what_a_handler_raises_is_the_answer(bench: Any) -> None:
    def fail(request: bytes, call: Call) -> None:
        raise KeyError("/secret")

    made = bench(echo_method(fail))
    call = made.ask()
    status = call.future.result(TIMEOUT_SECONDS)
    assert status.code == grpc.StatusCode.INTERNAL.value[0]  # type: ignore[union-attr]
    assert "secret" not in str(status)


def test_a_reply_that_cannot_be_encoded_is_internal(bench: Any) -> None:
    made = bench(echo_method(lambda request, call: call.reply(3)))
    assert made.ask().future.result(TIMEOUT_SECONDS).code == grpc.StatusCode.INTERNAL.value[0]


def test_a_failing_observer_does_not_cost_the_caller_its_answer(bench: Any) -> None:
    made = bench(echo_method(reply_at_once))
    made.observer.on_answered = lambda call, code, seconds: 1 / 0
    assert made.ask().result() == b"hello"


@given(st.lists(st.sampled_from(["reply", "fail", "cancel", "expire"]), min_size=1, max_size=8))
def test_of_all_answers_the_first_wins(answers: list[str]) -> None:
    made = Bench(echo_method(keep))
    try:
        call = made.ask()
        done: list[int] = []
        call.on_done(lambda: done.append(1))
        act = {
            "reply": lambda: call.reply(b"r"),
            "fail": lambda: call.fail(Overloaded("x", found="y", expected="z")),
            "cancel": call.cancel,
            "expire": call.expire,
        }
        assert [act[name]() for name in answers] == [True] + [False] * (len(answers) - 1)
        assert call.n_answers == (answers[0] != "cancel")
        assert (done, len(made.observer.answered), made.admission.in_flight) == ([1], 1, 0)
        call.on_done(lambda: done.append(2))
        assert done == [1, 2]
    finally:
        made.chain.close()


def test_of_many_threads_one_answers() -> None:
    for _ in range(50):
        call = LocalCall(echo_method(keep))
        barrier = threading.Barrier(4)
        won: list[bool] = []

        def answer(call: LocalCall = call, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            won.append(call.reply(b"x"))  # noqa: B023 - joined before the next round

        threads = [threading.Thread(target=answer) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(won) == [False, False, False, True]


def test_a_stream_has_no_default_deadline_and_ends_once(bench: Any) -> None:
    made = bench(echo_method(keep, shape=Shape.SERVER_STREAM, is_admitted=False))
    call = made.ask()
    assert call.deadline == float("inf")
    assert call.send(b"1")
    assert call.send(b"2")
    assert call.finish()
    assert not call.send(b"3")
    assert (call.sent, call.ended) == ([b"1", b"2"], True)


def test_a_client_stream_feeds_its_consumer(bench: Any) -> None:
    class Sum:
        def __init__(self, call: Call) -> None:
            self.call, self.got = call, b""

        def message(self, request: bytes) -> None:
            self.got += request

        def end(self) -> None:
            self.call.reply(self.got)

    made = bench(echo_method(Sum, shape=Shape.CLIENT_STREAM))
    call = LocalCall(made.method)
    consumer = made.chain.open(call)
    assert consumer is not None
    for data in (b"a", b"b"):
        made.chain.feed(call, consumer, data)
    made.chain.end(call, consumer)
    assert call.result() == b"ab"
    broken = LocalCall(made.method)
    consumer = made.chain.open(broken)
    made.chain.feed(broken, consumer, b"bad")
    with pytest.raises(MalformedRequest):
        broken.result()


def test_late_calls_that_the_transport_cancels_count_as_late() -> None:
    made = Bench(echo_method(keep))
    try:
        call = made.ask(seconds=0.0)
        made.chain.close()
        call.deadline = time.monotonic()
        assert call.cancel() or call.is_done
        assert [code for _, code in made.observer.answered] == [grpc.StatusCode.DEADLINE_EXCEEDED]
    finally:
        made.chain.close()


def test_tables_are_checked() -> None:
    with pytest.raises(ConfigError, match="given twice"):
        MethodTable([echo_method(keep), echo_method(keep)])
    with pytest.raises(ConfigError, match="method path"):
        echo_method(keep, path="Say")
    with pytest.raises(ConfigError, match="scope of"):
        echo_method(keep, scope="")
    table = MethodTable([echo_method(keep, shape=Shape.BIDIRECTIONAL)])
    with pytest.raises(ConfigError, match="over transport native is bidirectional; expected unary"):
        table.check_shapes("native", frozenset({Shape.UNARY}))
    assert (table.services(), len(table)) == (["test.Echo"], 1)


def test_a_call_that_is_cancelled_before_it_is_dispatched_keeps_no_place(bench: Any) -> None:
    made = bench(echo_method(keep))
    call = LocalCall(made.method)
    call.cancel()
    made.chain.dispatch(call, b"hello")
    assert made.admission.in_flight == 0
