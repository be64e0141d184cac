"""Batches whose work fails: a bad row fails alone, and a model that always fails is left alone."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from recserve.engine.batcher import Batcher
from recserve.engine.breaker import FAILURES
from recserve.errors import Unavailable
from tests.engine.batches import TIMEOUT_SECONDS, Held, Row, starting, submit


@pytest.fixture
def start() -> Iterator[Callable[..., Batcher[Row]]]:
    with starting() as make:
        yield make


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
