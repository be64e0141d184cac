"""GloVe: vectors whose inner products are the logarithms of how often items stand near each other.

Pennington, Socher & Manning 2014 (doi:10.3115/v1/D14-1162), an item being a word and a history a text. A pair
``apart`` places from each other counts 1 / apart. What is served is the sum of an item's two vectors, of
length 1; a user is the history folded in.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from recserve.training.data import Histories
from recserve.training.models.base import EPOCH_OPTIONS, Family
from recserve.training.models.item2vec import check_settings, neighbours_apart, parts_of
from recserve.training.models.tables import ItemTable

# The weight of a pair's squared error is min(1, (count / FULL_COUNT) ^ COUNT_POWER). The paper's 100 is for
# billions of words: on ml-100k, random split, validation NDCG@10 is 0.227 with 10 and 0.222 with 100.
FULL_COUNT, COUNT_POWER = 10.0, 0.75
# Pairs by one number, ascending, and how often each was counted.
Sums = tuple[NDArray[np.int64], NDArray[np.float64]]


@dataclass(frozen=True, slots=True, kw_only=True)
class GloVeConfig:
    """The settings of GloVe."""

    embedding_size: int = 64
    window: int = 10
    """Items before and after an item that are its neighbours."""
    learning_rate: float = 0.05
    batch_size: int = 8192
    """Pairs of neighbours per step."""

    def __post_init__(self) -> None:
        check_settings(self, "window", "batch_size")


class GloVe(ItemTable):
    """Vectors and biases of items as words and as neighbours; the sum of the vectors is served."""

    optimizer: torch.optim.Optimizer

    def __init__(self, config: GloVeConfig, n_users: int, n_items: int) -> None:
        size = config.embedding_size
        super().__init__(np.zeros((n_items, size), np.float32))
        self.config = config
        self.words = nn.Parameter((torch.rand(n_items, size) - 0.5) / size)
        self.neighbours = nn.Parameter((torch.rand(n_items, size) - 0.5) / size)
        self.word_biases = nn.Parameter(torch.zeros(n_items, 1))
        self.neighbour_biases = nn.Parameter(torch.zeros(n_items, 1))
        self.optimizer = torch.optim.Adagrad(self.parameters(), lr=config.learning_rate)
        self._counted: tuple[Histories, NearCounts] | None = None

    def fit_epoch(self, train: Histories, *, epoch: int, seed: int) -> float:
        """Makes a pass over the pairs that occur, in random order; returns the mean weighted error."""
        if self._counted is None or self._counted[0] is not train:
            self._counted = train, count_near(train, self.config.window, self.n_items)
        counts = self._counted[1]
        order = np.random.default_rng([seed, epoch]).permutation(len(counts.times))
        total = 0.0
        for start in range(0, len(order), self.config.batch_size):
            loss = self._loss(counts, order[start : start + self.config.batch_size])
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            # Said explicitly, or torch warns of it.
            with torch.sparse.check_sparse_tensor_invariants(enable=False):  # type: ignore[no-untyped-call]
                self.optimizer.step()
            total += loss.item()
        with torch.no_grad():
            known = torch.from_numpy(np.bincount(train.item_index, minlength=self.n_items) > 0).unsqueeze(1)
            self.item_embeddings.copy_(F.normalize(self.words + self.neighbours) * known)
        return total / max(1, len(order))

    def _loss(self, counts: "NearCounts", rows: NDArray[np.int64]) -> Tensor:
        """Of the pairs ``rows``; gradients are sparse, so that a step costs its pairs and no table."""
        words, neighbours = torch.from_numpy(counts.words[rows]), torch.from_numpy(counts.neighbours[rows])
        times = torch.from_numpy(counts.times[rows])
        vectors = F.embedding(words, self.words, sparse=True)
        product = (vectors * F.embedding(neighbours, self.neighbours, sparse=True)).sum(1)
        biases = F.embedding(words, self.word_biases, sparse=True)
        biases = biases + F.embedding(neighbours, self.neighbour_biases, sparse=True)
        errors = product + biases.squeeze(1) - times.log()
        weights = (times / FULL_COUNT).clamp(max=1) ** COUNT_POWER
        return (weights * errors**2).sum()


@dataclass(frozen=True, slots=True, eq=False)
class NearCounts:
    """How often items stand near each other: pairs, each once and both ways, and their counts, (n,) each."""

    words: NDArray[np.int64]
    neighbours: NDArray[np.int64]
    times: NDArray[np.float32]


def count_near(histories: Histories, window: int, n_items: int) -> NearCounts:
    """Counts pairs at most ``window`` places apart in a history, each as 1 / places."""
    found: list[Sums] = [(np.empty(0, np.int64), np.empty(0))]
    for part in parts_of(histories):
        of_part = []
        for apart in range(1, window + 1):
            earlier, later = neighbours_apart(part, apart)
            pairs = np.concatenate([earlier * n_items + later, later * n_items + earlier])
            of_part.append((pairs, np.full(len(pairs), 1 / apart)))
        found.append(_added(of_part))
        # Only then: so that what is there is not sorted again for every part.
        if sum(len(pairs) for pairs, _ in found[1:]) >= len(found[0][0]):
            found = [_added(found)]
    pairs, times = _added(found)
    return NearCounts(pairs // n_items, pairs % n_items, times.astype(np.float32))


def _added(parts: list[Sums]) -> Sums:
    pairs, place = np.unique(np.concatenate([pairs for pairs, _ in parts]), return_inverse=True)
    times = np.concatenate([times for _, times in parts])
    return pairs, np.bincount(place, times, len(pairs)).astype(np.float64, copy=False)


FAMILY = Family(
    settings=GloVeConfig,
    create=GloVe,
    budget={"epochs": 60, "validate_every": 1, "patience": 5},
    loop_options=EPOCH_OPTIONS,
    min_history=2,
)
