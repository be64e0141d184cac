"""Metrics of predicted probabilities against clicks.

Definitions, for n examples with label y (0 or 1) and probability p: AUC = the share of pairs of a click and
a miss in which the click has the higher score, a tie counting half. GAUC = the mean of the users' AUCs,
weighted by their number of examples, users with one kind of label left out (Zhou 2018, arXiv:1706.06978).
logloss = −Σ (y ln p + (1 − y) ln(1 − p)) / n. ECE = Σ_b |mean p − mean y| n_b / n over 15 bins of equal width
of p (Guo et al. 2017, arXiv:1706.04599). RMSE, MSE and MAE of ratings are in ``training/rating_metrics.py``.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from recserve.errors import DataError, InvalidRequest

N_BINS = 15
# Keeps the logarithm finite where a model is sure and wrong.
EPSILON = 1e-7

Values = NDArray[np.floating[Any]]
Labels = NDArray[np.floating[Any]] | NDArray[np.bool_]


def auc(scores: Values, clicks: Labels) -> float:
    """Returns the area under the ROC curve of ``scores`` (n,); :class:`DataError` for labels of one kind."""
    _check("scores", scores, clicks)
    n_clicks = int(np.count_nonzero(clicks))
    n_misses = len(clicks) - n_clicks
    if not n_clicks or not n_misses:
        raise DataError("labels", found=f"{n_clicks} clicks of {len(clicks)}", expected="clicks and misses")
    rank_sum = float(_mid_ranks(scores)[np.asarray(clicks, bool)].sum())
    return (rank_sum - n_clicks * (n_clicks + 1) / 2) / (n_clicks * n_misses)


def gauc(scores: Values, clicks: Labels, user_index: NDArray[np.integer]) -> float:
    """Returns AUC by user; NaN when no user has both kinds of label."""
    _check("scores", scores, clicks)
    order = np.argsort(user_index, kind="stable")
    starts = np.flatnonzero(np.diff(user_index[order], prepend=-1))
    total, weight = 0.0, 0
    for rows in np.split(order, starts[1:]):
        if 0 < np.count_nonzero(clicks[rows]) < len(rows):
            total += auc(scores[rows], clicks[rows]) * len(rows)
            weight += len(rows)
    return total / weight if weight else float("nan")


def logloss(probabilities: Values, clicks: Labels) -> float:
    """Returns the mean negative log likelihood of ``clicks`` (n,), in nats."""
    _check("probabilities", probabilities, clicks)
    p = np.clip(probabilities.astype(np.float64), EPSILON, 1 - EPSILON)
    return float(-np.mean(np.where(clicks, np.log(p), np.log1p(-p))))


def ece(probabilities: Values, clicks: Labels, n_bins: int = N_BINS) -> float:
    """Returns the expected calibration error of ``probabilities`` (n,), 0 to 1."""
    _check("probabilities", probabilities, clicks)
    bins = np.minimum((probabilities * n_bins).astype(np.int64), n_bins - 1)
    gaps = np.bincount(bins, weights=probabilities.astype(np.float64) - clicks, minlength=n_bins)
    return float(np.abs(gaps).sum() / len(clicks))


def _mid_ranks(scores: Values) -> NDArray[np.float64]:
    """Returns 1-based ranks, ascending; those that tie share their mean."""
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks: NDArray[np.float64] = (ends - (counts - 1) / 2)[place]
    return ranks


def _check(name: str, predicted: Values, clicks: Labels) -> None:
    if predicted.shape != clicks.shape or predicted.ndim != 1 or not len(predicted):
        raise InvalidRequest(
            name,
            found=f"of shape {predicted.shape} for labels of shape {clicks.shape}",
            expected="two flat arrays of one length above 0",
        )
    if np.isnan(predicted).any():
        raise DataError(name, found="NaN", expected="numbers", cure="Train with a smaller --learning-rate.")
