"""GraphSAGE: a node is what is known of it and of its neighbours, by weights that hold for every node.

Hamilton et al. 2017 (arXiv:1706.02216), with the mean aggregator on the whole graph of interactions: a layer
joins a node's own vector with the mean of its neighbours'. A node starts from its attributes and, where
training knows it, an embedding of its id. Training hides id and neighbours now and then: an item that nobody
had has a vector from its attributes alone. Learned by BPR (Rendle et al. 2009, arXiv:1205.2618).
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from recserve.errors import InvalidRequest
from recserve.training.data import Dataset, Split
from recserve.training.features.attributes import known_attributes
from recserve.training.models.base import EPOCH_OPTIONS, Family
from recserve.training.models.graph import Graph, GraphModel, check_graph_settings

INITIAL_SCALE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphSAGEConfig:
    """The settings of GraphSAGE."""

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
        check_graph_settings(self)
        for name in ("dropout", "unknown_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise InvalidRequest(name, found=getattr(self, name), expected="0 to below 1")


class GraphSAGE(GraphModel):
    """Layers over the graph.

    user_features: (n_users, f) float32, item_features: (n_items, g) float32; f and g may be 0. They follow
    from the data set, so a checkpoint leaves them out.
    """

    user_features: Tensor
    item_features: Tensor

    def __init__(
        self, config: GraphSAGEConfig, user_features: NDArray[np.float32], item_features: NDArray[np.float32]
    ) -> None:
        super().__init__(config, len(user_features), len(item_features))
        size = config.embedding_size
        self.register_buffer("user_features", torch.from_numpy(user_features), persistent=False)
        self.register_buffer("item_features", torch.from_numpy(item_features), persistent=False)
        self.ids = nn.Parameter(torch.randn(len(user_features) + len(item_features), size) * INITIAL_SCALE)
        self.user_projection = nn.Parameter(torch.randn(user_features.shape[1], size) * INITIAL_SCALE)
        self.item_projection = nn.Parameter(torch.randn(item_features.shape[1], size) * INITIAL_SCALE)
        self.layers = nn.ModuleList(nn.Linear(2 * size, size) for _ in range(config.n_layers))
        self.optimizer = torch.optim.Adam(self.parameters(), lr=config.learning_rate)

    def encode(self, graph: Graph) -> tuple[Tensor, Tensor]:
        """Returns the input of the first layer and the output of the last; the others end in a ReLU."""
        shown = graph.has_edges
        if self.training:
            shown = shown & (torch.rand(len(shown)) >= self.config.unknown_rate)
        attributes = [self.user_features @ self.user_projection, self.item_features @ self.item_projection]
        start = vectors = torch.cat(attributes) + self.ids * shown.unsqueeze(1)
        for place, layer in enumerate(self.layers):
            vectors = torch.relu(vectors) if place else vectors
            vectors = F.dropout(vectors, self.config.dropout, self.training)
            around = graph.mean(vectors) * shown.unsqueeze(1)
            vectors = layer(torch.cat([vectors, around], dim=1))
        return start, vectors


def create(config: GraphSAGEConfig, n_users: int, n_items: int) -> GraphSAGE:
    """Returns the untrained layers over ids alone."""
    return GraphSAGE(config, np.zeros((n_users, 0), np.float32), np.zeros((n_items, 0), np.float32))


def create_from_data(config: GraphSAGEConfig, dataset: Dataset, split: Split) -> GraphSAGE:
    """Returns the untrained layers over the attributes of ``dataset``, fitted on what train knows."""
    return GraphSAGE(config, *known_attributes(dataset, split))


FAMILY = Family(
    settings=GraphSAGEConfig,
    create=create,
    budget={"epochs": 300, "validate_every": 5, "patience": 5},
    loop_options=EPOCH_OPTIONS,
    create_from_data=create_from_data,
)
