"""Structured pruning: whole heads, hidden units and dimensions leave (units.py), the rest is taught.

The item table is frozen, so the pruned model and the full one share it; the smaller network learns to give
the full one's query embeddings (distillation, Hinton et al. 2015, arXiv:1503.02531; here on embeddings, since
scores are inner products with one table).
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import cast

import torch
from torch import Tensor

from recserve.errors import InvalidRequest
from recserve.exporters.units import (
    Prunable,
    given_to_layers,
    importance,
    keep_dimensions,
    keep_units,
    layers_of,
)
from recserve.training.batches import training_batches
from recserve.training.data import Histories
from recserve.training.models.bert4rec import BERT4Rec

N_MEASURED_BATCHES = 4
BATCH_SIZE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneConfig:
    """How much of each block is kept and how long the rest is taught."""

    hidden_share: float = 0.5
    """Share of the hidden units that stay: the feed-forward's, or HSTU's values and queries of each head."""
    second_share: float = 0.75
    """Tried as well, if it is larger, where the users of validation lose by ``hidden_share``."""
    head_share: float = 1.0
    """Share of the attention heads that stay, at least one."""
    dimension_share: float = 1.0
    """Share of an embedding's dimensions that the layers work on; items keep all."""
    epochs: int = 60
    learning_rate: float = 2e-3
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("hidden_share", "second_share", "head_share", "dimension_share"):
            if not 0 < getattr(self, name) <= 1:
                raise InvalidRequest(name, found=getattr(self, name), expected="above 0, at most 1")
        if self.epochs < 0:
            raise InvalidRequest("prune epochs", found=self.epochs, expected="0 or more")


def prune(model: Prunable, train: Histories, config: PruneConfig) -> Prunable:
    """Returns a smaller copy of ``model``, taught on the histories of ``train``; ``model`` stays as it is."""
    student = copy.deepcopy(model).eval()

    def ask() -> None:
        for history, _, gaps in islice(_batches(student, train, config.seed, 0), N_MEASURED_BATCHES):
            student(history, gaps if student.config.time_gaps else None)

    given, layers = given_to_layers(student, ask), layers_of(student)
    found = [importance(layer, given) for layer in layers]
    for layer, one in zip(layers, found, strict=True):
        keep_units(layer, one, config.head_share, config.hidden_share)
    keep_dimensions(student, found, config.dimension_share)
    _distil(student, model.eval(), train, config)
    return student.eval()


def _distil(student: Prunable, teacher: Prunable, train: Histories, config: PruneConfig) -> None:
    """Teaches ``student`` the query embeddings that ``teacher`` has after every prefix of each history.

    A model that looks both ways has to encode each prefix anew: it gets one of each history in an epoch.
    """
    student.item_embeddings.requires_grad_(False)
    learned = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=config.learning_rate, weight_decay=0.0)
    n_steps = max(1, config.epochs * -(-int((train.lengths >= 2).sum()) // BATCH_SIZE))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
    generator = torch.Generator().manual_seed(config.seed)
    for epoch in range(config.epochs):
        for history, _, gaps in _batches(student, train, config.seed, epoch):
            if isinstance(student, BERT4Rec):
                history = _random_prefixes(history, generator)
            given = gaps if student.config.time_gaps else None
            with torch.no_grad():
                wanted = _queries(teacher, history, given)
            loss = (_queries(student, history, given) - wanted).square().sum(-1).mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()


def _queries(model: Prunable, history: Tensor, gaps: Tensor | None) -> Tensor:
    """Returns query embeddings (n, embedding_size), of every prefix where one pass makes them all."""
    if isinstance(model, BERT4Rec):
        return model.encode(history)
    return cast(Tensor, model(history, gaps))[history >= 0]


def _random_prefixes(history: Tensor, generator: torch.Generator) -> Tensor:
    """Returns a prefix of one item or more of each row of ``history``, left-padded again."""
    length = history.shape[1]
    n_items = (history >= 0).sum(1, keepdim=True)
    n_dropped = (torch.rand(n_items.shape, generator=generator) * n_items).long()
    source = torch.arange(length) - n_dropped
    return torch.where(source >= 0, history.gather(1, source.clamp(min=0)), -1)


def _batches(
    model: Prunable, train: Histories, seed: int, epoch: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    return training_batches(
        train, max_history=model.config.max_history, batch_size=BATCH_SIZE, seed=seed, epoch=epoch
    )
