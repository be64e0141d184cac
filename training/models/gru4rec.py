"""GRU4Rec: a gated recurrent network over a user's history (Hidasi et al. 2016, arXiv:1511.06939).

Trained as its authors now recommend (Hidasi & Karatzoglou 2018, arXiv:1706.03847): items share one table at
input and output, and the loss compares with the whole catalogue, or with a sample of it under the logQ
correction. A session is the user's whole history, which serving has.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recserve.training.models.base import Family
from recserve.training.models.content import creator
from recserve.training.models.dropout import Dropout
from recserve.training.models.sequence import BUDGET, GRADIENT_OPTIONS, SequenceModel, check_shape


@dataclass(frozen=True, slots=True, kw_only=True)
class GRU4RecConfig:
    """The shape of the network."""

    embedding_size: int = 64
    hidden_size: int = 128
    """Width of the recurrent state."""
    n_blocks: int = 1
    """Recurrent layers."""
    max_history: int = 50
    dropout: float = 0.3
    content: bool = False
    """Whether an item is also what is known of it."""
    unknown_rate: float = 0.2
    """How often training hides the id of an item that has content."""

    def __post_init__(self) -> None:
        check_shape(self, "hidden_size", "n_blocks")

    @property
    def time_gaps(self) -> bool:
        """The state knows the order of the items, not their times."""
        return False


class GRU4Rec(SequenceModel):
    """The encoding at a position is a projection of the state after the items up to it."""

    def __init__(self, config: GRU4RecConfig, n_items: int) -> None:
        super().__init__(config, n_items)
        self.input_bias = nn.Parameter(torch.zeros(config.embedding_size))
        # Without biases of its own a state of zeros stays zero while the input is: padding changes nothing.
        self.layers = nn.GRU(
            config.embedding_size,
            config.hidden_size,
            num_layers=config.n_blocks,
            bias=False,
            batch_first=True,
            dropout=config.dropout if config.n_blocks > 1 else 0.0,
        )
        self.input_dropout = Dropout(config.dropout)
        self.state_dropout = Dropout(config.dropout)
        self.project = nn.Linear(config.hidden_size, config.embedding_size)

    def forward(self, history: Tensor, time_gaps: Tensor | None = None) -> Tensor:
        """Encodes every prefix of each history, see :meth:`SequenceModel.forward`."""
        items = F.embedding(history.clamp(min=0), self.item_embeddings) + self.input_bias
        states, _ = self.layers(self.input_dropout(items) * (history >= 0).unsqueeze(-1))
        return self.project(self.state_dropout(states))  # type: ignore[no-any-return]


FAMILY = Family(
    settings=GRU4RecConfig,
    create=lambda settings, n_users, n_items: GRU4Rec(settings, n_items),
    budget=BUDGET,
    loop_options=GRADIENT_OPTIONS,
    min_history=2,
    create_from_data=creator(GRU4Rec),
)
