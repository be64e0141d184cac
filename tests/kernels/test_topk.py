"""The order in numbers: keys, selection and sorting against plain Python."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recserve.kernels import topk

law = settings(derandomize=True, deadline=None, max_examples=60)
scores = st.floats(width=32, allow_nan=False)
items = st.integers(0, 2**31 - 1)
key_lists = st.lists(st.integers(-(2**63) + 1, 2**63 - 1), min_size=1, max_size=60, unique=True)


@law
@given(scores, items, scores, items)
def test_keys_are_ordered_by_score_then_item_index(a: float, item_a: int, b: float, item_b: int) -> None:
    key_a, key_b = topk.make_key(np.float32(a), item_a), topk.make_key(np.float32(b), item_b)
    assert (key_a > key_b) == ((a, -item_a) > (b, -item_b))
    assert key_a > topk.NO_KEY


@law
@given(scores, items)
def test_a_key_holds_its_score_and_item(score: float, item: int) -> None:
    key = topk.make_key(np.float32(score), item)
    assert topk.score_of(key) == score
    assert topk.item_of(key) == item


@law
@given(key_lists, st.data())
def test_keep_largest(keys: list[int], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(keys)))
    array = np.array(keys)
    smallest = topk.keep_largest(array, len(keys), k)
    best = sorted(keys, reverse=True)[:k]
    assert sorted(array[:k].tolist(), reverse=True) == best
    assert smallest == best[-1]
    assert sorted(array.tolist()) == sorted(keys)


@law
@given(key_lists, st.data())
def test_raise_bar_keeps_the_best_and_little_more(keys: list[int], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(keys)))
    spare = data.draw(st.integers(0, 3))
    array = np.array(keys)
    left, bar = topk.raise_bar(array, len(keys), k, spare)
    assert k <= left <= k + spare
    assert sorted(array[:left].tolist()) == sorted(key for key in keys if key >= bar)


@law
@given(key_lists)
def test_sort_descending(keys: list[int]) -> None:
    array = np.array(keys)
    topk.sort_descending(array, len(keys))
    assert array.tolist() == sorted(keys, reverse=True)


@pytest.mark.parametrize("n", [0, 1, 2, 127, 128, 129, 256, 257, 500, 1100])
def test_sort_descending_of_any_number_of_runs(n: int) -> None:
    array = np.random.default_rng(n).permutation(n + 3)
    beyond = array[n:].copy()
    topk.sort_descending(array, n)
    left = set(range(n + 3)) - set(beyond.tolist())
    assert array.tolist() == [*sorted(left, reverse=True), *beyond.tolist()]
