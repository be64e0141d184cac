"""SASRec: a causal transformer over a user's history (Kang & McAuley 2018, arXiv:1808.09781).

Trained with the softmax cross-entropy over the catalogue (Klenitskiy & Vasilev 2023, arXiv:2309.07602)
instead of the paper's one sampled negative; for large catalogues with a sampled softmax under the logQ
correction (Yi et al. 2019).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recserve.training.models.base import Family
from recserve.training.models.content import creator
from recserve.training.models.dropout import Dropout, dropout
from recserve.training.models.incremental import IncrementalModel, LayerMemory, check_window
from recserve.training.models.sequence import (
    BUDGET,
    GRADIENT_OPTIONS,
    SequenceConfig,
    check_heads,
    check_shape,
)

# A gap falls into a bucket of its logarithm (base e): seconds 0..1 first, more than ~20 years last.
N_GAP_BUCKETS = 21
# A logit that leaves no weight, of a table of weights: those are finite in a bundle.
HIDDEN = -1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class SASRecConfig:
    """The shape of the network."""

    embedding_size: int = 64
    n_blocks: int = 2
    n_heads: int = 2
    max_history: int = 50
    dropout: float = 0.5
    time_gaps: bool = False
    """Whether attention sees how long ago each item was (a learned bias per head and logarithmic bucket)."""
    incremental: bool = False
    """Whether positions are counted from the oldest item: what is computed of a history serves the longer."""
    content: bool = False
    """Whether an item is also what is known of it."""
    unknown_rate: float = 0.2
    """How often training hides the id of an item that has content."""

    def __post_init__(self) -> None:
        check_shape(self, "n_blocks", "n_heads")
        check_heads(self)
        check_window(self)


class TransformerConfig(SequenceConfig, Protocol):
    """What a :class:`Block` reads of its family's settings."""

    @property
    def n_heads(self) -> int:
        """Heads of attention."""
        ...

    @property
    def dropout(self) -> float:
        """Dropout rate."""
        ...


