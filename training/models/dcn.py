"""DCN-V2: feature crosses, x₀ ⊙ (W x + b) + x, beside a perceptron (Wang et al. 2021, arXiv:2008.13535)."""

import copy
from dataclasses import dataclass
from typing import cast

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
        flat = self.fields.user(history, columns).flatten(1)
        parts = flat, self.first_cross.of_user(flat), self.first.of_user(flat)
        return tuple(part.unsqueeze(1) for part in parts)

    def encode_item(self, items: ItemFeatures) -> Side:
        flat = self.fields.item(items).flatten(-2)
        return flat, self.first_cross.of_item(flat), self.first.of_item(flat)

    def for_many_candidates(self) -> Ranker:
        served = copy.deepcopy(self)
        if len(self.crosses) == 1:
            served.__class__ = _TwoCrosses
        return served

    def combine(self, user: Side, item: Side) -> Tensor:
        batch, n = max(user[0].shape[0], item[0].shape[0]), item[0].shape[1]
        x0 = torch.cat([user[0].expand(batch, n, -1), item[0].expand(batch, n, -1)], dim=-1)
        x = x0 * (user[1] + item[1]) + x0
        for cross in self.crosses:
            x = x0 * cross(x) + x
        logits: Tensor = self.out(x) + self.rest(user[2] + item[2])
        return logits


class _TwoCrosses(DCN):
    """Two crosses as a quadratic form of the item's part i, its matrix computed once for a user.

    With x₀ = [u, i] and x₁ = x₀ ⊙ (1 + a + B i), where a is of the user alone, the logits O x₂ of the second
    cross x₂ = x₀ ⊙ (W x₁ + c) + x₁ are, sorted by what they depend on,

        v + O_i (i ⊙ P i) + i · q + g · r + s

    with g = i ⊙ (1 + B_i i) and s = O_i (i ⊙ W_ii g) of the item alone, P, q, r and v of the user. In P the
    user's part stands between two blocks of weights: a candidate costs |i|² instead of (|u| + |i|)².
    """

    @property
    def _second(self) -> nn.Linear:
        return cast(nn.Linear, self.crosses[0])

    def encode_user(self, history: Tensor, columns: Tensor) -> Side:
        flat, crossed, first = super().encode_user(history, columns)
        n, out = flat.shape[-1], self.out.weight
        weight, bias = self._second.weight, self._second.bias
        x1, of_items = flat * (1 + crossed[..., :n]), crossed[..., n:]
        # The rows of W that the user's x₀ multiplies end in the logits as one row for each target.
        weighted = out[:, :n] * flat
        rows = out + weighted @ weight[:n]
        first_items = self.first_cross.of_item.weight[:n]
        matrix = (first_items.t() * flat) @ weight[n:, :n].t() + of_items.transpose(1, 2) * weight[n:, n:].t()
        constant = x1 @ weight[n:, :n].t() + bias[n:]
        linear = (rows[..., :n] * flat) @ first_items + rows[..., n:] * of_items + out[:, n:] * constant
        fixed = (x1 * rows[..., :n] + weighted * bias[:n]).sum(-1) + self.out.bias
        return matrix, linear.transpose(1, 2), rows[..., n:].transpose(1, 2), fixed.unsqueeze(1), first

    def encode_item(self, items: ItemFeatures) -> Side:
        flat, crossed, first = super().encode_item(items)
        n = crossed.shape[-1] - flat.shape[-1]
        x1 = flat * (1 + crossed[..., n:])
        settled = (flat * (x1 @ self._second.weight[n:, n:].t())) @ self.out.weight[:, n:].t()
        return flat, x1, settled, first

    def combine(self, user: Side, item: Side) -> Tensor:
        matrix, linear, of_x1, fixed, user_first = user
        flat, x1, settled, item_first = item
        n = flat.shape[-1]
        crossed = (flat * (flat @ matrix)) @ self.out.weight[:, -n:].t()
        logits: Tensor = crossed + flat @ linear + x1 @ of_x1 + (settled + fixed)
        deep: Tensor = self.rest(user_first + item_first)
        return logits + deep


FAMILY = ranker_family(DCN, DCNConfig)
