"""SASRec: a causal transformer over a user's history (Kang & McAuley 2018, arXiv:1808.09781).

Trained with the softmax cross-entropy over the catalogue (Klenitskiy & Vasilev 2023, arXiv:2309.07602)
instead of the paper's one sampled negative; for large catalogues with a sampled softmax under the logQ
correction (Yi et al. 2019). Written for export: no data-dependent control flow, batch and length free.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from recserve.errors import InvalidRequest
from recserve.training.batches import gaps_of, pad
from recserve.training.data import EvaluationSet
from recserve.training.models.base import EPOCH_OPTIONS, Family, RankingModel

# A gap falls into a bucket of its logarithm (base e): seconds 0..1 first, more than ~20 years last.
N_GAP_BUCKETS = 21


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

    def __post_init__(self) -> None:
        for name in ("embedding_size", "n_blocks", "n_heads", "max_history"):
            if getattr(self, name) < 1:
                raise InvalidRequest(name, found=getattr(self, name), expected="1 or more")
        if self.embedding_size % self.n_heads:
            raise InvalidRequest(
                "embedding_size",
                found=self.embedding_size,
                expected=f"a multiple of n_heads ({self.n_heads})",
            )
        if not 0 <= self.dropout < 1:
            raise InvalidRequest("dropout", found=self.dropout, expected="0 to below 1")


class SASRec(RankingModel):
    """History → query embedding; the score of an item is the inner product with its embedding.

    ``item_embeddings`` (n_items, embedding_size) is both the input table and the output layer.
    """

    def __init__(self, config: SASRecConfig, n_items: int) -> None:
        super().__init__()
        self.config = config
        self.n_items = n_items
        size = config.embedding_size
        self.item_embeddings = nn.Parameter(torch.empty(n_items, size))
        # Position 0 is the newest item, so that padding a history on the left changes nothing.
        self.position_embeddings = nn.Parameter(torch.empty(config.max_history, size))
        self.input_dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_blocks))
        self.norm = nn.LayerNorm(size)
        nn.init.normal_(self.item_embeddings, std=1 / math.sqrt(size))
        nn.init.normal_(self.position_embeddings, std=0.02)

    def forward(self, history: Tensor, time_gaps: Tensor | None = None) -> Tensor:
        """Encodes every prefix of each history.

        ``history``: (batch, length) int, item indices left-padded with −1, length ≤ max_history.
        ``time_gaps``: (batch, length) float, seconds from each item to the next (the newest to now).
        Returns (batch, length, embedding_size); row t has seen the items 0..t only.
        """
        x, bias, buckets = self._input(history, time_gaps)
        for block in self.blocks:
            x = block(x, bias, buckets)
        return self.norm(x)  # type: ignore[no-any-return]

    def encode(self, history: Tensor, time_gaps: Tensor | None = None) -> Tensor:
        """Returns the query embedding (batch, embedding_size): the last row of :meth:`forward`.

        The last block computes nothing for the other positions but their keys and values.
        """
        x, bias, buckets = self._input(history, time_gaps)
        for block in self.blocks[:-1]:
            x = block(x, bias, buckets)
        x = self.blocks[-1](x, bias, buckets, newest_only=True)
        return self.norm(x[:, 0])  # type: ignore[no-any-return]

    def _input(self, history: Tensor, time_gaps: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Returns the first block's input (batch, length, size), what is added to the attention's logits
        (batch, 1, length, length; −inf where a row may not look) and the buckets of the gaps."""
        length = history.shape[1]
        real = history >= 0
        positions = torch.arange(length - 1, -1, -1, device=history.device)
        x = F.embedding(history.clamp(min=0), self.item_embeddings) * math.sqrt(self.config.embedding_size)
        x = self.input_dropout(x + self.position_embeddings[positions]) * real.unsqueeze(-1)
        steps = torch.arange(length, device=history.device)
        causal = steps.unsqueeze(1) >= steps.unsqueeze(0)
        itself = steps.unsqueeze(1) == steps.unsqueeze(0)
        # A padded row attends to itself: a softmax over nothing would be NaN.
        mask = (causal & real.unsqueeze(1)) | itself
        bias = torch.where(mask, 0.0, float("-inf")).unsqueeze(1)
        return x, bias, None if time_gaps is None else _gap_buckets(time_gaps)

    def score(self, queries: Tensor) -> Tensor:
        """Returns the scores (..., n_items) of all items."""
        return queries @ self.item_embeddings.T

    @torch.inference_mode()
    def score_rows(self, held_out: EvaluationSet, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Returns the scores (len(rows), n_items) of users whose history is that of ``held_out``."""
        scores: NDArray[np.float32] = self.score(self.encode(*model_inputs(self, held_out, rows))).numpy()
        return scores


class Block(nn.Module):
    """Pre-norm attention and feed-forward, each with a residual."""

    def __init__(self, config: SASRecConfig) -> None:
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
            nn.Dropout(config.dropout),
        )

    def forward(
        self, x: Tensor, bias: Tensor, gap_buckets: Tensor | None, *, newest_only: bool = False
    ) -> Tensor:
        """``x``: (batch, length, size); ``bias``: (batch, 1, length, length), added to the logits.

        Returns the same shape, with ``newest_only`` (batch, 1, size): the row of the last position.
        """
        batch, length, size = x.shape
        n_asked = 1 if newest_only else length
        # In two dimensions a linear layer with its bias is one operator of the exported graph.
        normed = self.attention_norm(x).reshape(batch * length, size)
        query, key, value = self._query_key_value(normed, batch, length, newest_only)
        # Written out: the fused operator, when a bias is learned, does not export with free shapes.
        logits = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1]) + bias[:, :, -n_asked:]
        if self.gap_bias is not None and gap_buckets is not None:
            logits = logits + self.gap_bias[:, gap_buckets].permute(1, 0, 2).unsqueeze(2)
        attended = F.dropout(torch.softmax(logits, dim=-1), self.dropout, self.training) @ value
        attended = attended.transpose(1, 2).reshape(batch * n_asked, -1)
        asked = x[:, -n_asked:].reshape(batch * n_asked, size)
        asked = asked + F.dropout(self.project(attended), self.dropout, self.training)
        return (asked + self.feed_forward(asked)).view(batch, n_asked, size)  # type: ignore[no-any-return]

    def _query_key_value(
        self, normed: Tensor, batch: int, length: int, newest_only: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns (batch, n_heads, rows, head size) each; the query has the newest row alone if asked."""
        width = self.qkv.out_features // 3
        head = width // self.n_heads
        if not newest_only:
            qkv = self.qkv(normed).view(batch, length, 3, self.n_heads, head)
            return qkv.permute(2, 0, 3, 1, 4).unbind(0)  # type: ignore[no-any-return]
        newest = normed.view(batch, length, -1)[:, -1]
        query = F.linear(newest, self.qkv.weight[:width], self.qkv.bias[:width])
        key_value = F.linear(normed, self.qkv.weight[width:], self.qkv.bias[width:])
        key, value = key_value.view(batch, length, 2, self.n_heads, head).permute(2, 0, 3, 1, 4).unbind(0)
        return query.view(batch, 1, self.n_heads, head).transpose(1, 2), key, value


def _gap_buckets(time_gaps: Tensor) -> Tensor:
    """Returns the bucket of the logarithm of each gap, (batch, length) int64 in 0..N_GAP_BUCKETS−1."""
    return torch.log1p(time_gaps.clamp(min=0)).floor().clamp(max=N_GAP_BUCKETS - 1).to(torch.int64)


def model_inputs(
    model: SASRec, held_out: EvaluationSet, rows: NDArray[np.int64]
) -> tuple[Tensor, Tensor | None]:
    """Returns the encoder's inputs for ``rows``: history (batch, length) int32 and, where used, time gaps.

    "Now" is the moment of the first held-out interaction: when the question was asked.
    """
    items, times = pad(held_out.histories, rows, model.config.max_history)
    if not model.config.time_gaps:
        return torch.from_numpy(items), None
    now = held_out.targets.timestamp[held_out.targets.indptr[rows]]
    return torch.from_numpy(items), torch.from_numpy(gaps_of(times, now))


FAMILY = Family(
    settings=SASRecConfig,
    create=lambda settings, n_users, n_items: SASRec(settings, n_items),
    budget={},
    loop_options=EPOCH_OPTIONS | {"batch_size", "learning_rate", "weight_decay", "loss", "n_negatives"},
    min_history=2,
)
