"""Popularity: the most interactions first, the same for everybody; what every other family must beat."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recserve.training.data import Histories
from recserve.training.models.base import ONE_EPOCH, Family
from recserve.training.models.tables import TableModel


@dataclass(frozen=True, slots=True, kw_only=True)
class PopularityConfig:
    """Popularity has nothing to set."""


class Popularity(TableModel):
    """Tables of width one: an item's share of the training interactions, and 1 for every user."""

    fold_in_settings = None

    def __init__(self, config: PopularityConfig, n_users: int, n_items: int) -> None:
        super().__init__(np.ones((n_users, 1), np.float32), np.zeros((n_items, 1), np.float32))
        self.config = config

    def queries(self, users: NDArray[np.int32], histories: Histories) -> NDArray[np.float32]:
        """Returns ones."""
        return np.ones((len(histories), 1), np.float32)

    def fit_epoch(self, train: Histories, *, epoch: int, seed: int) -> float:
        """Counts; there is no loss to speak of."""
        counts = np.bincount(train.item_index, minlength=self.n_items)
        self.item_embeddings.numpy()[:, 0] = counts / max(1, len(train.item_index))
        return 0.0


FAMILY = Family(
    settings=PopularityConfig, create=Popularity, budget=ONE_EPOCH, loop_options=frozenset({"seed"})
)
