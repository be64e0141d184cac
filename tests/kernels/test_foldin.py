"""The fold-in solver against its twin and against the equation that it solves."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recserve.errors import InvalidRequest
from recserve.kernels import count_repeats, fold_in, fold_in_shares, gram_matrix, reference


def problem(seed: int, n_items: int, dim: int, n_users: int) -> Any:
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((n_items, dim)).astype(np.float32)
    indptr = np.concatenate([[0], np.cumsum(rng.integers(0, 5, n_users))]).astype(np.int64)
    items = rng.integers(0, n_items, indptr[-1]).astype(np.int32)
    weights = rng.uniform(0, 40, indptr[-1]).astype(np.float32)
    return vectors, (indptr, items), weights


@settings(derandomize=True, deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 20), st.integers(0, 4))
def test_equals_the_reference(seed: int, n_items: int, dim: int, n_users: int) -> None:
    arguments = problem(seed, n_items, dim, n_users)
    for reg_exponent in (0.0, 0.5, 1.0):
        users = fold_in(*arguments, reg=0.5, reg_exponent=reg_exponent)
        assert users.dtype == np.float32
        expected = reference.fold_in(*arguments, reg=0.5, reg_exponent=reg_exponent)
        np.testing.assert_allclose(users, expected, rtol=1e-5, atol=1e-6)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(st.lists(st.lists(st.integers(0, 5), max_size=6), max_size=5))
def test_repeats_are_counted_as_the_reference_counts_them(histories: list[list[int]]) -> None:
    indptr = np.cumsum([0] + [len(items) for items in histories]).astype(np.int64)
    interactions = (indptr, np.array([item for items in histories for item in items], np.int32))
    (found_indptr, found_items), found_counts = count_repeats(interactions)
    (indptr, items), counts = reference.count_repeats(interactions)
    np.testing.assert_array_equal(found_indptr, indptr)
    np.testing.assert_array_equal(found_items, items)
    np.testing.assert_array_equal(found_counts, counts)
    assert (found_indptr.dtype, found_items.dtype, found_counts.dtype) == (np.int64, np.int32, np.float32)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 70), st.integers(1, 20), st.integers(1, 12), st.integers(1, 90))
def test_shares_are_those_of_the_reference_and_sum_to_the_score(
    seed: int, n_items: int, dim: int, n_targets: int, n_events: int
) -> None:
    """Widths that fill no tile, histories of several blocks, items that stand there twice."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((n_items, dim)).astype(np.float32)
    history = rng.integers(0, n_items, n_events).astype(np.int32)
    targets = rng.integers(0, n_items, n_targets).astype(np.int32)
    gram = gram_matrix(vectors)
    interactions, counts = count_repeats((np.array([0, n_events]), history))
    for exponent in (0.0, 0.7):
        asked: dict[str, Any] = {"reg": 0.3, "reg_exponent": exponent, "gram": gram}
        items, shares = fold_in_shares(vectors, history, 2.5, targets, n_events, **asked)
        expected_items, expected = reference.fold_in_shares(vectors, history, 2.5, targets, n_events, **asked)
        np.testing.assert_allclose(shares, expected, atol=1e-5)
        assert (items.dtype, items.shape) == (np.int32, expected_items.shape)
        assert all(set(row) == set(history) for row in items.tolist())
        [user] = fold_in(vectors, interactions, counts * np.float32(2.5), **asked)
        np.testing.assert_allclose(shares.sum(axis=1), vectors[targets] @ user, atol=1e-4)
        best, largest = fold_in_shares(vectors, history, 2.5, targets, 2, **asked)
        np.testing.assert_array_equal(best, items[:, :2])
        np.testing.assert_array_equal(largest, shares[:, :2])


def test_shares_of_nothing_are_none_and_of_unknown_items_refused() -> None:
    vectors, nothing, one = np.eye(3, dtype=np.float32), np.empty(0, np.int32), np.array([2], np.int32)
    for history, targets, shape in ((nothing, one, (1, 0)), (one, nothing, (0, 1))):
        items, shares = fold_in_shares(vectors, history, 1.0, targets, 3, 0.1, gram=gram_matrix(vectors))
        assert (items.shape, shares.shape) == (shape, shape)
    for bad in (-1, 3):
        wrong = np.array([1, bad], np.int32)
        for name, history, targets in (("history", wrong, one), ("targets", one, wrong)):
            with pytest.raises(InvalidRequest, match=rf"{name}\[1\] is {bad}; expected an item_index"):
                fold_in_shares(vectors, history, 1.0, targets, 3, 0.1, gram=gram_matrix(vectors))


def test_a_gram_matrix_given_changes_nothing() -> None:
    arguments = problem(2, 5000, 7, 6)
    gram = gram_matrix(arguments[0])
    np.testing.assert_allclose(gram, reference.gram_matrix(arguments[0]), rtol=1e-10)
    users = fold_in(*arguments, reg=0.1, gram=gram)
    np.testing.assert_array_equal(users, fold_in(*arguments, reg=0.1))


def test_a_user_alone_and_among_others_has_the_same_vector() -> None:
    vectors, (indptr, items), weights = problem(3, 50, 9, 20)
    together = fold_in(vectors, (indptr, items), weights, reg=0.1)
    for user in range(20):
        part = slice(indptr[user], indptr[user + 1])
        alone = fold_in(vectors, (np.array([0, part.stop - part.start]), items[part]), weights[part], reg=0.1)
        np.testing.assert_array_equal(alone[0], together[user])


def test_a_user_without_interactions_is_the_zero_vector() -> None:
    vectors, _, _ = problem(1, 5, 3, 0)
    nothing = (np.zeros(2, np.int64), np.empty(0, np.int32))
    assert not fold_in(vectors, nothing, np.empty(0, np.float32), reg=1.0).any()


def test_an_item_seen_scores_higher_than_before() -> None:
    vectors = np.eye(4, dtype=np.float32)
    seen = (np.array([0, 1]), np.array([2], np.int32))
    scores = fold_in(vectors, seen, np.array([10.0], np.float32), reg=0.1) @ vectors.T
    assert scores[0].argmax() == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reg": 0.0}, "reg is 0.0"),
        ({"reg": float("nan")}, "reg is nan"),
        ({"reg_exponent": 1.5}, "reg_exponent is 1.5"),
        ({"gram": np.eye(3)}, "gram is float64 of shape \\(3, 3\\)"),
        ({"gram": np.eye(4, dtype=np.float32)}, "gram is float32"),
        ({"weights": np.array([-1.0], np.float32)}, "weights is negative"),
        ({"weights": np.array([1.0, 2.0], np.float32)}, "weights is of shape"),
        ({"interactions": (np.array([0, 1]), np.array([4], np.int32))}, "item_indices\\[0\\] is 4"),
        ({"interactions": 3}, "interactions is int"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "vectors": np.eye(4, dtype=np.float32),
        "interactions": (np.array([0, 1]), np.array([2], np.int32)),
        "weights": np.array([1.0], np.float32),
        "reg": 0.1,
    }
    with pytest.raises(InvalidRequest, match=message):
        fold_in(**(arguments | change))
