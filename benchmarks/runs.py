"""Runs that a benchmark trains for itself."""

from pathlib import Path

import torch

from recserve.training.data import Dataset
from recserve.training.loop import Trainer
from recserve.training.run import Run, RunConfig, create_run


def trained_run(folder: Path, config: RunConfig, dataset: Dataset) -> Run:
    """Returns a new run in ``folder``, trained to its end; its first weights are drawn by the loop's seed."""
    run = create_run(folder, config, dataset)
    torch.manual_seed(config.loop.seed)
    Trainer(run.new_model(), run.split(), run.folder, config.loop).fit()
    return run
