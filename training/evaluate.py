"""Full-ranking evaluation: every item of the catalogue is ranked for every user, seen items left out."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recserve.errors import CheckFailed
from recserve.training import metrics
from recserve.training.data import EvaluationSet
from recserve.training.metrics import Estimate
from recserve.training.models.base import RankingModel, RatingModel
from recserve.training.rating_metrics import estimate_ratings

CUTOFFS = (5, 10, 20)
# Bounds the score matrix of one step: 256 MB of float32.
MAX_SCORES_PER_STEP = 64_000_000

# Rows of the evaluation set → scores (len(rows), n_items) float32; the evaluation may overwrite them.
Scorer = Callable[[NDArray[np.int64]], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The metrics of one model on one evaluation set."""

    n_users: int
    n_unreachable_targets: int
    """Held-out items that the user had seen before: the filter removes them, so they count as missed."""
    n_items_recommended: int
    """Distinct items in all top-10 lists."""
    metrics: dict[str, Estimate]

    def as_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON."""
        return asdict(self)


def evaluate(
    scorer: Scorer,
    held_out: EvaluationSet,
    n_items: int,
    *,
    n_bootstrap: int = metrics.N_BOOTSTRAP,
    on_progress: Callable[[int], None] = lambda n_users: None,
) -> Evaluation:
    """Ranks the whole catalogue for every row of ``held_out``; ``on_progress`` gets the users done.

    ``n_bootstrap``: samples behind the intervals, 0 for means alone. Raises :class:`CheckFailed` when a
    score is NaN.
    """
    n_users = len(held_out.user_index)
    n_rows = max(1, min(512, MAX_SCORES_PER_STEP // max(1, n_items)))
    ranks: list[NDArray[np.float64]] = []
    recommended = np.zeros(n_items, bool)
    n_unreachable = 0
    for start in range(0, n_users, n_rows):
        rows = np.arange(start, min(start + n_rows, n_users))
        scores = scorer(rows)
        if np.isnan(scores).any():
            raise CheckFailed("scores", found="NaN", expected="numbers", cure="Train with a smaller rate.")
        for row, row_scores in zip(rows.tolist(), scores, strict=True):
            row_scores[held_out.histories.row(row)[0]] = -np.inf
            targets = np.unique(held_out.targets.row(row)[0])
            found = ranks_of(row_scores, targets)
            n_unreachable += int(np.isinf(found).sum())
            ranks.append(found)
            recommended[top_k(row_scores, min(10, n_items))] = True
        on_progress(len(rows))
    return Evaluation(
        n_users=n_users,
        n_unreachable_targets=n_unreachable,
        n_items_recommended=int(recommended.sum()),
        metrics=_summarise(ranks, recommended, n_bootstrap),
    )


def evaluate_model(
    model: RankingModel,
    held_out: EvaluationSet,
    popularity: NDArray[np.int64],
    *,
    n_bootstrap: int = metrics.N_BOOTSTRAP,
    on_progress: Callable[[int], None] = lambda n_users: None,
) -> Evaluation:
    """Ranks for every row of ``held_out`` and, where the model predicts ratings, measures these as well.

    ``popularity``: training interactions of each item, (n_items,), which answer an empty history.
    """
    model.eval()
    evaluation = evaluate(
        model_scorer(model, held_out, popularity),
        held_out,
        model.n_items,
        n_bootstrap=n_bootstrap,
        on_progress=on_progress,
    )
    if not isinstance(model, RatingModel):
        return evaluation
    predicted, targets = model.predict_ratings(held_out), held_out.targets
    ratings = estimate_ratings(predicted, targets.value, targets.indptr, n_samples=n_bootstrap)
    return replace(evaluation, metrics=ratings | evaluation.metrics)


def validation_value(model: RankingModel, held_out: EvaluationSet, popularity: NDArray[np.int64]) -> float:
    """Returns the metric that the model's early stopping follows."""
    name = model.validation_metric.name
    if isinstance(model, RatingModel):
        targets = held_out.targets
        predicted = model.predict_ratings(held_out)
        return estimate_ratings(predicted, targets.value, targets.indptr, n_samples=0)[name].mean
    return evaluate_model(model, held_out, popularity, n_bootstrap=0).metrics[name].mean


def model_scorer(model: RankingModel, held_out: EvaluationSet, popularity: NDArray[np.int64]) -> Scorer:
    """Returns a scorer for :func:`evaluate`; as in serving, an empty history is answered by popularity."""

    def score(rows: NDArray[np.int64]) -> NDArray[np.float32]:
        model.eval()
        scores = model.score_rows(held_out, rows)
        scores[held_out.histories.lengths[rows] == 0] = popularity.astype(np.float32)
        return scores

    return score


def _summarise(
    ranks: list[NDArray[np.float64]], recommended: NDArray[np.bool_], n_bootstrap: int
) -> dict[str, Estimate]:
    per_user = {f"HR@{k}": metrics.hit_rate(ranks, k) for k in CUTOFFS}
    per_user |= {f"NDCG@{k}": metrics.ndcg(ranks, k) for k in CUTOFFS}
    per_user["MRR"] = metrics.reciprocal_rank(ranks)
    summary = {name: metrics.bootstrap(values, n_samples=n_bootstrap) for name, values in per_user.items()}
    coverage = float(recommended.mean())
    # Coverage belongs to the whole set of lists: there is nothing to resample by user.
    summary["coverage@10"] = Estimate(coverage, coverage, coverage)
    return summary


def ranks_of(scores: NDArray[np.float32], targets: NDArray[np.int32]) -> NDArray[np.float64]:
    """Returns the pessimistic 1-based rank of each target among ``scores`` (n_items,).

    −inf is excluded: a target with that score has rank infinity. Other targets do not push one down
    beyond their own place, as in any ranked list.
    """
    found = scores[targets]
    ranks = np.array([(scores >= score).sum() for score in found], np.float64)
    ranks[~(found > -np.inf)] = np.inf
    return ranks


def top_k(scores: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Returns the k best items of ``scores`` (n_items,), best first, ties by index, without the excluded."""
    if k < len(scores):
        # Everything that ties with the k-th best must stay in, or the tie would be cut at random.
        threshold = np.partition(scores, len(scores) - k)[len(scores) - k]
        candidates = np.flatnonzero(scores >= threshold)
    else:
        candidates = np.arange(len(scores))
    order = candidates[np.argsort(-scores[candidates], kind="stable")][:k]
    return order[scores[order] > -np.inf]


def popularity_scorer(popularity: NDArray[np.int64]) -> Scorer:
    """Returns the baseline that ranks by the number of training interactions, the same for everybody."""
    scores = popularity.astype(np.float32)
    return lambda rows: np.tile(scores, (len(rows), 1))
