"""Rating prediction by folds: every rating is predicted by a model that learned from the other folds.

The protocol of published tables (Surprise's ``cross_validate``). The number of epochs comes from a tenth of
the training ratings; then a new model makes as many over all of them.
"""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from recserve.errors import InvalidRequest
from recserve.training.anew import trained_anew
from recserve.training.comparison import check_comparable, labels
from recserve.training.data import Dataset, Histories, Split, random_folds
from recserve.training.loop import EpochReport
from recserve.training.models.base import FittedModel, RankingModel, RatingModel
from recserve.training.rating_metrics import estimate_ratings, mae, mse, rmse
from recserve.training.run import Run, RunConfig, new_model

ERRORS = {"RMSE": rmse, "MAE": mae, "MSE": mse}


def cross_validate(
    runs: list[Run], n_folds: int = 5, on_progress: Callable[[int, str], None] = lambda done, doing: None
) -> dict[str, Any]:
    """Returns the errors of each run's family and settings, trained anew without each of ``n_folds`` folds.

    The folds are those of the first run's seed. ``metrics`` are over all ratings, with intervals over users;
    ``over_folds`` the mean and the standard deviation of the folds' own. ``on_progress`` gets how many folds
    were done since it was called last, and what is being done. Raises :class:`InvalidRequest` for runs on
    other data and for families that predict no ratings.
    """
    check_comparable(runs)
    for run in runs:
        _rating_model(run.new_model(), run.config.model)
    dataset, seed = runs[0].dataset, runs[0].config.loop.seed
    folds = random_folds(dataset, n_folds, seed)
    models = {}
    for run, label in zip(runs, labels(runs), strict=True):
        predicted, epochs = [], []
        for number, split in enumerate(folds, start=1):
            doing = f"{label}, fold {number} of {n_folds}"

            def on_epoch(report: EpochReport, doing: str = doing) -> None:
                on_progress(0, f"{doing}, epoch {report.epoch}")

            found, best_epoch = predict_fold(run.config, dataset, split, on_epoch)
            predicted.append(found)
            epochs.append(best_epoch)
            on_progress(1, doing)
        models[label] = {
            "run": str(run.folder),
            "model": run.config.model,
            "seed": run.config.loop.seed,
            **_errors(folds, predicted, epochs),
        }
    return {
        "dataset": dataset.name,
        "protocol": f"{n_folds} random folds of seed {seed}, epochs by a tenth of the training ratings",
        "n_users": dataset.n_users,
        "n_items": dataset.n_items,
        "n_ratings": dataset.interactions.height,
        "models": models,
    }


def predict_fold(
    config: RunConfig,
    dataset: Dataset,
    split: Split,
    on_epoch: Callable[[EpochReport], None] = lambda report: None,
) -> tuple[NDArray[np.float32], int]:
    """Returns the predicted rating of every test target, (n_targets,), and the number of epochs chosen."""
    _, progress = trained_anew(config, dataset, split, on_epoch)
    torch.manual_seed(config.loop.seed)
    whole = new_model(config, dataset, split)
    if not isinstance(whole, FittedModel):
        raise TypeError(f"{config.model} makes no epochs of its own")
    known = with_validation(split)
    for epoch in range(1, progress.best_epoch + 1):
        whole.fit_epoch(known, epoch=epoch, seed=config.loop.seed)
    return _rating_model(whole, config.model).predict_ratings(split.test), progress.best_epoch


def with_validation(split: Split) -> Histories:
    """Returns the training interactions with those that are held out for validation."""
    train, validation = split.train, split.validation
    user = np.concatenate([np.repeat(np.arange(len(train)), train.lengths), validation.target_users()])
    order = np.argsort(user, kind="stable")
    item, timestamp, value = (
        np.concatenate([getattr(part, name) for part in (train, validation.targets)])[order]
        for name in ("item_index", "timestamp", "value")
    )
    return Histories.from_sorted(user[order], item, timestamp, len(train), value)


def _rating_model(model: RankingModel, name: str) -> RatingModel:
    if not isinstance(model, RatingModel):
        raise InvalidRequest(
            f"model {name} with --folds",
            found="one that predicts no ratings",
            expected="one that does",
            cure="Train svd or svdpp.",
        )
    return model


def _errors(folds: list[Split], predicted: list[NDArray[np.float32]], epochs: list[int]) -> dict[str, Any]:
    rated = [split.test.targets.value for split in folds]
    rows = []
    for found, true, n_epochs in zip(predicted, rated, epochs, strict=True):
        errors = {name: error(found, true) for name, error in ERRORS.items()}
        rows.append({"n_ratings": len(true), "epochs": n_epochs, **errors})
    user = np.concatenate([split.test.target_users() for split in folds])
    order = np.argsort(user, kind="stable")
    indptr = np.concatenate([[0], np.cumsum(np.bincount(user))])
    estimates = estimate_ratings(np.concatenate(predicted)[order], np.concatenate(rated)[order], indptr)
    of_folds = {name: np.array([row[name] for row in rows]) for name in ERRORS}
    return {
        "metrics": {name: asdict(estimates[name]) for name in ERRORS},
        "over_folds": {
            name: {"mean": float(values.mean()), "deviation": float(values.std())}
            for name, values in of_folds.items()
        },
        "folds": rows,
    }
