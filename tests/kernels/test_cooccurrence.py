"""Counts of shared users against the dense product."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recserve.errors import InvalidRequest
from recserve.kernels import co_occurrences, reference


def lists(had: Any) -> Any:
    return np.concatenate([[0], had.sum(1).cumsum()]).astype(np.int64), np.nonzero(had)[1].astype(np.int32)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(0, 6), st.integers(1, 8))
def test_equals_the_reference(seed: int, n_users: int, n_items: int) -> None:
    had = np.random.default_rng(seed).random((n_users, n_items)) < 0.4
    for first, last in ((0, n_items), (n_items // 2, n_items), (0, 0)):
        found = co_occurrences(lists(had), lists(had.T), first, last)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, reference.co_occurrences(lists(had), lists(had.T), first, last))


@pytest.mark.parametrize(("first", "last"), [(-1, 2), (0, 4), (2, 1)])
def test_items_out_of_range_are_refused(first: int, last: int) -> None:
    had = np.ones((2, 3), bool)
    with pytest.raises(InvalidRequest, match="first and last"):
        co_occurrences(lists(had), lists(had.T), first, last)
