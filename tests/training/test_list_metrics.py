"""Qualities of lists: by hand, at their ends, and by their laws."""

import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recserve.training import list_metrics
from recserve.training.data import load_dataset
from recserve.training.list_metrics import Background
from tests.small import histories

SETTINGS = settings(derandomize=True, deadline=None, max_examples=60)
COUNTS = st.lists(st.integers(0, 30), min_size=1, max_size=40)
# Four items; users that had them: 8, 2, 1, 0 of 8.
BACKGROUND = Background(
    8, np.array([8, 2, 1, 0]), np.array([[1, 0, 0], [0, 1, 0], [0, 1, 1], [0, 0, 0]], bool)
)
LISTS = np.array([[0, 1], [2, -1], [3, 2], [-1, -1]], np.int32)


def test_novelty_and_popularity_by_hand() -> None:
    # An item that nobody had counts as one that one user had.
    assert list_metrics.novelty(LISTS, BACKGROUND).tolist() == [1, 3, 3, 0]
    assert list_metrics.average_popularity(LISTS, BACKGROUND).tolist() == [5, 1, 0.5, 0]


def test_serendipity_by_hand() -> None:
    hits = np.array([[True, True], [True, False], [True, False], [False, False]])
    # p by popularity: 1, 3/4, 2/4, 0; p by place: 1, 3/4.
    assert list_metrics.serendipity(LISTS, hits, BACKGROUND).tolist() == [0, 0.25, 0.5, 0]


def test_diversity_by_hand() -> None:
    assert BACKGROUND.categories is not None
    lists = np.array([[0, 1, -1], [1, 2, -1], [0, 1, 2], [2, -1, -1]], np.int32)
    found = list_metrics.intra_list_diversity(lists, BACKGROUND.categories)
    np.testing.assert_allclose(found, [1, 0.5, (1 + 1 + 0.5) / 3, 0])


def test_calibration_by_hand() -> None:
    assert BACKGROUND.categories is not None
    found = list_metrics.miscalibration(
        np.array([[0, 1], [0, -1], [3, -1]], np.int32), histories([[1, 0], [1], [1]]), BACKGROUND.categories
    )
    np.testing.assert_allclose(found, [0, math.log(1 / list_metrics.SMOOTHING), 0], atol=1e-12)


def test_gini_at_its_ends() -> None:
    assert list_metrics.gini(np.array([5, 5, 5, 5])) == 0
    assert list_metrics.gini(np.array([0, 0, 0, 9])) == 0.75
    assert list_metrics.gini(np.zeros(3, np.int64)) == 0
    assert list_metrics.coverage(np.array([0, 0, 0, 9])) == 0.25


@SETTINGS
@given(COUNTS)
def test_gini_is_the_mean_difference(counts: list[int]) -> None:
    values = np.array(counts)
    found = list_metrics.gini(values)
    assert 0 <= found < 1
    if values.sum():
        differences = np.abs(values[:, None] - values).mean()
        assert found == pytest.approx(differences / (2 * values.mean()))


def test_categories_are_read_from_what_the_items_have(tmp_path: Path) -> None:
    pl.DataFrame({"user": ["a", "a", "b"], "item": ["x", "y", "z"]}).write_csv(tmp_path / "events.csv")
    pl.DataFrame({"item": ["x", "y"], "genres": ["Drama|War", "War"]}).write_csv(tmp_path / "items.csv")
    dataset = load_dataset(tmp_path / "events.csv", items_path=tmp_path / "items.csv")
    categories = list_metrics.categories_of(dataset)
    assert categories is not None
    assert categories.tolist() == [[True, True], [False, True], [False, False]]
    assert list_metrics.categories_of(load_dataset(tmp_path / "events.csv")) is None


def test_background_counts_users_and_not_events() -> None:
    dataset = load_dataset("synthetic-shop:n_items=1000,n_users=20,n_events=900,seed=1")
    train = dataset.histories()
    background = Background.of(train, dataset)
    pairs = dataset.interactions.select("user_index", "item_index").unique()
    assert background.users_of_item.sum() == pairs.height < dataset.interactions.height
    assert background.n_train_users == dataset.n_users
