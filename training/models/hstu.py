"""HSTU: a sequence model that is made to grow (Zhai et al. 2024, arXiv:2402.17152).

Three things set a layer apart from a transformer's. Attention is pointwise, SiLU instead of softmax, so that
how much of the history agrees is not normalised away; it is divided by a constant, the longest history,
because a divisor that counted what is there would tell a position about padding or about later items. What
attention reads is gated by the position itself and replaces the feed-forward part. And logits have a bias
learned for each distance in position and each logarithm of a distance in time.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recserve.errors import InvalidRequest, nearest
from recserve.training.models.base import Family
from recserve.training.models.content import creator
from recserve.training.models.dropout import Dropout, dropout
from recserve.training.models.incremental import IncrementalModel, LayerMemory, check_window
from recserve.training.models.sequence import BUDGET, GRADIENT_OPTIONS, check_heads, check_shape

# A distance in time falls into a bucket of its logarithm (base e, in seconds), 31 years in the last.
N_TIME_BUCKETS = 21
# What a size stands for, from a smoke test to a large model; a setting that is given goes before it.
SIZES: dict[str, dict[str, int]] = {
    "tiny": {"embedding_size": 32, "n_blocks": 1, "n_heads": 1, "max_history": 50},
    "small": {"embedding_size": 64, "n_blocks": 2, "n_heads": 2, "max_history": 50},
    "base": {"embedding_size": 128, "n_blocks": 4, "n_heads": 4, "max_history": 100},
    "large": {"embedding_size": 256, "n_blocks": 8, "n_heads": 8, "max_history": 200},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class HSTUConfig:
    """The shape of the network. What is 0 takes the value of ``size``."""

    size: str = "small"
    """tiny, small, base or large."""
    embedding_size: int = 0
    n_blocks: int = 0
    n_heads: int = 0
    max_history: int = 0
    dropout: float = 0.5
    time_gaps: bool = True
    """Whether attention knows how far apart in time two items are."""
    incremental: bool = False
    """Whether positions are counted from the oldest item: what is computed of a history serves the longer."""
    content: bool = False
    """Whether an item is also what is known of it."""
    unknown_rate: float = 0.2
    """How often training hides the id of an item that has content."""

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise InvalidRequest(
                "size", found=self.size, expected=f"one of {', '.join(SIZES)}", cure=nearest(self.size, SIZES)
            )
        for name, value in SIZES[self.size].items():
            if getattr(self, name) == 0:
                object.__setattr__(self, name, value)
        check_shape(self, "n_blocks", "n_heads")
        check_heads(self)
        check_window(self)


class HSTU(IncrementalModel):
    """The encoding at a position has seen the items up to it only."""

    has_user_gradients = True

    def __init__(self, config: HSTUConfig, n_items: int) -> None:
        super().__init__(config, n_items)
        size = config.embedding_size
        # Position 0 is the newest item (or the oldest), so that padding on the left changes nothing.
        self.position_embeddings = nn.Parameter(torch.empty(config.max_history, size))
        self.input_dropout: nn.Module = Dropout(config.dropout)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.n_blocks))
        self.norm: nn.Module = nn.LayerNorm(size)
        nn.init.normal_(self.position_embeddings, std=0.02)

    def forward(self, history: Tensor, time_gaps: Tensor | None = None) -> Tensor:
        """Encodes every prefix of each history, see :meth:`SequenceModel.forward`."""
        x, share, biases, buckets = self._input(history, time_gaps)
        for layer, bias in zip(self.layers, biases, strict=True):
            x = layer(x, share, bias, buckets)
        return self.norm(x)  # type: ignore[no-any-return]

    def encode(self, history: Tensor, time_gaps: Tensor | None = None) -> Tensor:
        """Returns the last row of :meth:`forward`.

        The last layer computes nothing for the other positions but their keys and values.
        """
        x, share, biases, buckets = self._input(history, time_gaps)
        last = len(self.layers) - 1
        for i, layer in enumerate(self.layers):
            x = layer(x, share, biases[i], buckets, newest_only=i == last)
        return self.norm(x)  # type: ignore[no-any-return]

    def encode_beside(
        self, history: Tensor, time_gaps: Tensor | None, memories: Sequence[LayerMemory], rows: slice
    ) -> Tensor:
        """Returns what :meth:`encode` does, see :meth:`IncrementalModel.encode_beside`."""
        x = F.embedding(history, self.item_embeddings) * math.sqrt(self.config.embedding_size)
        x = x + self.position_embeddings[rows]
        buckets = None if time_gaps is None else self._buckets(time_gaps, rows.start)
        biases = self._position_biases(self.distances)
        layers = [cast(Layer, layer) for layer in self.layers]
        for layer, memory, bias in zip(layers[:-1], memories, biases, strict=False):
            x = layer.beside(x, memory, bias[rows, : rows.stop], buckets)
        newest = layers[-1].position_bias[: rows.stop].flip(0)
        buckets = None if buckets is None else buckets[-1]
        x = layers[-1].beside(x, memories[-1], newest, buckets, newest_only=True)
        return self.norm(x)  # type: ignore[no-any-return]

    def _input(
        self, history: Tensor, time_gaps: Tensor | None
    ) -> tuple[Tensor, Tensor, list[Tensor], Tensor | None]:
        """Returns what the layers read, a bias for each: see :meth:`Layer.forward`."""
        positions, _, _ = self.places(history)
        x = F.embedding(history.clamp(min=0), self.item_embeddings) * math.sqrt(self.config.embedding_size)
        x = x + F.embedding(positions, self.position_embeddings)
        buckets = None if time_gaps is None else self._buckets(time_gaps)
        length = history.shape[1]
        # What does not depend on the history is made before it is cut: constants of the exported graph.
        biases = [bias[:length, :length] for bias in self._position_biases(self.distances)]
        earlier = ((self.distances >= 0) * (1 / self.config.max_history))[:length, :length]
        real = (history >= 0).to(x.dtype)
        x = self.input_dropout(x) * real.unsqueeze(-1)
        return x, earlier * real[:, None, None], biases, buckets

    def _buckets(self, time_gaps: Tensor, first: int = 0) -> Tensor:
        return time_buckets(time_gaps, first)

    def _position_biases(self, distance: Tensor) -> list[Tensor]:
        """Returns each layer's bias for the distances, of the same shape."""
        layers = [cast(Layer, layer) for layer in self.layers]
        return [_looked_up(layer.position_bias, distance.clamp(min=0)) for layer in layers]


