"""One epoch of a ranker by gradient steps on labelled examples, and what it predicts of examples."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from recserve.training.data import Histories
from recserve.training.distributed import Processes
from recserve.training.loop_config import LoopConfig
from recserve.training.models.ranker import Ranker
from recserve.training.ranking.examples import LISTWISE, Examples, shuffled_rows, training_examples
from recserve.training.ranking.space import moments

PREDICTED_PER_STEP = 4096
# Of a training step, where that is not told.
EXAMPLES_PER_STEP = 1024
# How often a drawn item that the user had is drawn again; what is left then is a click that counts as none.
MAX_REDRAWS = 5


class ExampleLearner:
    """Trains a ranker on the interactions of ``train``; a checkpoint holds its optimiser's state.

    The loss is the cross-entropy of clicks and, where there are ratings, half the squared error of the
    standardised rating. Listwise it is that of the choice between the interaction and the items drawn for it.
    """

    def __init__(self, model: Ranker, train: Histories, config: LoopConfig, processes: Processes) -> None:
        self._model = model
        self._config = config
        self._processes = processes
        self._examples = training_examples(train)
        self._had = np.unique(_codes(self._examples.user_index, self._examples.item_index, model.n_items))
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )

    def train_epoch(self, epoch: int) -> float:
        """Makes one pass over the examples and returns the mean loss."""
        config, processes = self._config, self._processes
        examples_per_step = config.batch_size or EXAMPLES_PER_STEP
        self._model.train()
        # Seeded by epoch: an epoch after a resume draws what it would have drawn.
        torch.manual_seed(hash((config.seed, epoch, processes.rank)) % 2**63)
        rng = np.random.default_rng([config.seed, epoch, processes.rank])
        losses = []
        for batch in shuffled_rows(
            len(self._examples), examples_per_step * processes.world_size, seed=config.seed, epoch=epoch
        ):
            # As many rows in every process, or the last gradient exchange would weigh them unequally.
            share = -(-len(batch) // processes.world_size)
            rows = np.resize(batch, share * processes.world_size)[processes.rank :: processes.world_size]
            loss = self._loss(rows, rng)
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            processes.average_gradients(self._model)
            self.optimizer.step()
            losses.append(loss.item())
        return float(np.mean(losses))

    def _loss(self, rows: NDArray[np.int64], rng: np.random.Generator) -> Tensor:
        labels, examples = self._model.labels, self._examples
        items = examples.item_index[rows, None].astype(np.int64)
        if not labels.is_rated:
            items = np.concatenate([items, self._draw(rows, rng)], axis=1)
        history, user, context, values = inputs_of(self._model, examples, rows)
        if self._model.order_free:
            history = torch.from_numpy(examples.others(rows, history.shape[1], rng))
        logits = self._model(history, user, context, torch.from_numpy(items), values)
        if self._model.config.labels == LISTWISE:
            return F.cross_entropy(logits[:, :, 0], torch.zeros(len(rows), dtype=torch.int64))
        if not labels.is_rated:
            clicks = torch.zeros(items.shape)
            clicks[:, 0] = 1
            return F.binary_cross_entropy_with_logits(logits[:, :, 0], clicks)
        value = examples.value[rows]
        clicks = torch.from_numpy(labels.clicks(value))
        rating = torch.from_numpy((value - np.float32(labels.mean)) / np.float32(labels.std))
        return F.binary_cross_entropy_with_logits(logits[:, 0, 0], clicks) + 0.5 * F.mse_loss(
            logits[:, 0, 1], rating
        )

    def _draw(self, rows: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        """Returns items at random, (len(rows), negatives), that the row's user did not have."""
        n_items = self._model.n_items
        users = np.repeat(self._examples.user_index[rows, None], self._model.config.negatives, axis=1)
        drawn = rng.integers(0, n_items, users.shape)
        for _ in range(MAX_REDRAWS):
            had = _is_in(self._had, _codes(users, drawn, n_items))
            if not had.any():
                break
            drawn[had] = rng.integers(0, n_items, int(had.sum()))
        return drawn


def inputs_of(
    model: Ranker, examples: Examples, rows: NDArray[np.int64]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns history, user, context and values of ``rows``, as :meth:`Ranker.forward` takes them."""
    length = max(1, model.config.max_history)
    history, values = examples.history(rows, length), examples.history_values(rows, length)
    user = model.user_rows[torch.from_numpy(examples.user_index[rows].astype(np.int64))]
    context = moments(model.schema.context, examples.timestamp[rows])
    return torch.from_numpy(history), user, torch.from_numpy(context), torch.from_numpy(values)


@torch.inference_mode()
def predict(model: Ranker, examples: Examples) -> NDArray[np.float32]:
    """Returns the logits (n, n_targets) that ``model`` gives to the item of each example."""
    model.eval()
    parts = [np.empty((0, model.n_targets), np.float32)]
    for start in range(0, len(examples), PREDICTED_PER_STEP):
        rows = np.arange(start, min(start + PREDICTED_PER_STEP, len(examples)))
        items = torch.from_numpy(examples.item_index[rows, None].astype(np.int64))
        history, user, context, values = inputs_of(model, examples, rows)
        parts.append(model(history, user, context, items, values)[:, 0].numpy())
    return np.concatenate(parts)


def _codes(users: NDArray[np.integer], items: NDArray[np.integer], n_items: int) -> NDArray[np.int64]:
    return users.astype(np.int64) * n_items + items


def _is_in(sorted_codes: NDArray[np.int64], codes: NDArray[np.int64]) -> NDArray[np.bool_]:
    place = np.minimum(np.searchsorted(sorted_codes, codes), len(sorted_codes) - 1)
    found: NDArray[np.bool_] = sorted_codes[place] == codes
    return found
