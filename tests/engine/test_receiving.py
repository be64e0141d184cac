"""Threads that receive calls and compute them: who asks alone changes no thread, and somebody receives."""

import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from queue import SimpleQueue
from typing import Any

import pytest

from recserve.engine.batch_policy import BatcherConfig, Rates
from recserve.engine.batcher import Batcher
from recserve.errors import Unavailable
from tests.engine.batches import TIMEOUT_SECONDS, Held, Row, submit


class Front:
    """What calls arrive at: rows that are put in are submitted by whoever receives; None ends a thread."""

    def __init__(self, batcher: Batcher[Row]) -> None:
        self.arriving: SimpleQueue[list[Row] | None] = SimpleQueue()
        self.received: SimpleQueue[int] = SimpleQueue()
        self._batcher = batcher

    def receive(self) -> bool:
        rows = self.arriving.get()
        if rows is None:
            self.arriving.put(None)
            return False
        submit(self._batcher, *rows)
        self.received.put(threading.get_ident())
        return True


@contextmanager
def receiving(answer: Any, **fields: Any) -> Iterator[tuple[Batcher[Row], Front]]:
    batcher = Batcher[Row](answer, BatcherConfig(**{"threads": 1, "max_delay_ms": 0.0, **fields}))
    front = Front(batcher)
    with closing(batcher):
        crew = batcher.receive(front.receive)
        yield batcher, front
        front.arriving.put(None)
        crew.join()


def test_who_asks_alone_is_answered_by_the_thread_that_received() -> None:
    def answer(rows: list[Row]) -> None:
        for row in rows:
            row.reply(threading.get_ident())

    with receiving(answer) as (batcher, front):
        for _ in range(5):
            row = Row()
            front.arriving.put([row])
            assert row.result() == front.received.get(timeout=TIMEOUT_SECONDS)
        # Others that bring entries wake a thread of the batcher.
        row = Row()
        submit(batcher, row)
        assert row.result() != threading.get_ident()


def test_who_waits_for_company_is_not_stuck() -> None:
    with receiving(
        lambda rows: [row.reply(row.value) for row in rows],
        max_delay_ms=1000.0,
        adaptive_delay=False,
        stuck_seconds=0.6,
    ) as (batcher, front):
        row = Row(1)
        row.received_at = time.monotonic()
        front.arriving.put([row])
        assert row.result() == 1
        assert batcher.stats()["stuck_batches"] == 0


def test_while_one_thread_computes_another_receives() -> None:
    held = Held()
    with receiving(held) as (_, front):
        first, others = Row(1), [Row(2), Row(3)]
        front.arriving.put([first])
        assert held.entered.acquire(timeout=TIMEOUT_SECONDS)
        for row in others:
            front.arriving.put([row])
        by = {front.received.get(timeout=TIMEOUT_SECONDS) for _ in range(3)}
        assert len(by) == 2
        held.gate.set()
        assert [row.result() for row in (first, *others)] == [1, 2, 3]
        # What came meanwhile is one batch.
        assert [len(batch) for batch in held.batches] == [1, 2]


def test_a_receiver_that_hangs_is_replaced_and_what_waits_is_computed() -> None:
    held = Held()
    with receiving(held, stuck_seconds=1.5) as (batcher, front):
        stuck, behind = Row(1), Row(2)
        front.arriving.put([stuck])
        assert held.entered.acquire(timeout=TIMEOUT_SECONDS)
        front.arriving.put([behind])
        assert isinstance(stuck.result(), Unavailable)
        held.gate.set()
        assert behind.result() == 2 or isinstance(behind.result(), Unavailable)
        for i in range(3):
            row = Row(i)
            front.arriving.put([row])
            assert row.result() == i
        assert batcher.stats()["stuck_batches"] >= 1


def test_a_receiver_that_dies_is_replaced_and_what_waits_is_computed() -> None:
    def answer(rows: list[Row]) -> None:
        for row in rows:
            if row.value == 13:
                raise SystemExit
            row.reply(row.value)

    with receiving(answer, max_size=1) as (_, front):
        doomed, fine = Row(13), Row(1)
        front.arriving.put([doomed, fine])
        assert isinstance(doomed.result(), Unavailable)
        assert fine.result() == 1
        again = Row(2)
        front.arriving.put([again])
        assert again.result() == 2


def test_who_comes_while_the_batcher_closes_is_refused_at_once() -> None:
    held = Held()
    batcher = Batcher[Row](held, BatcherConfig())
    first, late = Row(1), Row(2)
    submit(batcher, first)
    assert held.entered.acquire(timeout=TIMEOUT_SECONDS)
    closer = threading.Thread(target=batcher.close)
    closer.start()

    def ask_on() -> None:
        for _ in range(1000):
            submit(batcher, Row(3))
            closer.join(0.01)

    with pytest.raises(Unavailable, match="shutting down"):
        ask_on()
    held.gate.set()
    closer.join(TIMEOUT_SECONDS)
    assert first.result() == 1
    # One that passed the check before the end and arrives after it.
    batcher._closing = False
    submit(batcher, late)
    assert isinstance(late.result(), Unavailable)


def test_a_cheaper_answer_that_hangs_is_no_failure_of_the_model() -> None:
    held = Held()
    batcher = Batcher[Row](
        lambda rows: None, BatcherConfig(stuck_seconds=0.3, max_delay_ms=0.0), answer_degraded=held
    )
    with closing(batcher):
        # The model is expected to be late, and popular items are not.
        batcher._rates = Rates(batch_seconds=3600.0, measured_at=time.monotonic())
        row = Row(deadline=time.monotonic() + 600)
        submit(batcher, row)
        assert isinstance(row.result(), Unavailable)
        assert batcher.stats()["stuck_batches"] == 1
        assert not batcher._breakers
        held.gate.set()
