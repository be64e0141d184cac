"""Our SASRec against RecTools' SASRecModel: same split, same shape, same budget, same metric code.

    python -m recserve.benchmarks.sequential_quality --seeds 0 1 2 --out result.json

Leave-one-out on ml-100k, full ranking, seen items filtered. Both train with the softmax loss for at most
``epochs`` epochs and keep the epoch with the best validation NDCG@10, looked at every ``validate_every``.
RecTools runs twice: with its own default learning rate and dropout, and with ours; we compare with the
better of the two.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from recserve import console
from recserve.benchmarks.environment import environment, machine_line
from recserve.benchmarks.peers.venv import PEERS, peer_python
from recserve.errors import CheckFailed
from recserve.training import metrics
from recserve.training.checkpoint import load_checkpoint
from recserve.training.data import Dataset, Histories, Split, default_cache_dir, leave_one_out, load_dataset
from recserve.training.evaluate import model_scorer, top_k
from recserve.training.loop import BEST, Trainer, popularity_of
from recserve.training.loop_config import LoopConfig
from recserve.training.models.sasrec import SASRec, SASRecConfig

K = 10
SHAPE: dict[str, Any] = {"embedding_size": 64, "n_blocks": 2, "n_heads": 2, "max_history": 50}
BUDGET: dict[str, Any] = {"epochs": 60, "batch_size": 128, "validate_every": 5}
OURS = {"dropout": 0.5, "learning_rate": 3e-3}
RECTOOLS_DEFAULTS = {"dropout": 0.2, "learning_rate": 1e-3}
# Every contender on one thread: the seconds compare, and a busy core beside does not decide.
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
CONTENDERS = ("recserve", "rectools (its defaults)", "rectools (our rate and dropout)")
Lists = NDArray[np.int64]


def main() -> None:
    """Runs all contenders for all seeds, interleaved, and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="ml-100k")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dataset = load_dataset(arguments.data, on_note=console.note)
    split = leave_one_out(dataset)
    python = peer_python("rectools", default_cache_dir() / "peers")
    values: dict[str, list[NDArray[np.float64]]] = {name: [] for name in CONTENDERS}
    seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for seed in arguments.seeds:
        for name in CONTENDERS:
            start = time.perf_counter()
            lists = (
                _ours(dataset, split, seed) if name == "recserve" else _rectools(python, split, seed, name)
            )
            seconds[name].append(time.perf_counter() - start)
            values[name].append(_ndcg_per_user(lists, split))
            console.note(f"seed {seed}  {name}  test NDCG@10 {values[name][-1].mean():.4f}")
    result = _summary(dataset, split, values, seconds, arguments.seeds)
    _show(result)
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _ours(dataset: Dataset, split: Split, seed: int) -> Lists:
    torch.manual_seed(seed)
    shape = SASRecConfig(**SHAPE, dropout=OURS["dropout"])
    model = SASRec(shape, dataset.n_items)
    # Patience as long as the run: both sides spend the whole budget.
    config = LoopConfig(**BUDGET, learning_rate=OURS["learning_rate"], seed=seed, patience=BUDGET["epochs"])
    with tempfile.TemporaryDirectory() as folder:
        Trainer(model, split, Path(folder), config).fit()
        load_checkpoint(Path(folder) / BEST, model)
    scorer = model_scorer(model, split.test, popularity_of(split, dataset.n_items))
    scores = scorer(np.arange(len(split.test.user_index)))
    lists = np.full((len(scores), K), -1, np.int64)
    for row, row_scores in enumerate(scores):
        row_scores[split.test.histories.row(row)[0]] = -np.inf
        found = top_k(row_scores, K)
        lists[row, : len(found)] = found
    return lists


