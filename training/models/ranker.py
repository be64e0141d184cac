"""What every ranker is: features of a user, a moment and candidates → logits, the user's part computed once.

A family says what it computes from the user alone (``encode_user``), from an item alone (``encode_item``)
and from the two together (``combine``). Training, evaluation and the exported graph share these three; in
the graph the items' part is a table, computed when it is exported. What the ratings of the history say is
added to the logits of every family in the same way (``Appraisal``).
"""

import copy
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from recserve.errors import DataError, InvalidRequest
from recserve.training.batches import pad, pad_values
from recserve.training.data import Dataset, EvaluationSet, Histories, Split
from recserve.training.models.appraisal import Appraisal
from recserve.training.models.base import EPOCH_OPTIONS, Family, RankingModel, ValidationMetric
from recserve.training.ranking import calibration, normalise
from recserve.training.ranking.examples import LISTWISE, Labels, labels_of
from recserve.training.ranking.space import FeatureSpace, Schema, fit_space, moments

LABEL_SOURCES = ("auto", "ratings", "sampled", LISTWISE)
# Near 0: what few examples teach stays small, instead of being noise from the start.
EMBEDDING_STD = 0.001
LOOP_OPTIONS = EPOCH_OPTIONS | {"batch_size", "learning_rate", "weight_decay"}
# How often training hides the moment, to learn what to say without it.
MOMENT_UNKNOWN_RATE = 0.03
BUDGET = {"epochs": 30, "learning_rate": 2e-3, "validate_every": 1, "patience": 3}

