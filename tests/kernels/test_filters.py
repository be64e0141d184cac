"""Prepared filters: the same answers as masks, also after changes, alone and combined."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recserve.errors import InvalidRequest
from recserve.kernels import ItemIndex

law = settings(derandomize=True, deadline=None, max_examples=40)


def assert_same(ours: Any, theirs: Any) -> None:
    np.testing.assert_array_equal(ours[1], theirs[1])
    np.testing.assert_array_equal(ours[0], theirs[0])


@law
@given(st.integers(0, 10**6), st.sampled_from((0, 1, 32, 33, 70)), st.booleans(), st.booleans())
def test_a_filter_answers_as_its_mask(seed: int, n_items: int, changed: bool, rebuilt: bool) -> None:
    rng = np.random.default_rng(seed)
    index = ItemIndex.build(rng.standard_normal((n_items, 4)).astype(np.float32))
    red, cheap = rng.random((2, n_items)) < 0.5
    rule = index.prepare_filter(red) & ~index.prepare_filter(cheap) | index.prepare_filter(cheap & ~red)
    mask = red ^ cheap
    np.testing.assert_array_equal(rule.mask, mask)
    if changed and n_items:
        items = np.unique(rng.integers(0, n_items, 5)).astype(np.int32)
        index.upsert(items, rng.standard_normal((len(items), 4)).astype(np.float32))
    if rebuilt:
        index.rebuild()
    queries = rng.standard_normal((3, 4)).astype(np.float32)
    exclude = (np.array([0, 0, 1, 1]), np.zeros(1, np.int32)) if n_items else None
    expected = index.search(queries, 5, allow=mask, exclude=exclude)
    assert_same(index.search(queries, 5, allow=rule, exclude=exclude), expected)
    fresh = index.prepare_filter(mask)
    assert_same(index.search(queries, 5, allow=fresh | rule & fresh, exclude=exclude), expected)
    per_query = np.vstack([mask, np.ones((1, n_items), bool), ~mask])
    expected = index.search(queries, 5, allow=per_query, exclude=exclude)
    assert_same(index.search(queries, 5, allow=[rule, None, ~rule], exclude=exclude), expected)


def test_a_filter_that_does_not_fit_is_refused() -> None:
    vectors = np.eye(4, dtype=np.float32)
    index = ItemIndex.build(vectors)
    rule = index.prepare_filter(np.ones(4, bool))
    with pytest.raises(InvalidRequest, match="allow is 1 filters; expected one for each of 4 queries"):
        index.search(vectors, 1, allow=[rule])
    with pytest.raises(InvalidRequest, match="allow is bool of shape"):
        index.prepare_filter(np.ones(5, bool))
    index.upsert(np.array([4], np.int32), vectors[:1])
    with pytest.raises(InvalidRequest, match="allow is a filter of 4 items; expected one of 5 items"):
        index.search(vectors, 1, allow=rule)


def test_a_filter_does_not_follow_the_callers_mask() -> None:
    index = ItemIndex.build(np.eye(4, dtype=np.float32))
    mask = np.array([True, False, False, False])
    rule = index.prepare_filter(mask)
    mask[:] = True
    assert index.search(np.ones((1, 4), np.float32), 2, allow=rule)[1].tolist() == [[0, -1]]
