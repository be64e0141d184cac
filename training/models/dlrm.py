"""DLRM: inner products of all pairs of vectors under a perceptron (Naumov et al. 2019, arXiv:1906.00091).

The numbers of an item pass a perceptron of their own (the paper's bottom one) and become one more vector.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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


class DLRM(Ranker):
    """Products within the user, within the item and between the two, each computed where it can be."""

    def __init__(self, config: RankerConfig, space: FeatureSpace, labels: Labels) -> None:
        super().__init__(config, space, labels)
        size, n_numbers = config.embedding_size, len(space.schema.numbers)
        self.fields = Fields(space.schema, size, history=config.max_history > 0)
        self.bottom = nn.Sequential(nn.Linear(n_numbers, 2 * size), nn.ReLU(), nn.Linear(2 * size, size))
        n_user, n_item = self.fields.n_user, self.fields.n_item - n_numbers + 1
        self.n_item_vectors = n_item - 1
        self.register_buffer("user_pairs", torch.triu_indices(n_user, n_user, 1), persistent=False)
        self.register_buffer("item_pairs", torch.triu_indices(n_item, n_item, 1), persistent=False)
        of_user, of_item = (n * (n - 1) // 2 for n in (n_user, n_item))
        self.first = FirstLayer(of_user + n_user * size, of_item + n_item * size, config.hidden[0])
        self.between = nn.Linear(n_user * n_item, config.hidden[0], bias=False)
        self.rest = perceptron(list(config.hidden), self.n_targets, config.dropout)

    user_pairs: Tensor
    item_pairs: Tensor

    def encode_user(self, history: Tensor, columns: Tensor) -> Side:
        fields = self.fields.user(history, columns)
        inputs = torch.cat([fields.flatten(1), _products(fields, self.user_pairs)], dim=-1)
        return self.first.of_user(inputs).unsqueeze(1), fields.unsqueeze(1)

    def encode_item(self, items: ItemFeatures) -> Side:
        vectors = self.fields.item(items)[..., : self.n_item_vectors, :]
        fields = torch.cat([vectors, self.bottom(items.numbers).unsqueeze(-2)], dim=-2)
        inputs = torch.cat([fields.flatten(-2), _products(fields, self.item_pairs)], dim=-1)
        return self.first.of_item(inputs), fields.flatten(-2)

    def combine(self, user: Side, item: Side) -> Tensor:
        n, n_user, n_item = item[1].shape[1], user[1].shape[2], self.n_item_vectors + 1
        fields = item[1].reshape(item[1].shape[0], n * n_item, self.config.embedding_size)
        # One product for all candidates of a user, (…, n · n_item, size) · (batch, size, n_user), gives the
        # pairs item by item; the layer's columns have them user by user.
        products = (fields @ user[1].squeeze(1).transpose(-1, -2)).view(-1, n, n_item * n_user)
        weight = self.between.weight.view(-1, n_user, n_item).transpose(1, 2).flatten(1)
        logits: Tensor = self.rest(user[0] + item[0] + F.linear(products, weight))
        return logits


def _products(fields: Tensor, pairs: Tensor) -> Tensor:
    """Returns the inner products of the ``pairs`` (2, n) of the fields (…, m, size): (…, n)."""
    return (fields @ fields.transpose(-1, -2))[..., pairs[0], pairs[1]]


FAMILY = ranker_family(DLRM)
