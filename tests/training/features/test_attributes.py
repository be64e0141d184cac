"""Attributes as numbers: fitted on what training knows, the same columns for everything else."""

import datetime

import numpy as np
import polars as pl
import pytest

from recserve.errors import DataError
from recserve.training.features.attributes import MAX_Z_SCORE, attribute_matrix
from recserve.training.features.text import HashingEncoder

KNOWN = np.array([True, True, True, True, False])


def matrix(**columns: object) -> np.ndarray:  # type: ignore[type-arg]
    table = pl.DataFrame({"item_id": [f"i{row}" for row in range(len(KNOWN))], **columns})
    return attribute_matrix(table, KNOWN, HashingEncoder(dim=32))


def test_a_value_of_two_known_rows_is_a_column_and_others_are_none() -> None:
    # "jazz" is in two rows, but training knows one of them.
    found = matrix(genre=["rock", "rock", "folk", "jazz", "jazz"])
    np.testing.assert_array_equal(found, [[1], [1], [0], [0], [0]])


def test_a_row_of_several_values_has_length_1() -> None:
    found = matrix(genres=[["a", "b"], ["a", "b", "b"], ["a"], None, ["b", "new"]])
    half = np.sqrt(0.5)
    np.testing.assert_allclose(found, [[half, half], [half, half], [1, 0], [0, 0], [0, 1]], atol=1e-6)


def test_truth_values_and_categories_are_values() -> None:
    np.testing.assert_array_equal(matrix(new=[True, True, None, False, True])[:, 0], [1, 1, 0, 0, 1])
    categories = pl.Series(["x", "x", "y", "y", "x"], dtype=pl.Categorical)
    assert matrix(kind=categories).tolist() == [[1, 0], [1, 0], [0, 1], [0, 1], [1, 0]]


def test_numbers_are_scaled_by_the_known_rows_and_bounded() -> None:
    found = matrix(price=[1.0, 3.0, 1.0, 3.0, 1e9])
    np.testing.assert_allclose(found[:, 0], [-1, 1, -1, 1, MAX_Z_SCORE])
    np.testing.assert_allclose(matrix(price=[1.0, 3.0, None, float("nan"), None])[:, 0], [-1, 1, 0, 0, 0])
    assert not matrix(price=[2, 2, 2, 2, 7]).any()


def test_dates_are_numbers() -> None:
    days = [datetime.date(2026, 1, day) for day in (1, 3, 1, 3, 2)]
    np.testing.assert_allclose(matrix(added=days)[:, 0], [-1, 1, -1, 1, 0])


def test_embeddings_keep_their_proportions() -> None:
    found = matrix(vector=[[3.0, 4.0], [0.0, 15.0], None, [0.0, 0.0], [100.0, 0.0]])
    np.testing.assert_allclose(found, [[0.3, 0.4], [0, 1.5], [0, 0], [0, 0], [10, 0]], atol=1e-6)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ([[1.0], [1.0, 2.0], None, None, None], "embeddings in column vector is of 2 lengths"),
        ([[1.0], [float("nan")], [1.0], [1.0], [1.0]], "embedding in row 1 of column vector is not finite"),
        ([[1.0], [1.0], [None], [1.0], [1.0]], "embedding in row 2 of column vector is not finite"),
    ],
)
def test_wrong_embeddings_are_named(vectors: list[object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        matrix(vector=vectors)


def test_titles_are_encoded_and_nothing_known_is_no_column() -> None:
    assert matrix(title=["a song", None, "", "another song", "a song"]).shape == (5, 32)
    assert matrix().shape == (5, 0)
    assert matrix(nested=[[["a"]]] * 5).shape == (5, 0)
