"""Trains torch-rechub's DeepFM, DCN-V2 or DIN on one split; run by `benchmarks.quality`.

Usage: ``python rechub_rankers.py SETTINGS.json``. Reads the ``arrays`` (.npz) that the settings name: the
fields of every example as the indices that our rankers read, genres and numbers of its item. Widths and the
perceptron are ours, rate and decay its defaults and ours; the best epoch by validation AUC is kept and its
logits of validation and test are written to ``output``.
"""

import json
import sys
import tempfile
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from torch_rechub.basic.features import DenseFeature, SequenceFeature, SparseFeature
from torch_rechub.models.ranking import DIN, DCNv2, DeepFM
from torch_rechub.trainers import CTRTrainer

WIDTH, BATCH_SIZE, EPOCHS, PATIENCE = 16, 1024, 30, 3
PERCEPTRON = {"dims": [64, 32], "dropout": 0.2}
GRID = [{"lr": 1e-3, "weight_decay": 1e-5}, {"lr": 2e-3, "weight_decay": 1e-4}]
EPSILON = 1e-6


class Examples(Dataset):  # type: ignore[type-arg]
    """Columns by name, and the clicks (zeros where they are not told)."""

    def __init__(self, columns: dict[str, Any], clicks: Any) -> None:
        self.columns, self.clicks = columns, clicks

    def __len__(self) -> int:
        return len(self.clicks)

    def __getitems__(self, rows: list[int]) -> tuple[dict[str, Any], Any]:
        return {name: column[rows] for name, column in self.columns.items()}, self.clicks[rows]


def features_of(arrays: Any) -> dict[str, list[Any]]:
    """Returns the features: user's and item's sparse ones, lists, numbers, history and its target."""
    sparse = [
        SparseFeature(f"{side}_{place}", int(size), WIDTH)
        for side in ("user", "item")
        for place, size in enumerate(arrays[f"{side}_sizes"])
    ]
    lists = [
        SequenceFeature(f"list_{place}", int(size), WIDTH, pooling="mean", padding_idx=0)
        for place, size in enumerate(arrays["list_sizes"])
    ]
    numbers = [DenseFeature(f"number_{place}") for place in range(arrays["item_numbers"].shape[1])]
    n_items = int(arrays["item_sizes"][0])
    history = SequenceFeature("history", n_items, WIDTH, pooling="mean", shared_with="item_0", padding_idx=0)
    attended = SequenceFeature("history", n_items, WIDTH, pooling="concat", shared_with="item_0")
    return {"sparse": sparse, "lists": lists, "numbers": numbers, "pooled": [history], "history": [attended]}


def examples_of(arrays: Any, part: str) -> Examples:
    """Returns the examples of ``part``: train, validation or test."""
    item = arrays[f"{part}_item"]
    columns = {f"user_{i}": column for i, column in enumerate(arrays[f"{part}_user_fields"].T)}
    columns |= {f"item_{i}": column for i, column in enumerate(arrays[f"{part}_item_fields"].T)}
    columns |= {
        f"list_{i}": column for i, column in enumerate(arrays["item_lists"].transpose(1, 0, 2)[:, item])
    }
    columns |= {f"number_{i}": column for i, column in enumerate(arrays["item_numbers"].T[:, item])}
    columns["history"] = arrays[f"{part}_history"] + 1
    clicks = arrays.get(f"{part}_click", np.zeros(len(item), np.float32))
    return Examples(
        {name: torch.from_numpy(np.ascontiguousarray(column)) for name, column in columns.items()},
        torch.from_numpy(clicks),
    )


def create(model: str, features: dict[str, list[Any]]) -> Any:
    """Returns the untrained network; DeepFM's factorisation machine reads no numbers."""
    fields = features["sparse"] + features["lists"] + features["pooled"]
    if model == "deepfm":
        return DeepFM(fields + features["numbers"], fields, PERCEPTRON)
    if model == "dcn":
        return DCNv2(fields + features["numbers"], 2, PERCEPTRON, use_low_rank_mixture=False)
    target = [feature for feature in features["sparse"] if feature.name == "item_0"]
    rest = [feature for feature in features["sparse"] if feature.name != "item_0"] + features["lists"]
    return DIN(rest, features["history"], target, PERCEPTRON, {"dims": [36]})


def train(arrays: Any, model: str, seed: int, options: dict[str, float]) -> tuple[float, dict[str, Any]]:
    """Returns the best validation AUC and the logits of validation and test."""
    torch.manual_seed(seed)
    parts = {part: examples_of(arrays, part) for part in ("train", "validation", "test")}
    loaders = {
        part: DataLoader(one, BATCH_SIZE, shuffle=part == "train", collate_fn=lambda batch: batch)
        for part, one in parts.items()
    }
    network = create(model, features_of(arrays))
    with tempfile.TemporaryDirectory() as folder:
        trainer = CTRTrainer(
            network,
            optimizer_params=options,
            n_epoch=EPOCHS,
            earlystop_patience=PATIENCE,
            model_path=folder,
        )
        trainer.fit(loaders["train"], loaders["validation"])
    network.load_state_dict(trainer.early_stopper.best_weights)
    logits = {}
    for part in ("validation", "test"):
        predicted = np.clip(trainer.predict(network, loaders[part]), EPSILON, 1 - EPSILON)
        logits[part] = np.log(predicted / (1 - predicted)).astype(np.float32)
    return float(trainer.early_stopper.best_auc), logits


def main() -> None:
    """Runs one model with one seed."""
    with open(sys.argv[1], encoding="utf-8") as file:
        settings = json.load(file)
    torch.set_num_threads(1)
    with np.load(settings["arrays"]) as file:
        arrays = {name: file[name] for name in file}
    best, kept = -1.0, {}
    for options in GRID:
        value, logits = train(arrays, settings["model"], settings["seed"], options)
        print(f"rechub {settings['model']} {options} validation AUC {value:.4f}", flush=True)
        if value > best:
            best, kept = value, logits
    np.savez(settings["output"], **kept)


if __name__ == "__main__":
    main()
