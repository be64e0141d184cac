"""The one training loop: epochs, validation, early stopping, checkpoints, resume, data parallelism."""

import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from recserve.errors import CheckFailed, DataError, InvalidRequest
from recserve.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from recserve.training.data import Histories, Split
from recserve.training.distributed import Processes
from recserve.training.evaluate import validation_value
from recserve.training.gradient import GradientLearner
from recserve.training.loop_config import LoopConfig
from recserve.training.models.base import FittedModel, RankingModel
from recserve.training.models.ranker import Ranker
from recserve.training.models.sequence import SequenceModel
from recserve.training.private import PrivateLearner
from recserve.training.ranking import evaluation
from recserve.training.ranking.learner import ExampleLearner

LAST, BEST, LOG = "last.safetensors", "best.safetensors", "epochs.jsonl"


@dataclass(frozen=True, slots=True)
class EpochReport:
    """What one epoch gave; ``metric`` is None where the epoch was not validated."""

    epoch: int
    loss: float
    metric: float | None
    best_epoch: int
    seconds: float


class Learner(Protocol):
    """What one epoch of a family is."""

    @property
    def optimizer(self) -> torch.optim.Optimizer | None:
        """What has a state besides the weights that going on needs."""
        ...

    def train_epoch(self, epoch: int) -> float:
        """Learns from the training histories once and returns the loss."""
        ...


class Trainer:
    """Trains one model on one split into one folder of checkpoints."""

    def __init__(
        self,
        model: RankingModel,
        split: Split,
        folder: Path,
        config: LoopConfig,
        processes: Processes | None = None,
    ) -> None:
        self._model = model
        self._split = split
        self._folder = folder
        self._config = config
        self._processes = processes or Processes()
        self._learner = _learner(model, split.train, config, self._processes)
        self._progress = Progress()

    def resume(self) -> Progress:
        """Goes on from the last checkpoint of the folder, where there is one."""
        if (self._folder / LAST).is_file():
            self._progress = load_checkpoint(self._folder / LAST, self._model, self._learner.optimizer)
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
                with self._averaged():
                    metric = self._processes.same_everywhere(self._validate())
            self._record(epoch, metric)
            on_epoch(EpochReport(epoch, loss, metric, self._progress.best_epoch, time.perf_counter() - start))
            self._log(epoch, loss, metric)
        self._processes.wait()
        return self._progress

    def _train_epoch(self, epoch: int) -> float:
        loss = self._processes.mean(self._learner.train_epoch(epoch))
        if not np.isfinite(loss):
            solves = self._learner.optimizer is None
            cure = "Use a larger --reg." if solves else "Use a smaller --learning-rate."
            raise CheckFailed("training loss", found=loss, expected="a number", cure=cure)
        return loss

    def _validate(self) -> float:
        if not self._processes.is_main:
            return 0.0
        held_out = self._split.validation
        if isinstance(self._model, Ranker) and self._model.labels.is_rated:
            return evaluation.validation_auc(self._model, held_out)
        return validation_value(self._model, held_out, popularity_of(self._split, self._model.n_items))

    def _record(self, epoch: int, metric: float | None) -> None:
        improved = metric is not None and self._is_better(metric)
        self._progress = Progress(
            epoch,
            metric if improved and metric is not None else self._progress.best_metric,
            epoch if improved else self._progress.best_epoch,
        )
        if self._processes.is_main:
            if improved:
                with self._averaged():
                    save_checkpoint(self._folder / BEST, self._model, self._progress)
            save_checkpoint(self._folder / LAST, self._model, self._progress, self._learner.optimizer)

    def _averaged(self) -> AbstractContextManager[None]:
        """Has the model hold what is judged: the average of its weights, where the learner keeps one."""
        learner = self._learner
        return learner.average.shown() if isinstance(learner, GradientLearner) else nullcontext()

    def _is_better(self, metric: float) -> bool:
        # Choosing an epoch would tell more of the users than (ε, δ) says.
        if not self._progress.best_epoch or self._config.epsilon:
            return True
        best = self._progress.best_metric
        return metric > best if self._model.validation_metric.higher_is_better else metric < best

    def _log(self, epoch: int, loss: float, metric: float | None) -> None:
        if self._processes.is_main:
            with (self._folder / LOG).open("a", encoding="utf-8") as file:
                name = self._model.validation_metric.name
                file.write(json.dumps({"epoch": epoch, "loss": loss, name: metric}) + "\n")


class _FittedLearner:
    """One epoch of a model that fits itself."""

    def __init__(self, model: FittedModel, train: Histories, seed: int) -> None:
        self._model, self._train, self._seed = model, train, seed
        self.optimizer = model.optimizer

    def train_epoch(self, epoch: int) -> float:
        return self._model.fit_epoch(self._train, epoch=epoch, seed=self._seed)


def _learner(model: RankingModel, train: Histories, config: LoopConfig, processes: Processes) -> Learner:
    if config.epsilon:
        return _private_learner(model, train, config, processes)
    if isinstance(model, SequenceModel):
        return GradientLearner(model, train, config, processes)
    if isinstance(model, Ranker):
        return ExampleLearner(model, train, config, processes)
    if not isinstance(model, FittedModel):
        raise TypeError(f"{type(model).__name__} is neither a sequence model, a ranker nor a fitted one")
    if processes.world_size > 1:
        name = type(model).__name__
        raise InvalidRequest("processes", found=processes.world_size, expected=f"1: {name} uses threads")
    return _FittedLearner(model, train, config.seed)


def _private_learner(
    model: RankingModel, train: Histories, config: LoopConfig, processes: Processes
) -> Learner:
    if not isinstance(model, SequenceModel) or processes.world_size > 1 or config.precision != "fp32":
        raise InvalidRequest(
            "epsilon",
            found=config.epsilon,
            expected="0 but for sasrec and hstu, trained by one process in fp32",
        )
    return PrivateLearner(model, train, config)


def check_learnable(split: Split, min_history: int = 2) -> None:
    """Raises :class:`DataError` when no user has ``min_history`` interactions to learn from."""
    longest = int(split.train.lengths.max(initial=0))
    if longest < min_history:
        raise DataError(
            "longest training history",
            found=longest,
            expected=f"{min_history} interactions or more of at least one user",
            cure="Use more events.",
        )


def popularity_of(split: Split, n_items: int) -> NDArray[np.int64]:
    """Returns the number of training interactions of each item, (n_items,) int64."""
    counts: NDArray[np.int64] = np.bincount(split.train.item_index, minlength=n_items).astype(np.int64)
    return counts
