"""Rating prediction: all ratings in five folds at random, each predicted from the other four."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recserve.benchmarks.quality.protocol import Ask, Protocol, Rows, Values, owners, pairs, train
from recserve.training.commands import run_config
from recserve.training.data import Dataset, Histories, Split, random_folds
from recserve.training.models import family_of
from recserve.training.rating_metrics import mae, rmse

N_FOLDS = 5


class Ratings(Protocol):
    """Ours takes its number of epochs from a tenth of the training ratings, then learns from all of them."""

    metrics = ("RMSE", "MAE")

    def __init__(self, dataset: Dataset, seed: int) -> None:
        self._dataset, self._folds = dataset, random_folds(dataset, N_FOLDS, seed)
        owner = np.concatenate([owners(split.test) for split in self._folds])
        # Every rating is tested once: the folds together are one test set, put in the order of users.
        self._order = np.argsort(owner, kind="stable")
        self.owner = owner[self._order]
        self._rated = np.concatenate([split.test.targets.value for split in self._folds])[self._order]

    def ours(self, model: str, settings: Mapping[str, Any], seed: int) -> Values:
        return self._values([self._predict(model, settings, seed, split) for split in self._folds])

    def theirs(self, ask: Ask) -> Values:
        return self._values([ask(self._arrays(split))["predicted"] for split in self._folds])

    def figures(self, values: Values, rows: Rows) -> dict[str, float]:
        predicted, rated = values["predicted"][rows], self._rated[rows]
        return {"RMSE": rmse(predicted, rated), "MAE": mae(predicted, rated)}

    def _values(self, predicted: list[NDArray[Any]]) -> Values:
        return {"predicted": np.concatenate(predicted).astype(np.float32)[self._order]}

    def _predict(
        self, model: str, settings: Mapping[str, Any], seed: int, split: Split
    ) -> NDArray[np.float32]:
        _, best_epoch = train(model, "random", self._dataset, split, seed, settings)
        shape = run_config(model, "random", {"seed": seed, **settings}).shape
        whole: Any = family_of(model).create(shape, self._dataset.n_users, self._dataset.n_items)
        known = with_validation(split)
        for epoch in range(1, best_epoch + 1):
            whole.fit_epoch(known, epoch=epoch, seed=seed)
        predicted: NDArray[np.float32] = whole.predict_ratings(split.test)
        return predicted

    def _arrays(self, split: Split) -> dict[str, NDArray[Any]]:
        known = with_validation(split)
        tested = pairs("test", split.test.targets, split.test.user_index)
        return {
            **pairs("train", known, np.arange(len(known))),
            "test_user": tested["test_user"],
            "test_item": tested["test_item"],
            "rating_range": np.array([known.value.min(), known.value.max()], np.float64),
        }


def with_validation(split: Split) -> Histories:
    """Returns the training interactions with those that are held out for validation."""
    train, validation = split.train, split.validation
    user = np.concatenate([np.repeat(np.arange(len(train)), train.lengths), owners(validation)])
    order = np.argsort(user, kind="stable")
    item, timestamp, value = (
        np.concatenate([getattr(part, name) for part in (train, validation.targets)])[order]
        for name in ("item_index", "timestamp", "value")
    )
    return Histories.from_sorted(user[order], item, timestamp, len(train), value)
