"""The one training loop: epochs, validation, early stopping, checkpoints, resume, data parallelism."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recserve.errors import CheckFailed, DataError, InvalidRequest
from recserve.training.batches import gaps_of, pad, training_batches
from recserve.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from recserve.training.data import EvaluationSet, Split
from recserve.training.distributed import Processes
from recserve.training.evaluate import Scorer, evaluate
from recserve.training.loss import full_softmax, sampled_softmax
from recserve.training.models.sasrec import SASRec

LAST, BEST, LOG = "last.safetensors", "best.safetensors", "epochs.jsonl"
VALIDATION_METRIC = "NDCG@10"
LOSSES = ("auto", "softmax", "sampled")
# Above this the score matrix of a batch no longer fits in cache and sampling pays.
FULL_SOFTMAX_MAX_ITEMS = 50_000
MAX_GRADIENT_NORM = 1.0
MAX_LEARNING_RATE = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopConfig:
    """How a model is trained."""

    epochs: int = 60
    batch_size: int = 128
    """Users per step of one process."""
    learning_rate: float = 3e-3
    weight_decay: float = 0.0
    patience: int = 4
    """Validations without a better NDCG@10 before training stops."""
    validate_every: int = 5
    """Epochs between validations."""
    seed: int = 0
    loss: str = "auto"
    """softmax over the whole catalogue, sampled (with logQ correction), or auto by catalogue size."""
    n_negatives: int = 4096
    """Sampled items of a step under the sampled loss."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "patience", "validate_every", "n_negatives"):
            if getattr(self, name) < 1:
                raise InvalidRequest(name, found=getattr(self, name), expected="1 or more")
        if not 0 < self.learning_rate <= MAX_LEARNING_RATE:
            raise InvalidRequest(
                "learning_rate", found=self.learning_rate, expected=f"above 0, at most {MAX_LEARNING_RATE}"
            )
        if not self.weight_decay >= 0:
            raise InvalidRequest("weight_decay", found=self.weight_decay, expected="0 or more")
        if self.loss not in LOSSES:
            raise InvalidRequest("loss", found=self.loss, expected=f"one of {', '.join(LOSSES)}")


@dataclass(frozen=True, slots=True)
class EpochReport:
    """What one epoch gave; ``metric`` is None where the epoch was not validated."""

    epoch: int
    loss: float
    metric: float | None
    best_epoch: int
    seconds: float


