"""GCN: a node is a smoothed mean of itself and its neighbours, through a layer of weights, some steps apart.

Kipf & Welling 2017 (arXiv:1609.02907): the matrix of the graph with each node a neighbour of itself,
normalised by √degree on both sides, times the vectors times a layer's weights, with a ReLU between layers.
A node starts from its attributes and, where training knows it, an embedding of its id. Scored is the mean of
the start and of every layer's output: the last layer alone is too smooth to tell users apart. Learned by BPR
(Rendle et al. 2009, arXiv:1205.2618).
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from recserve.training.models.base import EPOCH_OPTIONS, Family
from recserve.training.models.dropout import dropout
from recserve.training.models.graph import (
    Graph,
    InductiveGraphModel,
    check_inductive_settings,
    from_attributes,
    from_ids,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GCNConfig:
    """The settings of GCN."""

    embedding_size: int = 64
    n_layers: int = 2
    learning_rate: float = 3e-3
    reg: float = 1e-4
    dropout: float = 0.3
    """Of what each layer reads."""
    batch_size: int = 2048
    """Interactions per step. Each step looks at the whole graph: a large graph wants large batches."""
    unknown_rate: float = 0.1
    """How often training hides the id and the neighbours of a node."""

    def __post_init__(self) -> None:
        check_inductive_settings(self)


class GCN(InductiveGraphModel):
    """Layers over the smoothed graph, each with weights (embedding_size, embedding_size)."""

    def __init__(
        self, config: GCNConfig, user_features: NDArray[np.float32], item_features: NDArray[np.float32]
    ) -> None:
        super().__init__(config, user_features, item_features)
        size = config.embedding_size
        self.layers = nn.ModuleList(nn.Linear(size, size) for _ in range(config.n_layers))
        self.optimizer = torch.optim.Adam(self.parameters(), lr=config.learning_rate)

    def encode(self, graph: Graph) -> tuple[Tensor, Tensor]:
        """Returns the start and the mean over it and every layer's output; all but the last end in a ReLU."""
        start, shown = self.start(graph)
        vectors = total = start
        for place, layer in enumerate(self.layers):
            vectors = dropout(vectors, self.config.dropout, self.training)
            vectors = layer(graph.smooth(vectors, shown))
            vectors = vectors if place + 1 == len(self.layers) else torch.relu(vectors)
            total = total + vectors
        return start, total / (1 + len(self.layers))


FAMILY = Family(
    settings=GCNConfig,
    create=from_ids(GCN),
    budget={"epochs": 300, "validate_every": 5, "patience": 5},
    loop_options=EPOCH_OPTIONS,
    create_from_data=from_attributes(GCN),
)
