"""Replay keeps the recorded times, sizes and who is who."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recserve.benchmarks.load.options import RECORDED, Arrivals, Client, Pace, Target
from recserve.benchmarks.load.replay import read_replay, rows_by_chance
from recserve.benchmarks.load.run import Ids, Load
from recserve.benchmarks.load.schedule import schedules
from recserve.engine.traces import SCHEMA
from recserve.errors import InvalidRequest

IDS = Ids([f"u{i}" for i in range(50)], [f"i{i}" for i in range(20)])
# Two bursts, a second apart; in the order of the answers, not of the arrivals.
TIMES = [7.02 + 0.001 * (i % 10) + (i >= 10) for i in range(20)]
ROWS = [(TIMES[i], "recommend", 100 + i % 3, 5, i % 2 * 4) for i in reversed(range(20))]


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.parquet"
    pq.write_table(pa.table([list(column) for column in zip(*ROWS, strict=True)], schema=SCHEMA), path)
    return path


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=40), st.integers(1, 60), st.integers(0, 9))
def test_equal_pseudonyms_are_one_user_and_different_ones_two(names: list[int], n: int, seed: int) -> None:
    rows = rows_by_chance(np.array(names, np.uint64), n, seed)
    assert ((rows >= 0) & (rows < n)).all()
    pairs = set(zip(names, rows.tolist(), strict=True))
    assert len(pairs) == len(set(names))
    if len(set(names)) <= n:
        assert len({row for _, row in pairs}) == len(set(names))


def test_a_replay_keeps_bursts_sizes_and_histories(trace: Path) -> None:
    workload = read_replay(trace, IDS, seed=1)
    assert workload.times is not None
    assert workload.times[9] == pytest.approx(0.009)
    assert workload.times[10] == pytest.approx(1)
    asked = [workload.questions[number] for number in workload.order]
    assert {question.k for question in asked} == {5}
    assert sorted(len(question.items) for question in asked) == [0] * 10 + [4] * 10
    assert len({question.id for question in asked}) == 3


def test_a_rate_stretches_all_gaps_alike(trace: Path) -> None:
    times = read_replay(trace, IDS, seed=1).times
    assert times is not None
    pace = Pace(rate=19 / 2, arrivals=Arrivals(RECORDED), warm_up=0, duration=0, requests=20)
    parts = [[part.pop() for _ in range(10)] for part in schedules(pace, 2, times)]
    assert sorted(parts[0] + parts[1]) == pytest.approx(times * 2 / times[-1])
    with pytest.raises(InvalidRequest, match="warm-up"):
        schedules(Pace(rate=1000, warm_up=2), 1, times)


def test_a_replay_over_the_wire_asks_at_the_recorded_times(trace: Path, stalling_port: int) -> None:
    workload = read_replay(trace, IDS, seed=1)
    target = Target("grpc", "127.0.0.1", stalling_port)
    load = Load(target, IDS, client=Client(2, 4), recorded=workload)
    pace = Pace(
        rate=2 * workload.rate, arrivals=Arrivals(RECORDED), warm_up=0, duration=0, requests=20, timeout=30
    )
    samples = load.sample(pace)
    assert workload.times is not None
    assert np.sort(samples.due) == pytest.approx(workload.times / 2)
    assert (samples.code == 0).all()


def test_what_a_trace_cannot_know_has_to_be_given(trace: Path) -> None:
    with pytest.raises(InvalidRequest, match="Give --bundle"):
        read_replay(trace, Ids(["u1"]), seed=1)
