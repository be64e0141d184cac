"""The GPU's kernels in Numba's simulator, against the NumPy twin: run by test_simulator.py."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import cuda
from strict_simulator import Race, accesses, install

from recserve.benchmarks import gpu_laws
from recserve.errors import ConfigError, InvalidRequest
from recserve.kernels import reference
from recserve.kernels.cuda import CudaItemIndex, Launch, layout
from recserve.kernels.cuda.arithmetic import SIMULATED

assert SIMULATED
install()

LAUNCH = Launch.for_device()


@pytest.fixture
def tracked() -> Any:
    accesses.is_on = True
    yield
    accesses.is_on = False


@st.composite
def searches(draw: Any) -> dict[str, Any]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n_items = draw(st.sampled_from((0, 1, 31, 32, 33, 70, 130)))
    dim = draw(st.sampled_from((1, 3, 16, 17)))
    batch = draw(st.sampled_from((0, 1, 2, 5)))
    kind = draw(st.sampled_from(gpu_laws.KINDS)) if n_items else "gaussian"
    options: dict[str, Any] = {}
    if draw(st.booleans()):
        lengths = rng.integers(0, 6, batch) if n_items else np.zeros(batch, int)
        indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        options["exclude"] = (indptr, rng.integers(0, max(n_items, 1), indptr[-1]).astype(np.int32))
    mask = draw(st.sampled_from((None, "shared", "per query")))
    if mask:
        options["allow"] = rng.random((n_items,) if mask == "shared" else (batch, n_items)) < 0.4
    if draw(st.booleans()):
        options["bias"] = rng.standard_normal(n_items).astype(np.float32)
    return {
        "vectors": gpu_laws.make_vectors(rng, kind, n_items, dim),
        "queries": gpu_laws.make_vectors(rng, "gaussian", batch, dim),
        "k": draw(st.sampled_from((1, 2, 16, 140))),
        "options": options,
        "dtype": draw(st.sampled_from(gpu_laws.DTYPES)),
        "max_group_tiles": draw(st.sampled_from((1, 2, 16))),
        "warps": draw(st.sampled_from((1, 2))),
    }


@settings(derandomize=True, deadline=None, max_examples=40)
@given(searches())
def test_equals_the_reference_bit_for_bit(search: dict[str, Any]) -> None:
    launch = dataclasses.replace(
        LAUNCH, max_group_tiles=search["max_group_tiles"], scan_threads=32 * search["warps"]
    )
    index = CudaItemIndex.build(search["vectors"], dtype=search["dtype"], launch=launch)
    scores, indices = index.search(search["queries"], search["k"], **search["options"])
    expected = reference.exact_top_k(search["vectors"], search["queries"], search["k"], **search["options"])
    assert (scores.dtype, indices.dtype) == (np.float32, np.int32)
    np.testing.assert_array_equal(indices, expected[1])
    np.testing.assert_array_equal(scores.view(np.int32), expected[0].view(np.int32))


@pytest.mark.parametrize("case", [*gpu_laws.cases(gpu_laws.TINY)][::11], ids=str)
def test_the_laws_of_the_gpu_check_hold(case: gpu_laws.Case) -> None:
    gpu_laws.check(case)


@pytest.mark.parametrize("dtype", gpu_laws.DTYPES)
def test_large_groups_and_several_levels_of_selection(dtype: str, monkeypatch: Any) -> None:
    """Groups of three tiles, the last one short; as many keys as need two rounds of segments."""
    monkeypatch.setattr(Launch, "group_tiles", lambda self, n_tiles, batch: 3)
    case = gpu_laws.Case("gaussian", 700, 5, 2, 4, dtype, ("exclude", "allow per query", "bias"))
    launch = dataclasses.replace(LAUNCH, scan_threads=64, segment_keys=16)
    stats = gpu_laws.check(case, launch)
    assert stats["device"] == "simulator"
    assert stats["rows_scored"] > 0


def test_more_queries_than_one_pass_takes() -> None:
    rng = np.random.default_rng(2)
    vectors, queries = rng.standard_normal((40, 3), np.float32), rng.standard_normal((35, 3), np.float32)
    lengths = rng.integers(0, 4, 35)
    exclude = (np.concatenate([[0], np.cumsum(lengths)]), rng.integers(0, 40, lengths.sum()).astype(np.int32))
    allow = rng.random((35, 40)) < 0.5
    answer = CudaItemIndex.build(vectors, dtype="int8").search(queries, 3, exclude=exclude, allow=allow)
    expected = reference.exact_top_k(vectors, queries, 3, exclude=exclude, allow=allow)
    np.testing.assert_array_equal(answer[1], expected[1])
    np.testing.assert_array_equal(answer[0], expected[0])


@pytest.mark.parametrize("dtype", ["float16", "int8"])
@pytest.mark.parametrize("kind", ["gaussian", "near ties", "mixed norms", "tiny", "huge"])
def test_no_score_exceeds_its_bound(dtype: str, kind: str, monkeypatch: Any) -> None:
    """Looks at the bounds themselves: the certificate would hide one that is too low by a little."""
    rng = np.random.default_rng(5)
    scale = {"tiny": 1e-36, "huge": 1e16}.get(kind, 1.0)
    vectors = gpu_laws.make_vectors(rng, kind if scale == 1 else "gaussian", 96, 19) * np.float32(scale)
    queries = rng.standard_normal((3, 19)).astype(np.float32)
    bias = rng.standard_normal(96).astype(np.float32) * np.float32(scale)
    index = CudaItemIndex.build(vectors, dtype=dtype, launch=LAUNCH)  # type: ignore[arg-type]
    seen = {}
    select = index._search._select  # type: ignore[union-attr]

    def look(name: str, batch: int, keys: Any, n_keys: int, k: int) -> Any:
        seen.setdefault(name, keys.copy_to_host()[:batch])
        return select(name, batch, keys, n_keys, k)

    monkeypatch.setattr(index._search, "_select", look)
    index.search(queries, 1, bias=bias)
    from recserve.kernels.cuda.search import scores_of

    bounds = scores_of(seen["groups"])  # one group per row here
    item_of_row = index._snapshot.base.item_of_row
    scores = reference.dot_products(queries, vectors) + bias
    assert (bounds >= scores[:, item_of_row]).all()
    # And not by much: a bound that says nothing would pass as well.
    # (The steps of int8 are at least 1e-18, so that it cannot tell tiny vectors apart.)
    size = np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(vectors.astype(np.float64), axis=1).max()
    assert (bounds - scores[:, item_of_row] <= 0.05 * size + 1e-19).all()


def test_a_bound_that_cannot_tell_items_apart_leads_to_a_second_search() -> None:
    vectors = np.ones((700, 3), np.float32)
    index = CudaItemIndex.build(vectors, dtype="int8", launch=dataclasses.replace(LAUNCH, max_group_tiles=1))
    scores, indices = index.search(np.ones((1, 3), np.float32), 2)
    assert indices.tolist() == [[0, 1]]
    assert scores.tolist() == [[3.0, 3.0]]
    assert index.stats()["queries_searched_again"] == 1


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_a_score_as_high_as_a_bound_proves_nothing(dtype: str, monkeypatch: Any) -> None:
    """All scores and bounds are 1; the groups that look first have lost their first items."""
    monkeypatch.setattr(Launch, "group_tiles", lambda self, n_tiles, batch: 2)
    vectors, bias = np.zeros((128, 3), np.float32), np.ones(128, np.float32)
    exclude = (np.array([0, 18]), np.arange(18, dtype=np.int32))
    index = CudaItemIndex.build(vectors, dtype=dtype, launch=LAUNCH)  # type: ignore[arg-type]
    scores, indices = index.search(np.ones((1, 3), np.float32), 1, exclude=exclude, bias=bias)
    assert (indices.tolist(), scores.tolist()) == ([[18]], [[1.0]])


@pytest.mark.usefixtures("tracked")
@pytest.mark.parametrize("dtype", gpu_laws.DTYPES)
def test_no_launch_has_a_race(dtype: str) -> None:
    rng = np.random.default_rng(3)
    vectors = gpu_laws.make_vectors(rng, "ties", 100, 5)
    queries = gpu_laws.make_vectors(rng, "gaussian", 2, 5)
    exclude = (np.array([0, 3, 5]), np.array([1, 1, 2, 1, 9], np.int32))
    launch = Launch(n_processors=2, scan_threads=64, select_threads=24, segment_keys=40)
    index = CudaItemIndex.build(vectors, dtype=dtype, launch=launch)  # type: ignore[arg-type]
    answer = index.search(queries, 6, exclude=exclude)
    expected = reference.exact_top_k(vectors, queries, 6, exclude=exclude)
    np.testing.assert_array_equal(answer[1], expected[1])


def racy_shared(values: Any) -> None:
    shared = cuda.shared.array(2, np.int32)
    shared[cuda.threadIdx.x] = cuda.threadIdx.x
    values[cuda.threadIdx.x] = shared[1 - cuda.threadIdx.x]  # no barrier


def racy_global(values: Any) -> None:
    values[0] = cuda.blockIdx.x


def divergent(values: Any) -> None:
    if cuda.threadIdx.x == 0:
        cuda.syncthreads()


@pytest.mark.usefixtures("tracked")
@pytest.mark.parametrize("kernel", [racy_shared, racy_global])
def test_a_race_is_noticed(kernel: Any) -> None:
    with pytest.raises(Race):
        cuda.jit(kernel)[2, 2](cuda.to_device(np.zeros(2, np.int32)))


def test_a_barrier_in_divergent_code_is_noticed() -> None:
    with pytest.raises(AssertionError, match="not reached by all threads"):
        cuda.jit(divergent)[1, 2](cuda.to_device(np.zeros(2, np.int32)))


def test_threads_may_share_an_index() -> None:
    vectors = np.random.default_rng(4).standard_normal((40, 3), np.float32)
    index = CudaItemIndex.build(vectors)
    expected = reference.exact_top_k(vectors, vectors[:2], 5)[1]
    with ThreadPoolExecutor(3) as threads:  # the simulator refuses two launches at once
        answers = [threads.submit(index.search, vectors[:2], 5) for _ in range(3)]
    for answer in answers:
        np.testing.assert_array_equal(answer.result()[1], expected)
    assert index.stats()["queries"] == 6


def test_bad_input_is_refused_and_named() -> None:
    vectors = np.ones((4, 3), np.float32)
    index = CudaItemIndex.build(vectors)
    with pytest.raises(InvalidRequest, match="dtype is float64; expected one of float32, float16, int8"):
        CudaItemIndex.build(vectors, dtype="float64")  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="vectors row 1 is nan in column 2"):
        CudaItemIndex.build(np.array([[0, 0, 0], [0, 0, np.nan]], np.float32))
    with pytest.raises(InvalidRequest, match="queries row 0 is inf in column 0"):
        index.search(np.full((1, 3), np.inf, np.float32), 1)
    with pytest.raises(InvalidRequest, match=r"queries is of shape \(1, 2\)"):
        index.search(np.ones((1, 2), np.float32), 1)
    with pytest.raises(InvalidRequest, match="k is 0"):
        index.search(vectors, 0)
    with pytest.raises(InvalidRequest, match="k is 8193; expected at most 8192 on a GPU"):
        index.search(vectors, 8193)
    with pytest.raises(InvalidRequest, match=r"exclude item_indices\[0\] is 4; expected .* 0 to 3"):
        index.search(vectors[:1], 1, exclude=(np.array([0, 1]), np.array([4], np.int32)))
    with pytest.raises(InvalidRequest, match="allow is "):
        index.search(vectors, 1, allow=np.ones(3, np.bool_))
    with pytest.raises(InvalidRequest, match="bias of item 2 is "):
        index.search(vectors, 1, bias=np.array([0, 0, np.nan, 0], np.float32))
    with pytest.raises(ConfigError, match=r"launch.scan_threads is 48; expected a multiple of 32"):
        Launch(n_processors=1, scan_threads=48)


def test_warmup_works_on_any_catalogue() -> None:
    for n_items in (0, 1, 5):
        index = CudaItemIndex.build(np.ones((n_items, 2), np.float32))
        index.warmup()
        assert (index.n_items, index.dim) == (n_items, 2)


def test_float16_tiles_keep_eleven_bits_of_what_is_large_in_its_tile() -> None:
    vectors = np.random.default_rng(1).standard_normal((64, 16)).astype(np.float32) * np.float32(1e-9)
    tiles = layout.float32_tiles(vectors)
    codes, bounds = layout.float16_tiles(tiles)
    decoded = codes.astype(np.float32) * bounds[0, :, None, None]
    assert (np.abs(decoded - tiles) <= np.abs(tiles) * 2.0**-11 + np.abs(tiles).max() * 2.0**-39).all()
