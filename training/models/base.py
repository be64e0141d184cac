"""What every model family is to the training loop, the evaluation and the exporters."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from recserve.training.data import Dataset, EvaluationSet, Histories, Split


@dataclass(frozen=True, slots=True)
class ValidationMetric:
    """The metric that early stopping follows, by its name in the evaluation."""

    name: str
    higher_is_better: bool = True


class RankingModel(nn.Module, ABC):
    """Scores every item of a catalogue of ``n_items``; what it learned are its parameters and buffers."""

    n_items: int
    validation_metric: ValidationMetric = ValidationMetric("NDCG@10")

    @abstractmethod
    def score_rows(self, held_out: EvaluationSet, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Returns the scores (len(rows), n_items) that serving would give to these users.

        What is known of a user is its history in ``held_out``. What an empty one gets does not matter:
        popularity answers it.
        """


class FittedModel(RankingModel):
    """A family that makes its epochs itself: it solves its tables, or knows better how to batch its data.

    ``optimizer``: of a family that makes gradient steps; its state goes into the checkpoint.
    """

    optimizer: torch.optim.Optimizer | None = None

    @abstractmethod
    def fit_epoch(self, train: Histories, *, epoch: int, seed: int) -> float:
        """Makes one pass over ``train`` (row = user) and returns its loss.

        An epoch depends on the model, its optimiser, ``seed`` and ``epoch`` alone, so that a resumed run
        repeats an uninterrupted one.
        """


@runtime_checkable
class RatingModel(Protocol):
    """A model that also says how a user would rate an item."""

    def predict_ratings(self, held_out: EvaluationSet) -> NDArray[np.float32]:
        """Returns the predicted rating of every target of ``held_out``, in their order, (n_targets,)."""
        ...


@runtime_checkable
class EmbeddingModel(Protocol):
    """A model whose score is the inner product of a query embedding and an item's."""

    item_embeddings: Tensor

    def query_rows(self, held_out: EvaluationSet, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Returns the query embeddings (len(rows), d) of users whose history is that of ``held_out``."""
        ...


@dataclass(frozen=True, slots=True)
class Family:
    """How a model family registers: its settings, its model and its budget.

    ``settings``: a frozen dataclass; ``create``: (settings, n_users, n_items) → untrained model;
    ``budget``: its defaults of LoopConfig; ``loop_options``: the LoopConfig fields that it uses;
    ``min_history``: training interactions that at least one user needs; ``check_data``: (train, settings)
    raises DataError for training interactions that the family cannot learn from; ``create_from_data``:
    (settings, dataset, split) → untrained model, for a family that reads attributes, fitted on
    ``split.train``.
    """

    settings: type[Any]
    create: Callable[[Any, int, int], RankingModel]
    budget: Mapping[str, Any]
    loop_options: frozenset[str]
    min_history: int = 1
    check_data: Callable[[Histories, Any], None] = lambda train, settings: None
    create_from_data: Callable[[Any, Dataset, Split], RankingModel] | None = None


# The budget of families whose first epoch is the last.
ONE_EPOCH = {"epochs": 1, "validate_every": 1, "patience": 1}
EPOCH_OPTIONS = frozenset({"epochs", "validate_every", "patience", "seed"})
