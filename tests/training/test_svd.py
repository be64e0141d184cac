"""SVD and SVD++: what they predict, what they refuse, and that they beat the biases alone."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from recserve.errors import DataError
from recserve.training.commands import run_config
from recserve.training.data import EvaluationSet, Histories, load_dataset, random_folds, random_split
from recserve.training.evaluate_command import evaluate_run
from recserve.training.loop import LAST, Trainer
from recserve.training.models import family_of
from recserve.training.models.svd import SVD, SVDConfig, _last_of_each_pair
from recserve.training.models.svdpp import SVDpp
from recserve.training.rating_metrics import rmse
from recserve.training.run import Run, create_run, open_run

MODELS = {"svd": SVD, "svdpp": SVDpp}
N_USERS, N_ITEMS = 60, 40


@pytest.fixture
def ratings(tmp_path: Path) -> Path:
    """Ratings 1 to 10 made of biases and two factors, half of all pairs."""
    rng = np.random.default_rng(7)
    users, items = rng.normal(0, 1, (N_USERS, 2)), rng.normal(0, 1, (N_ITEMS, 2))
    true = 5 + rng.normal(0, 0.5, (N_USERS, 1)) + rng.normal(0, 0.5, N_ITEMS) + 1.5 * users @ items.T
    user, item = np.nonzero(rng.random((N_USERS, N_ITEMS)) < 0.5)
    path = tmp_path / "ratings.csv"
    pl.DataFrame(
        {
            "user": [f"u{index:02}" for index in user],
            "item": [f"i{index:02}" for index in item],
            "rating": np.clip(true[user, item], 1, 10).round(2),
            "timestamp": rng.permutation(len(user)),
        }
    ).write_csv(path)
    return path


def start_run(ratings: Path, model: str, **settings: Any) -> Run:
    config = run_config(
        model, "random", {"embedding_size": 8, "learning_rate": 0.05, "epochs": 40, **settings}
    )
    return create_run(ratings.parent / f"run-{model}", config, load_dataset(ratings))


def trained(run: Run) -> Any:
    Trainer(run.new_model(), run.split(), run.folder, run.config.loop).fit()
    return run.best_model()


@pytest.mark.parametrize("model", MODELS)
def test_predictions_beat_the_mean_of_item_and_user(model: str, ratings: Path) -> None:
    run = start_run(ratings, model)
    test, found = run.split().test, trained(run)
    train = run.split().train
    user = np.repeat(np.arange(len(train)), train.lengths)
    mean = train.value.mean()
    of_item, of_user = (
        np.bincount(index, train.value - mean, n) / np.maximum(np.bincount(index, minlength=n), 1)
        for index, n in ((train.item_index, N_ITEMS), (user, N_USERS))
    )
    target_user = np.repeat(test.user_index, test.targets.lengths)
    biases = mean + of_item[test.targets.item_index] + of_user[target_user]
    assert rmse(found.predict_ratings(test), test.targets.value) < 0.8 * rmse(biases, test.targets.value)


@pytest.mark.parametrize("model", MODELS)
def test_the_served_score_is_the_predicted_rating(model: str, ratings: Path) -> None:
    run = start_run(ratings, model, epochs=4)
    test, found = run.split().test, trained(run)
    scores = found.score_rows(test, np.arange(len(test.user_index)))
    row = np.repeat(np.arange(len(test.user_index)), test.targets.lengths)
    expected = np.clip(scores[row, test.targets.item_index], *found.rating_range.tolist())
    np.testing.assert_allclose(found.predict_ratings(test), expected, atol=1e-4)


@pytest.mark.parametrize("model", MODELS)
def test_resumed_training_equals_uninterrupted_training(model: str, ratings: Path) -> None:
    whole = start_run(ratings, model, epochs=4, validate_every=1)
    Trainer(whole.new_model(), whole.split(), whole.folder, whole.config.loop).fit()
    config = run_config(
        model,
        "random",
        {"embedding_size": 8, "learning_rate": 0.05, "epochs": 2, "validate_every": 1},
    )
    half = create_run(ratings.parent / "half", config, whole.dataset)
    Trainer(half.new_model(), half.split(), half.folder, half.config.loop).fit()
    going_on = Trainer(half.new_model(), half.split(), half.folder, whole.config.loop)
    going_on.resume()
    going_on.fit()
    assert (whole.folder / LAST).read_bytes() == (half.folder / LAST).read_bytes()


def test_early_stopping_follows_the_lowest_rmse(ratings: Path) -> None:
    run = start_run(ratings, "svd", validate_every=1, patience=3, epochs=100)
    model = run.new_model()
    progress = Trainer(model, run.split(), run.folder, run.config.loop).fit()
    lines = pl.read_ndjson(run.folder / "epochs.jsonl")
    assert progress.best_metric == pytest.approx(lines["RMSE"].min())
    assert progress.best_epoch == lines["RMSE"].arg_min() + 1  # type: ignore[operator]


@pytest.mark.parametrize("model", MODELS)
def test_the_unit_of_the_ratings_does_not_matter(model: str, ratings: Path) -> None:
    split = random_split(load_dataset(ratings))
    percents = Histories(
        split.train.indptr, split.train.item_index, split.train.timestamp, split.train.value * 10 + 3
    )
    predicted = []
    for train in (split.train, percents):
        found: Any = MODELS[model](SVDConfig(embedding_size=6), N_USERS, N_ITEMS)
        for epoch in range(1, 4):
            found.fit_epoch(train, epoch=epoch, seed=1)
        predicted.append(found.predict_ratings(split.test))
    np.testing.assert_allclose(predicted[1], predicted[0] * 10 + 3, rtol=1e-3)


@pytest.mark.parametrize("model", MODELS)
def test_who_and_what_training_does_not_know_is_average(model: str) -> None:
    train = Histories.from_sorted(
        np.array([0, 0, 1]), np.array([0, 1, 0], np.int32), np.arange(3), 3, np.array([1, 5, 3], np.float32)
    )
    found: Any = MODELS[model](SVDConfig(embedding_size=4), 3, 3)
    for epoch in range(1, 4):
        found.fit_epoch(train, epoch=epoch, seed=0)
    nothing = Histories.from_sorted(np.empty(0, np.int64), np.empty(0, np.int32), np.empty(0, np.int64), 1)
    target = Histories.from_sorted(np.zeros(1, np.int64), np.array([2], np.int32), np.zeros(1, np.int64), 1)
    assert found.predict_ratings(EvaluationSet(np.array([2], np.int32), nothing, target)) == pytest.approx(3)


def test_of_an_item_rated_twice_the_newest_rating_counts() -> None:
    train = Histories.from_sorted(
        np.array([0, 0, 0, 2]),
        np.array([4, 1, 4, 4], np.int32),
        np.arange(4),
        3,
        np.array([1, 2, 5, 3], np.float32),
    )
    indptr, kept = _last_of_each_pair(train, np.array([0, 2, 1, 3]))
    assert indptr.tolist() == [0, 2, 2, 3]
    assert train.value[kept].tolist() == [5, 2, 3]


@pytest.mark.parametrize("model", MODELS)
def test_equal_ratings_are_refused(model: str) -> None:
    train = Histories.from_sorted(np.zeros(3, np.int64), np.arange(3, dtype=np.int32), np.arange(3), 1)
    with pytest.raises(DataError, match="training ratings is all 1; expected at least two different"):
        family_of(model).check_data(train, None)
    with pytest.raises(DataError, match="training ratings"):
        MODELS[model](SVDConfig(), 1, 3).fit_epoch(train, epoch=1, seed=0)


def test_the_evaluation_has_the_errors_of_ratings(ratings: Path) -> None:
    run = start_run(ratings, "svd", epochs=5)
    found = trained(run)
    result = evaluate_run(open_run(run.folder))
    test = run.split().test
    expected = rmse(found.predict_ratings(test), test.targets.value)
    estimate = result["model"]["metrics"]["RMSE"]
    assert estimate["mean"] == pytest.approx(expected)
    assert estimate["low"] < expected < estimate["high"]
    assert "RMSE" not in result["popularity"]["metrics"]


def test_every_rating_is_tested_once_and_never_learned(ratings: Path) -> None:
    dataset = load_dataset(ratings)
    splits = random_folds(dataset, 4, seed=2)
    pairs = []
    for split in splits:
        user = np.repeat(split.test.user_index, split.test.targets.lengths)
        tested = set(zip(user.tolist(), split.test.targets.item_index.tolist(), strict=True))
        row = np.repeat(np.arange(len(split.train)), split.train.lengths)
        assert not tested & set(zip(row.tolist(), split.train.item_index.tolist(), strict=True))
        pairs += sorted(tested)
    assert len(pairs) == len(set(pairs)) == dataset.interactions.height
