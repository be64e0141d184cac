"""Trains RecBole's LightGCN on one split, tuned on validation; run by `benchmarks.quality`.

Usage: ``python recbole_lightgcn.py SETTINGS.json``. Reads the ``arrays`` (.npz) that the settings name,
trains each of the ``grid``, keeps the one with the best validation NDCG@10 and writes its top-10 lists for
the test histories to ``output``, with what it chose.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.model.general_recommender import LightGCN
from recbole.trainer import Trainer
from recbole.utils import init_seed

K = 10
EPOCHS, PATIENCE = 300, 5
PARTS = ("train", "validation", "test")


def _write(folder: Path, arrays: Any) -> None:
    """Writes the split as files of RecBole, the ids being ``u`` and ``i`` with our indices."""
    (folder / "data").mkdir()
    # RecBole wants a file of test data: validation stands in for it.
    for part, source in zip(PARTS, ("train", "validation", "validation"), strict=True):
        pairs = zip(arrays[f"{source}_user"].tolist(), arrays[f"{source}_item"].tolist(), strict=True)
        rows = "".join(f"u{user}\ti{item}\n" for user, item in pairs)
        path = folder / "data" / f"data.{part}.inter"
        path.write_text("user_id:token\titem_id:token\n" + rows, encoding="utf-8")


def _config(folder: Path, seed: int, options: dict[str, Any]) -> Config:
    return Config(
        model="LightGCN",
        dataset="data",
        config_dict={
            "data_path": str(folder),
            "benchmark_filename": list(PARTS),
            "load_col": {"inter": ["user_id", "item_id"]},
            "checkpoint_dir": str(folder / "saved"),
            "seed": seed,
            "reproducibility": True,
            "use_gpu": False,
            "show_progress": False,
            "epochs": EPOCHS,
            "stopping_step": PATIENCE,
            "metrics": ["NDCG"],
            "topk": [K],
            "valid_metric": "NDCG@10",
            "eval_args": {"order": "RO", "group_by": "user", "mode": "full"},
            "eval_batch_size": 4_000_000,
            **options,
        },
    )


def _lists(model: Any, dataset: Any, arrays: Any, n_items: int) -> Any:
    """Returns the best items of each test user, without those that are known."""
    users = arrays["test_user"]
    names = [f"u{user}" for user in users.tolist()]
    interaction = {"user_id": torch.from_numpy(dataset.token2id("user_id", names))}
    with torch.no_grad():
        scores = model.full_sort_predict(interaction).view(len(users), -1).numpy()
    items = [int(name.removeprefix("i")) for name in dataset.field2id_token["item_id"][1:]]
    by_item = np.full((len(users), n_items), -np.inf)
    by_item[:, items] = scores[:, 1:]
    row_of = np.full(users.max() + 1, -1)
    row_of[users] = np.arange(len(users))
    by_item[row_of[arrays["known_user"]], arrays["known_item"]] = -np.inf
    return np.argsort(-by_item, axis=1, kind="stable")[:, :K]


def _train(folder: Path, settings: dict[str, Any], options: dict[str, Any], arrays: Any) -> tuple[float, Any]:
    config = _config(folder, settings["seed"], options)
    init_seed(settings["seed"], reproducibility=True)
    dataset = create_dataset(config)
    train, validation, _ = data_preparation(config, dataset)
    model = LightGCN(config, train.dataset)
    trainer = Trainer(config, model)
    score, _ = trainer.fit(train, validation, saved=True, show_progress=False)
    # The file is our own, of a second ago: newer torch asks to be told so.
    weights = torch.load(trainer.saved_model_file, weights_only=False)["state_dict"]
    model.load_state_dict(weights)
    model.eval()
    model.restore_user_e = None
    return float(score), _lists(model, dataset, arrays, int(arrays["shape"][1]))


def main() -> None:
    """Runs one seed."""
    with open(sys.argv[1], encoding="utf-8") as file:
        settings = json.load(file)
    arrays = np.load(settings["arrays"])
    torch.set_num_threads(1)
    best, chosen, lists = -1.0, {}, np.empty((0, K))
    for options in settings["grid"]:
        with tempfile.TemporaryDirectory() as folder:
            _write(Path(folder), arrays)
            score, found = _train(Path(folder), settings, options, arrays)
        print(f"recbole lightgcn {options} validation NDCG@10 {score:.4f}", file=sys.stderr, flush=True)
        if score > best:
            best, chosen, lists = score, options, found
    np.savez(settings["output"], lists=lists, chosen=json.dumps(chosen), best=best)


if __name__ == "__main__":
    main()
