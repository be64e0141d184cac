"""The float32 micro-kernel: its sums, its bound, and the answers of the path that it serves."""

from typing import Any

import numpy as np
import pytest
from numba import config, njit

from recserve.kernels import ItemIndex, floats, isa, reference

compiled_only = pytest.mark.skipif(bool(config.DISABLE_JIT), reason="plain Python has no micro-kernel")


@njit(error_model="numpy")  # type: ignore[untyped-decorator]
def passing_rows(vectors: Any, row: Any, columns: Any, group: Any, limits: Any, passing: Any) -> Any:
    return floats.passing_rows(vectors, row, columns, group, limits, passing)


def columns_of(queries: Any) -> Any:
    return floats.side_by_side(queries, -(-len(queries) // floats.WIDTH))


@compiled_only
@pytest.mark.parametrize("dim", [1, 7, 64, 130])
def test_a_bit_is_set_exactly_where_a_sum_reaches_its_limit(dim: int) -> None:
    rng = np.random.default_rng(dim)
    vectors = rng.integers(-9, 10, (3 * floats.ROWS, dim)).astype(np.float32)  # sums without rounding
    queries = rng.integers(-9, 10, (floats.WIDTH + 3, dim)).astype(np.float32)
    sums = queries @ vectors.T
    limits = np.full((2, floats.WIDTH), np.inf, np.float32)
    limits.ravel()[: len(queries)] = np.sort(sums, axis=1)[:, sums.shape[1] // 2]
    passing = np.empty(floats.ROWS, np.uint32)
    for group in range(2):
        lanes = range(group * floats.WIDTH, min(group * floats.WIDTH + floats.WIDTH, len(queries)))
        for row in range(0, len(vectors), floats.ROWS):
            hits = passing_rows(vectors, row, columns_of(queries), group, limits[group], passing)
            for j in range(floats.ROWS):
                expected = {q for q in lanes if sums[q, row + j] >= limits.ravel()[q]}
                word = int(passing[j]) if hits >> j & 1 else 0
                assert {group * floats.WIDTH + i for i in range(32) if word >> i & 1} == expected


@pytest.mark.parametrize("dim", [1, 16, 333, 1024])
def test_no_score_exceeds_its_sum_by_more_than_the_slack(dim: int) -> None:
    """Sums in both orders, of numbers of one size and sign pattern, where rounding errors add up."""
    rng = np.random.default_rng(dim)
    vectors = (rng.choice([1.0, 1 / 3, 0.1], (64, dim)) * rng.choice([-1, 1], (64, 1))).astype(np.float32)
    queries = (rng.choice([1.0, 1 / 3, 0.7], (8, dim))).astype(np.float32)
    scores = reference.dot_products(queries, vectors).astype(np.float64)
    size = np.linalg.norm(queries.astype(np.float64), axis=1)[:, None] * np.linalg.norm(
        vectors.astype(np.float64), axis=1
    )
    for query in range(len(queries)):
        sums = np.zeros(len(vectors), np.float32)
        for column in range(dim):  # a fused step: the product is exact in float64, one rounding follows
            product = vectors[:, column].astype(np.float64) * queries[query, column]
            sums = (sums + product).astype(np.float32)
        assert (np.abs(scores[query] - sums) <= floats.slack_per_norm(dim) * size[query]).all()


@pytest.mark.parametrize("n_items", [1, floats.ROWS - 1, floats.ROWS, floats.ROWS + 1, 100])
@pytest.mark.parametrize("kind", ["gaussian", "ties", "denormal", "huge"])
def test_the_portable_path_equals_the_reference(kind: str, n_items: int) -> None:
    rng = np.random.default_rng(n_items)
    batch = 2 * floats.WIDTH + 5
    vectors = rng.standard_normal((n_items, 19))
    vectors = {
        "gaussian": vectors,
        "ties": np.rint(vectors),
        "denormal": 1e-40 * vectors,
        "huge": 1e17 * vectors,
    }[kind].astype(np.float32)
    queries = rng.standard_normal((batch, 19)).astype(np.float32)
    options = {
        "bias": (rng.standard_normal(n_items) * np.abs(vectors).max()).astype(np.float32),
        "allow": rng.random((batch, n_items)) < 0.7,
    }
    index = ItemIndex.build(vectors, isa=isa.PORTABLE)
    for k in (1, 9):
        for some in ({}, options):
            expected = reference.exact_top_k(vectors, queries, k, **some)
            for ours, theirs in zip(index.search(queries, k, **some), expected, strict=True):
                np.testing.assert_array_equal(ours, theirs)


def test_a_long_tail_is_searched_as_a_rebuilt_index() -> None:
    rng = np.random.default_rng(5)
    index = ItemIndex.build(rng.standard_normal((100, 12)).astype(np.float32))
    items = np.arange(60, 160, dtype=np.int32)
    index.upsert(items, rng.standard_normal((100, 12)).astype(np.float32))
    queries = rng.standard_normal((50, 12)).astype(np.float32)
    before = index.search(queries, 20)
    assert index.stats()["tail_items"] == 100
    index.rebuild()
    for ours, theirs in zip(before, index.search(queries, 20), strict=True):
        np.testing.assert_array_equal(ours, theirs)
