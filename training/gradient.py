"""One epoch by gradient steps: windows of histories, a softmax over the catalogue, AdamW."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import parametrize

from recserve.training.average import WeightAverage
from recserve.training.batches import training_batches
from recserve.training.data import Histories
from recserve.training.distributed import Processes
from recserve.training.loop_config import LoopConfig
from recserve.training.loss import FULL_SOFTMAX_MAX_ITEMS, full_softmax, sampled_softmax
from recserve.training.models.content import content_of
from recserve.training.models.sequence import SequenceModel

MAX_GRADIENT_NORM = 1.0
# Lengths that are computed together: up to 4, 8, 16, ...
SHORTEST_GROUP, GROUP_STEP = 4, 2


class GradientLearner:
    """Trains a sequence model on the histories of ``train``; a checkpoint holds its optimiser's state."""

    def __init__(
        self, model: SequenceModel, train: Histories, config: LoopConfig, processes: Processes
    ) -> None:
        self._model = model
        self._train = train
        self._config = config
        self._processes = processes
        self.optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            betas=(0.9, 0.98),
        )
        n_users = int((train.lengths >= 2).sum())
        self._users_per_step = config.users_per_step(n_users)
        self.average = WeightAverage(
            self.optimizer, -(-n_users // (self._users_per_step * processes.world_size))
        )
        counts = np.bincount(train.item_index, minlength=model.n_items).astype(np.float64) + 1
        content = content_of(model)
        # What the softmax goes over: all items, or those that training knows; and where each is among them.
        self._candidates = None if content is None else torch.nonzero(content.is_known).squeeze(1)
        self._place = torch.arange(model.n_items)
        if content is not None and self._candidates is not None:
            counts = counts[content.is_known.numpy()]
            self._place = torch.cumsum(content.is_known, 0) - 1
        self._probabilities = torch.from_numpy(counts / counts.sum()).float()

    def train_epoch(self, epoch: int) -> float:
        """Makes one pass over the training windows and returns the mean loss."""
        config, processes = self._config, self._processes
        self._model.train()
        # Seeded by epoch: an epoch after a resume draws the dropout that it would have drawn.
        torch.manual_seed(hash((config.seed, epoch, processes.rank)) % 2**63)
        losses = []
        for history, targets, gaps in training_batches(
            self._train,
            max_history=self._model.config.max_history,
            batch_size=self._users_per_step,
            seed=config.seed,
            epoch=epoch,
            rank=processes.rank,
            world_size=processes.world_size,
        ):
            with parametrize.cached():
                loss = self._loss(history, targets, gaps)
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            processes.average_gradients(self._model)
            torch.nn.utils.clip_grad_norm_(self._model.parameters(), MAX_GRADIENT_NORM)
            self.optimizer.step()
            self.average.update()
            losses.append(loss.item())
        return float(np.mean(losses))

    def _loss(self, history: Tensor, targets: Tensor, gaps: Tensor) -> Tensor:
        reads_gaps = self._model.config.time_gaps
        # Before the precision changes: what is computed of a table here is what the encoder reads as well.
        table: Tensor = self._model.item_embeddings
        with torch.autocast("cpu", torch.bfloat16, enabled=self._config.precision == "bf16"):
            examples = [
                self._model.examples(history[rows, -length:], targets[rows, -length:], some_gaps)
                for rows, length in _by_length(history)
                for some_gaps in [gaps[rows, -length:] if reads_gaps else None]
            ]
        queries, wanted = (torch.cat(parts) for parts in zip(*examples, strict=True))
        queries = queries.float()
        wanted = self._place[wanted]
        if self._candidates is not None:
            table = table[self._candidates]
        if self._is_sampled():
            return sampled_softmax(queries, table, wanted, self._probabilities, self._config.n_negatives)
        return full_softmax(queries, table, wanted)

    def _is_sampled(self) -> bool:
        if self._config.loss == "auto":
            return self._model.n_items > FULL_SOFTMAX_MAX_ITEMS
        return self._config.loss == "sampled"


def _by_length(history: Tensor) -> Iterator[tuple[Tensor, int]]:
    """Yields the rows of a padded batch in groups of like length, each with its longest.

    Most histories are short and the longest one decides the padding of all: the groups, a step of two
    apart, are computed one after the other and share one loss, so that only the padding goes.
    """
    lengths = (history >= 0).sum(1)
    longer_than = 0
    while longer_than < history.shape[1]:
        limit = max(SHORTEST_GROUP, GROUP_STEP * longer_than)
        rows = torch.nonzero((lengths > longer_than) & (lengths <= limit)).squeeze(1)
        if len(rows):
            yield rows, int(lengths[rows].max())
        longer_than = limit
