"""LightGCN: factorisation in which a user is what the user had, and an item who had it, some steps apart.

He et al. 2020 (arXiv:2002.02126): the vectors of all nodes spread over the graph of interactions, each sum
weighted by 1/√(degree · degree), and the mean over 0 to ``n_layers`` steps is scored. There are no other
weights. Learned by BPR (Rendle et al. 2009, arXiv:1205.2618).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recserve.training.models.base import EPOCH_OPTIONS, Family
from recserve.training.models.graph import INITIAL_SCALE, Graph, GraphModel, check_graph_settings


@dataclass(frozen=True, slots=True, kw_only=True)
class LightGCNConfig:
    """The settings of LightGCN."""

    embedding_size: int = 64
    n_layers: int = 3
    learning_rate: float = 5e-3
    reg: float = 1e-4
    batch_size: int = 2048
    """Interactions per step. Each step spreads over the whole graph: a large graph wants large batches."""

    def __post_init__(self) -> None:
        check_graph_settings(self)


class LightGCN(GraphModel):
    """One vector per node, spread over the graph."""

    def __init__(self, config: LightGCNConfig, n_users: int, n_items: int) -> None:
        super().__init__(config, n_users, n_items)
        self.vectors = nn.Parameter(torch.randn(n_users + n_items, config.embedding_size) * INITIAL_SCALE)
        self.optimizer = torch.optim.Adam(self.parameters(), lr=config.learning_rate)

    def encode(self, graph: Graph) -> tuple[Tensor, Tensor]:
        """Returns the learned vectors and their mean over the steps."""
        total: Tensor = self.vectors
        layer = total
        for _ in range(self.config.n_layers):
            layer = graph.spread(layer)
            total = total + layer
        n_layers: int = self.config.n_layers
        return self.vectors, total / (1 + n_layers)


FAMILY = Family(
    settings=LightGCNConfig,
    create=LightGCN,
    budget={"epochs": 300, "validate_every": 5, "patience": 5},
    loop_options=EPOCH_OPTIONS,
)
