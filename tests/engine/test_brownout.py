"""When callers get a cheaper answer: pure functions, and the batcher that follows them."""

from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recserve.engine.batch_policy import DEGRADE_SECONDS, BatcherConfig, Decision, Rates, decide, surplus
from recserve.engine.batcher import Batcher
from recserve.engine.brownout import ENTER_SECONDS, LEAVE_SECONDS, Brownout, has_waited, will_be_late
from recserve.errors import Unavailable
from tests.engine.batches import TIMEOUT_SECONDS, Held
from tests.engine.batches import Row as Entry
from tests.engine.test_batch_policy import NOW, Row, classes, configs, rates

OFF, ON = Brownout(), Brownout(is_on=True)


def after(state: Brownout, *signs: tuple[float, bool]) -> Brownout:
    for at, is_pressed in signs:
        state = state.after(is_pressed, at)
    return state


def test_it_begins_after_half_a_second_of_pressure_and_ends_after_five_without() -> None:
    pressed = [(NOW + 0.1 * i, True) for i in range(7)]
    assert not after(OFF, *pressed[:5]).is_on
    state = after(OFF, *pressed)
    assert state.is_on
    calm = [(NOW + 1 + 0.5 * i, False) for i in range(12)]
    assert after(state, *calm[:10]).is_on
    assert not after(state, *calm).is_on


def test_it_begins_at_once_when_more_wait_than_can_be_answered_in_their_time() -> None:
    hasty, patient = Row(deadline=NOW + 1.0), Row(deadline=NOW + 1.9)
    behind, gone = [[patient] * 3, [patient]], Row(is_done=True)
    assert will_be_late([hasty, patient], behind, 2.0, NOW, 1.0)
    assert not will_be_late([hasty, patient], behind, 1.8, NOW, 1.0)
    assert not will_be_late([hasty, patient], [[patient, gone]], 2.0, NOW, 1.0)
    # One batch alone says nothing: each of its rows is watched by itself.
    assert not will_be_late([hasty], behind, 1.0, NOW, 2.0)
    assert OFF.after(True, NOW, is_sure=True).is_on


def test_one_good_sign_starts_the_wait_anew() -> None:
    assert not after(OFF, (NOW, True), (NOW + 0.4, False), (NOW + 0.6, True), (NOW + 0.9, True)).is_on
    assert after(ON, (NOW, False), (NOW + 4.9, True), (NOW + 5.1, False), (NOW + 9.9, False)).is_on


def test_two_bursts_with_a_pause_between_them_are_no_overload() -> None:
    assert not after(OFF, (NOW, True), (NOW + 10, True)).is_on


@given(st.lists(st.tuples(st.floats(0.001, 3), st.booleans()), max_size=60))
def test_the_state_turns_only_after_its_time(steps: list[tuple[float, bool]]) -> None:
    state, now, turned_at = OFF, NOW, NOW
    for seconds, is_pressed in steps:
        now += seconds
        before, state = state, state.after(is_pressed, now)
        if state.is_on != before.is_on:
            assert is_pressed == state.is_on
            assert now - turned_at >= (ENTER_SECONDS if state.is_on else LEAVE_SECONDS)
            turned_at = now


def test_waiting_for_a_slow_batch_is_normal() -> None:
    waiting = [Row(received_at=NOW - 0.1)]
    assert has_waited(waiting, 0.0, NOW, 0.001, 0.005)
    assert not has_waited(waiting, 0.0, NOW, 0.001, 0.2)
    assert not has_waited(waiting, 1.0, NOW, 0.1, 0.005)
    assert has_waited(waiting, 2.0, NOW, 0.1, 0.005)


@given(classes, configs(), rates)
def test_the_full_answers_are_those_without_cheaper_ones(
    queue: list[list[Row]], config: BatcherConfig, known: Rates
) -> None:
    plain = decide(queue, NOW, config, known)
    decision = decide(queue, NOW, config, known, may_degrade=True)
    assert list(map(id, decision.take)) == list(map(id, plain.take))
    assert (decision.wake_at, decision.consumed) == (plain.wake_at, plain.consumed)
    assert sorted(map(id, plain.late)) == sorted(map(id, [*decision.late, *decision.degrade]))
    assert not any(row.is_done or row.deadline <= NOW + DEGRADE_SECONDS for row in decision.degrade)


