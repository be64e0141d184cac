"""What the graph families share: users and items as the nodes of one graph, and learning by BPR over it.

An edge is a pair of a user and an item that the user had. Training needs the whole graph at each step;
what is served is the table of users and that of items, as the last epoch left them.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from recserve.errors import InvalidRequest
from recserve.training.data import Dataset, Histories, Split
from recserve.training.features.attributes import known_attributes
from recserve.training.models.interactions import Pairs, transposed
from recserve.training.models.tables import LearnedTables

INITIAL_SCALE = 0.1


class Graph:
    """The edges of each node, users first: neighbours ascending and weights 1/√(degree · degree).

    A node without edges has none, hence a sum of zeros.
    """

    def __init__(self, pairs: Pairs, n_items: int) -> None:
        (user_indptr, items), n_users = pairs.lists, len(pairs.lists[0]) - 1
        (item_indptr, users), _ = transposed(pairs.lists, n_items)
        neighbours = np.concatenate([items.astype(np.int64) + n_users, users])
        indptr = np.concatenate([user_indptr, user_indptr[-1] + item_indptr[1:]])
        degrees = np.maximum(np.diff(indptr), 1).astype(np.float32)
        itself = np.repeat(np.arange(len(degrees)), np.diff(indptr))
        self.n_users = n_users
        self.neighbours = torch.from_numpy(neighbours)
        self.offsets = torch.from_numpy(indptr[:-1])
        self.weights = torch.from_numpy(1 / np.sqrt(degrees[neighbours] * degrees[itself]))
        self.has_edges = torch.from_numpy(np.diff(indptr) > 0)
        self.root_degrees = torch.from_numpy(np.sqrt(degrees)).unsqueeze(1)

    def spread(self, vectors: Tensor) -> Tensor:
        """Returns the weighted sum of each node's neighbours, (n_nodes, d) as ``vectors``."""
        spread: Tensor = _Spread.apply(vectors, self)  # type: ignore[no-untyped-call]
        return spread

    def mean(self, vectors: Tensor) -> Tensor:
        """Returns the mean of each node's neighbours, (n_nodes, d) as ``vectors``."""
        return self.spread(vectors * self.root_degrees) / self.root_degrees

    def smooth(self, vectors: Tensor, shown: Tensor) -> Tensor:
        """Returns the weighted sum of each node and its neighbours, (n_nodes, d) as ``vectors``.

        Weights are 1/√((degree + 1) · (degree + 1)), each node being a neighbour of itself. A node that
        ``shown`` (n_nodes, 1) has 0 for has no neighbour but itself.
        """
        degrees = self.root_degrees**2 * self.has_edges.unsqueeze(1) * shown
        rescaled = self.root_degrees / (self.root_degrees**2 + 1).sqrt()
        return rescaled * self.spread(vectors * rescaled) * shown + vectors / (degrees + 1)


class _Spread(torch.autograd.Function):
    """The product with a symmetric sparse matrix: the gradient is the same product.

    An embedding bag is one; on one core it is 7 times as fast as torch's product with a CSR matrix.
    """

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, graph: Graph) -> Tensor:
        ctx.graph = graph
        return F.embedding_bag(
            graph.neighbours, vectors, graph.offsets, mode="sum", per_sample_weights=graph.weights
        )

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Spread.apply(gradient.contiguous(), ctx.graph), None  # type: ignore[no-untyped-call]


