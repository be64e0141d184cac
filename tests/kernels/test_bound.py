"""Attacks on the bound of the first pass: the items that a bound a little too tight would lose."""

from typing import Any

import numpy as np
import pytest

from recserve.kernels import ItemIndex, firstpass, isa, packing, reference, rows, topk

FAST = [name for name in isa.available() if name not in ("avx-vnni", isa.PORTABLE)]
fast_only = pytest.mark.skipif(not FAST, reason="no int8 first pass here: this machine searches in float32")


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


@fast_only
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


@fast_only
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


def surplus(vectors: Any, query: Any, limit: int, bias: Any = None, coarse: bool = False) -> Any:
    """By how many units each of 32 items passes a threshold that is its own score; negative: it is lost."""
    queries, dim = query[None], vectors.shape[1]
    norms = np.empty(33, np.float32)
    packing.row_norms(vectors, norms[:32])
    packing.row_norms(queries, norms[32:])
    packed = packing.pack_tiles(vectors, norms[:32])
    scores = reference.dot_products(queries, vectors)[0]
    bounds = np.empty((2, 0), np.float32)
    if bias is not None:
        scores = scores + bias
        rounding = 2.0**-22 * np.abs(bias).max()
        bounds = np.array([[bias.max() + rounding], [bias.max()]], np.float32)
    biases = np.empty(0, np.float32) if bias is None else bias
    batch = rows.Batch(queries, norms[32:], norms[32:], np.ones((1, 1), np.uint32), biases, bounds)
    codes = firstpass.make_codes(limit, batch)
    query = codes.words.view(np.int8)[0].astype(int)
    high, low = halves(packed)
    sums = high @ query if coarse else (16 * high + low) @ query
    margin = 0 if coarse else 2 + dim // 32
    out = np.empty(32, int)
    starts = np.empty((1, firstpass.MAX_CHUNK_TILES), np.int32)
    for item in range(32):
        threshold = np.array([topk.make_key(scores[item], item)])
        firstpass.fill_starts(
            starts,
            np.zeros(1, np.int32),
            np.array([coarse]),
            0,
            1,
            dim,
            threshold,
            codes.factors,
            codes.sums,
            packed.bounds,
            bounds,
        )
        out[item] = sums[item] + starts[0, 0] - margin
    return out


def halves(packed: Any) -> Any:
    """The upper and the lower halves of the codes of one tile, (32, d) each."""
    planes = []
    for plane in (packed.high, packed.low):
        pairs = plane.reshape(-1, 32, 4)
        steps = np.stack([pairs & 15, pairs >> 4], axis=1).reshape(-1, 32, 4)
        planes.append(steps.transpose(1, 0, 2).reshape(32, -1).astype(int))
    return planes


@pytest.mark.parametrize("dim", [1, 8, 13, 64])
def test_the_planes_hold_the_codes(dim: int) -> None:
    rng = np.random.default_rng(dim)
    vectors = rng.integers(-127, 128, (32, dim)).astype(np.float32)
    vectors[0, 0] = 127
    norms = np.empty(32, np.float32)
    packing.row_norms(vectors, norms)
    high, low = halves(packing.pack_tiles(vectors, norms))
    np.testing.assert_array_equal((16 * high + low)[:, :dim] - 128, vectors)
    assert (16 * high[:, dim:] + low[:, dim:] == 128).all()


@pytest.mark.parametrize("limit", [63, 127])
@pytest.mark.parametrize("dim", [8, 64, 200])
def test_the_bound_holds_where_the_residual_of_the_item_points_along_the_query(dim: int, limit: int) -> None:
    """Cauchy–Schwarz is an equality here, so a bound smaller by a hundredth would lose these items."""
    rng = np.random.default_rng(dim)
    query = rng.choice([-1.0, 1.0], dim).astype(np.float32)
    vectors = (rng.integers(-90, 90, (32, dim)) + 0.49 * query) / 127
    vectors[0, 0] = 1.0  # the step of the tile is 1/127
    left = surplus(vectors.astype(np.float32), query, limit)[1:]
    assert (left >= -2).all(), "lost but for the margin, which is there for rounding"
    assert left.min() <= 0.1 * 127 * dim, "the bound is not as tight as it should be"


@pytest.mark.parametrize("limit", [63, 127])
@pytest.mark.parametrize("dim", [8, 64, 200])
def test_the_bound_holds_where_the_residual_of_the_query_points_along_the_item(dim: int, limit: int) -> None:
    rng = np.random.default_rng(dim)
    vectors = np.broadcast_to(rng.choice([-1.0, 1.0], dim).astype(np.float32), (32, dim)).copy()
    query = ((rng.integers(-limit // 2, limit // 2, dim) + 0.49 * vectors[0]) / limit).astype(np.float32)
    query[0] = vectors[0, 0]
    left = surplus(vectors, query, limit)
    assert (left >= -2).all()
    assert left.min() <= 0.1 * 127 * dim


@pytest.mark.parametrize("dim", [1, 7, 64, 300])
def test_the_bound_holds_for_any_item(dim: int) -> None:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        for make in (near_ties, mixed_norms, outliers, half_steps, denormal, mostly_zero):
            vectors = np.ascontiguousarray(make(rng, dim)[:32], np.float32)
            query = np.ascontiguousarray(rng.standard_normal(dim), np.float32)
            assert (surplus(vectors, query, 127) >= -1).all()
            bias = (rng.standard_normal(32) * np.abs(vectors).max()).astype(np.float32)
            assert (surplus(vectors, query, 63, bias) >= -1).all()
            assert (surplus(vectors, query, 127, coarse=True) >= 0).all()
            assert (surplus(vectors, query, 63, bias, coarse=True) >= 0).all()


@pytest.mark.parametrize("limit", [63, 127])
@pytest.mark.parametrize("dim", [8, 64, 200])
def test_the_coarse_bound_holds_where_the_lower_halves_point_along_the_query(dim: int, limit: int) -> None:
    """Cauchy–Schwarz is an equality where the lower halves are 15 for b > 0 and 0 for b < 0."""
    rng = np.random.default_rng(dim)
    query = rng.choice([-1.0, 1.0], dim).astype(np.float32)
    upper = rng.integers(-8, 8, (32, dim))
    vectors = (16 * upper + np.where(query > 0, 15, 0)).clip(-127, 127).astype(np.float32)
    vectors[0, 0] = 127
    left = surplus(vectors, query, limit, coarse=True)
    assert (left >= 0).all()
    assert left.min() <= 0.1 * limit * dim, "the bound is not as tight as it should be"
