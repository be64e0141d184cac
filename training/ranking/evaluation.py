"""How good the predictions of a ranker are: of clicks, of ratings, next to the mean of the item."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recserve.training.data import EvaluationSet, Split
from recserve.training.models.ranker import Ranker
from recserve.training.ranking import metrics
from recserve.training.ranking.calibration import Calibration, fit_calibration
from recserve.training.ranking.examples import Examples, Labels, held_out_examples
from recserve.training.ranking.learner import predict
from recserve.training.ranking.space import item_means
from recserve.training.rating_metrics import mae, mse, rmse

CLICK, RATING = 0, 1
N_BOOTSTRAP = 200

# Rows of the examples → the metrics of these rows.
Measure = Callable[[NDArray[np.int64]], dict[str, float]]


def validation_auc(model: Ranker, held_out: EvaluationSet) -> float:
    """Returns the AUC of a ranker of rated examples on the targets of ``held_out``."""
    examples = held_out_examples(held_out)
    return metrics.auc(predict(model, examples)[:, CLICK], model.labels.clicks(examples.value))


def calibrate(model: Ranker, split: Split) -> Calibration:
    """Returns the calibration of the click logits on the validation examples of ``split``.

    With sampled labels there is nothing to calibrate to: the share of clicks is what the sampling made it.
    """
    if not model.labels.is_rated:
        return fit_calibration(np.zeros(0), np.zeros(0), "none")
    examples = held_out_examples(split.validation)
    logits = predict(model, examples)[:, CLICK]
    return fit_calibration(logits, model.labels.clicks(examples.value), model.config.calibration)


def ratings_of(logits: NDArray[np.float32], labels: Labels) -> NDArray[np.float64]:
    """Returns ratings from standardised ones, within the scale of the training ratings."""
    return np.clip(logits.astype(np.float64) * labels.std + labels.mean, labels.low, labels.high)


def evaluate_predictions(
    model: Ranker, split: Split, *, n_bootstrap: int = N_BOOTSTRAP, seed: int = 0
) -> dict[str, Any]:
    """Returns the metrics of ``model`` and of the item means on the test examples, as plain values.

    Intervals are over resampled users, whose examples stay together.
    """
    examples = held_out_examples(split.test)
    logits = predict(model, examples)
    calibration = calibrate(model, split)
    model_measure = _measure(
        examples,
        model.labels,
        logits[:, CLICK],
        calibration.apply(logits[:, CLICK]),
        ratings_of(logits[:, RATING], model.labels),
    )
    clicks = model.labels.clicks(split.train.value)
    of_click = item_means(split.train, clicks.astype(np.float64), model.n_items)[examples.item_index]
    of_rating = item_means(split.train, split.train.value.astype(np.float64), model.n_items)
    baseline = _measure(examples, model.labels, of_click, of_click, of_rating[examples.item_index])
    clicked = model.labels.clicks(examples.value)
    return {
        "n_examples": len(examples),
        "n_users": len(np.unique(examples.user_index)),
        "n_unknown_users": int((split.train.lengths[np.unique(examples.user_index)] == 0).sum()),
        "click_rate": float(clicked.mean()),
        "calibration": calibration.method,
        "model": {"metrics": _estimates(model_measure, examples, clicked, n_bootstrap, seed)},
        "item mean": {"metrics": _estimates(baseline, examples, clicked, n_bootstrap, seed)},
    }


def _measure(
    examples: Examples,
    labels: Labels,
    scores: NDArray[Any],
    probabilities: NDArray[np.float64],
    ratings: NDArray[np.float64],
) -> Measure:
    clicks = labels.clicks(examples.value)

    def measure(rows: NDArray[np.int64]) -> dict[str, float]:
        rated, value = ratings[rows], examples.value[rows]
        return {
            "AUC": metrics.auc(scores[rows], clicks[rows]),
            "GAUC": metrics.gauc(scores[rows], clicks[rows], examples.user_index[rows]),
            "logloss": metrics.logloss(probabilities[rows], clicks[rows]),
            "ECE": metrics.ece(probabilities[rows], clicks[rows]),
            "RMSE": rmse(rated, value),
            "MSE": mse(rated, value),
            "MAE": mae(rated, value),
        }

    return measure


def _estimates(
    measure: Measure, examples: Examples, clicked: NDArray[np.float32], n_samples: int, seed: int
) -> dict[str, Any]:
    everything = np.arange(len(examples))
    whole = measure(everything)
    order = np.argsort(examples.user_index, kind="stable")
    by_user = np.split(order, np.flatnonzero(np.diff(examples.user_index[order])) + 1)
    rng = np.random.default_rng(seed)
    samples = []
    for _ in range(n_samples):
        rows = np.concatenate([by_user[i] for i in rng.integers(0, len(by_user), len(by_user))])
        # A sample of one user may have one kind of label only: it says nothing of AUC.
        if 0 < np.count_nonzero(clicked[rows]) < len(rows):
            samples.append(measure(rows))
    return {name: _interval(value, [sample[name] for sample in samples]) for name, value in whole.items()}


def _interval(value: float, samples: list[float]) -> dict[str, float]:
    low, high = np.nanpercentile(samples, [2.5, 97.5]) if samples else (value, value)
    return {"mean": value, "low": float(low), "high": float(high)}
