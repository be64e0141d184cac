"""BPR: matrix factorisation that ranks what a user had above what the user did not have.

Rendle et al. 2009 (arXiv:1205.2618): stochastic gradient steps on −ln σ(s(u, i) − s(u, j)), i an item that u
had and j one drawn from the others. Items have a bias, which is the last column of their table against a
column of ones in the users'.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recserve.errors import InvalidRequest
from recserve.kernels import bpr_steps, count_repeats
from recserve.training.data import Histories
from recserve.training.models.base import EPOCH_OPTIONS, Family
from recserve.training.models.tables import FoldInSettings, TableModel

# Triples drawn at once: bounds the memory of an epoch, whatever the number of interactions.
TRIPLES_PER_STEP = 1 << 20
MAX_REDRAWS = 10
# Of a table that nothing was learned into: a fold-in needs some regularisation.
MIN_EIGENVALUE = 1e-6
# Of users unseen in training. The items were not made for least squares, whose solution would follow their
# weakest directions: with a ridge of this many times the gram matrix' mean eigenvalue, validation NDCG@10 of
# users folded in is 0.228 on ml-100k (0.230 looked up), with one time 0.186.
FOLD_IN_WEIGHT, FOLD_IN_REG = 5.0, 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BPRConfig:
    """The settings of BPR."""

    embedding_size: int = 64
    """Width of the tables, the bias among them."""
    learning_rate: float = 0.05
    reg: float = 0.01

    def __post_init__(self) -> None:
        if not 2 <= self.embedding_size <= 1024:
            raise InvalidRequest("embedding_size", found=self.embedding_size, expected="2 to 1024")
        if not 0 < self.learning_rate <= 1:
            raise InvalidRequest("learning_rate", found=self.learning_rate, expected="above 0, at most 1")
        if not 0 <= self.reg < 1:
            raise InvalidRequest("reg", found=self.reg, expected="0 to below 1")


class BPR(TableModel):
    """The tables of BPR; a user without training interactions has a row of zeros and is folded in."""

    def __init__(self, config: BPRConfig, n_users: int, n_items: int) -> None:
        size = config.embedding_size
        super().__init__(np.zeros((n_users, size), np.float32), np.zeros((n_items, size), np.float32))
        self.config = config
        self._had: tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int64]] | None = None

    @property
    def fold_in_settings(self) -> FoldInSettings:
        """Least squares onto the item table as it is now."""
        items = self.item_embeddings.numpy()
        mean_eigenvalue = float(np.vdot(items, items)) / items.shape[1]
        return FoldInSettings(FOLD_IN_WEIGHT, FOLD_IN_REG * max(mean_eigenvalue, MIN_EIGENVALUE))

    def queries(self, users: NDArray[np.int32], histories: Histories) -> NDArray[np.float32]:
        """Returns the rows of the users that were trained and the fold-in of the others."""
        queries = self.user_embeddings.numpy()[users]
        new = np.flatnonzero(queries[:, -1] == 0)
        if len(new):
            queries[new] = self.fold(histories.take(new))
        return queries

    def fit_epoch(self, train: Histories, *, epoch: int, seed: int) -> float:
        """Makes as many steps as there are interactions; returns the mean loss before each."""
        rng = np.random.default_rng([seed, epoch])
        users, items = self.user_embeddings.numpy(), self.item_embeddings.numpy()
        if epoch == 1:
            self._start(train, rng)
        who, had, pairs = self._interactions(train)
        total = 0.0
        for start in range(0, len(had), TRIPLES_PER_STEP):
            rows = rng.integers(0, len(had), min(TRIPLES_PER_STEP, len(had) - start))
            triples = self._with_negatives(who[rows], had[rows], pairs, rng)
            loss = bpr_steps(users, items, triples, self.config.learning_rate, self.config.reg)
            total += loss * len(rows)
        return total / max(1, len(had))

    def _interactions(
        self, train: Histories
    ) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int64]]:
        """Returns user and item of each pair of ``train``, once, and a number for it, ascending."""
        if self._had is None:
            (indptr, had), _ = count_repeats((train.indptr, train.item_index))
            who = np.repeat(np.arange(len(indptr) - 1, dtype=np.int32), np.diff(indptr))
            self._had = who, had, who.astype(np.int64) * self.n_items + had
        return self._had

    def _start(self, train: Histories, rng: np.random.Generator) -> None:
        users, items = self.user_embeddings.numpy(), self.item_embeddings.numpy()
        scale = 1 / np.sqrt(users.shape[1])
        users[:], items[:] = rng.normal(0, scale, users.shape), rng.normal(0, scale, items.shape)
        users[:, -1], items[:, -1] = 1, 0
        users[train.lengths == 0] = 0

    def _with_negatives(
        self,
        users: NDArray[np.int32],
        positives: NDArray[np.int32],
        pairs: NDArray[np.int64],
        rng: np.random.Generator,
    ) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
        """Draws an item that the user did not have for each positive; ``pairs`` (n,) ascending are had.

        A triple whose draws were all had is left out: such a user has nearly everything.
        """
        negatives = rng.integers(0, self.n_items, len(users), dtype=np.int32)
        for _ in range(MAX_REDRAWS):
            drawn = users.astype(np.int64) * self.n_items + negatives
            place = np.minimum(np.searchsorted(pairs, drawn), len(pairs) - 1)
            bad = np.flatnonzero(pairs[place] == drawn)
            if not len(bad):
                return users, positives, negatives
            negatives[bad] = rng.integers(0, self.n_items, len(bad), dtype=np.int32)
        drawn = users.astype(np.int64) * self.n_items + negatives
        good = pairs[np.minimum(np.searchsorted(pairs, drawn), len(pairs) - 1)] != drawn
        return users[good], positives[good], negatives[good]


FAMILY = Family(
    settings=BPRConfig,
    create=BPR,
    budget={"epochs": 500, "validate_every": 10, "patience": 5},
    loop_options=EPOCH_OPTIONS,
)
