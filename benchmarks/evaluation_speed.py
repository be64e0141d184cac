"""Times our evaluation against a loop of torch: ``python -m recserve.benchmarks.evaluation_speed``.

Users and items are Gaussian vectors without structure, the worst case for exact search. Ours is what
``recserve evaluate`` runs, all metrics among it; torch's loop multiplies a batch of users with all items,
hides what they had, takes the best, and measures nothing. The same threads for both. With ``--torch-users``
torch has so many of the users and its time is scaled.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from recserve import console
from recserve.benchmarks.environment import describe, machine_line
from recserve.training.data import EvaluationSet, Histories
from recserve.training.evaluate import LIST_LENGTH, evaluate_model
from recserve.training.models.base import EmbeddingModel
from recserve.training.models.interactions import n_threads
from recserve.training.models.tables import LearnedTables

WIDTH, N_SEEN = 64, 20
# The fastest of 256, 1024 and 4096 on the machine of the figures.
TORCH_BATCH = 1024


def main() -> None:
    """Times both and writes JSON."""
    parser = argparse.ArgumentParser(prog="recserve.benchmarks.evaluation_speed", description=__doc__)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--torch-users", type=int, help="Default: all.")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    options = parser.parse_args()
    machine = describe(("torch", "numpy", "numba"))
    console.note(machine_line(machine))
    model, held_out = make(options.users, options.items)
    torch.set_num_threads(n_threads())
    n_torch = min(options.torch_users or options.users, options.users)
    # What compiles does so before.
    _ours(model, held_out.take(np.arange(min(256, options.users))))
    of_torch = _torch(model, held_out.take(np.arange(n_torch)))
    row: dict[str, Any] = {
        "what": "evaluation",
        "users": options.users,
        "items": options.items,
        "torch_users": n_torch,
        "recserve_seconds": _ours(model, held_out),
        "torch_seconds": of_torch * options.users / n_torch,
    }
    row["ratio"] = row["torch_seconds"] / row["recserve_seconds"]
    console.note("  ".join(f"{key} {value}" for key, value in row.items()))
    if options.out:
        result = {"bench": "evaluation_speed", "environment": machine, "rows": [row]}
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


class Tables(LearnedTables):
    """Given vectors; nothing is learned."""

    def fit_epoch(self, train: Histories, *, epoch: int, seed: int) -> float:
        raise TypeError("these tables are given")


def make(n_users: int, n_items: int) -> tuple[Tables, EvaluationSet]:
    """Returns the vectors, and users who had N_SEEN items and are tested on one more."""
    rng = np.random.default_rng(0)
    users, items = (rng.normal(size=(n, WIDTH)).astype(np.float32) for n in (n_users, n_items))
    indices = np.arange(n_users, dtype=np.int32)
    seen, target = rng.integers(0, n_items, n_users * N_SEEN), rng.integers(0, n_items, n_users)

    def rows(item: NDArray[np.int64], each: int) -> Histories:
        return Histories.from_sorted(
            np.repeat(indices, each), item.astype(np.int32), np.zeros(len(item), np.int64), n_users
        )

    return Tables(users, items), EvaluationSet(indices, rows(seen, N_SEEN), rows(target, 1))


def _ours(model: Tables, held_out: EvaluationSet) -> float:
    popularity = np.ones(model.n_items, np.int64)
    start = time.perf_counter()
    evaluate_model(model, held_out, popularity, n_bootstrap=0)
    return time.perf_counter() - start


@torch.inference_mode()
def _torch(model: EmbeddingModel, held_out: EvaluationSet) -> float:
    items = model.item_embeddings.T.contiguous()
    queries = torch.from_numpy(model.query_rows(held_out, np.arange(len(held_out.user_index))))
    histories = held_out.histories
    start = time.perf_counter()
    for first in range(0, len(queries), TORCH_BATCH):
        batch = queries[first : first + TORCH_BATCH]
        scores = batch @ items
        some = histories.take(np.arange(first, first + len(batch)))
        row = torch.from_numpy(np.repeat(np.arange(len(batch)), some.lengths))
        scores[row, torch.from_numpy(some.item_index.astype(np.int64))] = -torch.inf
        scores.topk(LIST_LENGTH)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