def test_who_would_be_late_is_degraded_at_any_time() -> None:
    soon, at_once = Row(deadline=NOW + 0.1), Row(deadline=NOW + 0.001)
    known = Rates(batch_seconds=1.0, measured_at=NOW)
    decision = decide([[soon, at_once]], NOW, BatcherConfig(), known, may_degrade=True)
    assert (decision.degrade, decision.late) == ([soon], [at_once])


@given(classes, st.integers(1, 10))
def test_in_a_brown_out_the_newest_are_left_for_the_model(queue: list[list[Row]], size: int) -> None:
    decision = surplus(queue, NOW, size)
    taken = [row for rows, n in zip(queue, decision.consumed, strict=True) for row in rows[:n]]
    assert len(decision.degrade) + len(decision.late) + decision.n_gone == len(taken)
    assert not any(row.is_done or row.deadline <= NOW + DEGRADE_SECONDS for row in decision.degrade)
    left = [len(rows) - n for rows, n in zip(queue, decision.consumed, strict=True)]
    # The patient wait, and of the others exactly a batch does, the most urgent first.
    assert left[2:] == [len(rows) for rows in queue[2:]]
    assert sum(left[:2]) == min(size, sum(map(len, queue[:2])))
    assert left[0] == min(size, len(queue[0]))


def test_in_a_brown_out_the_surplus_is_answered_while_the_model_computes() -> None:
    held = Held()
    batcher = Batcher[Any](held, BatcherConfig(max_size=2), answer_degraded=_answering("popular"))
    with closing(batcher):
        first, *behind = rows = [Entry(i) for i in range(6)]
        batcher.submit(None, first)
        assert held.entered.acquire(timeout=TIMEOUT_SECONDS)
        batcher._brownout = Brownout(is_on=True)
        for row in behind:
            batcher.submit(None, row)
        # The model is still at its first batch.
        assert [row.result() for row in behind[:3]] == ["popular"] * 3
        held.gate.set()
        assert [row.result() for row in (first, *behind[3:])] == [0, 4, 5]
    assert [len(row.answers) for row in rows] == [1] * 6
    assert batcher.stats()["degraded_rows"] == 3


def test_a_cheaper_answer_that_hangs_is_given_up() -> None:
    held, config = Held(), BatcherConfig(stuck_seconds=1.0)
    batcher = Batcher[Any](_answering("full"), config, answer_degraded=held)
    with closing(batcher):
        stuck, behind = Entry(1), Entry(2)
        batcher._relief.put([stuck])
        assert isinstance(stuck.result(), Unavailable)
        held.gate.set()
        batcher._relief.put([behind])
        assert behind.result() == 2
    assert batcher.stats()["stuck_batches"] == 1


def test_a_thread_that_dies_of_a_cheaper_answer_leaves_nobody_without_one() -> None:
    def answer(rows: list[Any]) -> None:
        if rows[0].value == 0:
            raise SystemExit
        _answering("popular")(rows)

    batcher = Batcher[Any](_answering("full"), BatcherConfig(max_size=1), answer_degraded=answer)
    with closing(batcher):
        rows = [Entry(i) for i in range(3)]
        batcher._relief.put(list(rows))
        assert all(isinstance(row.result(), Unavailable) for row in rows)
        after = Entry(3)
        batcher._relief.put([after])
        assert after.result() == "popular"


def _answering(text: str) -> Callable[[list[Any]], None]:
    def answer(rows: list[Any]) -> None:
        for row in rows:
            row.reply(text)

    return answer


