"""NeuMF: generalised matrix factorisation beside a perceptron, of ids alone (He 2017, arXiv:1708.05031).

Trained on every interaction against items drawn at random unless told to read ratings. A user is its id
or, if training did not know it (and for a share of the examples, as if), its history: the paper has no
answer then. Never both: of the id less the history training could tell which item was left out of it.
The history is what the user met at any time, the example left out (as in FISM, Kabbur 2013), since ids
alone know no time: with what came before each example a test of interactions held out at random ranks by
popularity.
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from recserve.training.models.ranker import (
    FirstLayer,
    ItemFeatures,
    Ranker,
    RankerConfig,
    Side,
    perceptron,
    pooled,
    ranker_family,
)
from recserve.training.ranking.examples import Labels
from recserve.training.ranking.space import FeatureSpace

INIT_STD = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class NeuMFConfig(RankerConfig):
    """Ids alone: no context, sampled labels."""

    embedding_size: int = 64
    dropout: float = 0.0
    context: bool = False
    labels: str = "sampled"
    unknown_rate: float = 0.03


class NeuMF(Ranker):
    """Two pairs of tables: one multiplied factor by factor, one under the perceptron."""

    order_free = True
    reads_values = False

    def __init__(self, config: NeuMFConfig, space: FeatureSpace, labels: Labels) -> None:
        super().__init__(config, space, labels)
        size, schema = config.embedding_size, space.schema
        self.users = nn.Embedding(schema.n_users + 1, 2 * size)
        self.history = nn.Embedding(schema.n_items + 1, 2 * size)
        self.items = nn.Embedding(schema.n_items + 1, 2 * size)
        for table in (self.users, self.history, self.items):
            nn.init.normal_(table.weight, std=INIT_STD)
            # Where training never meets the unknown, it says nothing.
            nn.init.zeros_(table.weight[0])
        self.first = FirstLayer(size, size, config.hidden[0])
        self.rest = perceptron(list(config.hidden), self.n_targets, config.dropout)
        self.factor_weights = nn.Parameter(torch.empty(size, self.n_targets))
        # The layer that adds up both halves, in two parts.
        for weights in (cast(nn.Linear, self.rest[-1]).weight, self.factor_weights):
            nn.init.normal_(weights, std=INIT_STD)

    def encode_user(self, history: Tensor, columns: Tensor) -> Side:
        ids = columns[:, :1]
        both = self.users(ids[:, 0])
        if self.config.max_history:
            both = torch.where(ids > 0, both, pooled(self.history(history), history > 0))
        factors, inputs = both.unsqueeze(1).chunk(2, dim=-1)
        return factors, self.first.of_user(inputs)

    def encode_item(self, items: ItemFeatures) -> Side:
        factors, inputs = self.items(items.ids).chunk(2, dim=-1)
        return factors, self.first.of_item(inputs)

    def combine(self, user: Side, item: Side) -> Tensor:
        deep: Tensor = self.rest(user[1] + item[1])
        return (user[0] * item[0]) @ self.factor_weights + deep


FAMILY = ranker_family(NeuMF, NeuMFConfig)
