"""Errors of predicted ratings, by hand and by their laws."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recserve.errors import InvalidRequest
from recserve.training.rating_metrics import mae, mse, rmse

PAIRS = st.lists(st.tuples(st.integers(-90, 90), st.integers(-90, 90)), min_size=1, max_size=40)


def test_by_hand() -> None:
    predicted, rated = np.array([1.0, 4.0, 3.0]), np.array([1, 2, 4], np.float32)
    assert mse(predicted, rated) == pytest.approx(5 / 3)
    assert rmse(predicted, rated) == pytest.approx(np.sqrt(5 / 3))
    assert mae(predicted, rated) == pytest.approx(1.0)


@settings(derandomize=True, deadline=None)
@given(PAIRS)
def test_laws(pairs: list[tuple[int, int]]) -> None:
    predicted, rated = np.array(pairs, np.float64).T / 10
    assert rmse(rated, rated) == mae(rated, rated) == 0
    assert rmse(predicted, rated) >= mae(predicted, rated) * (1 - 1e-12)
    assert rmse(predicted, rated) == rmse(rated, predicted)


@pytest.mark.parametrize(("predicted", "rated"), [((2,), (3,)), ((0,), (0,)), ((1, 2), (1, 2))])
def test_shapes_that_do_not_fit_are_refused(predicted: tuple[int, ...], rated: tuple[int, ...]) -> None:
    with pytest.raises(InvalidRequest, match="predicted ratings"):
        rmse(np.zeros(predicted), np.zeros(rated))
