"""GraphSAGE: a node is what is known of it and of its neighbours, by weights that hold for every node.

Hamilton et al. 2017 (arXiv:1706.02216), with the mean aggregator on the whole graph of interactions: a layer
joins a node's own vector with the mean of its neighbours'. A node starts from its attributes and, where
training knows it, an embedding of its id. Training hides id and neighbours now and then: an item that nobody
had has a vector from its attributes alone. Learned by BPR (Rendle et al. 2009, arXiv:1205.2618).
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


class GraphSAGE(InductiveGraphModel):
    """Layers over the graph, each of a node's own vector and the mean of its neighbours'."""

    def __init__(
        self, config: InductiveConfig, user_features: NDArray[np.float32], item_features: NDArray[np.float32]
    ) -> None:
        super().__init__(config, user_features, item_features)
        size = config.embedding_size
        self.layers = nn.ModuleList(nn.Linear(2 * size, size) for _ in range(config.n_layers))
        self.optimizer = torch.optim.Adam(self.parameters(), lr=config.learning_rate)

    def encode(self, graph: Graph) -> tuple[Tensor, Tensor]:
        """Returns the input of the first layer and the output of the last; the others end in a ReLU."""
        start, shown = self.start(graph)
        vectors = start
        for place, layer in enumerate(self.layers):
            vectors = torch.relu(vectors) if place else vectors
            vectors = dropout(vectors, self.config.dropout, self.training)
            vectors = layer(torch.cat([vectors, graph.mean(vectors) * shown], dim=1))
        return start, vectors


FAMILY = Family(
    settings=InductiveConfig,
    create=from_ids(GraphSAGE),
    budget={"epochs": 300, "validate_every": 5, "patience": 5},
    loop_options=EPOCH_OPTIONS,
    create_from_data=from_attributes(GraphSAGE),
)
