"""LR: logistic regression over all features; what every deeper ranker must beat."""

import torch
from torch import Tensor, nn

from recserve.training.models.ranker import Fields, ItemFeatures, Ranker, RankerConfig, Side, ranker_family
from recserve.training.ranking.examples import Labels
from recserve.training.ranking.space import FeatureSpace


class LogisticRegression(Ranker):
    """A weight for each value of each feature and target; of ratings it knows how kind they are."""

    has_taste = False

    def __init__(self, config: RankerConfig, space: FeatureSpace, labels: Labels) -> None:
        super().__init__(config, space, labels)
        self.linear = Linear(space, self.n_targets, config)

    def encode_user(self, history: Tensor, columns: Tensor) -> Side:
        return (self.linear.user(history, columns),)

    def encode_item(self, items: ItemFeatures) -> Side:
        return (self.linear.item(items),)

    def combine(self, user: Side, item: Side) -> Tensor:
        return user[0] + item[0]


class Linear(nn.Module):
    """The linear part of a ranker, its bias on the user's side."""

    def __init__(self, space: FeatureSpace, n_targets: int, config: RankerConfig) -> None:
        super().__init__()
        # To be liked and to say what else is liked are two things: a weight for each.
        self.weights = Fields(space.schema, n_targets, history=config.max_history > 0, shared=False)
        self.bias = nn.Parameter(torch.zeros(n_targets))

    def user(self, history: Tensor, columns: Tensor) -> Tensor:
        """Returns (batch, 1, n_targets)."""
        total: Tensor = self.weights.user(history, columns).sum(dim=1, keepdim=True) + self.bias
        return total

    def item(self, items: ItemFeatures) -> Tensor:
        """Returns (*S, n_targets)."""
        total: Tensor = self.weights.item(items).sum(dim=-2)
        return total


FAMILY = ranker_family(LogisticRegression, learning_rate=5e-3)
