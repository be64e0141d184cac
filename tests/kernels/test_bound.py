"""Attacks on the bound of the first pass: the items that a bound a little too tight would lose."""

from typing import Any

import numpy as np
import pytest

from recserve.kernels import ItemIndex, isa, reference

FAST = [name for name in isa.available() if name not in ("avx-vnni", isa.PORTABLE)]
pytestmark = pytest.mark.skipif(not FAST, reason="no int8 first pass here: this machine searches in float32")


def near_ties(rng: np.random.Generator, dim: int) -> Any:
    """Every score within a few units in the last place of every other."""
    vectors = np.broadcast_to(rng.standard_normal(dim).astype(np.float32), (300, dim)).copy()
    steps = rng.integers(-1, 2, vectors.shape)
    return np.nextafter(vectors, np.where(steps > 0, np.inf, -np.inf), where=steps != 0, out=vectors)


def mixed_norms(rng: np.random.Generator, dim: int) -> Any:
    """Huge and tiny vectors, so that one tile holds both where the norms change."""
    return rng.standard_normal((300, dim)) * 10.0 ** rng.integers(-17, 15, (300, 1))


def outliers(rng: np.random.Generator, dim: int) -> Any:
    """One large element in each vector: the step of a tile is too coarse for everything else."""
    vectors = 0.001 * rng.standard_normal((300, dim))
    vectors[np.arange(300), rng.integers(0, dim, 300)] = rng.choice([-1.0, 1.0], 300)
    return vectors


def half_steps(rng: np.random.Generator, dim: int) -> Any:
    """Every element half way between two codes: residuals as large as they get."""
    vectors = rng.integers(-126, 126, (300, dim)) + 0.5
    vectors[:, 0] = 127
    return vectors / 127


def equal(rng: np.random.Generator, dim: int) -> Any:
    return np.broadcast_to(rng.standard_normal(dim), (300, dim))


def denormal(rng: np.random.Generator, dim: int) -> Any:
    return rng.standard_normal((300, dim)) * 1e-41


def mostly_zero(rng: np.random.Generator, dim: int) -> Any:
    return rng.standard_normal((300, dim)) * (rng.random((300, 1)) < 0.1)


@pytest.mark.parametrize("isa_name", FAST)
@pytest.mark.parametrize("dim", [1, 3, 8, 17, 64])
@pytest.mark.parametrize(
    "make",
    [near_ties, mixed_norms, outliers, half_steps, equal, denormal, mostly_zero],
    ids=lambda f: f.__name__,
)
def test_no_item_is_lost(make: Any, dim: int, isa_name: str) -> None:
    rng = np.random.default_rng(dim)
    vectors = np.ascontiguousarray(make(rng, dim), np.float32)
    along = vectors[rng.integers(0, 300, 4)]
    queries = np.vstack([along, -along, rng.standard_normal((3, dim)), 1e-41 * along]).astype(np.float32)
    bias = (rng.standard_normal(300) * np.abs(queries @ vectors.T).mean()).astype(np.float32)
    index = ItemIndex.build(vectors, isa=isa_name)
    for k in (1, 10):
        for options in ({}, {"bias": bias}):
            answer = index.search(queries, k, **options)
            expected = reference.exact_top_k(vectors, queries, k, **options)
            np.testing.assert_array_equal(answer[1], expected[1])
            np.testing.assert_array_equal(answer[0], expected[0])


@pytest.mark.parametrize("isa_name", FAST)
def test_the_largest_dimension(isa_name: str) -> None:
    """Codes of ±127 everywhere: the sums are as large as they get and must not wrap."""
    rng = np.random.default_rng(0)
    vectors = np.ascontiguousarray(rng.choice([-1.0, 1.0], (70, 1024)), np.float32)
    queries = np.vstack([vectors[:5], -vectors[:5]])
    answer = ItemIndex.build(vectors, isa=isa_name).search(queries, 3)
    expected = reference.exact_top_k(vectors, queries, 3)
    np.testing.assert_array_equal(answer[1], expected[1])
    np.testing.assert_array_equal(answer[0], expected[0])
