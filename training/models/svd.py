"""SVD: biased matrix factorisation of ratings (Koren, Bell, Volinsky 2009, doi:10.1109/MC.2009.263).

A rating is predicted as μ + b_u + b_i + p_u·q_i. It is learned in units of the standard deviation of the
training ratings, so that the same settings suit stars and percents; μ and the deviation are of training
alone and stand in the checkpoint. The score that is served is the predicted rating.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recserve.errors import DataError, InvalidRequest
from recserve.kernels import count_repeats, svd_steps
from recserve.training.data import EvaluationSet, Histories
from recserve.training.models.base import EPOCH_OPTIONS, Family, ValidationMetric
from recserve.training.models.tables import FoldInSettings, TableModel

INITIAL_SCALE = 0.05
# The user's bias against the ones of the items, and the ones of the users against the item's bias.
N_BIASES = 2
# Of users unseen in training: their history says what they rated, not how. A ridge of this many times the
# mean eigenvalue of the factors, as for BPR.
FOLD_IN_WEIGHT, FOLD_IN_REG = 5.0, 10.0
MIN_EIGENVALUE = 1e-6
PREDICTIONS_PER_STEP = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SVDConfig:
    """The settings of SVD and SVD++."""

    embedding_size: int = 64
    """Width of the tables, two columns of biases among them."""
    learning_rate: float = 0.01
    reg: float = 0.1

    def __post_init__(self) -> None:
        if not N_BIASES < self.embedding_size <= 1024:
            raise InvalidRequest("embedding_size", found=self.embedding_size, expected="3 to 1024")
        if not 0 < self.learning_rate <= 1:
            raise InvalidRequest("learning_rate", found=self.learning_rate, expected="above 0, at most 1")
        if not 0 <= self.reg < 1:
            raise InvalidRequest("reg", found=self.reg, expected="0 to below 1")


class SVD(TableModel):
    """The tables of SVD; a user without training ratings has a row of zeros."""

    validation_metric = ValidationMetric("RMSE", higher_is_better=False)
    rating_mean: Tensor
    rating_deviation: Tensor
    rating_range: Tensor

    def __init__(self, config: SVDConfig, n_users: int, n_items: int) -> None:
        size = config.embedding_size
        super().__init__(np.zeros((n_users, size), np.float32), np.zeros((n_items, size), np.float32))
        self.config = config
        self.register_buffer("rating_mean", torch.zeros((), dtype=torch.float64))
        self.register_buffer("rating_deviation", torch.ones((), dtype=torch.float64))
        self.register_buffer("rating_range", torch.zeros(2, dtype=torch.float64))

    @property
    def fold_in_settings(self) -> FoldInSettings:
        """Least squares onto the item table as it is now."""
        factors = self.item_embeddings.numpy()[:, :-N_BIASES]
        mean_eigenvalue = float(np.vdot(factors, factors)) / factors.shape[1]
        return FoldInSettings(FOLD_IN_WEIGHT, FOLD_IN_REG * max(mean_eigenvalue, MIN_EIGENVALUE))

    def queries(self, users: NDArray[np.int32], histories: Histories) -> NDArray[np.float32]:
        """Returns vectors whose scores are ratings for users that were trained, the fold-in of the others."""
        queries = self._rating_vectors(users, histories)
        new = np.flatnonzero(self.user_embeddings.numpy()[users, -1] == 0)
        if len(new):
            queries[new] = self.fold(histories.take(new))
        return queries

    def predict_ratings(self, held_out: EvaluationSet) -> NDArray[np.float32]:
        """Returns the predicted rating of every target of ``held_out``, (n,), within the range of training.

        Who or what was not rated in training counts as average: its bias and factors are zero.
        """
        vectors = self._rating_vectors(held_out.user_index, held_out.histories)
        vectors[:, -1] = float(self.rating_deviation)
        rows = np.repeat(np.arange(len(held_out.targets)), held_out.targets.lengths)
        items, table = held_out.targets.item_index, self.item_embeddings.numpy()
        predicted = np.empty(len(items), np.float32)
        for start in range(0, len(items), PREDICTIONS_PER_STEP):
            part = slice(start, start + PREDICTIONS_PER_STEP)
            predicted[part] = np.einsum("nd,nd->n", vectors[rows[part]], table[items[part]])
        lowest, highest = self.rating_range.tolist()
        return np.clip(predicted, np.float32(lowest), np.float32(highest))

    def fit_epoch(self, train: Histories, *, epoch: int, seed: int) -> float:
        """Makes a step per rating, users and their ratings in random order; returns the MSE before each."""
        rng = np.random.default_rng([seed, epoch])
        if epoch == 1:
            self._start(train, rng)
        row = np.repeat(np.arange(len(train)), train.lengths)
        shuffled = np.lexsort((rng.random(len(row)), row))
        indptr, kept = _last_of_each_pair(train, shuffled)
        deviation = float(self.rating_deviation)
        values = (train.value[kept] - np.float32(self.rating_mean)) / np.float32(deviation)
        squares = svd_steps(
            self.user_embeddings.numpy(),
            self.item_embeddings.numpy(),
            (indptr, train.item_index[kept]),
            values.astype(np.float32),
            rng.permutation(len(train)).astype(np.int32),
            self.config.learning_rate,
            self.config.reg,
            **self._more_tables(),
        )
        return squares * deviation**2 / max(1, len(kept))

    def _more_tables(self) -> dict[str, Any]:
        """What the kernel learns besides users and items."""
        return {}

    def _rating_vectors(self, users: NDArray[np.int32], histories: Histories) -> NDArray[np.float32]:
        """Returns the vectors (n, d) whose inner products with the items are ratings of trained users."""
        vectors = self.user_embeddings.numpy()[users] * np.float32(self.rating_deviation)
        vectors[:, -N_BIASES] += np.float32(self.rating_mean)
        return vectors

    def _start(self, train: Histories, rng: np.random.Generator) -> None:
        check_ratings(train)
        ratings = train.value.astype(np.float64)
        self.rating_mean.fill_(ratings.mean())
        self.rating_deviation.fill_(ratings.std())
        self.rating_range.copy_(torch.tensor([ratings.min(), ratings.max()]))
        users, items = self.user_embeddings.numpy(), self.item_embeddings.numpy()
        for table in (users, items):
            table[:] = rng.normal(0, INITIAL_SCALE, table.shape)
        users[:, -N_BIASES:], items[:, -N_BIASES:] = (0, 1), (1, 0)
        users[train.lengths == 0] = 0
        # Nothing pulls at items that nobody rated: they stay where they begin, which is the average item.
        items[np.bincount(train.item_index, minlength=len(items)) == 0, :-N_BIASES] = 0


def check_ratings(train: Histories) -> None:
    """Raises :class:`DataError` unless the training ratings differ."""
    lowest, highest = train.value.min(initial=np.inf), train.value.max(initial=-np.inf)
    if not lowest < highest:
        raise DataError(
            "training ratings",
            found=f"all {lowest:g}" if len(train.value) else "none",
            expected="at least two different values",
            cure="Name their column with --columns value=COLUMN, or train als or bpr on what was chosen.",
        )


def _last_of_each_pair(
    train: Histories, order: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns (indptr, positions in ``train``) in ``order``; of an item rated twice the newest rating."""
    row = np.repeat(np.arange(len(train), dtype=np.int64), train.lengths)
    # Of equal pairs, np.unique finds the first: seen from the end, that is the newest.
    pairs = ((row << 32) | train.item_index)[::-1]
    newest = np.zeros(len(row), bool)
    newest[len(row) - 1 - np.unique(pairs, return_index=True)[1]] = True
    kept = order[newest[order]]
    indptr = np.zeros(len(train) + 1, np.int64)
    np.cumsum(np.bincount(row[kept], minlength=len(train)), out=indptr[1:])
    return indptr, kept


def implicit_sums(histories: Histories, implicit: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns n^(−1/2) Σ y over the n distinct items of each history, (n_rows, d) float32."""
    (indptr, items), _ = count_repeats((histories.indptr, histories.item_index))
    sums = np.zeros((len(histories), implicit.shape[1]), np.float32)
    for row in range(len(sums)):
        mine = items[indptr[row] : indptr[row + 1]]
        if len(mine):
            sums[row] = implicit[mine].sum(axis=0) / np.sqrt(np.float32(len(mine)))
    return sums


FAMILY = Family(
    settings=SVDConfig,
    create=SVD,
    budget={"epochs": 100, "validate_every": 2, "patience": 5},
    loop_options=EPOCH_OPTIONS,
    check_data=lambda train, settings: check_ratings(train),
)
