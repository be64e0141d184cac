"""Grouping by history length: every row once, padding bounded, answers those of the row alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recserve.engine import Engine, Request, buckets
from recserve.engine.buckets import length_groups, measure_call

lengths = st.lists(st.integers(1, 60), max_size=40)


def padding(rows: list[int], groups: list[np.ndarray]) -> int:
    return sum(max(rows[i] for i in group) * len(group) - sum(rows[i] for i in group) for group in groups)


def cheapest(rows: list[int], call_positions: float) -> float:
    """The cost of the best groups, in positions, by dynamic programming."""
    descending = sorted(rows, reverse=True)
    best = [0.0]
    for end in range(1, len(rows) + 1):
        best.append(
            min(best[start] + call_positions + (end - start) * descending[start] for start in range(end))
        )
    return best[-1]


@given(lengths, st.integers(0, 100))
def test_laws_of_groups(rows: list[int], call_positions: int) -> None:
    groups = length_groups(np.array(rows, np.int64), call_positions)
    assert sorted(i for group in groups for i in group.tolist()) == list(range(len(rows)))
    # Within a group no split would save more than one more call costs.
    for group in groups:
        descending = sorted((rows[i] for i in group), reverse=True)
        for i, length in enumerate(descending):
            assert (len(descending) - i) * (descending[0] - length) <= call_positions
    # A single group is what there is without buckets; more of them never pad more.
    assert padding(rows, groups) <= padding(rows, [np.arange(len(rows))] if rows else [])


def test_groups_are_nearly_the_cheapest() -> None:
    random = np.random.default_rng(3)
    for call_positions in (4.0, 12.0, 45.0):
        for draw in (lambda: random.integers(1, 51, 64), lambda: np.minimum(50, random.geometric(0.08, 64))):
            rows = draw().astype(np.int64)
            groups = length_groups(rows, call_positions)
            cost = sum(call_positions + len(group) * rows[group].max() for group in groups)
            assert cost <= 1.05 * cheapest(rows.tolist(), call_positions)


def test_equal_lengths_are_one_group() -> None:
    assert len(length_groups(np.full(64, 50), 12.0)) == 1
    assert [group.tolist() for group in length_groups(np.array([1, 50, 1, 50]), 12.0)] == [[1, 3], [0, 2]]


def test_what_a_call_costs_is_measured_in_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def run(length: int, per_call: float, per_position: float) -> None:
        nonlocal now
        now += per_call + per_position * length

    monkeypatch.setattr(buckets.time, "perf_counter", lambda: now)
    assert measure_call(lambda n: run(n, 30.0, 2.0), 50) == pytest.approx(15.0)
    # A machine that was interrupted, or a model whose calls cost nothing but positions.
    assert measure_call(lambda n: run(n, 30.0, 0.0), 50) == buckets.MAX_CALL_POSITIONS
    assert measure_call(lambda n: run(n, 0.0, 1.0), 50) == buckets.MIN_CALL_POSITIONS
    assert measure_call(lambda n: run(n, 30.0, 2.0), 1) == buckets.MIN_CALL_POSITIONS


def test_a_batch_of_all_lengths_is_each_row_alone_and_counts_its_padding(engine: Engine) -> None:
    items = [item.item_id for item in engine.recommend(Request(k=40)).items]
    requests = [Request(history=items[:n], k=5) for n in (*[1] * 16, 30, 12, 11, 12)]
    before = engine.stats()
    together = engine.recommend_many(requests)
    after = engine.stats()
    for slate, request in zip(together, requests, strict=True):
        alone = engine.recommend(request)
        assert [item.item_id for item in slate.items] == [item.item_id for item in alone.items]
        np.testing.assert_allclose(
            [item.score for item in slate.items], [item.score for item in alone.items], rtol=1e-4, atol=1e-4
        )
    positions = after["encoded_positions"] - before["encoded_positions"]
    wasted = after["padding_positions"] - before["padding_positions"]
    # The model sees the newest twelve. However dear a call is here, sixteen rows are not padded by eleven.
    assert positions - wasted == 16 * 1 + 12 + 12 + 11 + 12
    assert wasted == 1
