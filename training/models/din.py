"""DIN: the history as the candidate sees it, by a small attention network (Zhou 2018, arXiv:1706.06978).

The weights of the history's items are not normalised, as in the paper: a strong interest stays strong.
"""

import math

import torch
from torch import Tensor, nn

from recserve.errors import InvalidRequest
from recserve.training.models.ranker import (
    Fields,
    FirstLayer,
    ItemFeatures,
    Ranker,
    RankerConfig,
    Side,
    perceptron,
    ranker_family,
)
from recserve.training.ranking.examples import Labels
from recserve.training.ranking.space import FeatureSpace

ATTENTION_WIDTH = 16


class DIN(Ranker):
    """A perceptron over the fields and the history pooled for each candidate."""

    def __init__(self, config: RankerConfig, space: FeatureSpace, labels: Labels) -> None:
        super().__init__(config, space, labels)
        if config.max_history < 1:
            raise InvalidRequest(
                "max_history", found=0, expected="1 or more for din, which reads the history"
            )
        size = config.embedding_size
        self.fields = Fields(space.schema, size, history=True)
        # The attention's first layer sees [history, candidate, history ⊙ candidate]; it is split: only the
        # product is computed for every pair.
        self.of_history = nn.Linear(size, ATTENTION_WIDTH)
        self.of_candidate = nn.Linear(size, ATTENTION_WIDTH, bias=False)
        self.of_product = nn.Linear(size, ATTENTION_WIDTH, bias=False)
        self.weight = nn.Linear(ATTENTION_WIDTH, 1)
        self.first = FirstLayer(self.fields.n_user * size, self.fields.n_item * size, config.hidden[0])
        self.of_interest = nn.Linear(2 * size, config.hidden[0], bias=False)
        self.rest = perceptron(list(config.hidden), self.n_targets, config.dropout)

    def encode_user(self, history: Tensor, columns: Tensor) -> Side:
        flat = self.fields.user(history, columns).flatten(1).unsqueeze(1)
        # The item's own table: what was met and what is met are compared.
        met = self.fields.item_id(history) * (history > 0).unsqueeze(-1)
        scale = (history > 0).sum(dim=1).clamp(min=1).sqrt()
        return (
            self.first.of_user(flat),
            met.unsqueeze(1),
            self.of_history(met).unsqueeze(1),
            scale[:, None, None],
        )

    def encode_item(self, items: ItemFeatures) -> Side:
        own = self.fields.item_id(items.ids)
        flat = self.fields.item(items).flatten(-2)
        return self.first.of_item(flat), own, self.of_candidate(own)

    def combine(self, user: Side, item: Side) -> Tensor:
        first, met, of_history, scale = user
        own = item[1]
        # W(h ⊙ c) = (W ⊙ c) h: one matrix for each candidate instead of a product for every pair.
        weighted = self.of_product.weight * own.unsqueeze(-2)
        hidden = torch.relu(of_history + item[2].unsqueeze(-2) + met @ weighted.transpose(-1, -2))
        weights = self.weight(hidden) / math.sqrt(ATTENTION_WIDTH)
        interest = (weights * met).sum(dim=-2) / scale
        both = torch.cat([interest, interest * own], dim=-1)
        logits: Tensor = self.rest(first + item[0] + self.of_interest(both))
        return logits


FAMILY = ranker_family(DIN)
