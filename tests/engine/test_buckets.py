"""Grouping by history length: every row once, padding bounded, answers those of the row alone."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from recserve.engine import Engine, Request
from recserve.engine.buckets import length_groups

lengths = st.lists(st.integers(1, 60), max_size=40)


def padding(rows: list[int], groups: list[np.ndarray]) -> int:
    return sum(max(rows[i] for i in group) * len(group) - sum(rows[i] for i in group) for group in groups)


@given(lengths, st.integers(0, 100))
def test_laws_of_groups(rows: list[int], call_positions: int) -> None:
    groups = length_groups(np.array(rows, np.int64), call_positions)
    assert sorted(i for group in groups for i in group.tolist()) == list(range(len(rows)))
    # Within a group padding costs at most what one more call does, for each place it could be split at.
    for group in groups:
        longest = max(rows[i] for i in group)
        descending = sorted((rows[i] for i in group), reverse=True)
        for i, length in enumerate(descending):
            assert (len(descending) - i) * (longest - length) <= call_positions
    # A single group is what there is without buckets; more of them never pad more.
    assert padding(rows, groups) <= padding(rows, [np.arange(len(rows))] if rows else [])


def test_equal_lengths_are_one_group() -> None:
    assert len(length_groups(np.full(64, 50))) == 1
    assert [group.tolist() for group in length_groups(np.array([1, 50, 1, 50]))] == [[1, 3], [0, 2]]


def test_a_batch_of_all_lengths_is_each_row_alone_and_counts_its_padding(engine: Engine) -> None:
    items = [item.item_id for item in engine.recommend(Request(k=40)).items]
    requests = [Request(history=items[:n], k=5) for n in (1, 30, 2, 12, 11, 1, 5, 12)]
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
    # The model sees the newest twelve: 1 + 12 + 2 + 12 + 11 + 1 + 5 + 12 of them are real.
    assert positions - wasted == 56
    assert wasted < 8 * 12 - 56
