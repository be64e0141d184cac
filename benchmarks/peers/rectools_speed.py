"""Times epochs of RecTools' SASRecModel, one for each line of stdin; run by `benchmarks.sequence_speed`.

Usage: ``python rectools_speed.py ARRAYS.npz SHAPE.json``. Prints seconds after each epoch, data loading among
them and making the data set not, and the process' largest memory in bytes.
"""

import json
import logging
import resource
import sys
import time
import warnings
from typing import Any

import numpy as np
import pandas as pd
import torch
from pytorch_lightning import Callback, Trainer
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel

Base: Any = Callback


class Clock(Base):  # type: ignore[misc]
    """Seconds of the last epoch, of the class: RecTools trains with a copy."""

    start = seconds = 0.0

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        Clock.start = time.perf_counter()

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        Clock.seconds = time.perf_counter() - Clock.start


def main() -> None:
    """Answers until stdin ends."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    arrays, shape = np.load(sys.argv[1]), json.loads(sys.argv[2])

    def trainer() -> Trainer:
        return Trainer(
            max_epochs=1,
            callbacks=[Clock()],
            enable_progress_bar=False,
            enable_model_summary=False,
            logger=False,
            enable_checkpointing=False,
            accelerator="cpu",
            devices=1,
        )

    frame = pd.DataFrame({Columns.User: arrays["user"], Columns.Item: arrays["item"], Columns.Weight: 1.0})
    frame[Columns.Datetime] = pd.to_datetime(np.arange(len(frame)), unit="s")
    dataset = Dataset.construct(frame)
    model = SASRecModel(**shape, loss="softmax", epochs=1, get_trainer_func=trainer)
    for _ in sys.stdin:
        model.fit_partial(dataset, min_epochs=1, max_epochs=1)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"seconds": Clock.seconds, "peak_bytes": peak}), flush=True)


if __name__ == "__main__":
    main()
