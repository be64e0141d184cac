"""What every protocol is: a split, what contenders are asked, and figures from what they answer."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recserve.training.anew import trained_anew
from recserve.training.commands import run_config
from recserve.training.data import Dataset, Histories, Split
from recserve.training.models.base import RankingModel

# Of each unit that is tested (a user, a rating, an example), by name: what figures are computed from.
Values = dict[str, NDArray[Any]]
# Turns the arrays of a split into those of a peer's answer.
Ask = Callable[[Mapping[str, NDArray[Any]]], Mapping[str, NDArray[Any]]]
Rows = NDArray[np.int64]


class Protocol(ABC):
    """One split of one data set by one seed.

    ``owner``: (n_units,) int64 ascending, the user of each unit: intervals come from resampled users, and
    every seed tests the same ones. ``metrics``: the names of the figures.
    """

    owner: NDArray[np.int64]
    metrics: tuple[str, ...]

    @abstractmethod
    def ours(self, model: str, settings: Mapping[str, Any], seed: int) -> Values:
        """Trains the family ``model`` and tests it."""

    @abstractmethod
    def theirs(self, ask: Ask) -> Values:
        """Hands the split over as arrays and returns what the answer is worth."""

    @abstractmethod
    def figures(self, values: Values, rows: Rows) -> dict[str, float]:
        """Returns the metrics over the units ``rows``, where a unit may stand more than once."""


def train(
    model: str, split_name: str, dataset: Dataset, split: Split, seed: int, settings: Mapping[str, Any]
) -> RankingModel:
    """Returns the best checkpoint of a run with the family's defaults but ``settings``."""
    trained, _ = trained_anew(run_config(model, split_name, {"seed": seed, **settings}), dataset, split)
    return trained


def pairs(name: str, histories: Histories, users: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Returns the interactions of ``histories``, whose rows are ``users``, as parallel arrays.

    NAME_user, NAME_item, NAME_value, NAME_timestamp, in the order of the rows and, within one, of time.
    """
    return {
        f"{name}_user": np.repeat(users, histories.lengths),
        f"{name}_item": histories.item_index,
        f"{name}_value": histories.value,
        f"{name}_timestamp": histories.timestamp,
    }


def arrays_of(dataset: Dataset, split: Split) -> dict[str, NDArray[Any]]:
    """Returns what a peer may know: train, validation, what is known at test time, who is tested and when."""
    return {
        "shape": np.array([dataset.n_users, dataset.n_items]),
        **pairs("train", split.train, np.arange(len(split.train))),
        **pairs("validation", split.validation.targets, split.validation.user_index),
        **pairs("known", split.test.histories, split.test.user_index),
        "test_user": split.test.user_index,
        "test_timestamp": split.test.targets.timestamp[split.test.targets.indptr[:-1]],
    }
