"""Item2Vec: items are alike when they stand near each other in histories.

Barkan & Koenigstein 2016 (arXiv:1603.04259): skip-grams with negative sampling (Mikolov et al. 2013,
arXiv:1310.4546), an item being a word and a history a sentence. Negatives are drawn by popularity to the
power 3/4. What is served are the item vectors, of length 1; a user is the history folded in.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from recserve.errors import InvalidRequest
from recserve.training.data import Histories
from recserve.training.models.base import EPOCH_OPTIONS, Family
from recserve.training.models.tables import ItemTable

POPULARITY_POWER = 0.75
# Interactions whose pairs are made at once: two arrays of twice the window times as many.
PAIRED_AT_ONCE = 500_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Item2VecConfig:
    """The settings of Item2Vec."""

    embedding_size: int = 64
    window: int = 10
    """Items before and after an item that are its neighbours."""
    learning_rate: float = 5e-3
    batch_size: int = 8192
    """Pairs of neighbours per step."""
    n_negatives: int = 5
    """Items drawn for each pair."""

    def __post_init__(self) -> None:
        check_settings(self, "window", "batch_size", "n_negatives")


class Item2Vec(ItemTable):
    """A vector of each item as a word and one as a neighbour; the former, of length 1, are served."""

    optimizer: torch.optim.Optimizer

    def __init__(self, config: Item2VecConfig, n_users: int, n_items: int) -> None:
        super().__init__(np.zeros((n_items, config.embedding_size), np.float32))
        self.config = config
        scale = 1 / np.sqrt(config.embedding_size)
        self.words = nn.Parameter(torch.randn(n_items, config.embedding_size) * scale)
        self.neighbours = nn.Parameter(torch.zeros(n_items, config.embedding_size))
        self.optimizer = torch.optim.Adam(self.parameters(), lr=config.learning_rate)

    def fit_epoch(self, train: Histories, *, epoch: int, seed: int) -> float:
        """Makes a pass over the pairs of neighbours in random order; returns the mean loss."""
        rng = np.random.default_rng([seed, epoch])
        counts = np.bincount(train.item_index, minlength=self.n_items) ** POPULARITY_POWER
        upto = np.cumsum(counts / counts.sum())
        total, n_pairs = 0.0, 0
        for part in parts_of(train, rng):
            words, neighbours = neighbour_pairs(part, self.config.window)
            order = rng.permutation(len(words))
            n_pairs += len(order)
            for start in range(0, len(order), self.config.batch_size):
                rows = order[start : start + self.config.batch_size]
                drawn = np.searchsorted(upto, rng.random((len(rows), self.config.n_negatives)) * upto[-1])
                others = np.concatenate([neighbours[rows, None], drawn], axis=1)
                loss = self._loss(torch.from_numpy(words[rows]), torch.from_numpy(others))
                self.optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                self.optimizer.step()
                total += loss.item() * len(rows)
        with torch.no_grad():
            known = torch.from_numpy(counts > 0).unsqueeze(1)
            self.item_embeddings.copy_(F.normalize(self.words) * known)
        return total / max(1, n_pairs)

    def _loss(self, words: Tensor, others: Tensor) -> Tensor:
        """``words`` (n,), ``others`` (n, 1 + n_negatives): the neighbour first, then what is none."""
        vectors = F.embedding(words, self.words).unsqueeze(2)
        scores = (F.embedding(others, self.neighbours) @ vectors).squeeze(2)
        return F.softplus(-scores[:, 0]).mean() + F.softplus(scores[:, 1:]).sum(1).mean()


def parts_of(histories: Histories, rng: np.random.Generator | None = None) -> Iterator[Histories]:
    """Yields the histories some at a time, where they are many; ``rng`` shuffles those."""
    n_parts = -(-len(histories.item_index) // PAIRED_AT_ONCE)
    if n_parts <= 1:
        yield histories
        return
    rows = np.arange(len(histories)) if rng is None else rng.permutation(len(histories))
    for part in np.array_split(rows, n_parts):
        yield histories.take(part)


def neighbour_pairs(histories: Histories, window: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns an item and one at most ``window`` places before or after it in a history, (n,) each."""
    pairs = []
    for apart in range(1, window + 1):
        earlier, later = neighbours_apart(histories, apart)
        pairs += [np.stack([earlier, later]), np.stack([later, earlier])]
    words, neighbours = np.concatenate(pairs, axis=1)
    return words, neighbours


def neighbours_apart(histories: Histories, apart: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the items that stand ``apart`` places before others in a history, and those, (n,) each."""
    row = np.repeat(np.arange(len(histories)), histories.lengths)
    items = histories.item_index.astype(np.int64)
    earlier, later = items[:-apart], items[apart:]
    chosen = (row[apart:] == row[:-apart]) & (earlier != later)
    return earlier[chosen], later[chosen]


def check_settings(config: Any, *counts: str) -> None:
    """Raises :class:`InvalidRequest` for a setting of a model of neighbours out of its range.

    ``counts``: the settings that are 1 or more.
    """
    if not 1 <= config.embedding_size <= 1024:
        raise InvalidRequest("embedding_size", found=config.embedding_size, expected="1 to 1024")
    if not 0 < config.learning_rate <= 1:
        raise InvalidRequest("learning_rate", found=config.learning_rate, expected="above 0, at most 1")
    for name in counts:
        if getattr(config, name) < 1:
            raise InvalidRequest(name, found=getattr(config, name), expected="1 or more")


FAMILY = Family(
    settings=Item2VecConfig,
    create=Item2Vec,
    budget={"epochs": 60, "validate_every": 1, "patience": 5},
    loop_options=EPOCH_OPTIONS,
    min_history=2,
)