class Trainer:
    """Trains one model on one split into one folder of checkpoints."""

    def __init__(
        self,
        model: SASRec,
        split: Split,
        folder: Path,
        config: LoopConfig,
        processes: Processes | None = None,
    ) -> None:
        check_learnable(split)
        self._model = model
        self._split = split
        self._folder = folder
        self._config = config
        self._processes = processes or Processes()
        self._optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            betas=(0.9, 0.98),
        )
        counts = np.bincount(split.train.item_index, minlength=model.n_items).astype(np.float64) + 1
        self._probabilities = torch.from_numpy(counts / counts.sum()).float()
        self._progress = Progress()

    def resume(self) -> Progress:
        """Goes on from the last checkpoint of the folder, where there is one."""
        if (self._folder / LAST).is_file():
            self._progress = load_checkpoint(self._folder / LAST, self._model, self._optimizer)
        return self._progress

    def fit(self, on_epoch: Callable[[EpochReport], None] = lambda report: None) -> Progress:
        """Trains until the epochs or the patience are used up; the best weights are in ``best.safetensors``.

        Raises :class:`CheckFailed` when the loss stops being a number.
        """
        config = self._config
        for epoch in range(self._progress.epoch + 1, config.epochs + 1):
            if epoch > self._progress.best_epoch + config.patience * config.validate_every:
                break
            start = time.perf_counter()
            loss = self._train_epoch(epoch)
            metric = None
            if epoch % config.validate_every == 0 or epoch == config.epochs:
                metric = self._processes.same_everywhere(self._validate())
            self._record(epoch, metric)
            on_epoch(EpochReport(epoch, loss, metric, self._progress.best_epoch, time.perf_counter() - start))
            self._log(epoch, loss, metric)
        self._processes.wait()
        return self._progress

    def _train_epoch(self, epoch: int) -> float:
        config, processes = self._config, self._processes
        self._model.train()
        # Seeded by epoch: an epoch after a resume draws the dropout that it would have drawn.
        torch.manual_seed(hash((config.seed, epoch, processes.rank)) % 2**63)
        losses = []
        for history, targets, gaps in training_batches(
            self._split.train,
            max_history=self._model.config.max_history,
            batch_size=config.batch_size,
            seed=config.seed,
            epoch=epoch,
            rank=processes.rank,
            world_size=processes.world_size,
        ):
            loss = self._loss(history, targets, gaps)
            self._optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            processes.average_gradients(self._model)
            torch.nn.utils.clip_grad_norm_(self._model.parameters(), MAX_GRADIENT_NORM)
            self._optimizer.step()
            losses.append(loss.item())
        mean = float(np.mean(losses))
        if not np.isfinite(mean):
            raise CheckFailed(
                "training loss", found=mean, expected="a number", cure="Use a smaller --learning-rate."
            )
        return mean

    def _loss(self, history: Tensor, targets: Tensor, gaps: Tensor) -> Tensor:
        learned = (history >= 0) & (targets >= 0)
        queries = self._model(history, gaps if self._model.config.time_gaps else None)[learned]
        table, wanted = self._model.item_embeddings, targets[learned]
        if self._is_sampled():
            return sampled_softmax(queries, table, wanted, self._probabilities, self._config.n_negatives)
        return full_softmax(queries, table, wanted)

    def _is_sampled(self) -> bool:
        if self._config.loss == "auto":
            return self._model.n_items > FULL_SOFTMAX_MAX_ITEMS
        return self._config.loss == "sampled"

    def _validate(self) -> float:
        if not self._processes.is_main:
            return 0.0
        held_out = self._split.validation
        scorer = model_scorer(self._model, held_out, popularity_of(self._split, self._model.n_items))
        return evaluate(scorer, held_out, self._model.n_items, n_bootstrap=0).metrics[VALIDATION_METRIC].mean

    def _record(self, epoch: int, metric: float | None) -> None:
        improved = metric is not None and metric > self._progress.best_metric
        self._progress = Progress(
            epoch,
            metric if improved and metric is not None else self._progress.best_metric,
            epoch if improved else self._progress.best_epoch,
        )
        if self._processes.is_main:
            if improved:
                save_checkpoint(self._folder / BEST, self._model, self._progress)
            save_checkpoint(self._folder / LAST, self._model, self._progress, self._optimizer)

    def _log(self, epoch: int, loss: float, metric: float | None) -> None:
        if self._processes.is_main:
            with (self._folder / LOG).open("a", encoding="utf-8") as file:
                file.write(json.dumps({"epoch": epoch, "loss": loss, VALIDATION_METRIC: metric}) + "\n")


def check_learnable(split: Split) -> None:
    """Raises :class:`DataError` when no user has an item and one after it to learn from."""
    longest = int(split.train.lengths.max(initial=0))
    if longest < 2:
        raise DataError(
            "longest training history",
            found=longest,
            expected="2 interactions or more of at least one user",
            cure="Use more events.",
        )


def popularity_of(split: Split, n_items: int) -> NDArray[np.int64]:
    """Returns the number of training interactions of each item, (n_items,) int64."""
    counts: NDArray[np.int64] = np.bincount(split.train.item_index, minlength=n_items).astype(np.int64)
    return counts


def model_scorer(model: SASRec, held_out: EvaluationSet, popularity: NDArray[np.int64]) -> Scorer:
    """Returns a scorer for :func:`evaluate`; as in serving, an empty history is answered by popularity."""

    @torch.inference_mode()
    def score(rows: NDArray[np.int64]) -> NDArray[np.float32]:
        model.eval()
        history, gaps = model_inputs(model, held_out, rows)
        scores = model.score(model.encode(history, gaps)).numpy()
        cold = (history < 0).all(dim=1).numpy()
        scores[cold] = popularity.astype(np.float32)
        return scores

    return score


def model_inputs(
    model: SASRec, held_out: EvaluationSet, rows: NDArray[np.int64]
) -> tuple[Tensor, Tensor | None]:
    """Returns the encoder's inputs for ``rows``: history (batch, length) int32 and, where used, time gaps.

    "Now" is the moment of the first held-out interaction: when the question was asked.
    """
    items, times = pad(held_out.histories, rows, model.config.max_history)
    if not model.config.time_gaps:
        return torch.from_numpy(items), None
    now = held_out.targets.timestamp[held_out.targets.indptr[rows]]
    return torch.from_numpy(items), torch.from_numpy(gaps_of(times, now))
