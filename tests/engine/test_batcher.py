"""The batcher with its threads: each entry is answered exactly once, whatever the work does."""

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recserve.engine import batcher as batcher_module
from recserve.engine.batch_policy import BatcherConfig, decide
from recserve.engine.batcher import Batcher
from recserve.engine.breaker import FAILURES
from recserve.errors import Overloaded, Unavailable

TIMEOUT_SECONDS = 30
FAR = float("inf")
HOOKS = ("answer_degraded", "on_exhausted", "on_stuck", "model_of")


class Row:
    """An entry that counts its answers."""

    def __init__(self, value: int = 0, *, priority: int = 1, deadline: float = FAR) -> None:
        self.value, self.priority, self.deadline = value, priority, deadline
        self.received_at = 0.0
        self.stage_ns: dict[str, int] = {}
        self.answers: list[Any] = []
        self.answered = threading.Event()

    @property
    def is_done(self) -> bool:
        return bool(self.answers)

    def reply(self, answer: Any) -> bool:
        if self.answers:
            return False
        self.answers.append(answer)
        self.answered.set()
        return True

    def fail(self, error: BaseException) -> bool:
        return self.reply(error)

    def expire(self) -> bool:
        return self.reply("expired")

    def result(self) -> Any:
        assert self.answered.wait(TIMEOUT_SECONDS)
        [answer] = self.answers
        return answer


class Held:
    """An ``answer`` that waits at a gate and keeps the batches that it was given."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.gate = threading.Event()
        self.batches: list[list[Row]] = []

    def __call__(self, rows: list[Row]) -> None:
        self.batches.append(rows)
        self.entered.release()
        assert self.gate.wait(TIMEOUT_SECONDS)
        for row in rows:
            row.reply(row.value)


@pytest.fixture
def start() -> Iterator[Callable[..., Batcher[Row]]]:
    with ExitStack() as stack:

        def make(answer: Any, **fields: Any) -> Batcher[Row]:
            hooks = {name: fields.pop(name) for name in HOOKS if name in fields}
            batcher = Batcher(answer, BatcherConfig(**{"threads": 1, **fields}), **hooks)
            return stack.enter_context(closing(batcher))

        yield make


def submit(batcher: Batcher[Row], *rows: Row) -> None:
    for row in rows:
        batcher.submit(None, row)


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


def test_a_failing_row_fails_alone(start: Callable[..., Batcher[Row]]) -> None:
    gate = threading.Event()

    def answer(rows: list[Row]) -> None:
        assert gate.wait(TIMEOUT_SECONDS)
        if any(row.value == 13 for row in rows):
            raise KeyError("thirteen")
        for row in rows:
            row.reply(row.value)

    batcher = start(answer)
    rows = [Row(i) for i in (11, 12, 13, 14)]
    submit(batcher, *rows)
    gate.set()
    answers = [row.result() for row in rows]
    assert [a for a in answers if not isinstance(a, KeyError)] == [11, 12, 14]
    assert isinstance(answers[2], KeyError)
    batcher.close()
    assert batcher.stats()["failed_rows"] == 1


def test_a_row_that_the_work_forgets_is_answered(start: Callable[..., Batcher[Row]]) -> None:
    row = Row()
    submit(start(lambda rows: None), row)
    assert isinstance(row.result(), RuntimeError)


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


def test_death_while_rows_are_tried_one_by_one_answers_the_rest(start: Callable[..., Batcher[Row]]) -> None:
    gate = threading.Event()

    def answer(rows: list[Row]) -> None:
        assert gate.wait(TIMEOUT_SECONDS)
        if len(rows) > 1:
            raise ValueError
        raise SystemExit

    batcher = start(answer)
    first, rows = Row(), [Row(), Row()]
    submit(batcher, first, *rows)
    gate.set()
    assert all(isinstance(row.result(), Unavailable) for row in (first, *rows))


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


def test_a_model_that_always_fails_is_left_alone(start: Callable[..., Batcher[Row]]) -> None:
    asked: list[int] = []

    def fail(rows: list[Row]) -> None:
        asked.extend(row.value for row in rows)
        raise RuntimeError

    def cheaper(rows: list[Row]) -> None:
        for row in rows:
            row.reply("popular")

    batcher = start(fail, answer_degraded=cheaper)
    answers = []
    for i in range(FAILURES + 3):
        row = Row(i)
        submit(batcher, row)
        answers.append(row.result())
    assert [isinstance(answer, RuntimeError) for answer in answers[:FAILURES]] == [True] * FAILURES
    assert answers[FAILURES:] == ["popular"] * 3
    assert asked == list(range(FAILURES))


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


def test_of_two_models_the_one_that_fails_is_left_alone(start: Callable[..., Batcher[Row]]) -> None:
    asked: list[int] = []

    def answer(rows: list[Row]) -> None:
        asked.extend(row.value for row in rows)
        if any(row.value for row in rows):
            raise RuntimeError
        for row in rows:
            row.reply("model")

    def cheaper(rows: list[Row]) -> None:
        for row in rows:
            row.reply("popular")

    batcher = start(answer, answer_degraded=cheaper, model_of=lambda row: f"model {row.value}")
    for _ in range(FAILURES):
        bad, fine = Row(1), Row(0)
        submit(batcher, bad, fine)
        assert isinstance(bad.result(), RuntimeError)
        assert fine.result() == "model"
    asked.clear()
    bad, fine = Row(1), Row(0)
    submit(batcher, bad, fine)
    assert (bad.result(), fine.result()) == ("popular", "model")
    assert asked == [0]


def test_what_one_model_answers_counts_beside_another_that_fails(start: Callable[..., Batcher[Row]]) -> None:
    held = Held()
    degraded: list[Row] = []

    def answer(rows: list[Row]) -> None:
        held([row for row in rows if not row.value])
        if any(row.value for row in rows):
            raise RuntimeError

    batcher = start(answer, answer_degraded=degraded.extend, max_size=2, max_delay_ms=0)
    first = Row()
    pairs = [(Row(0), Row(1)) for _ in range(2 * FAILURES)]
    for row in (first, *itertools.chain(*pairs)):
        row.received_at = time.monotonic() + 3600  # Nobody waits long enough for a brown-out.
    submit(batcher, first)
    assert held.entered.acquire(timeout=TIMEOUT_SECONDS)
    submit(batcher, *itertools.chain(*pairs))
    held.gate.set()
    for fine, bad in pairs:
        assert fine.result() == 0
        assert isinstance(bad.result(), RuntimeError)
    assert degraded == []


def test_refusals_that_say_what_to_do_are_no_failures_of_the_model(
    start: Callable[..., Batcher[Row]],
) -> None:
    def refuse(rows: list[Row]) -> None:
        raise Unavailable("model", found="loading", expected="loaded")

    batcher = start(refuse, answer_degraded=lambda rows: pytest.fail("degraded"))
    for _ in range(2 * FAILURES):
        row = Row()
        submit(batcher, row)
        assert isinstance(row.result(), Unavailable)
