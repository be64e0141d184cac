"""Histories against plain lists."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recserve.training.data import Histories, mapped
from recserve.training.data import histories as histories_module

LAW = settings(derandomize=True, deadline=None, database=None, max_examples=60)
ROWS = st.lists(st.lists(st.integers(0, 9), max_size=6), max_size=6)


def histories_of(rows: list[list[int]]) -> Histories:
    row = np.repeat(np.arange(len(rows)), [len(items) for items in rows]).astype(np.int64)
    items = np.array([item for items in rows for item in items], np.int32)
    return Histories.from_sorted(row, items, np.arange(len(items), dtype=np.int64), len(rows))


def lists_of(histories: Histories) -> list[list[int]]:
    return [histories.row(i)[0].tolist() for i in range(len(histories))]


@LAW
@given(rows=ROWS, n=st.integers(0, 7))
def test_rows_and_their_ends(rows: list[list[int]], n: int) -> None:
    histories = histories_of(rows)
    assert lists_of(histories) == rows
    assert histories.lengths.tolist() == [len(items) for items in rows]
    cut = histories.last(n)
    assert lists_of(cut) == [items[max(len(items) - n, 0) :] for items in rows]
    for i in range(len(rows)):
        times = histories.row(i)[1]
        assert cut.row(i)[1].tolist() == times[max(len(times) - n, 0) :].tolist()
    assert [array.dtype.name for array in (cut.indptr, cut.item_index, cut.timestamp)] == [
        *("int64", "int32", "int64"),
    ]


def test_values_go_where_their_interactions_go() -> None:
    flat = np.arange(5)
    rated = Histories.from_sorted(
        np.array([0, 0, 1, 1, 1]), flat.astype(np.int32), flat, 2, np.array([5, 4, 3, 2, 1], np.float32)
    )
    assert rated.take(np.array([1])).value.tolist() == [3, 2, 1]
    assert rated.last(1).value.tolist() == [4, 1]
    assert Histories.from_sorted(np.zeros(2, np.int64), flat[:2].astype(np.int32), flat[:2], 1).value.all()


@LAW
@given(rows=ROWS, n=st.integers(0, 7))
def test_rows_gathered_in_parts_into_files_are_the_same(rows: list[list[int]], n: int) -> None:
    whole = histories_of(rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(histories_module, "GATHERED_AT_ONCE", 3)
        patch.setattr(mapped, "MAPPED_BYTES", 1)
        cut = whole.last(n)
    expected = whole.last(n)
    for name in ("indptr", "item_index", "timestamp", "value"):
        np.testing.assert_array_equal(getattr(cut, name), getattr(expected, name))
    if len(cut.item_index):
        assert isinstance(cut.item_index, np.memmap)
        assert not isinstance(expected.item_index, np.memmap)
