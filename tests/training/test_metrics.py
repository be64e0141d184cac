"""Ranking metrics: hand-made cases, laws, and the full-ranking evaluation against a slow one."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from recserve.errors import CheckFailed
from recserve.training import metrics
from recserve.training.data import EvaluationSet
from recserve.training.evaluate import evaluate, popularity_scorer, top_k
from tests.small import histories

SETTINGS = settings(derandomize=True, deadline=None, max_examples=60)
RANKS = st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=5, unique=True), min_size=1, max_size=20)


def arrays(ranks: list[list[int]]) -> list[NDArray[np.float64]]:
    return [np.array(row, np.float64) for row in ranks]


def test_by_hand() -> None:
    ranks = arrays([[1], [3], [11], [1, 2], [2, 12]])
    assert metrics.hit_rate(ranks, 10).tolist() == [1, 1, 0, 1, 1]
    ideal_of_two = 1 + 1 / math.log2(3)
    expected = [1, 1 / math.log2(4), 0, 1, (1 / math.log2(3)) / ideal_of_two]
    np.testing.assert_allclose(metrics.ndcg(ranks, 10), expected)
    np.testing.assert_allclose(metrics.reciprocal_rank(ranks, 10), [1, 1 / 3, 0, 1, 1 / 2])
    np.testing.assert_allclose(metrics.recall(ranks, 10), [1, 1, 0, 1, 1 / 2])
    np.testing.assert_allclose(metrics.average_precision(ranks, 10), [1, 1 / 3, 0, 1, 1 / 4])


def test_an_unreachable_target_counts_as_missed() -> None:
    ranks = [np.array([np.inf])]
    for metric in (
        metrics.hit_rate,
        metrics.ndcg,
        metrics.recall,
        metrics.average_precision,
        metrics.reciprocal_rank,
    ):
        assert metric(ranks, 10).tolist() == [0]


@SETTINGS
@given(RANKS, st.integers(1, 30))
def test_bounds_and_order(ranks: list[list[int]], k: int) -> None:
    rows = arrays(ranks)
    ndcg, hits = metrics.ndcg(rows, k), metrics.hit_rate(rows, k)
    assert ((ndcg >= 0) & (ndcg <= 1 + 1e-12)).all()
    assert (ndcg <= hits + 1e-12).all()
    assert (metrics.hit_rate(rows, k + 1) >= hits).all()


@SETTINGS
@given(RANKS)
def test_interval_holds_the_mean_and_repeats(ranks: list[list[int]]) -> None:
    values = metrics.ndcg(arrays(ranks), 10)
    first = metrics.bootstrap(values, seed=1)
    assert first == metrics.bootstrap(values, seed=1)
    assert first.low - 1e-12 <= first.mean <= first.high + 1e-12


@SETTINGS
@given(
    st.lists(st.integers(-3, 3), min_size=1, max_size=30),
    st.integers(1, 30),
)
def test_top_k_is_the_stable_sort(values: list[int], k: int) -> None:
    scores = np.array(values, np.float32)
    scores[scores == -3] = -np.inf
    expected = [i for i in np.argsort(-scores, kind="stable") if scores[i] > -np.inf][:k]
    assert top_k(scores, k).tolist() == expected


def test_a_score_that_is_no_number_is_refused() -> None:
    held_out = EvaluationSet(np.array([0], np.int32), histories([[0]]), histories([[2]]))
    scores = np.array([[1, np.nan, 2]], np.float32)
    with pytest.raises(CheckFailed, match="scores is NaN"):
        evaluate(lambda rows: scores[rows].copy(), held_out, 3)


def test_without_samples_the_interval_is_the_mean() -> None:
    estimate = metrics.bootstrap(np.array([0.0, 1.0]), n_samples=0)
    assert (estimate.mean, estimate.low, estimate.high) == (0.5, 0.5, 0.5)


def ranks_of(scores: list[float], target: int, length: int | None = None) -> list[float]:
    """The rank of one target in the list of the best ``length`` of these scores."""
    flat = np.array(scores, np.float32)
    items = top_k(flat, length or len(flat)).astype(np.int32)
    lists = flat[items][None, :], items[None, :]
    return metrics.ranks_in_lists(*lists, np.array([target], np.int64), len(flat))[0].tolist()


def test_ties_count_against_the_model() -> None:
    assert ranks_of([1, 1, 1, 2], 0) == [4]
    assert ranks_of([0] * 5, 2) == [5]
    assert ranks_of([3, 2, 2, 1], 2) == [3]


def test_a_tie_that_may_go_on_behind_the_list_counts_as_missed() -> None:
    assert ranks_of([3, 2, 2, 2], 1, length=3) == [np.inf]
    assert ranks_of([3, 2, 1, 1], 1, length=3) == [2]
    assert ranks_of([3, 2, 1, 1], 3, length=2) == [np.inf]


def test_evaluation_equals_a_slow_one() -> None:
    rng = np.random.default_rng(5)
    n_items, n_users = 30, 40
    scores = rng.normal(size=(n_users, n_items)).astype(np.float32)
    known = [rng.choice(n_items, rng.integers(0, 8), replace=False).tolist() for _ in range(n_users)]
    wanted = [
        rng.choice([i for i in range(n_items) if i not in seen], rng.integers(1, 4), replace=False).tolist()
        for seen in known
    ]
    held_out = EvaluationSet(np.arange(n_users, dtype=np.int32), histories(known), histories(wanted))
    result = evaluate(lambda rows: scores[rows].copy(), held_out, n_items)
    hits, gains, recommended = [], [], set()
    for user in range(n_users):
        order = [i for i in sorted(range(n_items), key=lambda i: -scores[user, i]) if i not in known[user]]
        recommended |= set(order[:10])
        places = [order.index(item) + 1 for item in wanted[user]]
        hits.append(any(place <= 10 for place in places))
        ideal = sum(1 / math.log2(place + 1) for place in range(1, len(places) + 1))
        gains.append(sum(1 / math.log2(place + 1) for place in places if place <= 10) / ideal)
    assert result.metrics["HR@10"].mean == pytest.approx(np.mean(hits))
    assert result.metrics["NDCG@10"].mean == pytest.approx(np.mean(gains))
    assert result.n_items_recommended == len(recommended)
    assert result.n_unreachable_targets == 0


def test_a_target_seen_before_is_unreachable_and_counted() -> None:
    held_out = EvaluationSet(np.array([0], np.int32), histories([[1, 2]]), histories([[2]]))
    result = evaluate(popularity_scorer(np.array([5, 4, 3])), held_out, 3)
    assert result.n_unreachable_targets == 1
    assert result.metrics["HR@20"].mean == 0


def test_popularity_ranks_by_count() -> None:
    held_out = EvaluationSet(np.array([0], np.int32), histories([[0]]), histories([[2]]))
    result = evaluate(popularity_scorer(np.array([9, 1, 5])), held_out, 3)
    assert result.metrics["MRR@10"].mean == 1
