"""DeepFM: a factorisation machine and a perceptron over the same vectors (Guo 2017, arXiv:1703.04247)."""

from torch import Tensor

from recserve.training.models.fm import FactorisationMachine
from recserve.training.models.ranker import (
    FirstLayer,
    ItemFeatures,
    RankerConfig,
    Side,
    perceptron,
    ranker_family,
)
from recserve.training.ranking.examples import Labels
from recserve.training.ranking.space import FeatureSpace


class DeepFM(FactorisationMachine):
    """The sum of the logits of the two."""

    def __init__(self, config: RankerConfig, space: FeatureSpace, labels: Labels) -> None:
        super().__init__(config, space, labels)
        size = config.embedding_size
        self.first = FirstLayer(self.fields.n_user * size, self.fields.n_item * size, config.hidden[0])
        self.rest = perceptron(list(config.hidden), self.n_targets, config.dropout)

    def encode_user(self, history: Tensor, columns: Tensor) -> Side:
        flat = self.fields.user(history, columns).flatten(1).unsqueeze(1)
        return *super().encode_user(history, columns), self.first.of_user(flat)

    def encode_item(self, items: ItemFeatures) -> Side:
        return *super().encode_item(items), self.first.of_item(self.fields.item(items).flatten(-2))

    def combine(self, user: Side, item: Side) -> Tensor:
        deep: Tensor = self.rest(user[2] + item[2])
        return super().combine(user[:2], item[:2]) + deep


FAMILY = ranker_family(DeepFM)
