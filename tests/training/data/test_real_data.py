"""Real files, where a person has them: RECSERVE_TEST_DATA names a folder that holds the folders below."""

import os
from pathlib import Path

import pytest

from recserve.training.data import CleaningRules, leave_one_out, load_dataset, temporal_split


def data_file(name: str) -> Path:
    folder = os.environ.get("RECSERVE_TEST_DATA", "")
    path = Path(folder) / name
    if not folder or not path.exists():
        pytest.skip(f"{name} is not here; RECSERVE_TEST_DATA names the folder that has it")
    return path


def test_online_retail_loads_by_guessing_its_columns() -> None:
    path = data_file("online-retail/online_retail_2010_2011.parquet")
    dataset = load_dataset(path, rules=CleaningRules(min_value=1))
    report = dataset.report
    assert report.rows_read == 541_909 == report.kept + report.dropped
    assert dict(report.missing) == {"user": 135_080}
    assert "12346" in dataset.users["user_id"]
    split = temporal_split(dataset)
    assert split.train.timestamp.max() < split.validation.targets.timestamp.min()
    assert split.validation.targets.timestamp.max() < split.test.targets.timestamp.min()


def test_movielens_small_loads_with_its_titles() -> None:
    ratings, movies = data_file("ml-latest-small/ratings.csv"), data_file("ml-latest-small/movies.csv")
    dataset = load_dataset(ratings, items_path=movies)
    assert (dataset.interactions.height, dataset.n_users, dataset.n_items) == (100_004, 671, 9_066)
    assert dataset.items["title"].null_count() == 0
    assert len(leave_one_out(dataset).test.user_index) == 671


def test_reviews_load_by_guessing_their_columns() -> None:
    dataset = load_dataset(data_file("amazon-musical-instruments/reviews.parquet"))
    assert (dataset.interactions.height, dataset.n_users, dataset.n_items) == (10_261, 1_429, 900)
