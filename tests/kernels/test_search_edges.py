"""What is refused at the edge, with the offender named, and what is accepted as it comes."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numba import config

from recserve.errors import InvalidRequest
from recserve.kernels import ItemIndex


def vectors_of(n_items: int = 40, dim: int = 6) -> Any:
    return np.random.default_rng(5).standard_normal((n_items, dim)).astype(np.float32)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 2e18])
def test_a_bad_number_is_refused_and_its_row_named(value: float) -> None:
    vectors = vectors_of()
    index = ItemIndex.build(vectors)
    vectors[7, 2] = value
    with pytest.raises(InvalidRequest, match="vectors row 7 is "):
        ItemIndex.build(vectors)
    with pytest.raises(InvalidRequest, match="queries row 7 is "):
        index.search(vectors, 3)


@pytest.mark.parametrize("k", [0, -1, 1.5, None, "3"])
def test_k_must_be_a_positive_integer(k: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"k is .*; expected an integer of at least 1"):
        ItemIndex.build(vectors_of()).search(vectors_of(1), k)


@pytest.mark.parametrize(
    "vectors",
    [
        [[1.0]],
        np.zeros((2, 3)),
        np.zeros(3, np.float32),
        np.zeros((2, 0), np.float32),
        np.zeros((2, 1025), np.float32),
    ],
)
def test_vectors_must_be_a_float32_matrix(vectors: Any) -> None:
    with pytest.raises(InvalidRequest, match="vectors is "):
        ItemIndex.build(vectors)


def test_queries_must_have_the_dimension_of_the_index() -> None:
    with pytest.raises(InvalidRequest, match=r"queries is of shape \(1, 5\); expected shape \(n, 6\)"):
        ItemIndex.build(vectors_of()).search(vectors_of(1, 5), 3)


@pytest.mark.parametrize("item_index", [-1, 40])
def test_an_excluded_item_out_of_range_is_refused(item_index: int) -> None:
    exclude = (np.array([0, 2]), np.array([3, item_index], np.int32))
    with pytest.raises(
        InvalidRequest, match=rf"exclude item_indices\[1\] is {item_index}; expected .* 0 to 39"
    ):
        ItemIndex.build(vectors_of()).search(vectors_of(1), 3, exclude=exclude)


@pytest.mark.parametrize(
    "exclude",
    [
        5,
        (np.array([0, 1]),),
        (np.array([0, 1]), np.array([1])),
        (np.array([0, 1], np.int32), np.array([1], np.int32)),
        (np.array([0]), np.array([], np.int32)),
        (np.array([1, 1]), np.array([1], np.int32)),
        (np.array([0, 2]), np.array([1], np.int32)),
    ],
)
def test_a_malformed_exclude_is_refused(exclude: Any) -> None:
    with pytest.raises(InvalidRequest, match="exclude"):
        ItemIndex.build(vectors_of()).search(vectors_of(1), 3, exclude=exclude)


def test_a_falling_indptr_is_refused() -> None:
    exclude = (np.array([0, 2, 1, 2]), np.array([0, 1], np.int32))
    with pytest.raises(InvalidRequest, match="exclude indptr is falling; expected never falling"):
        ItemIndex.build(vectors_of()).search(vectors_of(3), 3, exclude=exclude)


@pytest.mark.parametrize("allow", [np.ones(40), np.ones(39, bool), np.ones((3, 40), bool)])
def test_a_malformed_allow_is_refused(allow: Any) -> None:
    with pytest.raises(InvalidRequest, match="allow is "):
        ItemIndex.build(vectors_of()).search(vectors_of(2), 3, allow=allow)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_bad_bias_is_refused_and_its_item_named(value: float) -> None:
    bias = np.zeros(40, np.float32)
    bias[9] = value
    with pytest.raises(InvalidRequest, match="bias of item 9 is "):
        ItemIndex.build(vectors_of()).search(vectors_of(1), 3, bias=bias)
    with pytest.raises(InvalidRequest, match="bias is "):
        ItemIndex.build(vectors_of()).search(vectors_of(1), 3, bias=bias[1:])


def test_read_only_memory_mapped_and_fortran_arrays_are_accepted(tmp_path: Path) -> None:
    vectors, queries = vectors_of(), vectors_of(2)
    expected = ItemIndex.build(vectors).search(queries, 5)
    np.save(tmp_path / "vectors.npy", vectors)
    mapped = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    for form in (mapped, np.asfortranarray(vectors)):
        answer = ItemIndex.build(form).search(np.asfortranarray(queries), 5)
        np.testing.assert_array_equal(answer[1], expected[1])
        np.testing.assert_array_equal(answer[0], expected[0])


def test_the_index_keeps_no_hold_on_the_callers_array() -> None:
    vectors, queries = vectors_of(), vectors_of(2)
    index = ItemIndex.build(vectors)
    expected = index.search(queries, 5)
    vectors[:] = 0
    np.testing.assert_array_equal(index.search(queries, 5)[0], expected[0])
    assert (index.n_items, index.dim) == (40, 6)


def test_an_empty_batch_gets_an_empty_answer() -> None:
    scores, indices = ItemIndex.build(vectors_of()).search(vectors_of(0), 3)
    assert scores.shape == indices.shape == (0, 3)


def test_negative_zero_ties_with_zero() -> None:
    vectors = np.array([[-0.0], [0.0], [-0.0]], np.float32)
    scores, indices = ItemIndex.build(vectors).search(np.ones((1, 1), np.float32), 3)
    assert indices.tolist() == [[0, 1, 2]]
    assert not np.signbit(scores).any()


def test_many_threads_search_one_index() -> None:
    vectors, queries = vectors_of(200), vectors_of(8)
    index = ItemIndex.build(vectors)
    expected = index.search(queries, 10)
    answers: list[Any] = []
    threads = [threading.Thread(target=lambda: answers.append(index.search(queries, 10))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 6
    for scores, indices in answers:
        np.testing.assert_array_equal(indices, expected[1])
        np.testing.assert_array_equal(scores, expected[0])


def test_queries_of_any_memory_layout_get_the_same_answer() -> None:
    queries = vectors_of(8)
    index = ItemIndex.build(vectors_of(200))
    expected = index.search(queries, 10)
    read_only = queries.copy()
    read_only.setflags(write=False)
    unaligned = np.frombuffer(b"x" + queries.tobytes(), np.uint8)[1:].view(np.float32).reshape(queries.shape)
    for form in (read_only, np.asfortranarray(queries), np.repeat(queries, 2, axis=0)[::2], unaligned):
        for found, wanted in zip(index.search(form, 10), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)


@pytest.mark.skipif(config.DISABLE_JIT, reason="plain Python adds without atomics")
def test_no_count_is_lost_among_threads() -> None:
    index, queries = ItemIndex.build(vectors_of(200)), vectors_of(8)

    def search_often() -> None:
        for _ in range(50):
            index.search(queries, 10)

    threads = [threading.Thread(target=search_often) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert index.stats()["queries"] == 4 * 50 * len(queries)