def _rectools(python: Path, split: Split, seed: int, name: str) -> Lists:
    with tempfile.TemporaryDirectory() as folder:
        settings: dict[str, Any] = {
            **SHAPE,
            **BUDGET,
            **(RECTOOLS_DEFAULTS if "defaults" in name else OURS),
            "seed": seed,
            "arrays": str(Path(folder, "arrays.npz")),
            "output": str(Path(folder, "lists.npz")),
        }
        np.savez(settings["arrays"], **_arrays(split))  # type: ignore[arg-type]
        Path(folder, "settings.json").write_text(json.dumps(settings), encoding="utf-8")
        script = PEERS / "rectools_sasrec.py"
        command = [str(python), str(script), str(Path(folder, "settings.json"))]
        with Path(folder, "log.txt").open("w", encoding="utf-8") as log:
            finished = subprocess.run(command, check=False, stdout=log, stderr=log, env=ONE_THREAD)
        if finished.returncode != 0:
            sys.stderr.write(Path(folder, "log.txt").read_text(encoding="utf-8"))
            raise CheckFailed("rectools", found=f"exit code {finished.returncode}", expected="0; see above")
        lists: Lists = np.load(settings["output"])["lists"]
    return lists


def _arrays(split: Split) -> dict[str, NDArray[Any]]:
    def users_of(histories: Histories, users: NDArray[Any]) -> NDArray[Any]:
        return np.repeat(users, histories.lengths)

    return {
        "train_user": users_of(split.train, np.arange(len(split.train))),
        "train_item": split.train.item_index,
        "test_history_user": users_of(split.test.histories, split.test.user_index),
        "test_history_item": split.test.histories.item_index,
        "test_user": split.test.user_index,
        "validation_item": split.validation.targets.item_index,
    }


def _ndcg_per_user(lists: Lists, split: Split) -> NDArray[np.float64]:
    targets = split.test.targets.item_index
    ranks = [np.flatnonzero(row == target) + 1.0 for row, target in zip(lists, targets, strict=True)]
    missed = np.array([np.inf])
    return metrics.ndcg([found.astype(np.float64) if len(found) else missed for found in ranks], K)


def _summary(
    dataset: Dataset,
    split: Split,
    values: dict[str, list[NDArray[np.float64]]],
    seconds: dict[str, list[float]],
    seeds: list[int],
) -> dict[str, Any]:
    mean_of = {
        name: float(np.mean([seed_values.mean() for seed_values in values[name]])) for name in CONTENDERS
    }
    peer = max(CONTENDERS[1:], key=lambda name: mean_of[name])
    # Users are the sample: each one's gain is the mean over the seeds.
    gain = metrics.bootstrap(np.mean(values["recserve"], axis=0) - np.mean(values[peer], axis=0))
    return {
        "environment": environment(("torch", "numpy", "polars")),
        "dataset": dataset.name,
        "n_users": len(split.test.user_index),
        "settings": {**SHAPE, **BUDGET, "ours": OURS, "rectools": RECTOOLS_DEFAULTS},
        "seeds": seeds,
        "ndcg@10": {
            name: {
                "mean": mean_of[name],
                "by_seed": [float(seed_values.mean()) for seed_values in values[name]],
                "seconds": [round(value, 1) for value in seconds[name]],
            }
            for name in CONTENDERS
        },
        "gain_over": peer,
        "gain": {"mean": gain.mean, "low": gain.low, "high": gain.high},
    }


def _show(result: dict[str, Any]) -> None:
    console.note(machine_line(result["environment"]))
    console.print_table(
        f"{result['dataset']}, leave-one-out, full ranking, {result['n_users']} users",
        ["model", "NDCG@10", "by seed", "seconds"],
        [
            [
                name,
                f"{row['mean']:.4f}",
                " ".join(f"{value:.4f}" for value in row["by_seed"]),
                " ".join(f"{value:.0f}" for value in row["seconds"]),
            ]
            for name, row in result["ndcg@10"].items()
        ],
    )
    gain = result["gain"]
    console.stdout.print(
        f"gain over {result['gain_over']}: {gain['mean']:+.4f} [{gain['low']:+.4f}, {gain['high']:+.4f}]",
        markup=False,
    )


if __name__ == "__main__":
    main()
