"""NeuMF: generalised matrix factorisation beside a perceptron, of ids alone (He 2017, arXiv:1708.05031).

Trained on every interaction against items drawn at random unless told to read ratings. A user is its id
and its history: the paper has no answer for a user unseen in training. The history is what the user met
at any time, the example left out (as in FISM, Kabbur 2013), since ids alone know no time: with what came
before each example a test of interactions held out at random ranks by popularity.
"""

from dataclasses import dataclass

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

INIT_STD = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class NeuMFConfig(RankerConfig):
    """Ids alone: no context, sampled labels."""

    embedding_size: int = 32
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
        self.factor_weights = nn.Parameter(torch.ones(size, self.n_targets))
        self.item_bias = nn.Embedding(schema.n_items + 1, self.n_targets)
        nn.init.zeros_(self.item_bias.weight)

    def encode_user(self, history: Tensor, columns: Tensor) -> Side:
        both = self.users(columns[:, 0])
        if self.config.max_history:
            both = both + pooled(self.history(history), history > 0)
        factors, inputs = both.unsqueeze(1).chunk(2, dim=-1)
        return factors, self.first.of_user(inputs)

    def encode_item(self, items: ItemFeatures) -> Side:
        factors, inputs = self.items(items.ids).chunk(2, dim=-1)
        return factors, self.first.of_item(inputs), self.item_bias(items.ids)

    def combine(self, user: Side, item: Side) -> Tensor:
        deep: Tensor = self.rest(user[1] + item[1])
        return (user[0] * item[0]) @ self.factor_weights + deep + item[2]


FAMILY = ranker_family(NeuMF, NeuMFConfig)
