"""Models that are two tables: a vector per user and a vector per item, whose inner product is the score."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recserve.kernels import count_repeats, fold_in
from recserve.training.data import EvaluationSet, Histories
from recserve.training.models.base import FittedModel

# Newest interactions that a fold-in reads, here and in serving.
MAX_HISTORY = 1000
# Of tables that gradient steps learned. They were not made for least squares, whose solution would follow
# their weakest directions: with a ridge of this many times the gram matrix' mean eigenvalue, validation
# NDCG@10 of users folded in is 0.228 for BPR on ml-100k (0.230 looked up), with one time 0.186.
FOLD_IN_WEIGHT, FOLD_IN_REG = 5.0, 10.0
# Of a table that nothing was learned into: a fold-in needs some regularisation.
MIN_EIGENVALUE = 1e-6


@dataclass(frozen=True, slots=True)
class FoldInSettings:
    """How a user unseen in training gets a vector; see ``recserve.kernels.fold_in``."""

    weight: float
    reg: float
    reg_exponent: float = 0.0


class TableModel(FittedModel):
    """User and item tables, float32 buffers of (n_users, d) and (n_items, d)."""

    user_embeddings: Tensor
    item_embeddings: Tensor

    def __init__(self, users: NDArray[np.float32], items: NDArray[np.float32]) -> None:
        super().__init__()
        self.n_items = len(items)
        self.register_buffer("user_embeddings", torch.from_numpy(users))
        self.register_buffer("item_embeddings", torch.from_numpy(items))

    @property
    @abstractmethod
    def fold_in_settings(self) -> FoldInSettings | None:
        """The arguments of the fold-in; without it a new history is answered by popularity."""

    def fold(self, histories: Histories, solve: Callable[..., Any] = fold_in) -> NDArray[np.float32]:
        """Returns the vectors (n, d) float32 that the item table gives to the newest of ``histories``.

        ``solve``: the kernel or its twin. Only for a family that has fold-in settings.
        """
        settings = self.fold_in_settings
        if settings is None:
            raise TypeError(f"{type(self).__name__} has no fold-in")
        newest = histories.last(MAX_HISTORY)
        interactions, counts = count_repeats((newest.indptr, newest.item_index))
        users: NDArray[np.float32] = solve(
            self.item_embeddings.numpy(),
            interactions,
            counts * np.float32(settings.weight),
            settings.reg,
            reg_exponent=settings.reg_exponent,
        )
        return users

    @abstractmethod
    def queries(self, users: NDArray[np.int32], histories: Histories) -> NDArray[np.float32]:
        """Returns the query embeddings (n, d) of ``users`` with these histories, as serving has them."""

    def query_rows(self, held_out: EvaluationSet, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Returns the query embeddings (len(rows), d) of users whose history is that of ``held_out``."""
        return self.queries(held_out.user_index[rows], held_out.histories.take(rows))

    def score_rows(self, held_out: EvaluationSet, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Returns the scores (len(rows), n_items) of users whose history is that of ``held_out``."""
        scores: NDArray[np.float32] = self.query_rows(held_out, rows) @ self.item_embeddings.numpy().T
        return scores


class LearnedTables(TableModel):
    """Tables that gradient steps learned; a user without training interactions has a row of zeros."""

    @property
    def fold_in_settings(self) -> FoldInSettings:
        """Least squares onto the item table as it is now."""
        items = self.item_embeddings.numpy()
        mean_eigenvalue = float(np.vdot(items, items)) / items.shape[1]
        return FoldInSettings(FOLD_IN_WEIGHT, FOLD_IN_REG * max(mean_eigenvalue, MIN_EIGENVALUE))

    def queries(self, users: NDArray[np.int32], histories: Histories) -> NDArray[np.float32]:
        """Returns the rows of the users that were trained and the fold-in of the others."""
        queries = self.user_embeddings.numpy()[users]
        new = np.flatnonzero(~queries.any(axis=1))
        if len(new):
            queries[new] = self.fold(histories.take(new))
        return queries


class ItemTable(LearnedTables):
    """A table of items alone, float32 (n_items, d); a user is the history folded in."""

    def __init__(self, items: NDArray[np.float32]) -> None:
        super().__init__(np.zeros((0, items.shape[1]), np.float32), items)

    def queries(self, users: NDArray[np.int32], histories: Histories) -> NDArray[np.float32]:
        """Folds every history in."""
        return self.fold(histories)
