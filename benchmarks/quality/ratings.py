"""Rating prediction: all ratings in five folds at random, each predicted from the other four."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recserve.benchmarks.quality.protocol import Ask, Protocol, Rows, Values, pairs
from recserve.training.commands import run_config
from recserve.training.cross_validation import predict_fold, with_validation
from recserve.training.data import Dataset, Split, random_folds
from recserve.training.rating_metrics import mae, rmse

N_FOLDS = 5


class Ratings(Protocol):
    """Ours takes its number of epochs from a tenth of the training ratings, then learns from all of them."""

    metrics = ("RMSE", "MAE")

    def __init__(self, dataset: Dataset, seed: int) -> None:
        self._dataset, self._folds = dataset, random_folds(dataset, N_FOLDS, seed)
        owner = np.concatenate([split.test.target_users() for split in self._folds])
        # Every rating is tested once: the folds together are one test set, put in the order of users.
        self._order = np.argsort(owner, kind="stable")
        self.owner = owner[self._order].astype(np.int64)
        self._rated = np.concatenate([split.test.targets.value for split in self._folds])[self._order]

    def ours(self, model: str, settings: Mapping[str, Any], seed: int) -> Values:
        config = run_config(model, "random", {"seed": seed, **settings})
        return self._values([predict_fold(config, self._dataset, split)[0] for split in self._folds])

    def theirs(self, ask: Ask) -> Values:
        return self._values([ask(self._arrays(split))["predicted"] for split in self._folds])

    def figures(self, values: Values, rows: Rows) -> dict[str, float]:
        predicted, rated = values["predicted"][rows], self._rated[rows]
        return {"RMSE": rmse(predicted, rated), "MAE": mae(predicted, rated)}

    def _values(self, predicted: list[NDArray[Any]]) -> Values:
        return {"predicted": np.concatenate(predicted).astype(np.float32)[self._order]}

    def _arrays(self, split: Split) -> dict[str, NDArray[Any]]:
        known = with_validation(split)
        tested = pairs("test", split.test.targets, split.test.user_index)
        return {
            **pairs("train", known, np.arange(len(known))),
            "test_user": tested["test_user"],
            "test_item": tested["test_item"],
            "rating_range": np.array([known.value.min(), known.value.max()], np.float64),
        }
