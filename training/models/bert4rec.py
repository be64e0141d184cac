"""BERT4Rec: a transformer that reads a history in both directions (Sun et al. 2019, arXiv:1904.06690).

Trained to restore items that are hidden from it, and asked for the item hidden after the last one. The loss
is the softmax cross-entropy; scores are plain inner products, without the paper's output layer and bias per
item, so that retrieval serves them (RecTools does the same and keeps the quality).
"""

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recserve.errors import InvalidRequest
from recserve.training.models.base import Family
from recserve.training.models.content import creator
from recserve.training.models.dropout import Dropout
from recserve.training.models.sasrec import Block
from recserve.training.models.sequence import GRADIENT_OPTIONS, SequenceModel, check_heads, check_shape

# Share of the users of an epoch whose last item alone is hidden: the question of serving.
LAST_ONLY_RATE = 0.2
POSITION_STD = 0.02
# What a block's feed-forward says at first, of what is usual.
FEED_FORWARD_GAIN = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class BERT4RecConfig:
    """The shape of the network and how much it hides."""

    embedding_size: int = 64
    n_blocks: int = 2
    n_heads: int = 2
    max_history: int = 50
    dropout: float = 0.2
    mask_rate: float = 0.3
    """Share of the items of a window that an epoch hides."""
    content: bool = False
    """Whether an item is also what is known of it."""
    unknown_rate: float = 0.2
    """How often training hides the id of an item that has content."""

    def __post_init__(self) -> None:
        check_shape(self, "n_blocks", "n_heads")
        check_heads(self)
        if not 0 < self.mask_rate < 1:
            raise InvalidRequest("mask_rate", found=self.mask_rate, expected="between 0 and 1, both excluded")

    @property
    def time_gaps(self) -> bool:
        """Attention knows positions, not times."""
        return False


class BERT4Rec(SequenceModel):
    """The query is the encoding of an item hidden after the history, which sees all of it."""

    def __init__(self, config: BERT4RecConfig, n_items: int) -> None:
        super().__init__(config, n_items)
        size = config.embedding_size
        self.hidden_item = nn.Parameter(torch.empty(size))
        # Position 0 is the newest item, so that padding a history on the left changes nothing.
        self.position_embeddings = nn.Parameter(torch.empty(config.max_history + 1, size))
        self.input_dropout: nn.Module = Dropout(config.dropout)
        blocks = [Block(config) for _ in range(config.n_blocks)]
        self.blocks = nn.ModuleList(blocks)
        self.norm: nn.Module = nn.LayerNorm(size)
        nn.init.normal_(self.position_embeddings, std=POSITION_STD)
        # As small as the positions: where an item is hidden, what others say of it has to show.
        nn.init.normal_(self.hidden_item, std=POSITION_STD / math.sqrt(size))
        for block in blocks:
            _answer_with_the_mean(block)

    def forward(self, history: Tensor, time_gaps: Tensor | None = None) -> Tensor:
        """Encodes each history and one hidden item after it: (batch, length + 1, embedding_size)."""
        return self._restore(*_with_hidden(history))

    def encode(self, history: Tensor, time_gaps: Tensor | None = None) -> Tensor:
        """Returns the query embedding (batch, embedding_size): the last row of :meth:`forward`."""
        return self._restore(*_with_hidden(history), newest_only=True)

    def examples(self, history: Tensor, targets: Tensor, time_gaps: Tensor | None) -> tuple[Tensor, Tensor]:
        """Hides items of each window at random; see :meth:`SequenceModel.examples`."""
        items = torch.cat([history, targets[:, -1:]], dim=1)
        is_last = torch.arange(items.shape[1], device=items.device) == items.shape[1] - 1
        is_hidden = torch.rand(items.shape, device=items.device) < self.config.mask_rate
        is_hidden &= (torch.rand(len(items), 1, device=items.device) >= LAST_ONLY_RATE) & (items >= 0)
        # A window of which nothing is hidden asks for its last item.
        is_hidden |= ~is_hidden.any(1, keepdim=True) & is_last
        return self._restore(items, is_hidden)[is_hidden], items[is_hidden]

    def _restore(self, items: Tensor, is_hidden: Tensor, *, newest_only: bool = False) -> Tensor:
        """Encodes all positions, or the last; ``items`` (batch, length) left-padded, unseen where hidden."""
        length = items.shape[1]
        real = items >= 0
        x = F.embedding(items.clamp(min=0), self.item_embeddings)
        x = torch.where(is_hidden.unsqueeze(-1), self.hidden_item, x) * math.sqrt(self.config.embedding_size)
        positions = torch.arange(length - 1, -1, -1, device=items.device)
        x = self.input_dropout(x + self.position_embeddings[positions]) * real.unsqueeze(-1)
        steps = torch.arange(length, device=items.device)
        # A padded row attends to itself: a softmax over nothing would be NaN.
        mask = real.unsqueeze(1) | (steps.unsqueeze(1) == steps.unsqueeze(0))
        bias = torch.where(mask, 0.0, float("-inf")).unsqueeze(1)
        for block in self.blocks[:-1]:
            x = block(x, bias, None)
        return self.norm(self.blocks[-1](x, bias, None, newest_only=newest_only))  # type: ignore[no-any-return]


@torch.no_grad()
def _answer_with_the_mean(block: Block) -> None:
    """Has an untrained block answer with the mean of the items that it sees.

    Scores are inner products with the items' own vectors, so that an item that is hidden is at first looked
    for among those like its neighbours. From layers drawn at random it takes training a hundred epochs
    (LastFM) to find that; a causal model has the last item before it as its own input.
    """
    _, _, value = block.qkv.weight.chunk(3)
    nn.init.orthogonal_(value)
    block.project.weight.copy_(value.T)
    nn.init.zeros_(block.qkv.bias)
    nn.init.zeros_(block.project.bias)
    last = cast(nn.Linear, block.feed_forward[-2])
    last.weight.mul_(FEED_FORWARD_GAIN)
    nn.init.zeros_(last.bias)


def _with_hidden(history: Tensor) -> tuple[Tensor, Tensor]:
    """Returns each history with one more item, any one, and which of them is hidden: that one."""
    more = torch.zeros_like(history[:, :1])
    shown = torch.zeros_like(history, dtype=torch.bool)
    return torch.cat([history, more], dim=1), torch.cat([shown, more == 0], dim=1)


FAMILY = Family(
    settings=BERT4RecConfig,
    create=lambda settings, n_users, n_items: BERT4Rec(settings, n_items),
    # Fewer positions are learned from in an epoch than by a causal model: it needs more of them.
    # It rests for long before it learns what order says.
    budget={"epochs": 300, "validate_every": 10, "patience": 8},
    loop_options=GRADIENT_OPTIONS,
    min_history=2,
    create_from_data=creator(BERT4Rec),
)
