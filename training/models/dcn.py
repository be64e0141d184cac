"""DCN-V2: feature crosses, x₀ ⊙ (W x + b) + x, beside a perceptron (Wang et al. 2021, arXiv:2008.13535)."""

from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True, kw_only=True)
class DCNConfig(RankerConfig):
    """``crosses``: layers of the cross network, each raising the degree of the crosses by one."""

    crosses: int = 2

    def __post_init__(self) -> None:
        # Not super(): a dataclass with slots is another class than the one that the function was written in.
        RankerConfig.__post_init__(self)
        if self.crosses < 1:
            raise InvalidRequest("crosses", found=self.crosses, expected="1 or more")


class DCN(Ranker):
    """The parallel form: a linear layer over the last cross and the perceptron's last but one layer."""

    def __init__(self, config: DCNConfig, space: FeatureSpace, labels: Labels) -> None:
        super().__init__(config, space, labels)
        self.fields = Fields(space.schema, config.embedding_size, history=config.max_history > 0)
        user, item = (n * config.embedding_size for n in (self.fields.n_user, self.fields.n_item))
        self.first_cross = FirstLayer(user, item, user + item)
        self.crosses = nn.ModuleList(nn.Linear(user + item, user + item) for _ in range(config.crosses - 1))
        self.first = FirstLayer(user, item, config.hidden[0])
        self.rest = perceptron(list(config.hidden), self.n_targets, config.dropout)
        self.out = nn.Linear(user + item, self.n_targets)

    def encode_user(self, history: Tensor, columns: Tensor) -> Side:
        flat = self.fields.user(history, columns).flatten(1).unsqueeze(1)
        return flat, self.first_cross.of_user(flat), self.first.of_user(flat)

    def encode_item(self, items: ItemFeatures) -> Side:
        flat = self.fields.item(items).flatten(-2)
        return flat, self.first_cross.of_item(flat), self.first.of_item(flat)

    def combine(self, user: Side, item: Side) -> Tensor:
        batch, n = max(user[0].shape[0], item[0].shape[0]), item[0].shape[1]
        x0 = torch.cat([user[0].expand(batch, n, -1), item[0].expand(batch, n, -1)], dim=-1)
        x = x0 * (user[1] + item[1]) + x0
        for cross in self.crosses:
            x = x0 * cross(x) + x
        logits: Tensor = self.out(x) + self.rest(user[2] + item[2])
        return logits


FAMILY = ranker_family(DCN, DCNConfig)
