"""The batching policy as the pure function that it is: no clock, no threads, no sleeping."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recserve.engine.batch_policy import (
    ESTIMATE_HALF_LIFE_SECONDS,
    MIN_ROW_SHARE,
    BatcherConfig,
    Rates,
    company_of,
    decide,
)
from recserve.errors import ConfigError

NOW = 1000.0


@dataclass
class Row:
    received_at: float = NOW
    deadline: float = NOW + 1
    is_done: bool = False


rows = st.builds(
    Row,
    received_at=st.floats(NOW - 1, NOW),
    deadline=st.floats(NOW - 1, NOW + 2),
    is_done=st.booleans(),
)
classes = st.lists(st.lists(rows, max_size=12), min_size=1, max_size=4)


@st.composite
def configs(draw: st.DrawFn) -> BatcherConfig:
    max_size = draw(st.integers(1, 10))
    return BatcherConfig(
        max_size=max_size,
        max_delay_ms=draw(st.sampled_from([0.0, 1.0, 500.0])),
        adaptive_delay=draw(st.booleans()),
        preferred_sizes=tuple(draw(st.lists(st.integers(1, max_size), max_size=3))),
    )


rates = st.builds(
    Rates,
    batch_seconds=st.floats(0, 1),
    measured_at=st.floats(NOW - 2, NOW),
    rows=st.floats(0, 64),
    variance=st.floats(0, 1000),
    covariance=st.floats(-10, 10),
    callers=st.integers(0, 64),
)


@given(classes, configs(), rates)
def test_laws_of_a_decision(queue: list[list[Row]], config: BatcherConfig, known: Rates) -> None:
    decision = decide(queue, NOW, config, known)
    consumed = [row for entries, n in zip(queue, decision.consumed, strict=True) for row in entries[:n]]
    # What leaves the queue is taken, late or gone: each exactly once, in order of class and arrival.
    taken_or_late = [row for row in consumed if not row.is_done]
    assert [id(row) for row in taken_or_late if any(row is taken for taken in decision.take)] == [
        id(row) for row in decision.take
    ]
    assert len(decision.take) + len(decision.late) + decision.n_gone == len(consumed)
    assert len(decision.take) <= config.max_size
    # Nothing is computed for the dead or the late.
    expected = known.expected_seconds(NOW)
    assert not any(row.is_done or row.deadline <= NOW + expected for row in decision.take)
    assert all(row.deadline <= NOW + expected and not row.is_done for row in decision.late)
    # Either something is taken, or nothing live waits, or it is known when to look again.
    live = [row for entries in queue for row in entries if not row.is_done and row.deadline > NOW + expected]
    if not decision.take:
        assert (decision.wake_at is not None) == bool(live)
    if decision.wake_at is not None:
        assert NOW < decision.wake_at <= min(row.received_at for row in live) + config.max_delay_ms / 1000
        assert (decision.take, decision.late, sum(decision.consumed)) == ([], [], 0)
        n_others = sum(map(len, queue)) - len(live)
        assert len(live) < decision.company - n_others <= config.max_size
    if config.max_delay_ms == 0 and live:
        assert decision.take


@given(classes, configs(), rates)
def test_waiting_ends_when_it_was_said(queue: list[list[Row]], config: BatcherConfig, known: Rates) -> None:
    decision = decide(queue, NOW, config, known)
    if decision.wake_at is not None:
        # The estimate as it was: one that has faded lets a batch wait for longer.
        frozen = replace(known, batch_seconds=known.expected_seconds(NOW), measured_at=decision.wake_at)
        assert decide(queue, decision.wake_at, config, frozen).take


def test_a_batch_that_closes_for_a_deadline_still_meets_it() -> None:
    config = BatcherConfig(max_delay_ms=500, adaptive_delay=False)
    row = Row(deadline=NOW + 0.5, received_at=NOW)
    decision = decide([[row]], NOW, config, Rates())
    assert decision.wake_at is not None
    assert decide([[row]], decision.wake_at, config, Rates()).take == [row]


@given(classes, configs())
def test_everything_is_consumed_in_the_end(queue: list[list[Row]], config: BatcherConfig) -> None:
    now, left, seen = NOW, [list(entries) for entries in queue], 0
    for _ in range(200):
        decision = decide(left, now, config, Rates())
        left = [entries[n:] for entries, n in zip(left, decision.consumed, strict=True)]
        seen += len(decision.take) + len(decision.late) + decision.n_gone
        if decision.wake_at is not None:
            now = decision.wake_at
        elif not decision.take:
            break
    assert seen == sum(map(len, queue))
    assert not any(left)


def test_the_most_urgent_class_goes_first() -> None:
    urgent, normal = [Row(), Row()], [Row(), Row()]
    decision = decide([urgent, normal], NOW, BatcherConfig(max_size=3), Rates())
    assert [id(row) for row in decision.take] == [id(row) for row in (*urgent, normal[0])]
    assert decision.consumed == (2, 1)


def test_an_entry_that_cannot_finish_in_time_is_late_before_it_is_computed() -> None:
    soon, ample = Row(deadline=NOW + 0.05), Row(deadline=NOW + 0.5)
    known = Rates(batch_seconds=0.1, measured_at=NOW)
    decision = decide([[soon, ample]], NOW, BatcherConfig(), known)
    assert (decision.late, decision.take) == ([soon], [ample])


@pytest.mark.parametrize(("seconds_left", "taken"), [(0.5, 16), (0.24, 12), (0.2, 10), (0.1, 8), (0.081, 8)])
def test_a_batch_beyond_the_usual_is_no_larger_than_its_most_urgent_entry_has_time_for(
    seconds_left: float, taken: int
) -> None:
    known = Rates(batch_seconds=0.08, measured_at=NOW, rows=8.0)
    rows = [Row(), Row(deadline=NOW + seconds_left), *(Row() for _ in range(14))]
    assert len(decide([rows], NOW, BatcherConfig(), known).take) == taken


def after(batches: list[tuple[int, float]]) -> Rates:
    known = Rates()
    for n_rows, seconds in batches:
        known = known.after_batch(n_rows, seconds, NOW)
    return known


def test_what_a_batch_costs_besides_its_rows_is_learned() -> None:
    # 20 ms a batch and 1 ms a row; where all have one size, a row is taken for as dear as it can be.
    alike = after([(8, 0.028)] * 50)
    assert alike.seconds_per_row(NOW) == pytest.approx(0.028 / 8)
    varied = after([(n, 0.02 + 0.001 * n) for n in (4, 12, 7, 9, 5, 11, 8) * 10])
    assert varied.seconds_per_row(NOW) == pytest.approx(0.001, rel=0.2)
    # The most urgent has 100 ms left, of which a half is to be used: 30 rows, where 14 would be taken else.
    rows = [Row(deadline=NOW + 0.1) for _ in range(64)]
    assert len(decide([rows], NOW, BatcherConfig(), alike).take) == 14
    assert 26 <= len(decide([rows], NOW, BatcherConfig(), varied).take) <= 34
    # Noise that says large batches are quicker is not believed.
    noise = after([(n, 0.03 - 0.001 * n) for n in (4, 12, 7, 9, 5, 11, 8) * 10])
    assert noise.seconds_per_row(NOW) == pytest.approx(MIN_ROW_SHARE * noise.batch_seconds / noise.rows)


@pytest.mark.parametrize("times", [1.2, 3.0, 10.0])
def test_under_overload_batches_stay_large(times: float) -> None:
    """Of a model that takes 20 ms for a batch and 0.2 ms for each row in it; deadlines are half a second."""
    config, known, now, n_arrived = BatcherConfig(max_delay_ms=0.0), Rates(), NOW, 0
    rate = times * 64 / (0.02 + 64 * 0.0002)
    waiting: list[Row] = []
    sizes = []
    for _ in range(200):
        for i in range(n_arrived, n_arrived := int((now - NOW) * rate) + 1):
            waiting.append(Row(NOW + i / rate, NOW + i / rate + 0.5))
        decision = decide([waiting], now, config, known)
        del waiting[: decision.consumed[0]]
        sizes.append(len(decision.take))
        seconds = 0.02 + 0.0002 * sizes[-1]
        now += seconds
        known = known.after_batch(sizes[-1], seconds, now)
    assert min(sizes[100:]) > 55


def test_an_estimate_fades_when_nothing_confirms_it() -> None:
    slow = Rates().after_batch(1, 10.0, NOW)
    row = Row(deadline=NOW + 1.1 + 10 * ESTIMATE_HALF_LIFE_SECONDS)
    assert decide([[row]], NOW + 10 * ESTIMATE_HALF_LIFE_SECONDS, BatcherConfig(), slow).take == [row]
    assert slow.after_batch(1, 0.0, NOW).batch_seconds == pytest.approx(8.0)


@pytest.mark.parametrize(("n", "taken"), [(3, 3), (4, 4), (5, 4), (7, 4), (8, 8), (9, 8)])
def test_preferred_sizes_cut_a_batch(n: int, taken: int) -> None:
    config = BatcherConfig(max_size=10, preferred_sizes=(8, 4))
    assert len(decide([[Row() for _ in range(n)]], NOW, config, Rates()).take) == taken


def test_a_full_batch_never_waits() -> None:
    config = BatcherConfig(max_size=2, max_delay_ms=100.0, adaptive_delay=False)
    assert decide([[Row()]], NOW, config, Rates()).wake_at == pytest.approx(NOW + 0.1)
    assert len(decide([[Row(), Row(), Row()]], NOW, config, Rates()).take) == 2


def test_nobody_waits_past_what_its_deadline_allows() -> None:
    config = BatcherConfig(max_delay_ms=500.0, adaptive_delay=False)
    known = Rates(batch_seconds=0.1, measured_at=NOW)
    assert decide([[Row(deadline=NOW + 0.3)]], NOW, config, known).wake_at == pytest.approx(NOW + 0.2)


def test_a_batch_waits_for_those_who_asked_around_the_last_one() -> None:
    config = BatcherConfig(max_delay_ms=3.0)
    # Callers who come one by one: each waits for its answer, nobody else is there.
    assert not any(decide([[Row()]], NOW, config, Rates(callers=n)).wake_at for n in (0, 1))
    assert company_of(config, Rates(callers=4)) == (4, pytest.approx(0.0008))
    assert company_of(config, Rates(callers=100)) == (64, pytest.approx(0.003))
    four = Rates(callers=4)
    assert decide([[Row()] * 3], NOW, config, four).company == 4
    assert len(decide([[Row()] * 4], NOW, config, four).take) == 4


def test_where_others_came_meanwhile_more_are_expected_and_forgotten_when_they_stay_away() -> None:
    known = Rates(callers=8, batch_seconds=1.0)
    assert known.after_batch(8, 1.0, NOW).callers == 8
    assert known.after_batch(8, 1.0, NOW, n_waiting=1).callers == 16
    assert known.after_batch(8, 1.0, NOW, n_waiting=20).callers == 28
    for _ in range(30):
        known = known.after_batch(1, 1.0, NOW)
    assert known.callers == 1


def test_each_transport_has_a_delay_that_a_setting_overrules() -> None:
    assert BatcherConfig().over("grpcio").max_delay_ms == 3.0
    assert BatcherConfig().over("native").max_delay_ms == 0.0
    assert BatcherConfig(max_delay_ms=0.0).over("grpcio").max_delay_ms == 0.0


@pytest.mark.parametrize(
    "wrong",
    [{"max_size": 0}, {"threads": 0}, {"max_waiting": 0}, {"max_delay_ms": -1.0}, {"preferred_sizes": (65,)}],
)
def test_settings_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="batcher"):
        BatcherConfig(**wrong)
