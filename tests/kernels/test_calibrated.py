"""Calibrated slates against their twin, and what they must do whatever the candidates are."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recserve.errors import InvalidRequest
from recserve.kernels import Caps, Categories, calibrated, reference

law = settings(derandomize=True, deadline=None, max_examples=40)
N_ITEMS, N_GROUPS = 30, 5


def case(seed: int, n: int, batch: int = 2) -> tuple[Any, Any, Categories, Any]:
    """Scores, candidates, categories (none, one or several an item) and targets, the last row without one."""
    rng = np.random.default_rng(seed)
    lists = [rng.permutation(N_GROUPS)[: rng.integers(0, 4)].tolist() for _ in range(N_ITEMS)]
    indptr = np.concatenate([[0], np.cumsum([len(groups) for groups in lists])]).astype(np.int64)
    groups = np.array([group for groups in lists for group in groups], np.int32)
    candidates = np.array([rng.permutation(N_ITEMS)[:n] for _ in range(batch + 1)], np.int32)
    candidates = candidates.reshape(batch + 1, n)
    scores = rng.uniform(size=candidates.shape).astype(np.float32)
    candidates[0, n // 2 + 1 :] = -1
    scores[0, n // 2 + 1 :] = -np.inf
    targets = rng.dirichlet(np.full(N_GROUPS, 0.5), batch + 1).astype(np.float32)
    targets[0, 1], targets[-1] = 0, 0
    targets[:-1] /= targets[:-1].sum(axis=1, keepdims=True)
    return scores, candidates, Categories(indptr, groups, N_GROUPS), targets


def divergence(slate: Any, categories: Categories, target: Any) -> float:
    """KL(p ‖ 0.99 q + 0.01 p), from its definition."""
    counts = np.zeros(N_GROUPS)
    for item in slate[slate >= 0]:
        groups = categories.groups[categories.indptr[item] : categories.indptr[item + 1]]
        counts[groups] += 1 / max(1, len(groups))
    mixed = 0.99 * counts / max(1e-300, counts.sum()) + 0.01 * target
    liked = target > 0
    return float((target[liked] * np.log(target[liked] / mixed[liked])).sum())


@law
@given(st.integers(0, 10**6), st.integers(0, 10), st.integers(1, 12), st.sampled_from((0.0, 0.3, 0.9, 0.99)))
def test_equals_the_reference(seed: int, n: int, k: int, weight: float) -> None:
    arguments = case(seed, n)
    slate = calibrated(*arguments, k, weight=weight)
    assert slate.dtype == np.int32
    np.testing.assert_array_equal(slate, reference.calibrated(*arguments, k, weight=weight))


@law
@given(st.integers(0, 10**6), st.integers(1, 10), st.integers(1, 8), st.integers(0, 3), st.integers(1, 3))
def test_caps_and_pins_equal_the_reference(seed: int, n: int, k: int, pins: int, limit: int) -> None:
    scores, candidates, categories, targets = case(seed, n)
    caps = Caps(categories.indptr, categories.groups, np.full(N_GROUPS, limit, np.int32))
    pinned = np.minimum(pins, (candidates >= 0).sum(axis=1)).astype(np.int32)
    settings: Any = {"weight": 0.7, "caps": caps, "n_pinned": pinned}
    slate = calibrated(scores, candidates, categories, targets, k, **settings)
    expected = reference.calibrated(scores, candidates, categories, targets, k, **settings)
    np.testing.assert_array_equal(slate, expected)
    for row, items, n_pins in zip(slate, candidates, pinned, strict=True):
        np.testing.assert_array_equal(row[: min(k, n_pins)], items[: min(k, n_pins)])


@law
@given(st.integers(0, 10**6), st.integers(1, 30), st.integers(1, 10), st.sampled_from((0.1, 0.5, 0.9, 1.0)))
def test_no_weight_makes_a_slate_worse_than_the_plain_one(seed: int, n: int, k: int, weight: float) -> None:
    scores, candidates, categories, targets = case(seed, n, batch=4)
    plain = calibrated(scores, candidates, categories, targets, k, weight=0.0)
    found = calibrated(scores, candidates, categories, targets, k, weight=weight)
    for row in range(len(scores)):
        assert (found[row] >= 0).sum() == (plain[row] >= 0).sum() == min(k, (candidates[row] >= 0).sum())
        of_item = dict(zip(candidates[row].tolist(), scores[row].tolist(), strict=True))

        def worth(slate: Any, row: int = row, of_item: Any = of_item) -> float:
            points = sum(of_item[item] for item in slate[slate >= 0].tolist())
            return (1 - weight) * points - weight * divergence(slate, categories, targets[row])

        if not targets[row].any():
            np.testing.assert_array_equal(found[row], plain[row])
        else:
            assert worth(found[row]) >= worth(plain[row]) - 1e-5
            if weight == 1.0:
                kept = divergence(plain[row], categories, targets[row])
                assert divergence(found[row], categories, targets[row]) <= kept + 1e-6


def test_the_categories_come_in_the_proportions_of_the_target() -> None:
    # Of 40 items each half is in a group of its own; all scores of the first half are higher.
    categories = Categories(np.arange(41), np.repeat([0, 1], 20).astype(np.int32), 2)
    scores = np.linspace(1, 0, 40, dtype=np.float32)[None]
    candidates = np.arange(40, dtype=np.int32)[None]
    for wanted in (0.0, 0.3, 0.5, 1.0):
        target = np.array([[1 - wanted, wanted]], np.float32)
        slate = calibrated(scores, candidates, categories, target, 10, weight=0.99)[0]
        assert (slate >= 20).sum() == round(10 * wanted)


BAD = {
    "targets is float32 of shape": {"targets": np.ones((3, 4), np.float32)},
    "targets is negative": {"targets": np.full((3, N_GROUPS), -1, np.float32)},
    "category groups": {"categories": Categories(np.arange(N_ITEMS + 1), np.full(N_ITEMS, 9, np.int32), 5)},
    "weight is 1.5": {"weight": 1.5},
}


@pytest.mark.parametrize("sentence", BAD)
def test_arguments_that_do_not_fit_are_refused(sentence: str) -> None:
    scores, candidates, categories, targets = case(1, 6)
    arguments: dict[str, Any] = {"categories": categories, "targets": targets, "weight": 0.5, **BAD[sentence]}
    with pytest.raises(InvalidRequest, match=sentence):
        calibrated(scores, candidates, k=3, **arguments)
