"""GCN: a node is a smoothed mean of itself and its neighbours, through a layer of weights, some steps apart.

Kipf & Welling 2017 (arXiv:1609.02907): the matrix of the graph with each node a neighbour of itself,
normalised by √degree on both sides, times the vectors times a layer's weights, with a ReLU between layers.
A node starts from its attributes and, where training knows it, an embedding of its id. Scored is the mean of
the start and of every layer's output: the last layer alone is too smooth to tell users apart. Learned by BPR
(Rendle et al. 2009, arXiv:1205.2618).
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from recserve.training.models.base import EPOCH_OPTIONS, Family
from recserve.training.models.dropout import dropout
from recserve.training.models.graph import (
    Graph,
    InductiveConfig,
    InductiveGraphModel,
    from_attributes,
    from_ids,
)


class GCN(InductiveGraphModel):
    """Layers over the smoothed graph, each with weights (embedding_size, embedding_size)."""

    def __init__(
        self, config: InductiveConfig, user_features: NDArray[np.float32], item_features: NDArray[np.float32]
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
    settings=InductiveConfig,
    create=from_ids(GCN),
    budget={"epochs": 300, "validate_every": 5, "patience": 5},
    loop_options=EPOCH_OPTIONS,
    create_from_data=from_attributes(GCN),
)
