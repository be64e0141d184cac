"""Due times have the rate and the unevenness that were asked for; shares add up."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recserve.benchmarks.load.options import Arrivals, Pace, read_arrivals
from recserve.benchmarks.load.schedule import ClosedLoop, OpenLoop, arrival_times, schedules, share


@pytest.mark.parametrize(("text", "cv"), [("constant", 0.0), ("poisson", 1.0), ("gamma:3", 3.0)])
def test_gaps_have_the_mean_and_spread_that_were_asked_for(text: str, cv: float) -> None:
    times = arrival_times(read_arrivals(text), rate=500, seconds=100, seed=1)
    gaps = np.diff(times)
    assert gaps.min() >= 0
    assert times[-1] < 100
    assert len(times) / 100 == pytest.approx(500, rel=0.05)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.05, abs=1e-6)


def test_a_seed_gives_the_same_times() -> None:
    first, again, other = (arrival_times(Arrivals(), 100, 5, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert first[0] != other[0]


@given(st.integers(1, 5), st.integers(0, 200))
def test_processes_send_together_what_one_would(processes: int, requests: int) -> None:
    pace = Pace(rate=200, warm_up=0.1, duration=0 if requests else 1, requests=requests)
    whole, parts = (
        [
            times
            for schedule in schedules(pace, n)
            if isinstance(schedule, OpenLoop)
            for times in schedule.times
        ]
        for n in (1, processes)
    )
    assert sorted(parts) == whole
    if requests:
        assert sum(due >= 0.1 for due in whole) == requests


@given(st.integers(0, 1000), st.integers(1, 17))
def test_shares_add_up_and_differ_by_one_at_most(total: int, parts: int) -> None:
    shares = [share(total, i, parts) for i in range(parts)]
    assert sum(shares) == total
    assert max(shares) - min(shares) <= 1


def test_a_closed_loop_asks_again_after_the_answer_only() -> None:
    loop = ClosedLoop(concurrency=2, warm_up=0, duration=1, requests=0, think=0, seed=0)
    assert [loop.pop(), loop.pop()] == [0.0, 0.0]
    assert loop.next_due() == math.inf
    loop.answered(0.25)
    assert loop.pop() == 0.25
    loop.answered(1.5)
    assert loop.next_due() == math.inf


def test_a_closed_loop_ends_by_count_of_what_was_due_after_the_warm_up() -> None:
    loop = ClosedLoop(concurrency=1, warm_up=1, duration=0, requests=2, think=0, seed=0)
    now, dues = 0.0, []
    while loop.next_due() < math.inf:
        dues.append(loop.pop())
        now += 0.4
        loop.answered(now)
    assert sum(due >= 1 for due in dues) == 2


def test_callers_think_as_long_as_they_were_told_on_average() -> None:
    loop = ClosedLoop(concurrency=1, warm_up=0, duration=1e9, requests=0, think=0.5, seed=0)
    pauses = []
    for _ in range(4000):
        loop.answered(loop.pop())
        pauses.append(loop.next_due())
    assert np.diff(pauses).mean() == pytest.approx(0.5, rel=0.1)
