"""Causal encoders whose work on a history serves the longer one too: keys and values are kept.

What is kept of an item must not change with what comes after it: positions are counted from the oldest item
instead of the newest. The newest item itself is computed anew each time, for how long ago it was changes.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from recserve.training.models.sequence import SequenceConfig, SequenceModel

# Without types.
_check: Any = torch._check


class LayerMemory:
    """Keys and values of one layer at the positions before new ones, of one history.

    ``key`` and ``value``: (1, n_heads, n_past, head size). They are read where they lie, not joined with the
    new ones: copies of them would cost more than the new positions.
    """

    def __init__(self, key: Tensor, value: Tensor) -> None:
        self._key, self._value = key, value
        self.new: list[Tensor] = []
        """Key and value of the new positions, once both were used."""

    @property
    def n_past(self) -> int:
        """How many positions come before the new ones."""
        return self._key.shape[2]

    def agreement(self, query: Tensor, key: Tensor) -> Tensor:
        """Returns the inner products of ``query`` with all keys, those before the new ones first."""
        self.new.append(key)
        return torch.cat([query @ self._key.transpose(-1, -2), query @ key.transpose(-1, -2)], dim=-1)

    def mixture(self, weights: Tensor, value: Tensor) -> Tensor:
        """Returns the sum of all values by ``weights``."""
        self.new.append(value)
        n_past = self.n_past
        return weights[..., :n_past] @ self._value + weights[..., n_past:] @ value


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
        return 2 * self.config.n_blocks, n_heads, n, self.config.embedding_size // n_heads

    @abstractmethod
    def encode_last(
        self, history: Tensor, time_gaps: Tensor | None, memories: Sequence[LayerMemory] | None
    ) -> Tensor:
        """Returns the encoding (batch, embedding_size) of the last position.

        ``memories``: of each layer the positions before ``history``; then there is one row, without padding,
        and ``time_gaps`` are those of all positions.
        """

    def encode(self, history: Tensor, time_gaps: Tensor | None = None) -> Tensor:
        """Returns the query embedding (batch, embedding_size), see :meth:`SequenceModel.encode`."""
        return self.encode_last(history, time_gaps, None)

    def encode_new(
        self,
        history: Tensor,
        past: Sequence[Tensor],
        time_gaps: Tensor | None = None,
        past_gaps: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Encodes the items ``history`` (1, n) that come after others.

        ``past``: key and value of those, layer by layer, (1, n_heads, n_past, head size) each. ``time_gaps``
        (1, n) and ``past_gaps`` (1, n_past): seconds from each item to the next. Returns the query embedding
        (1, embedding_size) of all, and keys and values (2 n_layers, n_heads, n, head size) of the new ones;
        those of the last are for now only.
        """
        memories = [LayerMemory(*past[i : i + 2]) for i in range(0, len(past), 2)]
        gaps = None
        if time_gaps is not None and past_gaps is not None:
            gaps = torch.cat([past_gaps, time_gaps], dim=1)
        query = self.encode_last(history, gaps, memories)
        return query, torch.cat([part for memory in memories for part in memory.new])

    def beside(self, memories: Sequence[LayerMemory], table: Tensor, length: int) -> Tensor:
        """Returns the part of ``table`` (max_history, max_history) of ``length`` new rows and all columns."""
        n_past = memories[0].n_past
        n_all = n_past + length
        # What the exporter cannot know: a window is no longer than the table.
        _check(n_all <= len(table))
        return table[n_past:n_all, :n_all]

    def places(
        self, history: Tensor, memories: Sequence[LayerMemory] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns where each row of ``history`` stands; columns are all rows and the positions before them.

        Positions: (length,) or (batch, length). How many positions back a column is: (length, n_columns).
        Which ones a row may look at: (batch, length, n_columns), or (length, n_columns) beside memories.
        """
        length = history.shape[1]
        if memories:
            # As few operators as can be: with one new item each of them costs as much as its work.
            n_past = memories[0].n_past
            rows = torch.arange(n_past, n_past + length, device=history.device)
            distance = self.beside(memories, self.distances, length)
            return rows, distance, distance >= 0
        # A slice of a table is one operator of the exported graph.
        distance = self.distances[:length, :length]
        real = history >= 0
        positions = length - 1 - torch.arange(length, device=history.device)
        if self.config.incremental:
            positions = (real.to(torch.int64).cumsum(1) - 1).clamp(min=0)
        return positions, distance, (distance >= 0) & real.unsqueeze(1)
