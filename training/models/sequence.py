"""What the families that encode a user's history share: the item table, the scores, the inputs."""

import math
from abc import abstractmethod
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from recserve.errors import InvalidRequest
from recserve.training.batches import gaps_of, pad
from recserve.training.data import EvaluationSet
from recserve.training.models.base import EPOCH_OPTIONS, RankingModel

GRADIENT_OPTIONS = EPOCH_OPTIONS | {
    *("batch_size", "learning_rate", "weight_decay", "loss", "n_negatives", "precision"),
    *("epsilon", "delta", "max_norm"),
}
# Of few users an epoch has few steps, and their validation metric is noisy: on S3-Rec's LastFM it rests for
# 30 epochs and rises again, until 150.
BUDGET = {"epochs": 200, "patience": 8}


class SequenceConfig(Protocol):
    """The settings that the loop and the exporters read of every sequence family."""

    @property
    def embedding_size(self) -> int:
        """Width of the item and query embeddings."""
        ...

    @property
    def max_history(self) -> int:
        """Newest items that the model sees."""
        ...

    @property
    def time_gaps(self) -> bool:
        """Whether the model reads how long ago each item was."""
        ...


class SequenceModel(RankingModel):
    """History → query embedding; the score of an item is the inner product with its embedding.

    ``item_embeddings`` (n_items, embedding_size) is both the input table and the output layer. Written for
    export: no data-dependent control flow, batch and length free.
    """

    # Each family narrows it to its own settings.
    config: Any

    has_user_gradients = False
    """Whether torch.func can take the gradient of each user by itself, for DP-SGD."""

    def __init__(self, config: SequenceConfig, n_items: int) -> None:
        super().__init__()
        self.config = config
        self.n_items = n_items
        self.item_embeddings = nn.Parameter(torch.empty(n_items, config.embedding_size))
        nn.init.normal_(self.item_embeddings, std=1 / math.sqrt(config.embedding_size))

    @abstractmethod
    def forward(self, history: Tensor, time_gaps: Tensor | None = None) -> Tensor:
        """Encodes each history at every position.

        ``history``: (batch, length) int, item indices left-padded with −1, length ≤ max_history.
        ``time_gaps``: (batch, length) float, seconds from each item to the next (the newest to now).
        Returns (batch, length, embedding_size), the last for the whole history.
        """

    def encode(self, history: Tensor, time_gaps: Tensor | None = None) -> Tensor:
        """Returns the query embedding (batch, embedding_size): the encoding of the whole history."""
        return self(history, time_gaps)[:, -1]  # type: ignore[no-any-return]

    def examples(self, history: Tensor, targets: Tensor, time_gaps: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns query embeddings (n, embedding_size) and the item (n,) that each should find.

        ``targets`` (batch, length): the item after each of ``history``, −1 where padded. A causal model
        learns from every prefix at once.
        """
        learned = (history >= 0) & (targets >= 0)
        return self(history, time_gaps)[learned], targets[learned]

    def score(self, queries: Tensor) -> Tensor:
        """Returns the scores (..., n_items) of all items."""
        return queries @ self.item_embeddings.T

    @torch.inference_mode()
    def score_rows(self, held_out: EvaluationSet, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Returns the scores (len(rows), n_items) of users whose history is that of ``held_out``."""
        scores: NDArray[np.float32] = self.score(self.encode(*model_inputs(self, held_out, rows))).numpy()
        return scores


def model_inputs(
    model: SequenceModel, held_out: EvaluationSet, rows: NDArray[np.int64]
) -> tuple[Tensor, Tensor | None]:
    """Returns the encoder's inputs for ``rows``: history (batch, length) int32 and, where used, time gaps.

    "Now" is the moment of the first held-out interaction: when the question was asked.
    """
    items, times = pad(held_out.histories, rows, model.config.max_history)
    if not model.config.time_gaps:
        return torch.from_numpy(items), None
    now = held_out.targets.timestamp[held_out.targets.indptr[rows]]
    return torch.from_numpy(items), torch.from_numpy(gaps_of(times, now))


def check_shape(config: Any, *sizes: str) -> None:
    """Raises :class:`InvalidRequest` unless ``sizes`` are 1 or more and dropout is a rate."""
    for name in ("embedding_size", "max_history", *sizes):
        if getattr(config, name) < 1:
            raise InvalidRequest(name, found=getattr(config, name), expected="1 or more")
    for name in ("dropout", "unknown_rate"):
        if not 0 <= getattr(config, name) < 1:
            raise InvalidRequest(name, found=getattr(config, name), expected="0 to below 1")


def check_heads(config: Any) -> None:
    """Raises :class:`InvalidRequest` unless the heads of attention divide the width."""
    if config.embedding_size % config.n_heads:
        raise InvalidRequest(
            "embedding_size",
            found=config.embedding_size,
            expected=f"a multiple of n_heads ({config.n_heads})",
        )
