"""Trains RecTools' SASRecModel (softmax loss) on one split; run by `benchmarks.sequential_quality`.

Usage: ``python rectools_sasrec.py SETTINGS.json``. Reads the ``arrays`` (.npz) that the settings
name, trains in steps of ``validate_every`` epochs, keeps the step with the best validation
NDCG@10 and writes its top-10 lists for the test histories to ``output``.
"""

import json
import logging
import sys
import time
import warnings
from typing import Any

import numpy as np
import pandas as pd
from lightning_fabric import seed_everything
from pytorch_lightning import Trainer
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel

K = 10


def _dataset(arrays: Any, prefix: str) -> Dataset:
    user, item = arrays[f"{prefix}_user"], arrays[f"{prefix}_item"]
    frame = pd.DataFrame({Columns.User: user, Columns.Item: item, Columns.Weight: 1.0})
    # Rows arrive in time order with ties resolved; one second apart keeps that order for any sort.
    frame[Columns.Datetime] = pd.to_datetime(np.arange(len(frame)), unit="s")
    return Dataset.construct(frame)


def _trainer() -> Trainer:
    return Trainer(
        max_epochs=1,
        min_epochs=1,
        deterministic=True,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        enable_checkpointing=False,
        accelerator="cpu",
        devices=1,
    )


def _top(model: SASRecModel, dataset: Dataset, users: Any) -> Any:
    found = model.recommend(users=users, dataset=dataset, k=K, filter_viewed=True)
    lists = np.full((len(users), K), -1, np.int64)
    row_of = {user: row for row, user in enumerate(users)}
    rows = found[Columns.User].map(row_of).to_numpy()
    lists[rows, found[Columns.Rank].to_numpy() - 1] = found[Columns.Item].to_numpy()
    return lists


def _ndcg(lists: Any, targets: Any) -> float:
    hit, rank = np.nonzero(lists == targets[:, None])
    gains = np.zeros(len(targets))
    gains[hit] = 1 / np.log2(rank + 2)
    return float(gains.mean())


def main() -> None:
    """Runs one seed."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with open(sys.argv[1], encoding="utf-8") as file:
        settings = json.load(file)
    arrays = np.load(settings["arrays"])
    train, known = _dataset(arrays, "train"), _dataset(arrays, "test_history")
    users = arrays["test_user"]
    seed_everything(settings["seed"])
    model = SASRecModel(
        n_factors=settings["embedding_size"],
        n_blocks=settings["n_blocks"],
        n_heads=settings["n_heads"],
        session_max_len=settings["max_history"],
        dropout_rate=settings["dropout"],
        loss="softmax",
        lr=settings["learning_rate"],
        batch_size=settings["batch_size"],
        epochs=1,
        deterministic=True,
        get_trainer_func=_trainer,
    )
    best, best_lists, best_epoch, start = -1.0, np.empty((0, K)), 0, time.perf_counter()
    step = settings["validate_every"]
    for epoch in range(step, settings["epochs"] + 1, step):
        model.fit_partial(train, min_epochs=step, max_epochs=step)
        score = _ndcg(_top(model, train, users), arrays["validation_item"])
        if score > best:
            best, best_epoch, best_lists = score, epoch, _top(model, known, users)
        print(
            f"rectools seed {settings['seed']} epoch {epoch} validation NDCG@10 {score:.4f}", file=sys.stderr
        )
    np.savez(
        settings["output"], lists=best_lists, epoch=best_epoch, seconds=time.perf_counter() - start, best=best
    )


if __name__ == "__main__":
    main()
