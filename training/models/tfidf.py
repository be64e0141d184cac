"""TF-IDF: a user likes what is described in the words of what the user had; the baseline from content alone.

An item is the weights of its words (title, description, categories), rare ones counting more, in a few
dimensions; a user is the history folded in: nearly its sum, with what most items share counting less. Nothing
is learned from who had what, so an item that nobody had is worth as much as any other. The relevance
σ(T_u · T_i) orders items as T_u · T_i does.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recserve.errors import DataError, InvalidRequest
from recserve.training.data import Dataset, Histories, Split
from recserve.training.features.tfidf import text_vectors
from recserve.training.models.base import ONE_EPOCH, Family
from recserve.training.models.tables import ItemTable


@dataclass(frozen=True, slots=True, kw_only=True)
class TfIdfConfig:
    """The settings of TF-IDF."""

    embedding_size: int = 256
    """Dimensions of the words."""

    def __post_init__(self) -> None:
        if not 1 <= self.embedding_size <= 1024:
            raise InvalidRequest("embedding_size", found=self.embedding_size, expected="1 to 1024")


class TfIdf(ItemTable):
    """Items by their words, (n_items, embedding_size)."""

    def __init__(self, config: TfIdfConfig, items: NDArray[np.float32]) -> None:
        super().__init__(items)
        self.config = config

    def fit_epoch(self, train: Histories, *, epoch: int, seed: int) -> float:
        """Has nothing to learn."""
        return 0.0


def create(config: TfIdfConfig, n_users: int, n_items: int) -> TfIdf:
    """Raises :class:`DataError`: without attributes there are no words."""
    raise DataError(
        "text of the items", found="none", expected="titles, descriptions or categories", cure="Give --items."
    )


def create_from_data(config: TfIdfConfig, dataset: Dataset, split: Split) -> TfIdf:
    """Returns the model of the items of ``dataset``; raises :class:`DataError` when none has a word."""
    vectors = text_vectors(dataset.items, config.embedding_size)
    if not vectors.any():
        return create(config, dataset.n_users, dataset.n_items)
    return TfIdf(config, vectors)


FAMILY = Family(
    settings=TfIdfConfig,
    create=create,
    budget=ONE_EPOCH,
    loop_options=frozenset({"seed"}),
    create_from_data=create_from_data,
)
