"""Popularity and EASE on the S3-Rec files, beside a computation that shares no code with ours."""

import os
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from recserve.training.commands import run_config
from recserve.training.data import load_dataset
from recserve.training.evaluate_command import evaluate_run
from recserve.training.loop import Trainer
from recserve.training.run import create_run

REG = 300.0
DIGITS = 5e-5


def data_file(name: str) -> Path:
    folder = os.environ.get("RECSERVE_TEST_DATA", "")
    path = Path(folder) / "s3rec" / name
    if not folder or not path.exists():
        pytest.skip(f"{name} is not here; RECSERVE_TEST_DATA names the folder that has it")
    return path


def by_hand(path: Path, model: str) -> tuple[float, float]:
    """Returns HR@10 and NDCG@10: last item for test, the one before left out of training, full ranking."""
    rows = [[int(item) for item in line.split()[1:]] for line in path.read_text().splitlines()]
    n_items = max(max(row) for row in rows) + 1
    train = np.zeros((len(rows), n_items), np.float32)
    for user, row in enumerate(rows):
        train[user, row[:-2]] = 1
    if model == "popularity":
        weights: NDArray[np.float64] = np.tile(train.sum(0), (1, 1)).astype(float)
    else:
        inverse = np.linalg.inv((train.T @ train).astype(float) + REG * np.eye(n_items))
        weights = -inverse / np.diag(inverse)
        np.fill_diagonal(weights, 0)
    ranks = []
    for row in rows:
        scores = weights[0].copy() if model == "popularity" else weights[row[:-1]].sum(0)
        seen = np.zeros(n_items, bool)
        # Item 0 is padding in these files.
        seen[[0, *row[:-1]]] = True
        ranks.append(np.inf if seen[row[-1]] else (scores[~seen] >= scores[row[-1]]).sum())
    hit = np.array(ranks) <= 10
    return float(hit.mean()), float((hit / np.log2(np.array(ranks) + 1)).mean())


@pytest.mark.slow
@pytest.mark.parametrize("model", ["popularity", "ease"])
@pytest.mark.parametrize("name", ["LastFM.txt", "Toys_and_Games.txt"])
def test_they_equal_a_computation_by_hand(name: str, model: str, tmp_path: Path) -> None:
    path = data_file(name)
    settings = {"reg": REG} if model == "ease" else {}
    run = create_run(
        tmp_path / "run", run_config(model, "leave-one-out", settings), load_dataset(f"sequences:{path}")
    )
    Trainer(run.new_model(), run.split(), run.folder, run.config.loop).fit()
    metrics = evaluate_run(run)["model"]["metrics"]
    hit_rate, ndcg = by_hand(path, model)
    assert metrics["HR@10"]["mean"] == pytest.approx(hit_rate, abs=DIGITS)
    assert metrics["NDCG@10"]["mean"] == pytest.approx(ndcg, abs=DIGITS)
