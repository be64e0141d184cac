"""Causal encoders whose work on a history serves the longer one too: keys and values are kept.

What is kept of an item must not change with what comes after it: positions are counted from the oldest item
instead of the newest. The newest item itself is computed anew each time, for how long ago it was changes.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from recserve.errors import InvalidRequest
from recserve.training.models.sequence import SequenceConfig, SequenceModel

# Of fewer items the sizes of what is kept and what is new cannot both be free in the exported graph.
SHORTEST_WINDOW = 4
# What the exporter cannot know of free sizes; without types.
_check: Any = torch._check


def check_window(config: Any) -> None:
    """Raises :class:`InvalidRequest` unless histories that are encoded bit by bit are long enough."""
    if config.incremental and config.max_history < SHORTEST_WINDOW:
        expected = f"{SHORTEST_WINDOW} or more with incremental"
        raise InvalidRequest("max_history", found=config.max_history, expected=expected)


class LayerMemory:
    """Keys and values of one layer at the positions before new ones, of one history.

    ``key`` and ``value``: (n_past, n_heads, head size). They are read where they lie, not joined with the new
    ones: copies of them would cost more than the new positions.
    """

    def __init__(self, key: Tensor, value: Tensor) -> None:
        self._key, self._value = key, value
        self.new: list[Tensor] = []
        """Key and value of the new positions, once both were used."""

    def agreement(self, query: Tensor, key: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns the inner products (n_heads, n_asked, n_past + n) of queries with all keys, new ones last.

        ``query``: (n_asked, n_heads, head size); ``key``: (n, n_heads, head size), of the new positions;
        ``mask``: (n_asked, n), added to the products with these.
        """
        self.new.append(key)
        query = query.transpose(0, 1)
        products = query @ key.permute(1, 2, 0)
        return torch.cat(
            [query @ self._key.permute(1, 2, 0), products if mask is None else products + mask], dim=-1
        )

    def mixture(self, weights: Tensor, value: Tensor, *, scale: float = 1.0, causal: bool = False) -> Tensor:
        """Returns the sums (n_asked, width) of all values by ``weights`` (n_heads, n_asked, n_past + n).

        ``value``: (n, n_heads, head size), of the new positions; ``scale``: of the sums; ``causal``: a new
        position gets nothing of later ones, whatever their weight.
        """
        self.new.append(value)
        n_past, n_asked = self._key.shape[0], weights.shape[1]
        before, beside = weights[..., :n_past], weights[..., n_past:]
        if causal:
            beside = beside.tril()
        # The runtime makes each scale one with its product.
        mixed = (before @ self._value.transpose(0, 1)) * scale + (beside @ value.transpose(0, 1)) * scale
        return (mixed if n_asked == 1 else mixed.transpose(0, 1)).reshape(n_asked, -1)


class IncrementalModel(SequenceModel):
    """A causal encoder of layers of attention; with ``config.incremental`` it has :meth:`encode_new`.

    ``distances``: (max_history, max_history), how many positions the column is before the row.
    """

    distances: Tensor

    def __init__(self, config: SequenceConfig, n_items: int) -> None:
        super().__init__(config, n_items)
        steps = torch.arange(config.max_history)
        self.register_buffer("distances", steps.unsqueeze(1) - steps, persistent=False)

    def past_shape(self, n: int) -> tuple[int, int, int, int]:
        """Returns the shape of the keys and values of ``n`` items, those of a layer side by side."""
        n_heads: int = self.config.n_heads
        return 2 * self.config.n_blocks, n, n_heads, self.config.embedding_size // n_heads

    @abstractmethod
    def encode_beside(
        self, history: Tensor, time_gaps: Tensor | None, memories: Sequence[LayerMemory], rows: slice
    ) -> Tensor:
        """Returns the encoding (1, embedding_size) of the last of the items ``history`` (n,).

        ``memories``: of each layer the positions before them; ``time_gaps`` (n_past + n,): of all positions;
        ``rows``: the new ones among all.
        """

    def encode_new(
        self, history: Tensor, past: Sequence[Tensor], time_gaps: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Encodes the items ``history`` (n,), one or more, that come after others.

        ``past``: key and value of those, layer by layer, (n_past, n_heads, head size) each. ``time_gaps``
        (n_past + n,): seconds from each item to the next. Without a batch, since with one new item an
        operator that only turns a tensor costs as much as one that computes. Returns the query embedding
        (1, embedding_size) of all, and keys and values (2 n_layers, n, n_heads, head size) of the new items;
        where time is read, those of the last are for now only.
        """
        memories = [LayerMemory(*past[i : i + 2]) for i in range(0, len(past), 2)]
        n_past = past[0].shape[0]
        n_all = n_past + history.shape[0]
        _check(n_all <= self.config.max_history)
        if time_gaps is not None:
            _check(time_gaps.shape[0] == n_all)
            # In the exported graph one operator instead of four.
            n_all = time_gaps.shape[0]
        query = self.encode_beside(history, time_gaps, memories, slice(n_past, n_all))
        new = torch.cat([part for memory in memories for part in memory.new])
        return query, new.view(len(past), -1, *new.shape[1:])

    def places(self, history: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns where each row of ``history`` (batch, length) stands.

        Positions: (length,) or (batch, length). How many positions back a column is: (length, length). Which
        ones a row may look at: (batch, length, length).
        """
        length = history.shape[1]
        # A slice of a table is one operator of the exported graph.
        distance = self.distances[:length, :length]
        real = history >= 0
        positions = length - 1 - torch.arange(length, device=history.device)
        if self.config.incremental:
            positions = (real.to(torch.int64).cumsum(1) - 1).clamp(min=0)
        return positions, distance, (distance >= 0) & real.unsqueeze(1)
