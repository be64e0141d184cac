"""Steps of alternating least squares: against their twin, and towards the exact solution."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recserve.errors import InvalidRequest
from recserve.kernels import als_step, fold_in, gram_matrix, reference


def problem(seed: int, dim: int, n_rows: int, longest: int = 20) -> Any:
    rng = np.random.default_rng(seed)
    others = rng.standard_normal((30, dim)).astype(np.float32)
    indptr = np.concatenate([[0], np.cumsum(rng.integers(0, longest, n_rows))]).astype(np.int64)
    indices = rng.integers(0, 30, indptr[-1]).astype(np.int32)
    weights = rng.uniform(0, 9, indptr[-1]).astype(np.float32)
    return rng.standard_normal((n_rows, dim)).astype(np.float32), others, (indptr, indices), weights


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(0, 4), st.integers(1, 3))
def test_equals_the_reference(seed: int, dim: int, n_rows: int, n_steps: int) -> None:
    vectors, *rest = problem(seed, dim, n_rows)
    expected = vectors.copy()
    loss = als_step(vectors, *rest, 3.0, reg_exponent=0.5, n_steps=n_steps)
    expected_loss = reference.als_step(expected, *rest, 3.0, reg_exponent=0.5, n_steps=n_steps)
    assert loss == pytest.approx(expected_loss, rel=1e-4, abs=1e-4)
    np.testing.assert_allclose(vectors, expected, rtol=1e-3, atol=1e-4)


def test_many_steps_arrive_at_the_fold_in() -> None:
    vectors, others, interactions, weights = problem(5, 8, 12)
    als_step(vectors, others, interactions, weights, 1.0, reg_exponent=1.0, n_steps=40)
    exact = fold_in(others, interactions, weights, 1.0, reg_exponent=1.0)
    np.testing.assert_allclose(vectors, exact, atol=1e-4)


def test_a_gram_matrix_given_and_the_rows_beside_change_nothing() -> None:
    vectors, others, (indptr, indices), weights = problem(6, 19, 9)
    together, given_gram = vectors.copy(), vectors.copy()
    als_step(together, others, (indptr, indices), weights, 1.0)
    als_step(given_gram, others, (indptr, indices), weights, 1.0, gram=gram_matrix(others))
    np.testing.assert_array_equal(given_gram, together)
    for row in range(9):
        part = slice(indptr[row], indptr[row + 1])
        alone = vectors[row : row + 1].copy()
        als_step(alone, others, (indptr[row : row + 2] - part.start, indices[part]), weights[part], 1.0)
        np.testing.assert_array_equal(alone[0], together[row])


def test_a_row_without_interactions_becomes_zero() -> None:
    vectors, others, _, _ = problem(7, 4, 2)
    nothing = (np.zeros(3, np.int64), np.empty(0, np.int32))
    assert als_step(vectors, others, nothing, np.empty(0, np.float32), 1.0) == 0.0
    assert not vectors.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vectors": np.ones((3, 4), np.float32)}, "vectors is 3 rows; expected 2 rows"),
        ({"vectors": np.ones((2, 3), np.float32)}, "vectors is of shape"),
        ({"vectors": np.ones((4, 2), np.float32).T}, "read-only or not C-order"),
        ({"weights": np.ones(5, np.float32)}, "weights is of shape"),
        ({"reg": 0.0}, "reg is 0.0"),
        ({"n_steps": 0}, "n_steps is 0"),
        ({"gram": np.eye(3)}, "gram is float64"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "vectors": np.ones((2, 4), np.float32),
        "others": np.ones((5, 4), np.float32),
        "interactions": (np.array([0, 1, 2]), np.array([2, 4], np.int32)),
        "weights": np.ones(2, np.float32),
        "reg": 0.1,
    }
    with pytest.raises(InvalidRequest, match=message):
        als_step(**(arguments | change))
