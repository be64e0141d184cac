"""Approximate indices with their one knob turned: the recall that each setting reaches, and at what time.

Graphs are built from the items in random order: the catalogues are sorted by topic, from which a graph that
grows item by item would suffer. For one that searches by distance the items are augmented: x becomes
(x, √(M² − |x|²)), M the largest norm, and a query q becomes (q, 0), so that the nearest in L2 is the largest
inner product.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from recserve.benchmarks.kernels.peers import Search, Vectors

LISTS = 1024
TRAINING_ITEMS = 100_000  # faiss and scann learn their partition from at most that many
SEED = 1234
GRAPH_DEGREE, BUILD_WIDTH = 16, 100
WIDTHS = (32, 128, 512)
BUILD_THREADS = os.cpu_count() or 1  # of graphs, which take the longest by far

Setting = tuple[str, Search]
Make = Callable[[Vectors, int], Iterator[Setting]]


def faiss_ivf(vectors: Vectors, threads: int) -> Iterator[Setting]:
    """Inverted lists of whole vectors; nprobe lists are searched."""
    import faiss

    index = _trained(f"IVF{_n_lists(vectors)},Flat", vectors, threads)

    def search_with(n_lists: int) -> Search:
        def search(queries: Vectors, k: int) -> tuple[Any, Any]:
            index.nprobe = n_lists
            found: tuple[Any, Any] = index.search(queries, k)
            return found

        return search

    faiss.omp_set_num_threads(threads)
    for n_lists in (4, 16, 64, 128, 256):
        yield f"nprobe {n_lists}", search_with(n_lists)


def faiss_pq(vectors: Vectors, threads: int) -> Iterator[Setting]:
    """Product quantisation, 4 bits per two dimensions, the best k · factor scored again in float32."""
    import faiss

    index = _trained(f"PQ{vectors.shape[1] // 2}x4fs,RFlat", vectors, threads)
    parameters_of: Any = faiss.IndexRefineSearchParameters  # its type stub leaves the keywords out

    def search_with(factor: int) -> Search:
        parameters = parameters_of(k_factor=factor)

        def search(queries: Vectors, k: int) -> tuple[Any, Any]:
            found: tuple[Any, Any] = index.search(queries, k, params=parameters)
            return found

        return search

    for factor in (5, 20, 100, 400):
        yield f"k_factor {factor}", search_with(factor)


def faiss_hnsw(vectors: Vectors, threads: int) -> Iterator[Setting]:
    """A navigable graph by inner product; efSearch is the width of the search."""
    import faiss

    order = _shuffled(vectors)
    index = faiss.IndexHNSWFlat(vectors.shape[1], GRAPH_DEGREE, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = BUILD_WIDTH
    faiss.omp_set_num_threads(BUILD_THREADS)
    index.add(vectors[order])
    faiss.omp_set_num_threads(threads)

    def search_with(width: int) -> Search:
        def search(queries: Vectors, k: int) -> tuple[Any, Any]:
            index.hnsw.efSearch = width
            scores, rows = index.search(queries, k)
            return scores, np.where(rows < 0, -1, order[rows])

        return search

    for width in WIDTHS:
        yield f"efSearch {width}", search_with(width)


def hnswlib_ip(vectors: Vectors, threads: int) -> Iterator[Setting]:
    """The reference implementation of HNSW, by inner product."""
    yield from _hnswlib("ip", vectors, lambda queries: queries, threads)


def hnswlib_l2(vectors: Vectors, threads: int) -> Iterator[Setting]:
    """The same by L2 over the augmented vectors: the better where norms differ little."""
    yield from _hnswlib("l2", augmented(vectors), _padded, threads)


def _hnswlib(
    space: str, items: Vectors, prepare: Callable[[Vectors], Vectors], threads: int
) -> Iterator[Setting]:
    import hnswlib

    order = _shuffled(items)
    index = hnswlib.Index(space=space, dim=items.shape[1])
    index.init_index(len(items), M=GRAPH_DEGREE, ef_construction=BUILD_WIDTH, random_seed=SEED)
    index.set_num_threads(threads)
    index.add_items(items[order], order, num_threads=BUILD_THREADS)

    def search_with(width: int) -> Search:
        def search(queries: Vectors, k: int) -> tuple[Any, Any]:
            index.set_ef(max(width, k))
            indices, distances = index.knn_query(prepare(queries), k)
            return -distances, indices

        return search

    for width in WIDTHS:
        yield f"ef {width}", search_with(width)


def scann_tree(vectors: Vectors, threads: int) -> Iterator[Setting]:
    """A partition, anisotropic hashing in it, then scoring again in float32."""
    import scann

    n_leaves = max(2, int(len(vectors) ** 0.5))
    builder = scann.scann_ops_pybind.builder(vectors, 10, "dot_product")
    builder = builder.tree(n_leaves, max(1, n_leaves // 4), training_sample_size=TRAINING_ITEMS)
    builder = builder.score_ah(2, anisotropic_quantization_threshold=0.2).reorder(200)
    index = builder.build()
    index.set_num_threads(threads)

    def search_with(n_leaves: int, reordered: int) -> Search:
        def search(queries: Vectors, k: int) -> tuple[Any, Any]:
            # The parallel call has no use with one thread.
            ask = index.search_batched_parallel if threads > 1 else index.search_batched
            indices, scores = ask(
                queries,
                final_num_neighbors=k,
                pre_reorder_num_neighbors=max(k, reordered),
                leaves_to_search=n_leaves,
            )
            return scores, indices

        return search

    for share, reordered in ((16, 100), (4, 200), (4, 1000), (1, 200), (1, 1000)):
        searched = max(1, n_leaves // share)
        yield f"{searched} of {n_leaves} leaves, reorder {reordered}", search_with(searched, reordered)


APPROXIMATE: dict[str, Make] = {
    "faiss-ivf": faiss_ivf,
    "faiss-pq": faiss_pq,
    "faiss-hnsw": faiss_hnsw,
    "scann": scann_tree,
    "hnswlib": hnswlib_ip,
    "hnswlib-l2": hnswlib_l2,
}


def load(
    vectors: Vectors, threads: int, names: Sequence[str], skip: Callable[[str, str], None]
) -> tuple[dict[tuple[str, str], Search], dict[str, float]]:
    """Builds those of ``names`` that are approximate and installed.

    Returns the search of every (peer, setting) and the seconds that building each peer took; calls
    ``skip(name, reason)`` for the peers that are not installed.
    """
    searches: dict[tuple[str, str], Search] = {}
    built: dict[str, float] = {}
    for name, make in APPROXIMATE.items():
        if name not in names:
            continue
        start = time.perf_counter()
        try:
            settings = dict(make(vectors, threads))
        except ImportError as error:
            skip(name, str(error))
            continue
        built[name] = time.perf_counter() - start
        searches |= {(name, setting): search for setting, search in settings.items()}
    return searches, built


def recall(scores: Any, queries: Vectors, vectors: Vectors, indices: Any) -> float:
    """The share of the exact top-K that was found; an item that ties with the last within rounding counts.

    scores: (batch, k) of the exact answer · indices: (batch, k) of the approximate one, −1 where it ran out.
    """
    found = np.einsum("bkd,bd->bk", vectors[np.maximum(indices, 0)], queries)
    least = scores[:, -1:] - 1e-5 * max(1.0, float(np.abs(scores).max()))
    return float(((found >= least) & (np.asarray(indices) >= 0)).mean())


def augmented(vectors: Vectors) -> Vectors:
    """(n_items, d + 1): all rows have the largest norm of ``vectors``."""
    squares = np.einsum("id,id->i", vectors, vectors)
    return np.column_stack([vectors, np.sqrt(squares.max() - squares)]).astype(np.float32)


def _padded(queries: Vectors) -> Vectors:
    return np.column_stack([queries, np.zeros(len(queries), np.float32)])


def _shuffled(vectors: Vectors) -> Any:
    return np.random.default_rng(SEED).permutation(len(vectors))


def _n_lists(vectors: Vectors) -> int:
    # faiss wants 39 items per list to learn from.
    return max(1, min(LISTS, len(vectors) // 39))


def _trained(description: str, vectors: Vectors, threads: int) -> Any:
    import faiss

    faiss.omp_set_num_threads(threads)
    index = faiss.index_factory(vectors.shape[1], description, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors[_shuffled(vectors)[:TRAINING_ITEMS]])
    index.add(vectors)
    return index
