"""Lists in groups and in matrices: equal to the twins', and what was put in comes out."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from recserve import kernels
from recserve.kernels import reference

LISTS = st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=9), max_size=12)


@settings(deadline=None)  # The first example compiles the kernel.
@given(st.lists(st.integers(0, 60), max_size=40), st.floats(0, 100))
def test_groups_are_those_of_the_twin(lengths: list[int], call_positions: float) -> None:
    array = np.array(lengths, np.int64)
    found = kernels.split_lengths(array, call_positions)
    for ours, twin in zip(found, reference.split_lengths(array, call_positions), strict=True):
        np.testing.assert_array_equal(ours, twin)


@settings(deadline=None)
@given(LISTS, st.integers(0, 12), st.randoms(use_true_random=False))
def test_each_row_has_the_end_of_its_list_behind_padding(lists, length, random) -> None:  # type: ignore[no-untyped-def]
    values = np.array([value for one in lists for value in one], np.int32)
    ends = np.cumsum([len(one) for one in lists], dtype=np.int64)
    rows = np.array(random.sample(range(len(lists)), len(lists)), np.int64)
    found = kernels.pad_lists(values, ends, rows, length)
    np.testing.assert_array_equal(found, reference.pad_lists(values, ends, rows, length))
    for row, padded in zip(rows.tolist(), found.tolist(), strict=True):
        kept = lists[row][max(0, len(lists[row]) - length) :]
        assert padded == [-1] * (length - len(kept)) + kept
