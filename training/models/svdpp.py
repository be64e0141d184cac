"""SVD++: SVD whose users are also what they rated (Koren 2008, doi:10.1145/1401890.1401944).

n^(−1/2) Σ y_j over the n items of a user's history is added to the user's factors: which items somebody
rated says something whatever the ratings were.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recserve.training.data import Histories
from recserve.training.models.base import EPOCH_OPTIONS, Family
from recserve.training.models.svd import (
    INITIAL_SCALE,
    N_BIASES,
    SVD,
    SVDConfig,
    check_ratings,
    implicit_sums,
)


class SVDpp(SVD):
    """The tables of SVD++: those of SVD and ``implicit_embeddings`` (n_items, d − 2) float32."""

    implicit_embeddings: Tensor

    def __init__(self, config: SVDConfig, n_users: int, n_items: int) -> None:
        super().__init__(config, n_users, n_items)
        self.register_buffer("implicit_embeddings", torch.zeros(n_items, config.embedding_size - N_BIASES))

    def _more_tables(self) -> dict[str, Any]:
        return {"implicit": self.implicit_embeddings.numpy()}

    def _rating_vectors(self, users: NDArray[np.int32], histories: Histories) -> NDArray[np.float32]:
        vectors = super()._rating_vectors(users, histories)
        sums = implicit_sums(histories, self.implicit_embeddings.numpy())
        vectors[:, :-N_BIASES] += sums * np.float32(self.rating_deviation)
        return vectors

    def _start(self, train: Histories, rng: np.random.Generator) -> None:
        super()._start(train, rng)
        implicit = self.implicit_embeddings.numpy()
        implicit[:] = rng.normal(0, INITIAL_SCALE, implicit.shape)
        implicit[np.bincount(train.item_index, minlength=len(implicit)) == 0] = 0


FAMILY = Family(
    settings=SVDConfig,
    create=SVDpp,
    budget={"epochs": 100, "validate_every": 2, "patience": 5},
    loop_options=EPOCH_OPTIONS,
    check_data=lambda train, settings: check_ratings(train),
)
