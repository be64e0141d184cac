"""Our ALS and BPR against implicit's, our LightGCN against RecBole's: same splits, width and metric code.

    python -m recserve.benchmarks.table_quality --seeds 0 1 2 --out result.json

Random 8:1:1 split of each user on ml-100k, full ranking, known items filtered, NDCG@10 on test; a seed is
that of the split and of the model. Ours runs with its defaults, early stopping on validation among them.
The peer is trained with every setting of a grid around its defaults and takes the one with the best
validation NDCG@10. At test time both know the validation items: ALS computes the users anew from them, the
others only leave them out. GraphSAGE, whose users and items start from their attributes, has no peer.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import product
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
from recserve.training.commands import run_config
from recserve.training.data import (
    Dataset,
    EvaluationSet,
    Histories,
    Split,
    default_cache_dir,
    load_dataset,
    random_split,
)
from recserve.training.evaluate import model_scorer, top_k
from recserve.training.loop import BEST, Trainer, popularity_of
from recserve.training.models import family_of

K = 10
WIDTH = 64
GRIDS: dict[str, list[dict[str, float]]] = {
    "als": [
        {"factors": WIDTH, "alpha": alpha, "regularization": reg}
        for alpha, reg in [
            (1.0, 0.01),
            *product([2.0, 5.0, 10.0, 20.0], [1.0, 10.0, 30.0, 60.0, 120.0, 240.0]),
        ]
    ],
    "bpr": [
        {"factors": WIDTH - 1, "learning_rate": rate, "regularization": reg, "iterations": iterations}
        for rate, reg, iterations in product([0.003, 0.01, 0.03], [0.01, 0.03, 0.1], [100, 300])
    ],
    "lightgcn": [
        {
            "embedding_size": WIDTH,
            "n_layers": 3,
            "reg_weight": 1e-4,
            "learning_rate": rate,
            "epochs": 300,
            "eval_step": 5,
            "stopping_step": 5,
        }
        for rate in (0.002, 0.005)
    ],
}
# model: its peer, that one's script and environment.
PEER_OF = {"als": "implicit", "bpr": "implicit", "lightgcn": "recbole"}
SCRIPTS = {"implicit": "implicit_quality.py", "recbole": "recbole_lightgcn.py"}
MODELS = (*PEER_OF, "graphsage")
# Every contender on one thread: the seconds compare, and a busy core beside does not decide.
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
Lists = NDArray[np.int64]


def main() -> None:
    """Runs both models for all seeds, each beside its peer, and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="ml-100k")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    arguments = parser.parse_args()
    dataset = load_dataset(arguments.data, on_note=console.note)
    torch.set_num_threads(1)
    pythons = {
        peer: peer_python(peer, default_cache_dir() / "peers")
        for peer in {PEER_OF[model] for model in arguments.models if model in PEER_OF}
    }
    rows: dict[str, list[dict[str, Any]]] = {}
    values: dict[str, list[NDArray[np.float64]]] = {}
    for seed in arguments.seeds:
        split = random_split(dataset, seed)
        for name in contenders(arguments.models):
            start = time.perf_counter()
            library, model = name.split()
            if library == "recserve":
                lists, chosen = _ours(model, dataset, split, seed)
            else:
                lists, chosen = _theirs(pythons[library], library, model, split, dataset, seed)
            seconds = time.perf_counter() - start
            values.setdefault(name, []).append(_ndcg_per_user(lists, split.test))
            rows.setdefault(name, []).append({"seconds": round(seconds, 1), "chosen": chosen})
            console.note(f"seed {seed}  {name}  test NDCG@10 {values[name][-1].mean():.4f}  {seconds:.0f} s")
    result = _summary(dataset, values, rows, arguments.seeds)
    _show(result)
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def contenders(models: list[str]) -> list[str]:
    """Returns the names of the rows, library and model: popularity, then each model and its peer's."""
    pairs = [("recserve", "popularity")]
    for model in models:
        pairs.append(("recserve", model))
        if model in PEER_OF:
            pairs.append((PEER_OF[model], model))
    return [" ".join(pair) for pair in pairs]


def _ours(model: str, dataset: Dataset, split: Split, seed: int) -> tuple[Lists, dict[str, Any]]:
    width = {} if model == "popularity" else {"embedding_size": WIDTH}
    config = run_config(model, "random", {**width, "seed": seed})
    torch.manual_seed(seed)
    family = family_of(model)
    if family.create_from_data is None:
        trained = family.create(config.shape, dataset.n_users, dataset.n_items)
    else:
        trained = family.create_from_data(config.shape, dataset, split)
    with tempfile.TemporaryDirectory() as folder:
        progress = Trainer(trained, split, Path(folder), config.loop).fit()
        load_checkpoint(Path(folder) / BEST, trained)
    scorer = model_scorer(trained, split.test, popularity_of(split, dataset.n_items))
    return _lists(scorer, split.test), {"best_epoch": progress.best_epoch}