class Layer(nn.Module):
    """Pointwise attention, gated, with a residual."""

    def __init__(self, config: HSTUConfig) -> None:
        super().__init__()
        size = config.embedding_size
        self.n_heads, self.dropout = config.n_heads, config.dropout
        self.input_norm = nn.LayerNorm(size)
        # Gate, value, query and key of every position.
        self.expand = nn.Linear(size, 4 * size)
        self.attended_norm = nn.LayerNorm(size)
        self.project = nn.Linear(size, size)
        self.position_bias = nn.Parameter(torch.zeros(config.max_history))
        self.time_bias = nn.Parameter(torch.zeros(N_TIME_BUCKETS)) if config.time_gaps else None

    def forward(
        self,
        x: Tensor,
        share: Tensor,
        bias: Tensor,
        buckets: Tensor | None,
        *,
        newest_only: bool = False,
    ) -> Tensor:
        """Mixes the positions of ``x`` (batch, length, size).

        ``share``: (batch, 1, length, length), one over the longest history where a row may look, else 0;
        ``bias``: (length, length), what is added for the distance in positions; ``buckets``: (batch, length,
        length), how long ago the column was.
        Returns the same shape, with ``newest_only`` (batch, size): the row of the last position.
        """
        batch, length, size = x.shape
        n_asked = 1 if newest_only else length
        gate, value, query, key = self._expand(self.input_norm(x), newest_only)
        logits = query @ key.transpose(-1, -2) + bias[-n_asked:]
        if self.time_bias is not None and buckets is not None:
            logits = logits + _looked_up(self.time_bias, buckets[:, -n_asked:]).unsqueeze(1)
        weights = F.silu(logits) * share[..., -n_asked:, :]
        attended = (weights @ value).transpose(1, 2).reshape(batch * n_asked, -1)
        gated = dropout(self.attended_norm(attended) * gate, self.dropout, self.training)
        asked = x[:, -1] if newest_only else x.reshape(batch * length, size)
        answer: Tensor = asked + self.project(gated)
        return answer if newest_only else answer.view(batch, length, size)

    def beside(
        self,
        x: Tensor,
        memory: LayerMemory,
        bias: Tensor,
        buckets: Tensor | None,
        *,
        newest_only: bool = False,
    ) -> Tensor:
        """Mixes the new positions ``x`` (n, size) and those of ``memory``, as :meth:`forward` all of them.

        ``bias`` and ``buckets``: (n, n_past + n). Returns the same shape, with ``newest_only`` (1, size): the
        last row; then they are of it alone, (n_past + n,).
        """
        if self.time_bias is not None and buckets is not None:
            # Of a table with a row for each position this is one operator of the exported graph.
            table = self.time_bias if newest_only else self.time_bias.expand(len(self.position_bias), -1)
            bias = bias + table.gather(-1, buckets)
        width = self.project.in_features
        made = F.silu(self.expand(self.input_norm(x)))
        gate, others = made[:, :width], made[:, width:]
        value, query, key = others.reshape(-1, 3 * self.n_heads, width // self.n_heads).chunk(3, dim=1)
        if newest_only:
            x, gate, query = x[-1:], gate[-1:], query[-1:]
        weights = F.silu(memory.agreement(query, key) + bias)
        scale = 1 / len(self.position_bias)
        attended = memory.mixture(weights, value, scale=scale, causal=not newest_only)
        answer: Tensor = x + self.project(self.attended_norm(attended) * gate)
        return answer

    def _expand(self, normed: Tensor, newest_only: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns the gate (rows, width), then value, query and key, (batch, n_heads, rows, head size) each.

        Gate and query have the newest row alone if asked.
        """
        batch, length, size = normed.shape
        # In two dimensions a linear layer with its bias is one operator of the exported graph.
        every = normed.reshape(batch * length, size)
        width = self.project.in_features
        # Of a pruned layer queries may be narrower than values.
        query_width = self.expand.out_features // 2 - width
        if not newest_only:
            made = F.silu(self.expand(every))
            gate, value, query, key = torch.split(made, [width, width, query_width, query_width], dim=-1)
        else:
            # Rows of the weights by what they make: slices, which the exporter computes once.
            end = 2 * width + query_width
            given = (self.expand.weight, self.expand.bias)
            of_newest = [torch.cat([part[:width], part[2 * width : end]]) for part in given]
            of_every = [torch.cat([part[width : 2 * width], part[end:]]) for part in given]
            sizes = [width, query_width]
            gate, query = torch.split(F.silu(F.linear(normed[:, -1], *of_newest)), sizes, dim=-1)
            value, key = torch.split(F.silu(F.linear(every, *of_every)), sizes, dim=-1)
        value, query, key = (
            part.view(batch, -1, self.n_heads, part.shape[-1] // self.n_heads).transpose(1, 2)
            for part in (value, query, key)
        )
        return gate, value, query, key


def time_buckets(time_gaps: Tensor, first: int = 0) -> Tensor:
    """Returns the bucket of the time between each item and each question, (..., n_asked, length) int64.

    ``time_gaps``: (..., length), seconds from each item to the next; ``first``: the first row that is asked.
    The question of row t is asked when the item after t came (for the last row: now), so column j was the
    sum of the gaps j..t before. Sums are of whole seconds in double precision. Their logarithms are of eight
    binary digits, none of which is near a power of e: every runtime finds the same bucket.
    """
    gaps = time_gaps.clamp(min=0).to(torch.float64)
    until_next = gaps.cumsum(-1)
    # One more than apart, for the logarithm.
    apart = (until_next + 1)[..., first:].unsqueeze(-1) - (until_next - gaps).unsqueeze(-2)
    rounded = apart.to(torch.bfloat16).to(torch.float32).clamp(min=1.0, max=math.exp(N_TIME_BUCKETS - 0.5))
    return rounded.log().to(torch.int64)


def _looked_up(table: Tensor, index: Tensor) -> Tensor:
    """Returns the numbers of ``table`` (n,) at ``index`` of any shape.

    By this operator ten times as fast in ONNX Runtime as by brackets.
    """
    return table.gather(0, index.flatten()).view(index.shape)


FAMILY = Family(
    settings=HSTUConfig,
    create=lambda settings, n_users, n_items: HSTU(settings, n_items),
    budget=BUDGET,
    loop_options=GRADIENT_OPTIONS,
    min_history=2,
    create_from_data=creator(HSTU),
)
