"""Ratings predicted over folds: each once, by a model that did not learn from it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recserve.training.commands import run_config
from recserve.training.cross_validation import cross_validate, predict_fold, with_validation
from recserve.training.data import Dataset, load_dataset, random_folds
from recserve.training.rating_metrics import rmse
from recserve.training.run import Run, create_run

SHOP = "synthetic-shop:n_items=1000,n_users=60,n_events=1500,seed=2"
SMALL = {"embedding_size": 4, "epochs": 4, "validate_every": 1}

CLI = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def shop() -> Dataset:
    return load_dataset(SHOP)


def run_of(folder: Path, dataset: Dataset, model: str = "svd", **settings: Any) -> Run:
    given = settings or (SMALL if model.startswith("svd") else {})
    return create_run(folder, run_config(model, "random", given), dataset)


def test_every_rating_counts_once(shop: Dataset, tmp_path: Path) -> None:
    said: list[tuple[int, str]] = []
    run = run_of(tmp_path / "svd", shop, seed=3, **SMALL)
    result = cross_validate([run], 3, lambda done, doing: said.append((done, doing)))
    found = result["models"]["svd"]
    n = [fold["n_ratings"] for fold in found["folds"]]
    assert sum(n) == result["n_ratings"] == shop.interactions.height
    for name, estimate in found["metrics"].items():
        of_folds = np.array([fold[name] for fold in found["folds"]])
        whole = (
            np.average(of_folds**2, weights=n) ** 0.5 if name == "RMSE" else np.average(of_folds, weights=n)
        )
        assert estimate["mean"] == pytest.approx(whole)
        assert estimate["low"] < estimate["mean"] < estimate["high"]
        assert found["over_folds"][name] == pytest.approx(
            {"mean": of_folds.mean(), "deviation": of_folds.std()}
        )
    assert sum(done for done, _ in said) == 3
    assert said[0] == (0, "svd, fold 1 of 3, epoch 1")
    # The second fold alone is what it was among the others.
    split = random_folds(shop, 3, seed=3)[1]
    predicted, epochs = predict_fold(run.config, shop, split)
    assert rmse(predicted, split.test.targets.value) == found["folds"][1]["RMSE"]
    assert epochs == found["folds"][1]["epochs"]


def test_what_is_tested_is_not_learned(shop: Dataset, tmp_path: Path) -> None:
    run = run_of(tmp_path / "svd", shop)
    split = random_folds(shop, 5, 0)[0]
    before, _ = predict_fold(run.config, shop, split)
    known = with_validation(split)
    assert known.lengths.sum() == split.train.lengths.sum() + split.validation.targets.lengths.sum()
    split.test.targets.value[:] = 1
    after, _ = predict_fold(run.config, shop, split)
    assert np.array_equal(before, after)


def test_what_learns_last_knows_validation_too(shop: Dataset) -> None:
    split = random_folds(shop, 5, 0)[0]
    known, user = with_validation(split), int(split.validation.user_index[0])
    assert set(split.validation.targets.row(0)[0].tolist()) <= set(known.row(user)[0].tolist())


def test_the_command_compares_runs_on_the_same_folds(run_cli: CLI, shop: Dataset, tmp_path: Path) -> None:
    run_of(tmp_path / "svd", shop)
    run_of(tmp_path / "svdpp", shop, "svdpp")
    runs, out = (tmp_path / "svd", tmp_path / "svdpp"), tmp_path / "folds.json"
    code, table, said = run_cli("evaluate", *runs, "--folds", "2", "--out", out)
    assert code == 0, said
    result = json.loads(out.read_text())
    assert list(result["models"]) == ["svd", "svdpp"]
    sizes = [[fold["n_ratings"] for fold in model["folds"]] for model in result["models"].values()]
    assert sizes[0] == sizes[1]
    mean = result["models"]["svdpp"]["over_folds"]["RMSE"]["mean"]
    assert all(word in table for word in ("RMSE of fold 2", "RMSE over folds", f"{mean:.4f} ±", "MAE", "MSE"))
    code, printed, _ = run_cli("evaluate", tmp_path / "svd", "--folds", "2", "--json")
    assert json.loads(printed)["models"]["svd"]["folds"] == result["models"]["svd"]["folds"]


def test_what_cannot_be_is_refused(run_cli: CLI, shop: Dataset, tmp_path: Path) -> None:
    run_of(tmp_path / "als", shop, "als")
    run_of(tmp_path / "svd", shop)
    for arguments, error in (
        (("als", "--folds", "5"), "model als with --folds is one that predicts no ratings"),
        (("svd", "--folds", "1"), "n_folds is 1; expected 2 to"),
        (("svd", "--folds", "5", "--plot", "x.svg"), "--folds is given with --plot"),
        (("svd", "--folds", "5", "--robustness"), "--folds is given with --robustness"),
    ):
        code, _, said = run_cli("evaluate", tmp_path / arguments[0], *arguments[1:])
        assert code == 2
        assert error in said
