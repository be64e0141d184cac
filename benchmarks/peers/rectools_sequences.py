"""Trains RecTools' SASRec, BERT4Rec or HSTU (softmax loss) on one split; run by `benchmarks.quality`.

Usage: ``python rectools_sequences.py SETTINGS.json``. Reads the ``arrays`` (.npz) that the settings name,
trains each of the ``grid`` in steps of ``validate_every`` epochs until ``PATIENCE`` steps have passed without
a better validation NDCG@10, keeps the best step and writes its top-10 lists for the test histories to
``output``.
"""

import json
import logging
import sys
import warnings
from typing import Any

import numpy as np
import pandas as pd
from lightning_fabric import seed_everything
from pytorch_lightning import Trainer
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import BERT4RecModel, SASRecModel
from rectools.models.nn.transformers.hstu import HSTUModel

K = 10
PATIENCE = 4
MICROSECONDS = 1_000_000


def _dataset(arrays: Any, prefix: str) -> Dataset:
    user, item = arrays[f"{prefix}_user"], arrays[f"{prefix}_item"]
    frame = pd.DataFrame({Columns.User: user, Columns.Item: item, Columns.Weight: 1.0})
    # Rows arrive in time order with ties resolved; a microsecond apart keeps that order for any sort.
    moment = arrays[f"{prefix}_timestamp"].astype(np.int64) * MICROSECONDS + np.arange(len(frame))
    frame[Columns.Datetime] = pd.to_datetime(moment, unit="us")
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


def _top(model: Any, arrays: Any, known: str, asked: str) -> Any:
    """Returns lists of the test users when they had what is ``known`` and ``asked`` was to come."""
    users = arrays["test_user"]
    moment = arrays[f"{asked}_timestamp"].astype(np.int64) * MICROSECONDS + len(arrays[f"{known}_user"])
    when = pd.DataFrame({Columns.User: users, Columns.Datetime: pd.to_datetime(moment, unit="us")})
    context = when.assign(**{Columns.Weight: 1.0}) if model.require_recommend_context else None
    dataset = _dataset(arrays, known)
    found = model.recommend(users=users, dataset=dataset, k=K, filter_viewed=True, context=context)
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


MODELS = {"sasrec": SASRecModel, "bert4rec": BERT4RecModel, "hstu": HSTUModel}


def _train(arrays: Any, settings: dict[str, Any], options: dict[str, Any]) -> tuple[float, Any]:
    """Returns the best validation NDCG@10 of a run and the test lists of that moment."""
    seed_everything(settings["seed"])
    shape = dict(settings["settings"])
    epochs, step = shape.pop("epochs"), shape.pop("validate_every")
    model = MODELS[settings["model"]](
        **shape, **options, loss="softmax", epochs=1, deterministic=True, get_trainer_func=_trainer
    )
    train, best, best_epoch, lists = _dataset(arrays, "train"), -1.0, 0, np.empty((0, K))
    for epoch in range(step, epochs + 1, step):
        model.fit_partial(train, min_epochs=step, max_epochs=step)
        score = _ndcg(_top(model, arrays, "train", "validation"), arrays["validation_item"])
        if score > best:
            best, best_epoch, lists = score, epoch, _top(model, arrays, "known", "test")
        print(f"rectools {options} epoch {epoch} validation NDCG@10 {score:.4f}", flush=True)
        if epoch - best_epoch >= PATIENCE * step:
            break
    return best, lists


def main() -> None:
    """Runs one model with one seed."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with open(sys.argv[1], encoding="utf-8") as file:
        settings = json.load(file)
    arrays = np.load(settings["arrays"])
    runs = [_train(arrays, settings, options) for options in settings["grid"]]
    best, lists = max(runs, key=lambda run: run[0])
    np.savez(settings["output"], lists=lists, best=best)


if __name__ == "__main__":
    main()
