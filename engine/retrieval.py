"""Retrieval: from a query embedding to the best items of the whole catalogue."""

import fcntl
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recserve.engine.bundle import Bundle, layout
from recserve.engine.filters.compiler import CompiledFilter, FilterCompiler
from recserve.kernels import ItemFilter, ItemIndex

# What a popularity answer looks through first where a filter may refuse much of it.
FIRST_LOOK = 1024


class Retriever:
    """Exact top-K over a bundle's catalogue; read-only, safe to call from several threads.

    ``folder``: where the prepared indices are kept, so that other processes map the same memory.
    """

    def __init__(self, bundle: Bundle, folder: Path | None = None) -> None:
        self._vectors = bundle.item_embeddings
        name = bundle.manifest.files[layout.ITEM_EMBEDDINGS].sha256
        self._index = _prepare(folder and folder / f"{name}.inner", self._vectors, "inner")
        self._cosine_index = _prepare(folder and folder / f"{name}.cosine", self._vectors, "cosine")
        self._popularity_order = np.argsort(-bundle.popularity, kind="stable").astype(np.int32)
        total = max(1, int(bundle.popularity.sum()))
        self._popularity_share = (bundle.popularity / total).astype(np.float32)
        self.filters = FilterCompiler(bundle.catalogue, self._index.prepare_filter)

    def by_query(
        self,
        queries: NDArray[np.float32],
        k: int,
        exclude: list[NDArray[np.int32]],
        filters: Sequence[CompiledFilter | None] = (),
        boosts: NDArray[np.float32] | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Returns scores (inner products) and item indices, (batch, k), padded with −inf and −1.

        ``filters``: what each query may get, exact at any selectivity; none at all for no restriction.
        ``boosts``: (n_items,) added to the scores of all queries before the best are found.
        """
        allow: list[ItemFilter | None] | None = None
        if any(filters):
            allow = [None if one is None else one.allow for one in filters]
        return self._index.search(queries, k, exclude=_to_csr(exclude), allow=allow, bias=boosts)

    def similar(
        self,
        items: NDArray[np.int32],
        k: int,
        exclude: list[NDArray[np.int32]],
        allowed: CompiledFilter | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Returns the items nearest to each of ``items`` (batch,) by cosine, padded as above."""
        # The mask: the filter's bits are in the order of the other index.
        allow = allowed.allow.mask if allowed else None
        return self._cosine_index.search(self._vectors[items], k, exclude=_to_csr(exclude), allow=allow)

    def popular(
        self,
        k: int,
        exclude: NDArray[np.int32],
        allowed: CompiledFilter | None = None,
        boosts: NDArray[np.float32] | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Returns at most ``k`` items of the most interactions, and each one's share of all interactions.

        ``exclude``: (m,) int32. Needs O(k + m), whatever the size of the catalogue; with a filter, as far as
        the k-th item that it allows; with ``boosts``, (n_items,) added to the shares, all of it.
        """
        if boosts is not None:
            return self._popular_boosted(k, exclude, allowed, boosts)
        order, n = self._popularity_order, k + len(exclude)
        candidates = order[:n] if allowed is None else _first_allowed(order, allowed, n)
        kept = candidates[~np.isin(candidates, exclude, kind="sort")][:k]
        return self._popularity_share[kept], kept

    def popular_share(self, items: NDArray[np.int32]) -> NDArray[np.float32]:
        """Returns the share of all interactions that each item has."""
        return self._popularity_share[items]

    def _popular_boosted(
        self,
        k: int,
        exclude: NDArray[np.int32],
        allowed: CompiledFilter | None,
        boosts: NDArray[np.float32],
    ) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        scores = self._popularity_share + boosts
        scores[exclude] = -np.inf
        if allowed is not None:
            scores[~allowed.allow.mask] = -np.inf
        # Of equals the lower item_index, as a search does.
        best = np.argsort(-scores, kind="stable")[:k].astype(np.int32)
        best = best[scores[best] > -np.inf]
        return scores[best], best


def _first_allowed(order: NDArray[np.int32], allowed: CompiledFilter, n: int) -> NDArray[np.int32]:
    """Returns the first ``n`` items of ``order`` that a filter allows."""
    mask, n = allowed.allow.mask, min(n, allowed.n_items)
    length = max(n, FIRST_LOOK)
    while True:
        found = order[:length][mask[order[:length]]]
        if len(found) >= n:
            return found[:n]
        length *= 4


def _prepare(folder: Path | None, vectors: NDArray[np.float32], metric: str) -> ItemIndex:
    """Builds an index; with a folder, the one that another process left there, or for others to find."""
    if folder is None:
        return ItemIndex.build(vectors, metric=metric)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(folder.suffix + ".lock").open("w") as lock:
        # Processes that start together: one builds, the others wait for what it makes.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            ItemIndex.build(vectors, metric=metric).save(folder)
    return ItemIndex.open(folder)


def _to_csr(rows: list[NDArray[np.int32]]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    indptr = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(row) for row in rows], out=indptr[1:])
    return indptr, np.concatenate(rows) if rows else np.empty(0, np.int32)
