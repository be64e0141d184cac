"""Relevance: the probability of a click from texts alone, σ(T_u · T_i + c(T_i)).

T_i is a projection of what the item's texts say (TF-IDF in a few dimensions, and any vector that came with
the item), T_u one of what the user had, and c a linear classifier of texts: what anybody clicks. Nothing
depends on an id, so an item that nobody had is predicted as any other.
"""

from dataclasses import dataclass

import numpy as np
import polars.selectors as cs
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from recserve.errors import DataError, InvalidRequest
from recserve.training.data import Dataset, Split
from recserve.training.data.columns import ITEM_ID
from recserve.training.features.attributes import attribute_matrix
from recserve.training.features.text import HashingEncoder
from recserve.training.features.tfidf import text_vectors
from recserve.training.models.dropout import dropout
from recserve.training.models.ranker import (
    ItemFeatures,
    Ranker,
    RankerConfig,
    Side,
    pooled,
    ranker_family,
)
from recserve.training.ranking.examples import Labels, labels_of
from recserve.training.ranking.space import FeatureSpace, fit_space

# Of the projections, which begin as one: the first logits are cosines times this one's square.
INITIAL_SCALE = 2.0
# Dimensions of the words.
TEXT_SIZE = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class RelevanceConfig(RankerConfig):
    """The settings of relevance; it reads no moment and nothing of the user but the history."""

    embedding_size: int = 64
    dropout: float = 0.5
    """Of what texts say, in training: else the model learns pairs of products by heart."""
    context: bool = False

    def __post_init__(self) -> None:
        # The decorator makes another class, which super() without arguments does not know.
        RankerConfig.__post_init__(self)
        if not self.max_history:
            raise InvalidRequest("max_history", found=0, expected="1 or more")


class Relevance(Ranker):
    """texts: (n_items, d) float32, what is known of each item; it follows from the data set, so a checkpoint
    leaves it out."""

    reads_values = False
    texts: Tensor

    def __init__(
        self, config: RelevanceConfig, space: FeatureSpace, labels: Labels, texts: NDArray[np.float32]
    ) -> None:
        super().__init__(config, space, labels)
        width = texts.shape[1]
        # Row 0 is the padding of histories.
        table = np.concatenate([np.zeros((1, width), np.float32), texts])
        self.register_buffer("texts", torch.from_numpy(table), persistent=False)
        self.of_user = nn.Linear(width, self.n_targets * config.embedding_size)
        self.of_item = nn.Linear(width, self.n_targets * config.embedding_size, bias=False)
        self.classifier = nn.Linear(width, self.n_targets)
        nn.init.normal_(self.of_item.weight, std=INITIAL_SCALE * config.embedding_size**-0.5)
        with torch.no_grad():
            self.of_user.weight.copy_(self.of_item.weight)
            self.of_user.bias.zero_()
            self.classifier.weight.zero_()

    def encode_user(self, history: Tensor, columns: Tensor) -> Side:
        texts = pooled(self.texts[history], history > 0)
        texts = dropout(texts, self.config.dropout, self.training)
        return (self.of_user(texts).unsqueeze(1),)

    def encode_item(self, items: ItemFeatures) -> Side:
        texts = dropout(self.texts[items.indices + 1], self.config.dropout, self.training)
        return self.of_item(texts), self.classifier(texts)

    def combine(self, user: Side, item: Side) -> Tensor:
        products = user[0] * item[0]
        logits: Tensor = products.view(*products.shape[:-1], self.n_targets, -1).sum(-1) + item[1]
        return logits


def content_of(dataset: Dataset, known: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Returns what texts and vectors say of each item, (n_items, d) float32; ``known``: those of training.

    Raises :class:`DataError` where nothing is said of any.
    """
    vectors = dataset.items.select(ITEM_ID, cs.list(cs.numeric()) | cs.array(cs.numeric()))
    given = attribute_matrix(vectors, known, HashingEncoder())
    content = np.concatenate([text_vectors(dataset.items, TEXT_SIZE), given], axis=1)
    if not content.any():
        raise DataError(
            "text of the items",
            found="none",
            expected="titles, descriptions, categories or vectors",
            cure="Give --items.",
        )
    return content


def create_from_data(config: RelevanceConfig, dataset: Dataset, split: Split) -> Relevance:
    """Returns the untrained model of the texts of ``dataset``."""
    space = fit_space(dataset, split, context=False, normalisation=config.normalisation)
    labels = labels_of(split.train, config.labels, config.click_at)
    known = np.bincount(split.train.item_index, minlength=dataset.n_items) > 0
    return Relevance(config, space, labels, content_of(dataset, known))


FAMILY = ranker_family(Relevance, RelevanceConfig, create_from_data=create_from_data)