# What a family computes of one side: tensors of (batch, 1, …) of users, (…, width) of items.
Side = tuple[Tensor, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankerConfig:
    """The settings of every ranker; ``hidden``: the widths of its perceptron, where it has one."""

    embedding_size: int = 16
    hidden: tuple[int, ...] = (64, 32)
    dropout: float = 0.2
    max_history: int = 50
    """Newest items of the user that the model sees; 0: none."""
    history_values: bool = True
    """Whether the user's ratings of them are seen, where the labels are ratings."""
    context: bool = True
    """Whether the moment (hour, weekday) is a feature."""
    labels: str = "auto"
    """ratings: a value of click_at or more is a click; sampled: every interaction is, random items not;
    listwise: the same as a choice among the drawn, which orders candidates better and is no probability."""
    click_at: float = 4.0
    negatives: int = 4
    """Items drawn at random for each interaction, with sampled labels."""
    unknown_rate: float = 0.5
    """How often training hides a user's id, to learn what to say of users who come later."""
    normalisation: str = "quantile"
    calibration: str = "auto"

    def __post_init__(self) -> None:
        # JSON and the command line bring lists.
        object.__setattr__(self, "hidden", tuple(self.hidden))
        for name, least in (("embedding_size", 1), ("max_history", 0), ("negatives", 1)):
            if getattr(self, name) < least:
                raise InvalidRequest(name, found=getattr(self, name), expected=f"{least} or more")
        if not self.hidden or min(self.hidden) < 1:
            raise InvalidRequest("hidden", found=self.hidden, expected="one width or more, each 1 or more")
        for name in ("dropout", "unknown_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise InvalidRequest(name, found=getattr(self, name), expected="0 to below 1")
        for name, allowed in (
            ("labels", LABEL_SOURCES),
            ("normalisation", normalise.METHODS),
            ("calibration", calibration.METHODS),
        ):
            if getattr(self, name) not in allowed:
                raise InvalidRequest(name, found=getattr(self, name), expected=f"one of {', '.join(allowed)}")


class ItemFeatures(NamedTuple):
    """Of items in any shape S: indices and ids S, categories (*S, n), lists (*S, n, length), numbers (*S, n).

    An id is the index + 1, or 0 where training does not know the item.
    """

    indices: Tensor
    ids: Tensor
    categories: Tensor
    lists: Tensor
    numbers: Tensor


class Ranker(RankingModel):
    """Scores candidates: logits of each target (a rating's is standardised) for every user and item."""

    def __init__(self, config: RankerConfig, space: FeatureSpace, labels: Labels) -> None:
        super().__init__()
        self.config = config
        self.schema: Schema = space.schema
        self.labels = labels
        self.n_items = space.schema.n_items
        self.n_targets = len(labels.targets)
        if labels.is_rated:
            self.validation_metric = ValidationMetric("AUC")
        for name in ("user_rows", "item_ids", "item_categories", "item_lists", "item_numbers"):
            self.register_buffer(name, torch.from_numpy(getattr(space, name)))
        self.appraisal: Appraisal | None = None
        if labels.is_rated and self.reads_values and config.history_values and config.max_history:
            size = config.embedding_size if self.has_taste else 0
            self.appraisal = Appraisal(torch.from_numpy(space.item_values), labels, size)

    order_free = False
    """Whether training shows what the user met at any time, and not what was met before the example."""
    reads_values = True
    """Whether the ratings of the history may have a say."""
    has_taste = True
    """Whether they say more than how kind the user is."""

    user_rows: Tensor
    item_ids: Tensor
    item_categories: Tensor
    item_lists: Tensor
    item_numbers: Tensor

    @abstractmethod
    def encode_user(self, history: Tensor, columns: Tensor) -> Side:
        """Computes what depends on the user and the moment alone, each tensor (batch, 1, …).

        ``history``: (batch, length) ids of items (index + 1), 0 for padding; ``columns``: (batch, n) indices,
        those of the user table's columns, then those of the context.
        """

    @abstractmethod
    def encode_item(self, items: ItemFeatures) -> Side:
        """Computes what depends on an item alone, each tensor (*S, width)."""

    @abstractmethod
    def combine(self, user: Side, item: Side) -> Tensor:
        """Returns logits (batch, n_candidates, n_targets).

        ``item`` is (batch or 1, n_candidates, width): with 1 every user has the same candidates.
        """

    def for_many_candidates(self) -> "Ranker":
        """Returns a copy that gives the same logits and costs least for one user and many candidates."""
        return copy.deepcopy(self)

    def forward(
        self,
        history: Tensor,
        user: Tensor,
        context: Tensor,
        candidates: Tensor,
        values: Tensor | None = None,
    ) -> Tensor:
        """Returns logits (batch, n_candidates, n_targets).

        ``history``: (batch, length) item indices, newest last, −1 for padding; ``user``: (batch, n) rows of
        the user table; ``context``: (batch, n) indices of the moment; ``candidates``: (batch, n) items;
        ``values``: (batch, length) float32, what the history's items were rated, NaN where that is not known.
        """
        return self.logits(self.user_side(history, user, context, values), self.item_side(candidates))

    def user_side(self, history: Tensor, user: Tensor, context: Tensor, values: Tensor | None = None) -> Side:
        """Returns what depends on the user alone of the inputs of :meth:`forward`."""
        if self.training:
            user = torch.cat([_hidden(user[:, :1], self.config.unknown_rate), user[:, 1:]], dim=1)
            context = _hidden(context, MOMENT_UNKNOWN_RATE)
        ids = self.item_ids[history.clamp(min=0)] * (history >= 0)
        side = self.encode_user(ids, torch.cat([user, context], dim=1) if self.schema.context else user)
        if self.appraisal is None:
            return side
        values = torch.full(ids.shape, torch.nan) if values is None else values
        return *side, *self.appraisal.user(ids, values)

    def item_side(self, items: Tensor) -> Side:
        """Returns what depends on an item alone, of item indices of any shape."""
        features = ItemFeatures(
            items,
            self.item_ids[items],
            self.item_categories[items],
            self.item_lists[items],
            self.item_numbers[items],
        )
        side = self.encode_item(features)
        return side if self.appraisal is None else (*side, *self.appraisal.item(features.ids))

    def logits(self, user: Side, item: Side) -> Tensor:
        """Returns (batch, n_candidates, n_targets) of :meth:`user_side` and :meth:`item_side`."""
        if self.appraisal is None:
            return self.combine(user, item)
        # What the appraisal computed stands last.
        n_user, n_item = len(user) - (1 + self.has_taste), len(item) - self.has_taste
        said: Tensor = self.appraisal(user[n_user:], item[n_item:])
        return self.combine(user[:n_user], item[:n_item]) + said

    def item_tables(self) -> Side:
        """Returns :meth:`item_side` of every item, each (n_items, width)."""
        return self.item_side(torch.arange(self.n_items))

    def get_extra_state(self) -> Tensor:
        """Returns what the features are, as JSON in bytes: a checkpoint tells what it was trained on."""
        return torch.frombuffer(bytearray(self.schema.to_bytes()), dtype=torch.uint8)

    def set_extra_state(self, state: Any) -> None:
        """Raises :class:`DataError` when the checkpoint was trained on other features."""
        if bytes(state.numpy()) != self.schema.to_bytes():
            raise DataError(
                "features of the checkpoint",
                found="other ones than the data's",
                expected="those of the data",
                cure="Train again.",
            )

    @torch.inference_mode()
    def score_rows(self, held_out: EvaluationSet, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Returns the click logits (len(rows), n_items) of users at the moment of their first target."""
        history = pad(held_out.histories, rows, max(1, self.config.max_history))[0]
        values = pad_values(held_out.histories, rows, history.shape[1])
        now = held_out.targets.timestamp[held_out.targets.indptr[rows]]
        user = self.user_side(
            torch.from_numpy(history).to(torch.int64),
            self.user_rows[torch.from_numpy(held_out.user_index[rows].astype(np.int64))],
            torch.from_numpy(moments(self.schema.context, now)),
            torch.from_numpy(values),
        )
        items = tuple(table.unsqueeze(0) for table in self.item_tables())
        logits = [self.logits(tuple(part[i : i + 1] for part in user), items) for i in range(len(rows))]
        scores: NDArray[np.float32] = torch.cat(logits)[:, :, 0].numpy().copy()
        return scores


class Fields(nn.Module):
    """A vector of ``size`` for each field: columns of the user and the moment, history, features of items.

    A feature without a value gives the vector of its unknown bucket, a number its value times a vector.
    ``shared``: an item has one vector, whether it is met now or was met before.
    """

    def __init__(self, schema: Schema, size: int, *, history: bool, shared: bool = True) -> None:
        super().__init__()
        sizes = schema.user_sizes + schema.context_sizes
        self.user_columns = _embeddings(sizes, size)
        self.has_history = history
        self.history = None if shared or not history else _embeddings([schema.n_items + 1], size)[0]
        self.item_id = _embeddings([schema.n_items + 1], size)[0]
        self.categories = _embeddings([feature.n for feature in schema.categories], size)
        self.lists = _embeddings([feature.n for feature in schema.lists], size)
        self.numbers = nn.Parameter(torch.randn(len(schema.numbers), size) * EMBEDDING_STD)
        self.n_user = len(sizes) + int(history)
        self.n_item = 1 + len(schema.categories) + len(schema.lists) + len(schema.numbers)

    def user(self, history: Tensor, columns: Tensor) -> Tensor:
        """Returns (batch, n_user, size): each column's vector, then the history's."""
        vectors = [table(columns[:, i]) for i, table in enumerate(self.user_columns)]
        if self.has_history:
            met = self.item_id if self.history is None else self.history
            vectors.append(averaged(met(history), history > 0))
        return torch.stack(vectors, dim=1)

    def item(self, items: ItemFeatures) -> Tensor:
        """Returns (*S, n_item, size)."""
        vectors = [self.item_id(items.ids)]
        vectors += [table(items.categories[..., i]) for i, table in enumerate(self.categories)]
        for i, table in enumerate(self.lists):
            values = items.lists[..., i, :]
            vectors.append(averaged(table(values), values > 0))
        stacked = torch.stack(vectors, dim=-2)
        return torch.cat([stacked, items.numbers.unsqueeze(-1) * self.numbers], dim=-2)


class FirstLayer(nn.Module):
    """A linear layer over the user's and the item's part together, each computed where its part is."""

    def __init__(self, user_width: int, item_width: int, out: int) -> None:
        super().__init__()
        self.of_user = nn.Linear(user_width, out)
        self.of_item = nn.Linear(item_width, out, bias=False)


def averaged(vectors: Tensor, real: Tensor) -> Tensor:
    """Returns the mean of the real ones of ``vectors`` (*S, n, size): (*S, size), 0 where none is."""
    weights = real.unsqueeze(-1).to(vectors.dtype)
    return (vectors * weights).sum(dim=-2) / weights.sum(dim=-2).clamp(min=1)


def pooled(vectors: Tensor, real: Tensor) -> Tensor:
    """Returns the sum of the real ones of ``vectors`` (*S, n, size) over √n: (*S, size), 0 where none is."""
    weights = real.unsqueeze(-1).to(vectors.dtype)
    return (vectors * weights).sum(dim=-2) / weights.sum(dim=-2).clamp(min=1).sqrt()


class Perceptron(nn.Sequential):
    """Layers over the last dimension; what is before it is one dimension for them.

    ONNX Runtime fuses product, bias and ReLU of a matrix, and of nothing with more dimensions.
    """

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns (*S, out) of ``inputs`` (*S, width)."""
        outputs = inputs.flatten(0, -2)
        for layer in self:
            outputs = layer(outputs)
        return outputs.view(*inputs.shape[:-1], -1)


def perceptron(widths: list[int], out: int, dropout: float) -> Perceptron:
    """Returns what follows a first layer of ``widths[0]``: ReLU, dropout and a layer for each next width."""
    layers: list[nn.Module] = []
    for width, following in zip(widths, [*widths[1:], out], strict=True):
        layers += [nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, following)]
    return Perceptron(*layers)


def pairwise(fields: Tensor) -> Tensor:
    """Returns ½((Σv)² − Σv²) over the fields (…, n, size): the products of all pairs, summed, (…, size)."""
    return 0.5 * (fields.sum(dim=-2) ** 2 - (fields**2).sum(dim=-2))


def _hidden(indices: Tensor, rate: float) -> Tensor:
    """Returns ``indices`` with 0, the unknown, for a share ``rate`` of them."""
    return indices * (torch.rand(indices.shape) >= rate)


def _embeddings(sizes: list[int], width: int) -> nn.ModuleList:
    tables = [nn.Embedding(n, width) for n in sizes]
    for table in tables:
        nn.init.normal_(table.weight, std=EMBEDDING_STD)
        # Where training never meets the unknown, it says nothing.
        nn.init.zeros_(table.weight[0])
    return nn.ModuleList(tables)


def _needs_data(settings: Any, n_users: int, n_items: int) -> RankingModel:
    raise TypeError("a ranker is made from data; use Family.create_from_data")


def _check_labels(train: Histories, settings: Any) -> None:
    labels_of(train, settings.labels, settings.click_at)


@dataclass(frozen=True, slots=True)
class _Creator:
    """Fits the features and labels that a new model of ``kind`` has."""

    kind: Callable[[Any, FeatureSpace, Labels], Ranker]

    def __call__(self, settings: Any, dataset: Dataset, split: Split) -> Ranker:
        space = fit_space(dataset, split, context=settings.context, normalisation=settings.normalisation)
        return self.kind(settings, space, labels_of(split.train, settings.labels, settings.click_at))


def ranker_family(
    kind: Callable[..., Ranker],
    settings: type[RankerConfig] = RankerConfig,
    *,
    create_from_data: Callable[[Any, Dataset, Split], Ranker] | None = None,
    **budget: Any,
) -> Family:
    """Returns the registration of a ranker; ``budget``: what differs from the rankers' default.

    ``create_from_data``: for a kind that reads more of the data than features and labels.
    """
    return Family(
        settings=settings,
        create=_needs_data,
        create_from_data=create_from_data or _Creator(kind),
        budget={**BUDGET, **budget},
        loop_options=LOOP_OPTIONS,
        check_data=_check_labels,
    )
