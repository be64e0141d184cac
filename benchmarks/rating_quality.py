"""Rating prediction: our SVD and SVD++ against Surprise's on the same five folds.

    python -m recserve.benchmarks.rating_quality --seeds 0 1 2 --out result.json

ml-100k, all ratings divided at random into five folds, RMSE and MAE of the ratings of each fold predicted
from the other four; a seed is that of the folds and of the models. Ours runs with its defaults: the number of
epochs comes from a tenth of the training ratings, then a model is trained anew on all of them. Surprise runs
with its defaults. The bars are the RMSE that its authors publish, .934 and .919.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recserve import console
from recserve.benchmarks.environment import environment, machine_line
from recserve.benchmarks.peers.venv import PEERS, peer_python
from recserve.errors import CheckFailed
from recserve.training.commands import run_config
from recserve.training.data import Dataset, Histories, Split, default_cache_dir, load_dataset, random_folds
from recserve.training.loop import Trainer
from recserve.training.models import family_of
from recserve.training.rating_metrics import estimate_ratings

BARS = {"svd": 0.934, "svdpp": 0.919}
LIBRARIES = ("recserve", "surprise")


def main() -> None:
    """Runs both models by both libraries on every fold and prints the table; fails below a bar."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="ml-100k")
    parser.add_argument("--models", nargs="+", default=list(BARS), choices=list(BARS))
    parser.add_argument("--libraries", nargs="+", default=list(LIBRARIES), choices=list(LIBRARIES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    arguments = parser.parse_args()
    dataset = load_dataset(arguments.data, on_note=console.note)
    result = {
        "environment": environment(("numpy", "numba", "polars", "torch")),
        "dataset": dataset.name,
        "folds": arguments.folds,
        "seeds": arguments.seeds,
        "models": {
            f"{library} {model}": _measure(library, model, dataset, arguments.folds, arguments.seeds)
            for model in arguments.models
            for library in arguments.libraries
        },
    }
    _show(result)
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if dataset.name == "ml-100k":
        check_bars(result)


def check_bars(result: dict[str, Any]) -> None:
    """Raises :class:`CheckFailed` where our mean RMSE is above its bar."""
    for model, bar in BARS.items():
        measured = result["models"].get(f"recserve {model}")
        if measured is not None and not measured["RMSE"] <= bar:
            raise CheckFailed(f"RMSE of {model}", found=f"{measured['RMSE']:.4f}", expected=f"at most {bar}")


def _measure(library: str, model: str, dataset: Dataset, n_folds: int, seeds: list[int]) -> dict[str, Any]:
    by_seed: list[dict[str, Any]] = []
    for seed in seeds:
        start = time.perf_counter()
        splits = random_folds(dataset, n_folds, seed)
        predict = _ours if library == "recserve" else _surprise
        predicted = [predict(model, dataset, split, seed) for split in splits]
        # Every rating is tested once: the folds together are one test set.
        rated = np.concatenate([split.test.targets.value for split in splits])
        lengths = np.concatenate([split.test.targets.lengths for split in splits])
        indptr = np.concatenate([[0], np.cumsum(lengths)])
        estimates = estimate_ratings(np.concatenate(predicted), rated, indptr)
        by_seed.append({name: estimates[name].mean for name in ("RMSE", "MAE")})
        by_seed[-1]["seconds"] = round(time.perf_counter() - start, 1)
        by_seed[-1]["interval"] = [estimates["RMSE"].low, estimates["RMSE"].high]
        console.note(f"seed {seed}  {library} {model}  RMSE {by_seed[-1]['RMSE']:.4f}")
    means = {name: float(np.mean([row[name] for row in by_seed])) for name in ("RMSE", "MAE", "seconds")}
    return {**means, "by_seed": by_seed}


def _ours(model: str, dataset: Dataset, split: Split, seed: int) -> NDArray[np.float32]:
    config, family = run_config(model, "random", {"seed": seed}), family_of(model)
    with tempfile.TemporaryDirectory() as folder:
        chosen = family.create(config.shape, dataset.n_users, dataset.n_items)
        best_epoch = Trainer(chosen, split, Path(folder), config.loop).fit().best_epoch
    whole: Any = family.create(config.shape, dataset.n_users, dataset.n_items)
    train = _with_validation(split, dataset.n_users)
    for epoch in range(1, best_epoch + 1):
        whole.fit_epoch(train, epoch=epoch, seed=seed)
    predicted: NDArray[np.float32] = whole.predict_ratings(split.test)
    return predicted


def _with_validation(split: Split, n_users: int) -> Histories:
    """Returns the training ratings, those held out for validation among them."""
    validation = split.validation.targets
    user = np.concatenate([_users(split.train), np.repeat(split.validation.user_index, validation.lengths)])
    parts = (split.train, validation)
    order = np.argsort(user, kind="stable")
    item, timestamp, value = (
        np.concatenate([getattr(part, name) for part in parts])[order]
        for name in ("item_index", "timestamp", "value")
    )
    return Histories.from_sorted(user[order], item, timestamp, n_users, value)


def _users(histories: Histories) -> NDArray[np.int64]:
    return np.repeat(np.arange(len(histories)), histories.lengths)


def _surprise(model: str, dataset: Dataset, split: Split, seed: int) -> NDArray[np.float32]:
    train = _with_validation(split, dataset.n_users)
    test = split.test.targets
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "model": model,
            "seed": seed,
            "rating_range": [float(train.value.min()), float(train.value.max())],
            "arrays": str(Path(folder, "arrays.npz")),
            "output": str(Path(folder, "predicted.npz")),
        }
        np.savez(
            str(settings["arrays"]),
            train_user=_users(train),
            train_item=train.item_index,
            train_value=train.value,
            test_user=np.repeat(split.test.user_index, test.lengths),
            test_item=test.item_index,
        )
        Path(folder, "settings.json").write_text(json.dumps(settings), encoding="utf-8")
        python = peer_python("surprise", default_cache_dir() / "peers")
        command = [str(python), str(PEERS / "surprise_ratings.py"), str(Path(folder, "settings.json"))]
        finished = subprocess.run(command, check=False, stdout=sys.stderr)
        if finished.returncode != 0:
            raise CheckFailed("surprise", found=f"exit code {finished.returncode}", expected="0; see above")
        with np.load(str(settings["output"])) as output:
            theirs: NDArray[np.float32] = output["predicted"].astype(np.float32)
            return theirs


def _show(result: dict[str, Any]) -> None:
    console.note(machine_line(result["environment"]))
    console.print_table(
        f"{result['dataset']}, random {result['folds']}-fold, rating prediction",
        ["model", "RMSE", "MAE", "seconds", "RMSE by seed [95 % interval over users]"],
        [
            [
                name,
                f"{row['RMSE']:.4f}",
                f"{row['MAE']:.4f}",
                f"{row['seconds']:.0f}",
                "  ".join(
                    f"{one['RMSE']:.4f} [{one['interval'][0]:.4f}, {one['interval'][1]:.4f}]"
                    for one in row["by_seed"]
                ),
            ]
            for name, row in result["models"].items()
        ],
    )


if __name__ == "__main__":
    main()