def _lists(scorer: Any, held_out: EvaluationSet) -> Lists:
    scores = scorer(np.arange(len(held_out.user_index)))
    lists = np.full((len(scores), K), -1, np.int64)
    for row, row_scores in enumerate(scores):
        row_scores[held_out.histories.row(row)[0]] = -np.inf
        found = top_k(row_scores, K)
        lists[row, : len(found)] = found
    return lists


def _theirs(
    python: Path, library: str, model: str, split: Split, dataset: Dataset, seed: int
) -> tuple[Lists, dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        settings: dict[str, Any] = {
            "model": model,
            "grid": GRIDS[model],
            "seed": seed,
            "shape": [dataset.n_users, dataset.n_items],
            "arrays": str(Path(folder, "arrays.npz")),
            "output": str(Path(folder, "lists.npz")),
        }
        np.savez(settings["arrays"], **_arrays(split))  # type: ignore[arg-type]
        Path(folder, "settings.json").write_text(json.dumps(settings), encoding="utf-8")
        command = [str(python), str(PEERS / SCRIPTS[library]), str(Path(folder, "settings.json"))]
        with Path(folder, "log.txt").open("w", encoding="utf-8") as log:
            finished = subprocess.run(
                command, check=False, stdout=log, stderr=log, env=ONE_THREAD, cwd=folder
            )
        if finished.returncode != 0:
            sys.stderr.write(Path(folder, "log.txt").read_text(encoding="utf-8"))
            raise CheckFailed(library, found=f"exit code {finished.returncode}", expected="0; see above")
        with np.load(settings["output"]) as output:
            return output["lists"].astype(np.int64), json.loads(str(output["chosen"]))


def _arrays(split: Split) -> dict[str, NDArray[Any]]:
    def pairs(name: str, histories: Histories, users: NDArray[Any]) -> dict[str, NDArray[Any]]:
        return {f"{name}_user": np.repeat(users, histories.lengths), f"{name}_item": histories.item_index}

    return {
        **pairs("train", split.train, np.arange(len(split.train))),
        **pairs("known", split.test.histories, split.test.user_index),
        **pairs("validation", split.validation.targets, split.validation.user_index),
        "test_user": split.test.user_index,
    }


def _ndcg_per_user(lists: Lists, held_out: EvaluationSet) -> NDArray[np.float64]:
    ranks = []
    for row, found in enumerate(lists):
        targets = np.unique(held_out.targets.row(row)[0])
        places = {item: place for place, item in enumerate(found.tolist(), start=1)}
        ranks.append(np.array([places.get(item, np.inf) for item in targets.tolist()], np.float64))
    return metrics.ndcg(ranks, K)


def _summary(
    dataset: Dataset,
    values: dict[str, list[NDArray[np.float64]]],
    rows: dict[str, list[dict[str, Any]]],
    seeds: list[int],
) -> dict[str, Any]:
    gains = {}
    for model, peer in PEER_OF.items():
        if f"recserve {model}" not in values:
            continue
        # Users are the sample: each one's gain is the mean over the seeds.
        gain = np.mean(values[f"recserve {model}"], axis=0) - np.mean(values[f"{peer} {model}"], axis=0)
        estimate = metrics.bootstrap(gain)
        gains[model] = {"mean": estimate.mean, "low": estimate.low, "high": estimate.high}
    return {
        "environment": environment(("numpy", "numba", "polars", "torch")),
        "dataset": dataset.name,
        "n_users": len(values["recserve popularity"][0]),
        "embedding_size": WIDTH,
        "peer_grids": {model: GRIDS[model] for model in gains},
        "seeds": seeds,
        "ndcg@10": {
            name: {
                "mean": float(np.mean([seed_values.mean() for seed_values in values[name]])),
                "by_seed": [float(seed_values.mean()) for seed_values in values[name]],
                "runs": rows[name],
            }
            for name in values
        },
        "gain_over_peer": gains,
    }


def _show(result: dict[str, Any]) -> None:
    console.note(machine_line(result["environment"]))
    console.print_table(
        f"{result['dataset']}, random 8:1:1 of each user, full ranking, {result['n_users']} users",
        ["model", "NDCG@10", "by seed"],
        [
            [name, f"{row['mean']:.4f}", " ".join(f"{value:.4f}" for value in row["by_seed"])]
            for name, row in result["ndcg@10"].items()
        ],
    )
    for model, gain in result["gain_over_peer"].items():
        console.stdout.print(
            f"{model}: gain over its peer {gain['mean']:+.4f} [{gain['low']:+.4f}, {gain['high']:+.4f}]",
            markup=False,
        )


if __name__ == "__main__":
    main()
