"""Rankers on ml-100k, next to logistic regression and to themselves without the moment.

    python -m recserve.benchmarks.ranker_quality --seeds 0 1 2 --out result.json

Global temporal split 8:1:1 of the ratings, a rating of 4 or more is a click, each model with its defaults and
early stopping on validation AUC; probabilities are calibrated on validation. A gain is the mean over seeds of
the difference in test AUC, its interval from resampled users, the same ones for both models.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from recserve import console
from recserve.benchmarks.environment import environment, machine_line
from recserve.errors import CheckFailed
from recserve.training.checkpoint import load_checkpoint
from recserve.training.commands import run_config
from recserve.training.data import Dataset, Split, load_dataset, temporal_split
from recserve.training.loop import BEST, Trainer
from recserve.training.models import family_of
from recserve.training.models.ranker import Ranker
from recserve.training.ranking.evaluation import CLICK, evaluate_predictions
from recserve.training.ranking.examples import Examples, held_out_examples
from recserve.training.ranking.learner import predict
from recserve.training.ranking.metrics import auc

BASELINE = "lr"
MODELS = ("lr", "fm", "deepfm", "dcn", "dlrm", "din")
SHOWN = ("AUC", "GAUC", "logloss", "ECE", "RMSE")
N_SAMPLES = 300

# Of one model: click logits by seed, (n_seeds, n_examples).
Scores = NDArray[np.float32]


def train(dataset: Dataset, split: Split, model: str, seed: int, **settings: Any) -> Ranker:
    """Returns the best checkpoint of one training run."""
    config = run_config(model, "temporal", {"seed": seed, **settings})
    create = family_of(model).create_from_data
    if create is None:
        raise CheckFailed(f"model {model}", found="no ranker", expected="a ranker")
    torch.manual_seed(seed)
    trained = create(config.shape, dataset, split)
    with tempfile.TemporaryDirectory() as folder:
        Trainer(trained, split, Path(folder), config.loop).fit()
        load_checkpoint(Path(folder) / BEST, trained)
    if not isinstance(trained, Ranker):
        raise CheckFailed(f"model {model}", found="no ranker", expected="a ranker")
    return trained


def gain(examples: Examples, clicks: NDArray[np.float32], model: Scores, other: Scores) -> dict[str, float]:
    """Returns the mean difference in AUC and its 95 % interval over resampled users."""

    def difference(rows: NDArray[np.int64]) -> float:
        pairs = zip(model, other, strict=True)
        return float(np.mean([auc(a[rows], clicks[rows]) - auc(b[rows], clicks[rows]) for a, b in pairs]))

    order = np.argsort(examples.user_index, kind="stable")
    by_user = np.split(order, np.flatnonzero(np.diff(examples.user_index[order])) + 1)
    rng = np.random.default_rng(0)
    samples = [
        difference(np.concatenate([by_user[i] for i in rng.integers(0, len(by_user), len(by_user))]))
        for _ in range(N_SAMPLES)
    ]
    low, high = np.percentile(samples, [2.5, 97.5])
    return {"gain": difference(np.arange(len(clicks))), "low": float(low), "high": float(high)}


def measure(seeds: list[int]) -> dict[str, Any]:
    """Trains every model with every seed; returns metrics by seed and the gains."""
    dataset = load_dataset("ml-100k", on_note=console.note)
    split = temporal_split(dataset)
    examples = held_out_examples(split.test)
    runs: dict[str, list[dict[str, float]]] = {}
    logits: dict[str, Scores] = {}
    clicks = np.empty(0, np.float32)
    variants: list[tuple[str, str, dict[str, Any]]] = [(name, name, {}) for name in MODELS]
    variants += [(f"{name} without the moment", name, {"context": False}) for name in MODELS[2:]]
    for label, name, settings in variants:
        scores = []
        for seed in seeds:
            model = train(dataset, split, name, seed, **settings)
            result = evaluate_predictions(model, split, n_bootstrap=0)
            found = {metric: result["model"]["metrics"][metric]["mean"] for metric in SHOWN}
            runs.setdefault(label, []).append(found)
            runs["item mean"] = [{metric: result["item mean"]["metrics"][metric]["mean"] for metric in SHOWN}]
            scores.append(predict(model, examples)[:, CLICK])
            clicks = model.labels.clicks(examples.value)
            console.note(f"{label} seed {seed} AUC {found['AUC']:.4f} ECE {found['ECE']:.4f}")
        logits[label] = np.stack(scores)
    over_lr = {name: gain(examples, clicks, logits[name], logits[BASELINE]) for name in MODELS[1:]}
    of_moment = {
        name: gain(examples, clicks, logits[name], logits[f"{name} without the moment"])
        for name in MODELS[2:]
    }
    return {
        "protocol": "ml-100k, global temporal 8:1:1, rating >= 4 is a click, test",
        "seeds": seeds,
        "n_examples": len(examples),
        "n_users": len(np.unique(examples.user_index)),
        "runs": runs,
        "auc_gain_over_lr": over_lr,
        "auc_gain_of_the_moment": of_moment,
    }


def show(result: dict[str, Any]) -> None:
    """Prints the table of means over seeds."""
    rows = []
    for label, runs in result["runs"].items():
        means = [f"{np.mean([run[metric] for run in runs]):.4f}" for metric in SHOWN]
        over = result["auc_gain_over_lr"].get(label)
        interval = f"{over['gain']:+.4f} [{over['low']:+.4f}, {over['high']:+.4f}]" if over else ""
        rows.append([label, *means, interval])
    console.print_table(
        f"{result['protocol']}; {len(result['seeds'])} seeds", ["model", *SHOWN, "AUC over lr"], rows
    )


def main() -> None:
    """Runs the comparison and writes JSON."""
    parser = argparse.ArgumentParser(description="Rankers on ml-100k against logistic regression")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    result = {"environment": environment(("torch", "numpy")), **measure(arguments.seeds)}
    console.note(machine_line(result["environment"]))
    show(result)
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
