"""Full-ranking evaluation: the best items of the whole catalogue for every user, seen items left out."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recserve.errors import CheckFailed
from recserve.kernels import ItemIndex
from recserve.training import list_metrics, metrics
from recserve.training.data import EvaluationSet, Histories
from recserve.training.list_metrics import Background
from recserve.training.metrics import Estimate
from recserve.training.models.base import EmbeddingModel, RankingModel, RatingModel
from recserve.training.models.interactions import n_threads
from recserve.training.rating_metrics import estimate_ratings

CUTOFFS = (5, 10, 20)
# The cut of the metrics that are given once.
K = 10
# One more than is measured: whether what comes next ties with the last place decides its rank.
LIST_LENGTH = max(CUTOFFS) + 1
# Bounds the score matrix of one step: 256 MB of float32.
MAX_SCORES_PER_STEP = 64_000_000
MAX_USERS_PER_STEP = 4096
# Queries of one search: of 64 the catalogue is read as often again as of 256.
USERS_PER_TASK = 256

# Rows of the evaluation set → scores (len(rows), n_items) float32; the evaluation may overwrite them.
Scorer = Callable[[NDArray[np.int64]], NDArray[np.float32]]
# Rows of the evaluation set → (scores float32, items int32), both (len(rows), min(LIST_LENGTH, n_items)),
# best first, without the items of the history; short lists end in −inf and −1.
Lister = Callable[[NDArray[np.int64]], tuple[NDArray[np.float32], NDArray[np.int32]]]


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


def evaluate_model(
    model: RankingModel,
    held_out: EvaluationSet,
    popularity: NDArray[np.int64],
    *,
    background: Background | None = None,
    n_bootstrap: int = metrics.N_BOOTSTRAP,
    on_progress: Callable[[int], None] = lambda n_users: None,
) -> Evaluation:
    """Ranks for every row of ``held_out`` and, where the model predicts ratings, measures these as well.

    ``popularity``: training interactions of each item, (n_items,), which answer an empty history. A model
    whose score is an inner product is searched by the kernel that serves it.
    """
    model.eval()
    evaluation = evaluate_lists(
        model_lister(model, held_out, popularity),
        held_out,
        model.n_items,
        background=background,
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


def evaluate(
    scorer: Scorer,
    held_out: EvaluationSet,
    n_items: int,
    *,
    background: Background | None = None,
    n_bootstrap: int = metrics.N_BOOTSTRAP,
    on_progress: Callable[[int], None] = lambda n_users: None,
) -> Evaluation:
    """Evaluates what scores the whole catalogue, see :func:`evaluate_lists`."""
    lister = scorer_lister(scorer, held_out, n_items)
    return evaluate_lists(
        lister, held_out, n_items, background=background, n_bootstrap=n_bootstrap, on_progress=on_progress
    )


def evaluate_lists(
    lister: Lister,
    held_out: EvaluationSet,
    n_items: int,
    *,
    background: Background | None = None,
    n_bootstrap: int = metrics.N_BOOTSTRAP,
    on_progress: Callable[[int], None] = lambda n_users: None,
) -> Evaluation:
    """Measures the lists of every row of ``held_out``; ``on_progress`` gets the users done.

    ``background``: what novelty, serendipity, popularity, diversity and calibration are seen against; without
    it they are left out. ``n_bootstrap``: samples behind the intervals, 0 for means alone. Raises
    :class:`CheckFailed` when a score is NaN.
    """
    n_users = len(held_out.user_index)
    ranks: list[metrics.Ranks] = []
    lists, hits, n_unreachable = [], [], 0
    for rows in steps(n_users):
        scores, items = lister(rows)
        targets, histories = held_out.targets.take(rows), held_out.histories.take(rows)
        wanted = np.unique(_keys(targets))
        ranks.append(metrics.ranks_in_lists(scores, items, wanted, n_items))
        n_unreachable += int(np.isin(wanted, _keys(histories)).sum())
        found = items[:, :K]
        owner = np.arange(len(rows), dtype=np.int64)[:, None]
        hits.append((found >= 0) & np.isin((owner << 32) | found, wanted))
        lists.append(found)
        on_progress(len(rows))
    all_lists = np.concatenate(lists)
    counts = list_metrics.recommended_counts(all_lists, n_items)
    per_user = _accuracy(metrics.joined(ranks))
    if background is not None:
        per_user |= {
            f"{name}@{K}": values
            for name, values in list_metrics.beyond_accuracy(
                all_lists, np.concatenate(hits), held_out.histories, background
            ).items()
        }
    return Evaluation(
        n_users=n_users,
        n_unreachable_targets=n_unreachable,
        n_items_recommended=int((counts > 0).sum()),
        metrics={name: metrics.bootstrap(values, n_samples=n_bootstrap) for name, values in per_user.items()}
        | _of_all_lists(counts),
    )


def steps(n_users: int, n_items: int = 0) -> Iterator[NDArray[np.int64]]:
    """Yields the rows of an evaluation set, so many at a time as their scores of ``n_items`` have room."""
    n_rows = max(1, min(MAX_USERS_PER_STEP, MAX_SCORES_PER_STEP // max(1, n_items)))
    for start in range(0, n_users, n_rows):
        yield np.arange(start, min(start + n_rows, n_users))


def model_lister(
    model: RankingModel, held_out: EvaluationSet, popularity: NDArray[np.int64], length: int = LIST_LENGTH
) -> Lister:
    """Returns the lists of a model, of ``length`` items; ``popularity`` as for :func:`evaluate_model`."""
    if isinstance(model, EmbeddingModel):
        return embedding_lister(model, held_out, popularity, length)
    return scorer_lister(model_scorer(model, held_out, popularity), held_out, model.n_items, length)


def scorer_lister(scorer: Scorer, held_out: EvaluationSet, n_items: int, length: int = LIST_LENGTH) -> Lister:
    """Returns the lists of what scores the whole catalogue, a part of the rows at a time."""
    length = min(length, n_items)

    def lists(rows: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        best = np.full((len(rows), length), -np.inf, np.float32)
        items = np.full((len(rows), length), -1, np.int32)
        for places in steps(len(rows), n_items):
            scores = scorer(rows[places])
            if np.isnan(scores).any():
                raise CheckFailed(
                    "scores", found="NaN", expected="numbers", cure="Train with a smaller rate."
                )
            for place, row_scores in zip(places.tolist(), scores, strict=True):
                row_scores[held_out.histories.row(int(rows[place]))[0]] = -np.inf
                found = top_k(row_scores, length)
                items[place, : len(found)], best[place, : len(found)] = found, row_scores[found]
        return best, items

    return lists


def embedding_lister(
    model: EmbeddingModel,
    held_out: EvaluationSet,
    popularity: NDArray[np.int64],
    length: int = LIST_LENGTH,
    *,
    seen: Histories | None = None,
) -> Lister:
    """Returns the lists of a model whose score is an inner product, by exact search in several threads.

    ``seen``: what is left out of each row's list, its history in ``held_out`` when not given.
    """
    left_out = held_out.histories if seen is None else seen
    vectors = model.item_embeddings.detach().numpy()
    length = min(length, len(vectors))
    if not np.isfinite(vectors).all():
        raise CheckFailed("scores", found="NaN", expected="numbers", cure="Train with a smaller rate.")
    index = ItemIndex.build(vectors)
    order = np.argsort(-popularity, kind="stable")[:length].astype(np.int32)
    pool = ThreadPoolExecutor(n_threads())

    def lists(rows: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        queries = np.ascontiguousarray(model.query_rows(held_out, rows))
        seen = left_out.take(rows)

        def search(start: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
            part = np.arange(start, min(start + USERS_PER_TASK, len(rows)))
            known = seen.take(part)
            return index.search(queries[part], length, exclude=(known.indptr, known.item_index))

        parts = list(pool.map(search, range(0, len(rows), USERS_PER_TASK)))
        scores, items = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        new = held_out.histories.lengths[rows] == 0
        scores[new], items[new] = popularity[order].astype(np.float32), order
        return scores, items

    return lists


def model_scorer(model: RankingModel, held_out: EvaluationSet, popularity: NDArray[np.int64]) -> Scorer:
    """Returns a scorer for :func:`evaluate`; as in serving, an empty history is answered by popularity."""

    def score(rows: NDArray[np.int64]) -> NDArray[np.float32]:
        model.eval()
        scores = model.score_rows(held_out, rows)
        scores[held_out.histories.lengths[rows] == 0] = popularity.astype(np.float32)
        return scores

    return score


def popularity_scorer(popularity: NDArray[np.int64]) -> Scorer:
    """Returns the baseline that ranks by the number of training interactions, the same for everybody."""
    scores = popularity.astype(np.float32)
    return lambda rows: np.tile(scores, (len(rows), 1))


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


def _keys(histories: Histories) -> NDArray[np.int64]:
    """Returns one number for each pair of a row and an item."""
    row = np.repeat(np.arange(len(histories), dtype=np.int64), histories.lengths)
    keys: NDArray[np.int64] = (row << 32) | histories.item_index
    return keys


def _accuracy(ranks: metrics.Ranks) -> dict[str, NDArray[np.float64]]:
    per_user = {f"HR@{k}": metrics.hit_rate(ranks, k) for k in CUTOFFS}
    per_user |= {f"recall@{k}": metrics.recall(ranks, k) for k in CUTOFFS}
    per_user |= {f"NDCG@{k}": metrics.ndcg(ranks, k) for k in CUTOFFS}
    per_user[f"MAP@{K}"] = metrics.average_precision(ranks, K)
    per_user[f"MRR@{K}"] = metrics.reciprocal_rank(ranks, K)
    return per_user


def _of_all_lists(counts: NDArray[np.int64]) -> dict[str, Estimate]:
    # They belong to the whole set of lists: there is nothing to resample by user.
    values = {f"coverage@{K}": list_metrics.coverage(counts), f"Gini@{K}": list_metrics.gini(counts)}
    return {name: Estimate(value, value, value) for name, value in values.items()}