class GraphModel(LearnedTables):
    """Node vectors from the graph; a family says how. ``optimizer`` is over all its parameters."""

    config: Any
    optimizer: torch.optim.Optimizer

    def __init__(self, config: Any, n_users: int, n_items: int) -> None:
        size = config.embedding_size
        super().__init__(np.zeros((n_users, size), np.float32), np.zeros((n_items, size), np.float32))
        self.config = config
        self._data: tuple[Pairs, Graph] | None = None

    @abstractmethod
    def encode(self, graph: Graph) -> tuple[Tensor, Tensor]:
        """Returns two vectors of each node, users first, (n_nodes, embedding_size) each: what is known of it
        by itself, which is regularised, and that whose inner products are the scores."""

    def fit_epoch(self, train: Histories, *, epoch: int, seed: int) -> float:
        """Makes a pass over the pairs in random order, each with an item drawn; returns the mean loss."""
        # Seeded by epoch: an epoch after a resume draws what it would have drawn.
        torch.manual_seed(hash((seed, epoch)) % 2**63)
        rng = np.random.default_rng([seed, epoch])
        if self._data is None:
            pairs = Pairs(train, self.n_items)
            self._data = pairs, Graph(pairs, self.n_items)
        pairs, graph = self._data
        order = rng.permutation(len(pairs))
        self.train()
        total = 0.0
        for start in range(0, len(order), self.config.batch_size):
            rows = order[start : start + self.config.batch_size]
            triples = (torch.from_numpy(nodes.astype(np.int64)) for nodes in pairs.triples(rows, rng))
            loss = self._loss(graph, *triples)
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            total += loss.item() * len(rows)
        self.eval()
        self._write_tables(graph)
        return total / max(1, len(order))

    def _loss(self, graph: Graph, users: Tensor, items: Tensor, others: Tensor) -> Tensor:
        start, nodes = self.encode(graph)
        rows = users, items + graph.n_users, others + graph.n_users
        who, had, other = (nodes[some] for some in rows)
        margin = (who * (had - other)).sum(1)
        penalty = torch.stack([(start[some] ** 2).sum() for some in rows]).sum() / (2 * max(1, len(users)))
        reg: float = self.config.reg
        return F.softplus(-margin).mean() + reg * penalty

    @torch.no_grad()
    def _write_tables(self, graph: Graph) -> None:
        _, nodes = self.encode(graph)
        self.user_embeddings.copy_(nodes[: graph.n_users])
        self.item_embeddings.copy_(nodes[graph.n_users :])
        self.user_embeddings[~graph.has_edges[: graph.n_users]] = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class InductiveConfig:
    """The settings of an inductive graph family."""

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


class InductiveGraphModel(GraphModel):
    """A graph family whose nodes start from attributes and, where training knows them, ids.

    user_features: (n_users, f) float32, item_features: (n_items, g) float32; f and g may be 0. They follow
    from the data set, so a checkpoint leaves them out.
    """

    user_features: Tensor
    item_features: Tensor

    def __init__(
        self,
        config: InductiveConfig,
        user_features: NDArray[np.float32],
        item_features: NDArray[np.float32],
    ) -> None:
        super().__init__(config, len(user_features), len(item_features))
        size = config.embedding_size
        self.register_buffer("user_features", torch.from_numpy(user_features), persistent=False)
        self.register_buffer("item_features", torch.from_numpy(item_features), persistent=False)
        self.ids = nn.Parameter(torch.randn(len(user_features) + len(item_features), size) * INITIAL_SCALE)
        self.user_projection = nn.Parameter(torch.randn(user_features.shape[1], size) * INITIAL_SCALE)
        self.item_projection = nn.Parameter(torch.randn(item_features.shape[1], size) * INITIAL_SCALE)

    def start(self, graph: Graph) -> tuple[Tensor, Tensor]:
        """Returns the vectors that nodes start from, (n_nodes, embedding_size), and what shows, (n_nodes, 1).

        1: id and neighbours are known and, in training, not hidden; else 0.
        """
        shown = graph.has_edges
        if self.training:
            shown = shown & (torch.rand(len(shown)) >= self.config.unknown_rate)
        attributes = [self.user_features @ self.user_projection, self.item_features @ self.item_projection]
        mask = shown.float().unsqueeze(1)
        return torch.cat(attributes) + self.ids * mask, mask


def from_ids(kind: Callable[..., InductiveGraphModel]) -> Callable[[Any, int, int], InductiveGraphModel]:
    """Returns what makes an untrained model of ``kind`` from ids alone."""
    return lambda config, n_users, n_items: kind(
        config, np.zeros((n_users, 0), np.float32), np.zeros((n_items, 0), np.float32)
    )


def from_attributes(
    kind: Callable[..., InductiveGraphModel],
) -> Callable[[Any, Dataset, Split], InductiveGraphModel]:
    """Returns what makes an untrained model of ``kind`` over attributes, fitted on what train knows."""
    return lambda config, dataset, split: kind(config, *known_attributes(dataset, split))


def check_graph_settings(config: Any) -> None:
    """Raises :class:`InvalidRequest` for a setting of a graph family out of its range."""
    if not 1 <= config.embedding_size <= 1024:
        raise InvalidRequest("embedding_size", found=config.embedding_size, expected="1 to 1024")
    if not 1 <= config.n_layers <= 8:
        raise InvalidRequest("n_layers", found=config.n_layers, expected="1 to 8")
    if not 0 < config.learning_rate <= 1:
        raise InvalidRequest("learning_rate", found=config.learning_rate, expected="above 0, at most 1")
    if not 0 <= config.reg < 1:
        raise InvalidRequest("reg", found=config.reg, expected="0 to below 1")
    if config.batch_size < 1:
        raise InvalidRequest("batch_size", found=config.batch_size, expected="1 or more")
