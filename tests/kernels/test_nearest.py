"""The nearest of a short list against the twin, and its edges."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recserve.errors import InvalidRequest
from recserve.kernels import nearest_of, reference

law = settings(derandomize=True, deadline=None, max_examples=40)


@law
@given(st.integers(0, 10**6), st.integers(0, 8), st.integers(0, 8), st.integers(1, 10), st.integers(1, 40))
def test_equals_the_reference(seed: int, n_items: int, n_others: int, n: int, dim: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.integers(-2, 3, (20, dim)).astype(np.float32)  # ties, and now and then a zero vector
    items = rng.integers(0, 20, n_items).astype(np.int32)
    others = rng.integers(0, 20, n_others).astype(np.int32)
    found = nearest_of(vectors, items, others, n)
    for ours, theirs in zip(found, reference.nearest_of(vectors, items, others, n), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


def test_a_zero_vector_is_like_nothing() -> None:
    vectors = np.array([[0, 0], [3, 0], [2, 0]], np.float32)
    places, cosines = nearest_of(vectors, np.array([0, 1], np.int32), np.array([0, 2], np.int32), 2)
    assert cosines.tolist() == [[0, 0], [1, 0]]
    assert places.tolist() == [[0, 1], [1, 0]]


def test_what_does_not_fit_is_refused() -> None:
    vectors, one = np.eye(3, dtype=np.float32), np.array([0], np.int32)
    with pytest.raises(InvalidRequest, match=r"others\[0\] is 3"):
        nearest_of(vectors, one, np.array([3], np.int32), 1)
    with pytest.raises(InvalidRequest, match="k is 0"):
        nearest_of(vectors, one, one, 0)