class SASRec(IncrementalModel):
    """The encoding at a position has seen the items up to it only."""

    has_user_gradients = True

    def __init__(self, config: SASRecConfig, n_items: int) -> None:
        super().__init__(config, n_items)
        size = config.embedding_size
        # Position 0 is the newest item (or the oldest), so that padding on the left changes nothing.
        self.position_embeddings = nn.Parameter(torch.empty(config.max_history, size))
        self.input_dropout: nn.Module = Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_blocks))
        self.norm: nn.Module = nn.LayerNorm(size)
        nn.init.normal_(self.position_embeddings, std=0.02)

    def forward(self, history: Tensor, time_gaps: Tensor | None = None) -> Tensor:
        """Encodes every prefix of each history, see :meth:`SequenceModel.forward`."""
        x, bias, buckets = self._input(history, time_gaps)
        for block in self.blocks:
            x = block(x, bias, buckets)
        return self.norm(x)  # type: ignore[no-any-return]

    def encode(self, history: Tensor, time_gaps: Tensor | None = None) -> Tensor:
        """Returns the last row of :meth:`forward`.

        The last block computes nothing for the other positions but their keys and values.
        """
        x, bias, buckets = self._input(history, time_gaps)
        for block in self.blocks[:-1]:
            x = block(x, bias, buckets)
        return self.norm(self.blocks[-1](x, bias, buckets, newest_only=True))  # type: ignore[no-any-return]

    def encode_beside(
        self, history: Tensor, time_gaps: Tensor | None, memories: Sequence[LayerMemory], rows: slice
    ) -> Tensor:
        """Returns what :meth:`encode` does, see :meth:`IncrementalModel.encode_beside`."""
        n = history.shape[0]
        x = F.embedding(history, self.item_embeddings) * math.sqrt(self.config.embedding_size)
        # A second slice is one operator of the exported graph; where the rows end would be four.
        x = x + self.position_embeddings[rows.start :][:n]
        mask = torch.where(self.distances >= 0, 0.0, HIDDEN)[:n, :n]
        buckets = None if time_gaps is None else _gap_buckets(time_gaps)
        blocks = [cast(Block, block) for block in self.blocks]
        for block, memory in zip(blocks[:-1], memories, strict=False):
            x = block.beside(x, memory, mask, buckets)
        return self.norm(blocks[-1].beside(x, memories[-1], None, buckets))  # type: ignore[no-any-return]

    def _input(self, history: Tensor, time_gaps: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Returns the first block's input (batch, length, size), what is added to the attention's logits
        (batch, 1, length, length; −inf where a row may not look) and the buckets of the gaps."""
        positions, distance, mask = self.places(history)
        x = F.embedding(history.clamp(min=0), self.item_embeddings) * math.sqrt(self.config.embedding_size)
        x = self.input_dropout(x + self.position_embeddings[positions])
        x = x * (history >= 0).unsqueeze(-1)
        # A padded row attends to itself: a softmax over nothing would be NaN.
        bias = torch.where(mask | (distance == 0), 0.0, float("-inf")).unsqueeze(1)
        return x, bias, None if time_gaps is None else _gap_buckets(time_gaps)


class Block(nn.Module):
    """Pre-norm attention and feed-forward, each with a residual."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        size = config.embedding_size
        self.n_heads = config.n_heads
        self.dropout = config.dropout
        self.attention_norm = nn.LayerNorm(size)
        self.qkv = nn.Linear(size, 3 * size)
        self.project = nn.Linear(size, size)
        self.gap_bias = nn.Parameter(torch.zeros(config.n_heads, N_GAP_BUCKETS)) if config.time_gaps else None
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(size),
            nn.Linear(size, 4 * size),
            nn.GELU(),
            nn.Linear(4 * size, size),
            Dropout(config.dropout),
        )

    def forward(
        self, x: Tensor, bias: Tensor, gap_buckets: Tensor | None, *, newest_only: bool = False
    ) -> Tensor:
        """``x``: (batch, length, size); ``bias``: (batch, 1, length, length), added to the logits.

        Returns the same shape, with ``newest_only`` (batch, size): the row of the last position.
        """
        batch, length, size = x.shape
        n_asked = 1 if newest_only else length
        # In two dimensions a linear layer with its bias is one operator of the exported graph.
        normed = self.attention_norm(x).reshape(batch * length, size)
        query, key, value = self._query_key_value(normed, batch, length, newest_only)
        # Written out: the fused operator, when a bias is learned, does not export with free shapes.
        logits = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        logits = logits + bias[..., -n_asked:, :]
        if self.gap_bias is not None and gap_buckets is not None:
            logits = logits + self.gap_bias[:, gap_buckets].permute(1, 0, 2).unsqueeze(2)
        weights = dropout(torch.softmax(logits, dim=-1), self.dropout, self.training)
        attended = (weights @ value).transpose(1, 2).reshape(batch * n_asked, -1)
        asked = x[:, -1] if newest_only else x.reshape(batch * length, size)
        asked = asked + dropout(self.project(attended), self.dropout, self.training)
        answer: Tensor = asked + self.feed_forward(asked)
        return answer if newest_only else answer.view(batch, length, size)

    def beside(
        self, x: Tensor, memory: LayerMemory, mask: Tensor | None, gap_buckets: Tensor | None
    ) -> Tensor:
        """Mixes the new positions ``x`` (n, size) and those of ``memory``, as :meth:`forward` all of them.

        ``mask``: (n, n), added to the logits between new positions; ``gap_buckets``: (n_past + n,). Returns
        the same shape, without ``mask`` (1, size): the last row, which may look at all.
        """
        query, key, value = (
            self.qkv(self.attention_norm(x))
            .view(-1, 3 * self.n_heads, self.project.in_features // self.n_heads)
            .chunk(3, dim=1)
        )
        if mask is None:
            query, x = query[-1:], x[-1:]
        # The runtime makes the division one with the products that follow.
        logits = memory.agreement(query / math.sqrt(query.shape[-1]), key, mask)
        if self.gap_bias is not None and gap_buckets is not None:
            logits = logits + self.gap_bias[:, gap_buckets].unsqueeze(1)
        x = x + self.project(memory.mixture(torch.softmax(logits, dim=-1), value))
        answer: Tensor = x + self.feed_forward(x)
        return answer

    def _query_key_value(
        self, normed: Tensor, batch: int, length: int, newest_only: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns (batch, n_heads, rows, head size) each; the query has the newest row alone if asked."""
        width = self.qkv.out_features // 3
        head = width // self.n_heads
        if not newest_only:
            qkv = self.qkv(normed).view(batch, length, 3 * self.n_heads, head)
            return qkv.transpose(1, 2).chunk(3, dim=1)  # type: ignore[no-any-return]
        newest = normed.view(batch, length, -1)[:, -1]
        query = F.linear(newest, self.qkv.weight[:width], self.qkv.bias[:width])
        key_value = F.linear(normed, self.qkv.weight[width:], self.qkv.bias[width:])
        key, value = key_value.view(batch, length, 2 * self.n_heads, head).transpose(1, 2).chunk(2, dim=1)
        return query.view(batch, 1, self.n_heads, head).transpose(1, 2), key, value


def _gap_buckets(time_gaps: Tensor) -> Tensor:
    """Returns the bucket of the logarithm of each gap, (batch, length) int64 in 0..N_GAP_BUCKETS−1."""
    return torch.log1p(time_gaps.clamp(min=0)).floor().clamp(max=N_GAP_BUCKETS - 1).to(torch.int64)


FAMILY = Family(
    settings=SASRecConfig,
    create=lambda settings, n_users, n_items: SASRec(settings, n_items),
    budget=BUDGET,
    loop_options=GRADIENT_OPTIONS,
    min_history=2,
    create_from_data=creator(SASRec),
)
