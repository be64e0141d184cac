"""MMR and DPP slates against their twins, and what they must do on slates known by construction."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recserve.errors import InvalidRequest
from recserve.kernels import Caps, dpp, mmr, reference
from recserve.kernels.diversity import unit_scores

law = settings(derandomize=True, deadline=None, max_examples=40)


def slates(seed: int, n: int, batch: int = 2, dim: int = 12) -> Any:
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((30, dim)).astype(np.float32)
    candidates = np.array([rng.permutation(30)[:n] for _ in range(batch)], np.int32).reshape(batch, n)
    scores = rng.standard_normal((batch, n)).astype(np.float32)
    candidates[0, n // 2 + 1 :] = -1
    scores[0, n // 2 + 1 :] = -np.inf
    return scores, candidates, vectors


@law
@given(st.integers(0, 10**6), st.integers(0, 10), st.integers(1, 12), st.sampled_from((0.0, 0.3, 0.7, 1.0)))
def test_equals_the_reference(seed: int, n: int, k: int, diversity: float) -> None:
    arguments = slates(seed, n)
    for name in ("mmr", "dpp"):
        slate = {"mmr": mmr, "dpp": dpp}[name](*arguments, k, diversity=diversity)
        assert slate.dtype == np.int32
        np.testing.assert_array_equal(slate, getattr(reference, name)(*arguments, k, diversity=diversity))


@law
@given(st.integers(0, 10**6), st.integers(0, 10), st.integers(1, 12), st.sampled_from((0.0, 0.3, 0.7, 1.0)))
def test_falling_scores_equal_the_reference(seed: int, n: int, k: int, diversity: float) -> None:
    """The case in which the kernel need not look at all candidates; caps refuse some of the best."""
    scores, candidates, vectors = slates(seed, n)
    # Few values: ties among the best.
    scores = -np.sort(-np.round(scores, 1), axis=1)
    caps = caps_of(seed, (0, 1, 2))
    for of in (None, caps):
        slate = dpp(scores, candidates, vectors, k, diversity=diversity, caps=of)
        expected = reference.dpp(scores, candidates, vectors, k, diversity=diversity, caps=of)
        np.testing.assert_array_equal(slate, expected)


@law
@given(st.integers(0, 10**6), st.integers(1, 10), st.integers(0, 3))
def test_unit_scores_reach_from_0_to_1(seed: int, n: int, n_pinned: int) -> None:
    scores, candidates, _ = slates(seed, n)
    pinned = np.full(len(scores), n_pinned, np.int32)
    scaled = unit_scores(scores, candidates, pinned)
    for row, items, found in zip(scores, candidates, scaled, strict=True):
        ranked = (items >= 0) & (np.arange(n) >= n_pinned)
        assert not found[~ranked].any()
        if ranked.any():
            low, span = row[ranked].min(), np.ptp(row[ranked])
            np.testing.assert_allclose(found[ranked], (row[ranked] - low) / max(span, 1e-12), rtol=1e-6)


def caps_of(seed: int, limits: tuple[int, ...]) -> Caps:
    """Each of 30 items in none, one or two of the groups."""
    rng = np.random.default_rng(seed)
    lists = [rng.permutation(len(limits))[: rng.integers(0, 3)].tolist() for _ in range(30)]
    indptr = np.concatenate([[0], np.cumsum([len(groups) for groups in lists])])
    groups = np.array([group for groups in lists for group in groups], np.int32)
    return Caps(indptr, groups, np.array(limits, np.int32))


@law
@given(
    st.integers(0, 10**6),
    st.integers(0, 10),
    st.integers(1, 12),
    st.sampled_from((0.0, 0.3, 0.7)),
    st.tuples(*[st.integers(0, 3)] * 3),
    st.integers(0, 3),
)
def test_caps_and_pins_equal_the_reference(
    seed: int, n: int, k: int, diversity: float, limits: tuple[int, ...], n_pinned: int
) -> None:
    scores, candidates, vectors = slates(seed, n)
    caps = caps_of(seed, limits)
    pinned = np.minimum(n_pinned, (candidates >= 0).sum(axis=1)).astype(np.int32)
    for name in ("mmr", "dpp"):
        options = {"diversity": diversity, "caps": caps, "n_pinned": pinned}
        found = {"mmr": mmr, "dpp": dpp}[name](scores, candidates, vectors, k, **options)
        expected = getattr(reference, name)(scores, candidates, vectors, k, **options)
        np.testing.assert_array_equal(found, expected)
        for slate, row, pins in zip(found, candidates, pinned, strict=True):
            assert slate[:pins].tolist() == row[: min(pins, k)].tolist()
            counts = np.zeros(len(limits), int)
            for item in slate[pins:][slate[pins:] >= 0]:
                counts[caps.groups[caps.indptr[item] : caps.indptr[item + 1]]] += 1
            assert (counts <= caps.limits).all()


@pytest.mark.parametrize("choose", [mmr, dpp])
def test_without_diversity_it_is_the_order_of_the_scores(choose: Any) -> None:
    scores, candidates, vectors = slates(3, 9)
    slate = choose(scores, candidates, vectors, 9, diversity=0.0)
    np.testing.assert_array_equal(slate[1], candidates[1, np.argsort(-scores[1])])


@pytest.mark.parametrize("choose", [mmr, dpp])
def test_a_copy_of_a_chosen_item_waits_until_the_others_are_in(choose: Any) -> None:
    vectors = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32)
    scores = np.array([[0.9, 0.8, 0.7, 0.6]], np.float32)
    slate = choose(scores, np.array([[0, 1, 2, 3]], np.int32), vectors, 5, diversity=0.5)
    assert slate.tolist() == [[0, 2, 3, 1, -1]]


@pytest.mark.parametrize("choose", [mmr, dpp])
def test_equals_come_in_the_order_of_item_index(choose: Any) -> None:
    vectors = np.eye(4, dtype=np.float32)
    slate = choose(np.ones((1, 3), np.float32), np.array([[3, 1, 2]], np.int32), vectors, 3, diversity=0.5)
    assert slate.tolist() == [[1, 2, 3]]


def test_more_items_than_dimensions_follow_by_score() -> None:
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((8, 2)).astype(np.float32)
    scores = -np.arange(8, dtype=np.float32)[None]
    slate = dpp(scores, np.arange(8, dtype=np.int32)[None], vectors, 8, diversity=0.2)[0]
    assert sorted(slate) == list(range(8))
    assert (np.diff(slate[2:]) > 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"diversity": 1.5}, "diversity is 1.5"),
        ({"diversity": float("nan")}, "diversity is nan"),
        ({"k": 0}, "k is 0"),
        ({"scores": np.ones((1, 2), np.float32)}, "candidates is int32 of shape"),
        ({"scores": np.full((1, 3), np.nan, np.float32)}, "scores is NaN or infinite"),
        ({"scores": np.ones((1, 3))}, "scores is float64"),
        ({"n_pinned": np.array([4], np.int32)}, r"n_pinned is \[4\]; expected at most the candidates"),
        ({"n_pinned": np.array([1])}, "n_pinned is int64"),
        ({"caps": Caps(np.array([0, 1]), np.zeros(1, np.int32), np.ones(1, np.int32))}, "caps indptr is of"),
        ({"caps": Caps(np.arange(5), np.full(4, 1, np.int32), np.ones(1, np.int32))}, "caps groups"),
        ({"caps": Caps(np.arange(5), np.zeros(4, np.int32), np.ones(1))}, "caps limits is float64"),
        ({"candidates": np.array([[1, 2, 4]], np.int32)}, r"candidates\[2\] is 4"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "scores": np.ones((1, 3), np.float32),
        "candidates": np.array([[3, 1, 2]], np.int32),
        "vectors": np.eye(4, dtype=np.float32),
        "k": 2,
        "diversity": 0.5,
    }
    for choose in (mmr, dpp):
        with pytest.raises(InvalidRequest, match=message):
            choose(**(arguments | change))
