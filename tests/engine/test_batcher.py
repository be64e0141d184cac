"""The batcher with its threads: each entry is answered exactly once, whatever the work does."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recserve.engine import batcher as batcher_module
from recserve.engine.batch_policy import BatcherConfig, decide
from recserve.engine.batcher import Batcher
from recserve.errors import Overloaded, Unavailable
from tests.engine.batches import FAR, TIMEOUT_SECONDS, Held, Row, starting, submit


@pytest.fixture
def start() -> Iterator[Callable[..., Batcher[Row]]]:
    with starting() as make:
        yield make


def held_first(start: Callable[..., Batcher[Row]], **fields: Any) -> tuple[Batcher[Row], Held]:
    """Returns a batcher whose thread is inside its first batch, so that what follows piles up."""
    held = Held()
    batcher = start(held, **fields)
    submit(batcher, Row(-1))
    assert held.entered.acquire(timeout=TIMEOUT_SECONDS)
    return batcher, held


def test_what_waits_is_answered_together_in_order(start: Callable[..., Batcher[Row]]) -> None:
    batcher, held = held_first(start, max_size=4)
    rows = [Row(i) for i in range(6)]
    urgent = Row(100, priority=0)
    submit(batcher, *rows, urgent)
    held.gate.set()
    assert [row.result() for row in (*rows, urgent)] == [0, 1, 2, 3, 4, 5, 100]
    assert [[row.value for row in batch] for batch in held.batches] == [[-1], [100, 0, 1, 2], [3, 4, 5]]
    assert all("queue" in row.stage_ns for row in rows)
    batcher.close()
    assert (batcher.stats()["batches"], batcher.stats()["rows"]) == (3, 8)


def test_the_gone_and_the_late_are_never_computed(start: Callable[..., Batcher[Row]]) -> None:
    batcher, held = held_first(start)
    gone, late, fine = Row(1), Row(2, deadline=0.0), Row(3)
    submit(batcher, gone, late, fine)
    gone.reply("left")
    held.gate.set()
    assert (gone.result(), late.result(), fine.result()) == ("left", "expired", 3)
    assert [row.value for batch in held.batches for row in batch] == [-1, 3]
    batcher.close()
    stats = batcher.stats()
    assert (stats["gone_rows"], stats["late_rows"]) == (1, 1)


def test_who_is_late_when_the_batch_begins_is_not_computed() -> None:
    now = 0.0

    class Stalled(Row):
        @property
        def is_done(self) -> bool:
            nonlocal now
            now = 100.0  # The machine stands still just when the batch is decided.
            return super().is_done

    held = Held()
    held.gate.set()
    late, fine = Stalled(1, deadline=10.0), Row(2)
    with closing(Batcher[Row](held, BatcherConfig(max_delay_ms=1000), clock=lambda: now)) as batcher:
        submit(batcher, late, fine)
    assert (late.result(), fine.result()) == ("expired", 2)
    assert [row.value for batch in held.batches for row in batch] == [2]
    assert batcher.stats()["late_rows"] == 1


def test_a_dead_thread_is_replaced(start: Callable[..., Batcher[Row]]) -> None:
    exhausted = threading.Event()

    def answer(rows: list[Row]) -> None:
        for row in rows:
            if row.value == 13:
                raise SystemExit
            row.reply(row.value)

    batcher = start(answer, on_exhausted=exhausted.set, max_size=1)
    for _ in range(3):
        doomed, fine = Row(13), Row(1)
        submit(batcher, doomed, fine)
        assert isinstance(doomed.result(), Unavailable)
        assert fine.result() == 1
    assert not exhausted.is_set()
    submit(batcher, Row(13))
    assert exhausted.wait(TIMEOUT_SECONDS)


def test_the_queue_is_bounded_even_when_callers_leave(start: Callable[..., Batcher[Row]]) -> None:
    batcher, held = held_first(start, max_waiting=3)
    gone = [Row() for _ in range(3)]
    submit(batcher, *gone)
    for row in gone:
        row.reply("left")
    with pytest.raises(Overloaded, match="waiting requests is 3; expected below 3"):
        submit(batcher, Row())
    held.gate.set()


def test_nobody_counts_twice_on_the_way_to_a_batch(start: Callable[..., Batcher[Row]]) -> None:
    batcher = start(lambda rows: [row.reply(row.value) for row in rows])
    seen = []

    class Inbox(deque[Row]):
        def popleft(self) -> Row:
            seen.append(batcher.n_waiting)
            return super().popleft()

    rows = [Row(number) for number in range(5)]
    with batcher._forming:
        batcher._inbox = Inbox(rows)
        batcher._drain_inbox()
    batcher._wake_one()
    assert [row.result() for row in rows] == [0, 1, 2, 3, 4]
    # The one that moves may.
    assert max(seen) <= 6


def test_those_who_left_are_no_company(
    start: Callable[..., Batcher[Row]], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []

    def looking(*arguments: Any, **options: Any) -> Any:
        looks.append(1)
        return decide(*arguments, **options)

    monkeypatch.setattr(batcher_module, "decide", looking)
    batcher = start(
        lambda rows: [row.reply(row.value) for row in rows],
        max_size=4,
        max_delay_ms=100.0,
        adaptive_delay=False,
    )
    rows = [Row(number) for number in range(8)]
    with batcher._forming:
        for row in rows:
            row.received_at = time.monotonic()
            submit(batcher, row)
        for row in rows[1:]:
            row.reply("left")
    assert rows[0].result() == 0
    # Every four milliseconds; without a sleep in between some ten thousand.
    assert len(looks) < 100


def test_closing_computes_what_waits_and_refuses_more(start: Callable[..., Batcher[Row]]) -> None:
    batcher = start(Held(), max_delay_ms=1000.0, adaptive_delay=False)
    batcher._answer.gate.set()  # type: ignore[attr-defined]
    row = Row(5)
    submit(batcher, row)
    batcher.close()
    assert row.result() == 5
    with pytest.raises(Unavailable):
        submit(batcher, Row())


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["fine", "bad", "gone", "late"])), max_size=40),
    st.integers(1, 7),
    st.integers(1, 3),
)
def test_each_entry_is_answered_exactly_once(
    asked: list[tuple[int, str]], max_size: int, threads: int
) -> None:
    sizes: list[int] = []

    def answer(rows: list[Row]) -> None:
        sizes.append(len(rows))
        if any(row.value == 1 for row in rows):
            raise ValueError
        for row in rows:
            row.reply("fine")

    batcher = Batcher[Row](answer, BatcherConfig(max_size=max_size, threads=threads))
    rows = []
    for priority, kind in asked:
        row = Row(int(kind == "bad"), priority=priority, deadline=0.0 if kind == "late" else FAR)
        if kind == "gone":
            row.reply("gone")
        rows.append(row)
    submit(batcher, *rows)
    batcher.close()
    expected = {"fine": "fine", "gone": "gone", "late": "expired"}
    for row, (_, kind) in zip(rows, asked, strict=True):
        [result] = row.answers
        assert isinstance(result, ValueError) if kind == "bad" else result == expected[kind]
    assert max(sizes, default=0) <= max_size
    assert batcher.n_waiting == 0


def test_a_batch_that_hangs_is_answered_and_a_new_thread_goes_on(start: Callable[..., Batcher[Row]]) -> None:
    given_up: list[int] = []
    held = Held()
    batcher = start(held, stuck_seconds=0.5, max_size=2, on_stuck=given_up.append)
    stuck, behind = [Row(1), Row(2)], Row(3)
    submit(batcher, stuck[0])
    assert held.entered.acquire(timeout=TIMEOUT_SECONDS)
    submit(batcher, stuck[1])
    assert isinstance(stuck[0].result(), Unavailable)
    assert held.entered.acquire(timeout=TIMEOUT_SECONDS)
    assert isinstance(stuck[1].result(), Unavailable)
    held.gate.set()
    submit(batcher, behind)
    assert behind.result() == 3
    assert len(set(given_up)) == 2
    assert batcher.stats()["stuck_batches"] == 2
    # What the threads that came back late had to say is said already.
    assert [len(row.answers) for row in stuck] == [1, 1]


def test_ten_thousand_who_leave_at_once_cost_nothing(start: Callable[..., Batcher[Row]]) -> None:
    held = Held()
    batcher = start(held, max_waiting=20_000)
    first, leaving, last = Row(1), [Row() for _ in range(10_000)], Row(2)
    submit(batcher, first)
    assert held.entered.acquire(timeout=TIMEOUT_SECONDS)
    submit(batcher, *leaving)
    for row in leaving:
        row.reply("gone")
    submit(batcher, last)
    held.gate.set()
    assert (first.result(), last.result()) == (1, 2)
    batcher.close()
    assert held.batches == [[first], [last]]
    assert batcher.n_waiting == 0
    assert batcher.stats()["gone_rows"] == len(leaving)
