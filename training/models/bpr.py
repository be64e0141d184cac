"""BPR: matrix factorisation that ranks what a user had above what the user did not have.

Rendle et al. 2009 (arXiv:1205.2618): stochastic gradient steps on −ln σ(s(u, i) − s(u, j)), i an item that u
had and j one drawn from the others. Items have a bias, which is the last column of their table against a
column of ones in the users'.
"""

from dataclasses import dataclass

import numpy as np

from recserve.errors import InvalidRequest
from recserve.kernels import bpr_steps
from recserve.training.data import Histories
from recserve.training.models.base import EPOCH_OPTIONS, Family
from recserve.training.models.interactions import Pairs
from recserve.training.models.tables import LearnedTables

# Triples drawn at once: bounds the memory of an epoch, whatever the number of interactions.
TRIPLES_PER_STEP = 1 << 20


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


class BPR(LearnedTables):
    """The tables of BPR; a user without training interactions has a row of zeros and is folded in."""

    def __init__(self, config: BPRConfig, n_users: int, n_items: int) -> None:
        size = config.embedding_size
        super().__init__(np.zeros((n_users, size), np.float32), np.zeros((n_items, size), np.float32))
        self.config = config
        self._pairs: Pairs | None = None

    def fit_epoch(self, train: Histories, *, epoch: int, seed: int) -> float:
        """Makes as many steps as there are interactions; returns the mean loss before each."""
        rng = np.random.default_rng([seed, epoch])
        users, items = self.user_embeddings.numpy(), self.item_embeddings.numpy()
        if epoch == 1:
            self._start(train, rng)
        pairs, total = self._pairs_of(train), 0.0
        for start in range(0, len(pairs), TRIPLES_PER_STEP):
            rows = rng.integers(0, len(pairs), min(TRIPLES_PER_STEP, len(pairs) - start))
            triples = pairs.triples(rows, rng)
            loss = bpr_steps(users, items, triples, self.config.learning_rate, self.config.reg)
            total += loss * len(rows)
        return total / max(1, len(pairs))

    def _pairs_of(self, train: Histories) -> Pairs:
        if self._pairs is None:
            self._pairs = Pairs(train, self.n_items)
        return self._pairs

    def _start(self, train: Histories, rng: np.random.Generator) -> None:
        users, items = self.user_embeddings.numpy(), self.item_embeddings.numpy()
        scale = 1 / np.sqrt(users.shape[1])
        users[:], items[:] = rng.normal(0, scale, users.shape), rng.normal(0, scale, items.shape)
        users[:, -1], items[:, -1] = 1, 0
        users[train.lengths == 0] = 0


FAMILY = Family(
    settings=BPRConfig,
    create=BPR,
    budget={"epochs": 500, "validate_every": 10, "patience": 5},
    loop_options=EPOCH_OPTIONS,
)