def test_the_batcher_degrades_whoever_cannot_wait() -> None:
    now = [0.0]

    def slow(rows: list[Any]) -> None:
        now[0] += 1.0
        _answering("full")(rows)

    batcher = Batcher[Any](slow, BatcherConfig(), answer_degraded=_answering("popular"), clock=lambda: now[0])
    with closing(batcher):
        first = Entry()
        batcher.submit(None, first)
        assert first.result() == "full"
        hasty, patient = Entry(deadline=now[0] + 0.5), Entry(deadline=now[0] + 100)
        batcher.submit(None, hasty)
        batcher.submit(None, patient)
        assert (hasty.result(), patient.result()) == ("popular", "full")
    assert (batcher.stats()["degraded_rows"], batcher.stats()["late_rows"]) == (1, 0)


def test_who_has_no_time_for_a_batch_is_answered_together_with_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, sizes = [0.0], []
    monkeypatch.setattr("recserve.engine.batcher.PAUSE_SECONDS", TIMEOUT_SECONDS)

    def slow(rows: list[Any]) -> None:
        now[0] += 1.0
        _answering("full")(rows)

    def popular(rows: list[Any]) -> None:
        sizes.append(len(rows))
        _answering("popular")(rows)

    batcher = Batcher[Any](slow, BatcherConfig(max_size=4), answer_degraded=popular, clock=lambda: now[0])
    with closing(batcher):
        first = Entry()
        batcher.submit(None, first)
        assert first.result() == "full"
        batcher._brownout = ON
        hasty = [Entry(deadline=now[0] + 0.5) for _ in range(5)]
        batcher.submit(None, hasty[0])
        assert hasty[0].result() == "popular"
        for row in hasty[1:]:
            batcher.submit(None, row)
        assert [row.result() for row in hasty[1:]] == ["popular"] * 4
        assert sizes == [1, 4]
        patient = [Entry() for _ in range(4)]
        for row in patient:
            batcher.submit(None, row)
        assert [row.result() for row in patient] == ["full"] * 4


def test_a_server_may_do_without() -> None:
    now = [0.0]

    def slow(rows: list[Any]) -> None:
        now[0] += 1.0
        _answering("full")(rows)

    config = BatcherConfig(brownout=False)
    batcher = Batcher[Any](slow, config, answer_degraded=_answering("popular"), clock=lambda: now[0])
    with closing(batcher):
        first, hasty = Entry(), Entry(deadline=1.5)
        batcher.submit(None, first)
        assert first.result() == "full"
        batcher.submit(None, hasty)
        assert hasty.result() == "expired"


@pytest.mark.parametrize("have_left", [False, True])
def test_those_who_left_begin_no_brownout(have_left: bool) -> None:
    batcher = Batcher[Any](
        _answering("full"), BatcherConfig(max_size=4), answer_degraded=_answering("popular")
    )
    waiting = [Entry() for _ in range(8)]
    with closing(batcher), batcher._forming:
        batcher._inbox.extend(waiting)
        batcher._drain_inbox()
        if have_left:
            _answering("left")(waiting)
        batcher._rates = Rates(batch_seconds=1.0, measured_at=0.0, rows=4.0)
        batcher._watch_the_waiting(Decision(take=[Entry(deadline=1.5)]), 0.0)
        assert batcher._brownout is not None
        assert batcher._brownout.is_on != have_left


@pytest.mark.parametrize(("threads", "is_pressed"), [(1, True), (2, False)])
def test_those_who_compute_at_once_share_what_waits(threads: int, is_pressed: bool) -> None:
    batcher = Batcher[Any](
        lambda rows: None,
        BatcherConfig(threads=threads, max_size=4, normal_wait_ms=0.0),
        answer_degraded=lambda rows: None,
    )
    # Held, so that the batcher's own threads leave the rows alone.
    with closing(batcher), batcher._forming:
        # Two batches wait besides the one that begins; one and a half times what a batch takes is normal.
        batcher._inbox.extend(Entry() for _ in range(8))
        batcher._rates = Rates(batch_seconds=1.0, measured_at=0.0, rows=4.0)
        batcher._watch_the_waiting(Decision(take=[Entry()]), 0.0)
        assert batcher._brownout is not None
        assert (batcher._brownout.turning_since is not None) == is_pressed
        batcher._inbox.clear()
