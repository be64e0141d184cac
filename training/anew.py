"""A model trained beside any run: in a temporary folder, of which only the best weights stay."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from recserve.training.checkpoint import Progress, load_checkpoint
from recserve.training.data import Dataset, Split
from recserve.training.loop import BEST, EpochReport, Trainer
from recserve.training.models.base import RankingModel
from recserve.training.run import RunConfig, new_model


def trained_anew(
    config: RunConfig,
    dataset: Dataset,
    split: Split,
    on_epoch: Callable[[EpochReport], None] = lambda report: None,
) -> tuple[RankingModel, Progress]:
    """Returns the model with the best validation metric and how far it was, from the seed of ``config``."""
    torch.manual_seed(config.loop.seed)
    model = new_model(config, dataset, split)
    with tempfile.TemporaryDirectory() as folder:
        progress = Trainer(model, split, Path(folder), config.loop).fit(on_epoch)
        load_checkpoint(Path(folder) / BEST, model)
    model.eval()
    return model, progress
