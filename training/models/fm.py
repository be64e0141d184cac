"""FM: factorisation machine, all pairs of features by inner products (Rendle 2010).

The pair of the history and the item is a FISM (Kabbur et al. 2013): new users have a taste too.
"""

import torch
from torch import Tensor, nn

from recserve.training.models.lr import Linear
from recserve.training.models.ranker import (
    Fields,
    ItemFeatures,
    Ranker,
    RankerConfig,
    Side,
    pairwise,
    ranker_family,
)
from recserve.training.ranking.examples import Labels
from recserve.training.ranking.space import FeatureSpace


class FactorisationMachine(Ranker):
    """Linear weights plus the products of all pairs of vectors; a target weighs the products by factor."""

    def __init__(self, config: RankerConfig, space: FeatureSpace, labels: Labels) -> None:
        super().__init__(config, space, labels)
        self.linear = Linear(space, self.n_targets, config)
        self.fields = Fields(space.schema, config.embedding_size, history=config.max_history > 0)
        # Ones are the classic FM of one target.
        self.factor_weights = nn.Parameter(torch.ones(config.embedding_size, self.n_targets))

    def encode_user(self, history: Tensor, columns: Tensor) -> Side:
        fields = self.fields.user(history, columns)
        within = pairwise(fields).unsqueeze(1) @ self.factor_weights
        return self.linear.user(history, columns) + within, fields.sum(dim=1, keepdim=True)

    def encode_item(self, items: ItemFeatures) -> Side:
        fields = self.fields.item(items)
        return self.linear.item(items) + pairwise(fields) @ self.factor_weights, fields.sum(dim=-2)

    def combine(self, user: Side, item: Side) -> Tensor:
        # (u ⊙ v) W = v (uᵀ ⊙ W): one small matrix a user instead of a product for every candidate.
        return user[0] + item[0] + item[1] @ (user[1].transpose(1, 2) * self.factor_weights)


FAMILY = ranker_family(FactorisationMachine)
