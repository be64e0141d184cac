"""The worker pool by itself: lateness, failures, threads that die."""

import threading
from typing import Any

import pytest

from recserve.engine.server.call import Call
from recserve.engine.server.workers import WorkerPool
from recserve.errors import DeadlineExceeded, Unavailable
from tests.engine.server.local import LocalCall, echo_method

TIMEOUT_SECONDS = 30


def ask(pool: WorkerPool, function: Any, seconds: float = TIMEOUT_SECONDS) -> LocalCall:
    call = LocalCall(echo_method(pool.plain(function)), seconds=seconds)
    call.method.handler(b"", call)
    return call


def test_work_that_is_late_already_is_never_run() -> None:
    ran = []
    pool = WorkerPool(1)
    call = ask(pool, lambda request, call: ran.append(1), seconds=-0.1)
    with pytest.raises(DeadlineExceeded):
        call.result()
    pool.close()
    assert ran == []


def test_work_for_a_caller_who_has_left_is_never_run() -> None:
    ran = []
    pool = WorkerPool(1)
    gate = threading.Event()

    def wait(request: bytes, call: Call) -> bytes:
        assert gate.wait(TIMEOUT_SECONDS)
        return b"first"

    first = ask(pool, wait)
    second = ask(pool, lambda request, call: ran.append(1))
    assert second.cancel()
    gate.set()
    assert first.result() == b"first"
    pool.close()
    assert ran == []


def test_a_thread_that_dies_is_replaced_and_its_call_is_answered() -> None:
    exhausted = threading.Event()
    pool = WorkerPool(1, on_exhausted=exhausted.set)

    def die(request: bytes, call: Call) -> bytes:
        raise SystemExit

    for _ in range(3):
        with pytest.raises(Unavailable, match="worker is ended"):
            ask(pool, die).result()
    assert ask(pool, lambda request, call: b"alive").result() == b"alive"
    assert not exhausted.is_set()
    # The fourth death within a minute is no accident any more.
    with pytest.raises(Unavailable):
        ask(pool, die).result()
    assert exhausted.wait(TIMEOUT_SECONDS)
    pool.close()
