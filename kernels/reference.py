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


def fold_in(vectors: Scores, interactions: Exclude, weights: Scores, reg: float) -> Scores:
    """Solves one user at a time with numpy.linalg: the twin of recserve.kernels.fold_in."""
    indptr, item_indices = interactions
    items = vectors.astype(np.float64)
    users = np.zeros((len(indptr) - 1, items.shape[1]), np.float32)
    for user in range(len(users)):
        part = slice(indptr[user], indptr[user + 1])
        history, weight = items[item_indices[part]], weights[part].astype(np.float64)
        if len(history):
            left = items.T @ items + (history.T * weight) @ history + reg * np.eye(items.shape[1])
            users[user] = np.linalg.solve(left, history.T @ (1.0 + weight))
    return users


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
