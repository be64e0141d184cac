"""Content in a sequence model: an item is its id and what is known of it, so a new item has a vector.

The embedding of an id plus a projection of the item's frozen content (attributes, texts, any vector that came
with it) is the item table, read as input and as output. Training hides ids now and then, and the softmax goes
over the items that training knows: of the others nobody could choose.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import parametrize

from recserve.errors import DataError
from recserve.training.data import Dataset, Split
from recserve.training.features.attributes import attribute_matrix
from recserve.training.features.text import HashingEncoder
from recserve.training.models.sequence import SequenceModel

TABLE = "item_embeddings"


class Content(nn.Module):
    """Embeddings of ids (n_items, d) → the item table; features: (n_items, g) float32, is_known: (n_items,).

    The features follow from the data set, so a checkpoint leaves them out.
    """

    features: Tensor
    is_known: Tensor

    def __init__(
        self, features: NDArray[np.float32], is_known: NDArray[np.bool_], size: int, unknown_rate: float
    ) -> None:
        super().__init__()
        self.unknown_rate = unknown_rate
        self.register_buffer("features", torch.from_numpy(features), persistent=False)
        self.register_buffer("is_known", torch.from_numpy(is_known), persistent=False)
        self.projection = nn.Parameter(torch.randn(features.shape[1], size) / size**0.5)

    def forward(self, ids: Tensor) -> Tensor:
        """Returns the table; an id says nothing where training does not know it or hides it now."""
        shown = self.is_known
        if self.training:
            shown = shown & (torch.rand(len(shown)) >= self.unknown_rate)
        return ids * shown.unsqueeze(1) + self.features @ self.projection


def creator(create: Callable[[Any, int], SequenceModel]) -> Callable[[Any, Dataset, Split], SequenceModel]:
    """Returns what makes a model of a data set: with content where its settings ask for it."""

    def create_from_data(settings: Any, dataset: Dataset, split: Split) -> SequenceModel:
        model = create(settings, dataset.n_items)
        if settings.content:
            is_known = np.bincount(split.train.item_index, minlength=dataset.n_items) > 0
            features = attribute_matrix(dataset.items, is_known, HashingEncoder())
            if not features.shape[1]:
                cure = "Give --items or --item-embeddings, or leave out --content."
                raise DataError("content of the items", found="empty", expected="attributes", cure=cure)
            content = Content(features, is_known, settings.embedding_size, settings.unknown_rate)
            parametrize.register_parametrization(model, TABLE, content)
        return model

    return create_from_data


def content_of(model: SequenceModel) -> Content | None:
    """Returns the content of a model that has it and is not settled."""
    if not parametrize.is_parametrized(model, TABLE):
        return None
    [content] = model.parametrizations[TABLE]  # type: ignore[index]
    return content  # type: ignore[no-any-return]


def settle(model: SequenceModel) -> None:
    """Makes the table of a trained model a plain one, computed once: what is evaluated and exported."""
    if content_of(model) is not None:
        model.eval()
        parametrize.remove_parametrizations(model, TABLE, leave_parametrized=True)
