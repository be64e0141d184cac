"""DSSM: two towers, one of the user and one of the item, whose inner product is the score.

After Huang et al. 2013 (doi:10.1145/2505515.2505665) and Yi et al. 2019 (doi:10.1145/3298689.3346996): a
softmax over the catalogue, full or sampled with the logQ correction. The item tower is an embedding of the
id plus a projection of what is known of the item: its categories, price, title and any vector that came with
it. The user tower is an embedding of the id, a projection of the user's attributes and what the user had: an
embedding of each item and the same projection of what is known of it.
Ids are hidden from training now and then, so that an item nobody has had yet, whose id says nothing, is
placed by its content. Both towers run at export: what is served is a table of users and one of items.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from recserve.errors import InvalidRequest
from recserve.kernels import count_repeats
from recserve.training.data import Dataset, Histories, Split
from recserve.training.features.attributes import known_attributes
from recserve.training.loss import FULL_SOFTMAX_MAX_ITEMS, full_softmax, softmax_over_sample
from recserve.training.models.base import EPOCH_OPTIONS, Family
from recserve.training.models.dropout import dropout
from recserve.training.models.tables import LearnedTables

INITIAL_SCALE = 0.05
# Rows of a tower computed at once outside of training: bounds the memory.
ROWS_PER_STEP = 8192

# Distinct items of each user: (indptr, items).
Rows = tuple[NDArray[np.int64], NDArray[np.int32]]


@dataclass(frozen=True, slots=True, kw_only=True)
class DSSMConfig:
    """The settings of DSSM."""

    embedding_size: int = 64
    """Width of the tables, a column of item biases among them."""
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    dropout: float = 0.5
    batch_size: int = 1024
    """Interactions per step."""
    unknown_rate: float = 0.1
    """How often training hides the id of an item or a user."""
    n_negatives: int = 4096
    """Sampled items of a step, in catalogues too large for the full softmax."""

    def __post_init__(self) -> None:
        if not 2 <= self.embedding_size <= 1024:
            raise InvalidRequest("embedding_size", found=self.embedding_size, expected="2 to 1024")
        if not 0 < self.learning_rate <= 1:
            raise InvalidRequest("learning_rate", found=self.learning_rate, expected="above 0, at most 1")
        if not 0 <= self.weight_decay < np.inf:
            raise InvalidRequest("weight_decay", found=self.weight_decay, expected="0 or more")
        for name in ("batch_size", "n_negatives"):
            if getattr(self, name) < 1:
                raise InvalidRequest(name, found=getattr(self, name), expected="1 or more")
        for name in ("dropout", "unknown_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise InvalidRequest(name, found=getattr(self, name), expected="0 to below 1")


class DSSM(LearnedTables):
    """Both towers; ``item_embeddings`` are the outputs of the item tower after the last epoch.

    user_features: (n_users, f) float32, item_features: (n_items, g) float32; f and g may be 0. They follow
    from the data set, so a checkpoint leaves them out. ``user_embeddings`` has no rows: the user tower
    computes a user from the history at hand.
    """

    optimizer: torch.optim.AdamW
    user_features: Tensor
    item_features: Tensor
    is_known_user: Tensor
    is_known_item: Tensor

    def __init__(
        self, config: DSSMConfig, user_features: NDArray[np.float32], item_features: NDArray[np.float32]
    ) -> None:
        n_users, n_items, size = len(user_features), len(item_features), config.embedding_size
        super().__init__(np.zeros((0, size), np.float32), np.zeros((n_items, size), np.float32))
        self.config = config
        self.register_buffer("user_features", torch.from_numpy(user_features), persistent=False)
        self.register_buffer("item_features", torch.from_numpy(item_features), persistent=False)
        self.register_buffer("is_known_user", torch.zeros(n_users, dtype=torch.bool))
        self.register_buffer("is_known_item", torch.zeros(n_items, dtype=torch.bool))
        self.user_ids = _table(n_users, size - 1)
        self.item_ids = _table(n_items, size - 1)
        self.had_items = _table(n_items, size - 1)
        self.user_projection = _table(user_features.shape[1], size - 1)
        self.item_projection = _table(item_features.shape[1], size - 1)
        self.item_bias = nn.Parameter(torch.zeros(n_items, 1))
        self.bias_projection = _table(item_features.shape[1], 1)
        self.optimizer = torch.optim.AdamW(
            self.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )

    @torch.inference_mode()
    def queries(self, users: NDArray[np.int32], histories: Histories) -> NDArray[np.float32]:
        """Returns the outputs of the user tower for these histories.

        A user whom training does not know has no id to go by: the history and the attributes speak.
        """
        indptr, items = _distinct(histories)
        found = np.empty((len(users), self.config.embedding_size), np.float32)
        for start in range(0, len(users), ROWS_PER_STEP):
            stop = min(start + ROWS_PER_STEP, len(users))
            sums = self._sums(items[indptr[start] : indptr[stop]], indptr[start:stop] - indptr[start])
            lengths = torch.from_numpy(np.diff(indptr[start : stop + 1])).clamp(min=1)
            rows = torch.from_numpy(users[start:stop].astype(np.int64))
            found[start:stop] = self._user_tower(rows, sums / lengths.sqrt().unsqueeze(1)).numpy()
        return found

    def fit_epoch(self, train: Histories, *, epoch: int, seed: int) -> float:
        """Makes a pass over the interactions in random order; returns the mean cross-entropy."""
        # Seeded by epoch: an epoch after a resume draws the dropout that it would have drawn.
        torch.manual_seed(hash((seed, epoch)) % 2**63)
        rows = _distinct(train)
        indptr, items = rows
        user = np.repeat(np.arange(len(train)), np.diff(indptr))
        catalogue = _Catalogue(items, self.n_items)
        self.is_known_user.copy_(torch.from_numpy(np.diff(indptr) > 0))
        self.is_known_item.copy_(catalogue.place >= 0)
        order = np.random.default_rng([seed, epoch]).permutation(len(items))
        self.train()
        total = 0.0
        for start in range(0, len(order), self.config.batch_size):
            chunk = order[start : start + self.config.batch_size]
            targets = torch.from_numpy(items[chunk].astype(np.int64))
            loss = self._loss(self.training_queries(user[chunk], targets, rows), targets, catalogue)
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            total += loss.item() * len(chunk)
        self.eval()
        self._write_items()
        return total / max(1, len(order))

    def training_queries(self, users: NDArray[np.int64], targets: Tensor, train: Rows) -> Tensor:
        """Returns the query of each interaction as it is without the interaction's own item: (n, d).

        users: (n,), who had ``targets`` (n,) int64; ``train``: the distinct items of all users.
        """
        indptr, items = train
        distinct, back = np.unique(users, return_inverse=True)
        lengths = indptr[distinct + 1] - indptr[distinct]
        offsets = np.cumsum(lengths) - lengths
        flat = np.arange(lengths.sum()) + np.repeat(indptr[distinct] - offsets, lengths)
        sums = self._sums(items[flat], offsets)[torch.from_numpy(back)] - self._had(targets)
        others = torch.from_numpy((lengths - 1)[back]).clamp(min=1).sqrt().unsqueeze(1)
        return self._user_tower(torch.from_numpy(users), sums / others)

    def _loss(self, queries: Tensor, targets: Tensor, catalogue: "_Catalogue") -> Tensor:
        places = catalogue.place[targets]
        if len(catalogue.items) <= FULL_SOFTMAX_MAX_ITEMS:
            return full_softmax(queries, self._item_tower(catalogue.items), places)
        n_negatives = self.config.n_negatives
        negatives = torch.multinomial(catalogue.probabilities, n_negatives, replacement=True)
        # The tower of what is in the sample alone, once for what is in it twice.
        needed, back = torch.unique(torch.cat([places, negatives]), return_inverse=True)
        vectors = self._item_tower(catalogue.items[needed])[back]
        return softmax_over_sample(
            queries,
            vectors[: len(places)],
            vectors[len(places) :],
            expected=n_negatives * catalogue.probabilities[negatives],
            same=places.unsqueeze(1) == negatives.unsqueeze(0),
        )

    def _sums(self, items: NDArray[np.int32], offsets: NDArray[np.int64]) -> Tensor:
        needed, back = torch.unique(torch.from_numpy(items.astype(np.int64)), return_inverse=True)
        return F.embedding_bag(back, self._had(needed), torch.from_numpy(offsets), mode="sum")

    def _had(self, items: Tensor) -> Tensor:
        """Returns what an item says of who had it: by its id where training knows it, and by its content."""
        ids = self.had_items[items] * self.is_known_item[items].unsqueeze(1)
        return ids + self.item_features[items] @ self.item_projection

    def _user_tower(self, users: Tensor, pooled: Tensor) -> Tensor:
        ids = self.user_ids[users] * self._shown(self.is_known_user[users])
        vectors = ids + self.user_features[users] @ self.user_projection + pooled
        vectors = dropout(vectors, self.config.dropout, self.training)
        return torch.cat([vectors, torch.ones(len(vectors), 1)], dim=1)

    def _item_tower(self, items: Tensor) -> Tensor:
        features, shown = self.item_features[items], self._shown(self.is_known_item[items])
        vectors = self.item_ids[items] * shown + features @ self.item_projection
        biases = self.item_bias[items] * shown + features @ self.bias_projection
        return torch.cat([vectors, biases], dim=1)

    def _shown(self, known: Tensor) -> Tensor:
        """Returns 1 where an id is used, (n, 1): it is known and, in training, not hidden."""
        if self.training:
            known = known & (torch.rand(len(known)) >= self.config.unknown_rate)
        return known.float().unsqueeze(1)

    @torch.no_grad()
    def _write_items(self) -> None:
        for start in range(0, self.n_items, ROWS_PER_STEP):
            rows = torch.arange(start, min(start + ROWS_PER_STEP, self.n_items))
            self.item_embeddings[rows] = self._item_tower(rows)


class _Catalogue:
    """The items that training knows: what the softmax goes over, since of the others nobody could choose.

    items: (n,) int64 · place: (n_items,) int64, where an item is in ``items``, −1 if it is not ·
    probabilities: (n,) float32, the share of each of the interactions.
    """

    def __init__(self, interactions: NDArray[np.int32], n_items: int) -> None:
        counts = torch.from_numpy(np.bincount(interactions, minlength=n_items))
        self.items = torch.nonzero(counts).squeeze(1)
        self.place = torch.full((n_items,), -1)
        self.place[self.items] = torch.arange(len(self.items))
        self.probabilities = counts[self.items].float() / counts.sum()


def create(config: DSSMConfig, n_users: int, n_items: int) -> DSSM:
    """Returns the untrained towers of ids alone."""
    return DSSM(config, np.zeros((n_users, 0), np.float32), np.zeros((n_items, 0), np.float32))


def create_from_data(config: DSSMConfig, dataset: Dataset, split: Split) -> DSSM:
    """Returns the untrained towers over the attributes of ``dataset``, fitted on what train knows."""
    return DSSM(config, *known_attributes(dataset, split))


def _table(n_rows: int, size: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(n_rows, size) * INITIAL_SCALE)


def _distinct(histories: Histories) -> Rows:
    (indptr, items), _ = count_repeats((histories.indptr, histories.item_index))
    return indptr, items


FAMILY = Family(
    settings=DSSMConfig,
    create=create,
    budget={"epochs": 60, "validate_every": 1, "patience": 8},
    loop_options=EPOCH_OPTIONS,
    create_from_data=create_from_data,
)
