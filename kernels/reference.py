"""The NumPy twins of the public kernels: short, slow, and equal to the kernels bit for bit."""

from typing import Any

import numpy as np
import numpy.typing as npt

from recserve.kernels.checks import Exclude

Scores = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int32]


def exact_top_k(
    vectors: Scores,
    queries: Scores,
    k: int,
    *,
    exclude: Exclude | None = None,
    allow: npt.NDArray[np.bool_] | None = None,
    bias: Scores | None = None,
) -> tuple[Scores, Indices]:
    """Scores every item for every query and sorts: the twin of recserve.kernels.exact_top_k."""
    batch, n_items = len(queries), len(vectors)
    scores = dot_products(queries, vectors)
    if bias is not None:
        scores = scores + bias
    may_return = np.broadcast_to(True if allow is None else allow, (batch, n_items)).copy()
    if exclude is not None:
        indptr, item_indices = exclude
        for query in range(batch):
            may_return[query, item_indices[indptr[query] : indptr[query + 1]]] = False

    out_scores = np.full((batch, k), -np.inf, np.float32)
    out_indices = np.full((batch, k), -1, np.int32)
    for query in range(batch):
        items = np.flatnonzero(may_return[query])
        best = items[np.argsort(-scores[query, items], kind="stable")][:k]
        out_scores[query, : len(best)] = scores[query, best] + np.float32(0.0)
        out_indices[query, : len(best)] = best
    return out_scores, out_indices


def warmup() -> None:
    """Does nothing: NumPy has nothing to compile. The twin of recserve.kernels.warmup."""


def dot_products(queries: Scores, vectors: Scores) -> Scores:
    """(batch, n_items) float32 dot products in the summation order of recserve.kernels.simd.dot."""
    padding = ((0, 0), (0, -vectors.shape[1] % 16))
    products = np.pad(queries, padding)[:, None, :] * np.pad(vectors, padding)[None, :, :]
    lanes: npt.NDArray[Any] = np.zeros((len(queries), len(vectors), 16), np.float32)
    for start in range(0, products.shape[2], 16):
        lanes += products[:, :, start : start + 16]
    for width in (8, 4, 2, 1):
        lanes = lanes[:, :, :width] + lanes[:, :, width:]
    return lanes[:, :, 0]
