"""Retrieval: from a query embedding to the best items of the whole catalogue."""

import fcntl
import re
import shutil
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recserve.engine.bundle import Bundle
from recserve.engine.filters.compiler import CompiledFilter, FilterCompiler
from recserve.engine.fixed_ranking import FixedRanking
from recserve.engine.search_device import SearchDevice
from recserve.kernels import ItemFilter, ItemIndex

# A version that is being loaded is not served yet.
KEPT_SECONDS = 3600
# What is called so, unfinished ones included, was left by prepare_index: the folder may have more in it.
_NAME = re.compile(r"\.?[0-9a-f]{64}\.(inner|cosine|text)\b")


class Retriever:
    """Exact top-K over a bundle's catalogue; read-only, safe to call from several threads.

    ``device``: where queries search; similar items are searched for on the CPU · ``folder``: where the
    prepared indices are kept, so that other processes map the same memory.
    """

    def __init__(self, bundle: Bundle, device: SearchDevice, folder: Path | None = None) -> None:
        self.device = device
        self._vectors = bundle.item_embeddings
        name = bundle.manifest.item_table_sha256
        self._index = device.place(prepare_index(folder and folder / f"{name}.inner", self._vectors, "inner"))
        self._cosine_index = prepare_index(folder and folder / f"{name}.cosine", self._vectors, "cosine")
        total = max(1, int(bundle.popularity.sum()))
        # By the share of all interactions that each item has.
        self.popularity = FixedRanking(
            (bundle.popularity / total).astype(np.float32),
            np.argsort(-bundle.popularity, kind="stable").astype(np.int32),
        )
        self.filters = FilterCompiler(bundle.catalogue, self._index.prepare_filter)

    def extended(self, bundle: Bundle) -> "Retriever":
        """Returns a retriever of ``bundle``, this one's with further items; searches of this one go on."""
        new = copy(self)
        n_before = len(self._vectors)
        added = np.arange(n_before, len(bundle.item_embeddings), dtype=np.int32)
        new._vectors = bundle.item_embeddings
        new._index, new._cosine_index = self._index.copy(), self._cosine_index.copy()
        for index in (new._index, new._cosine_index):
            index.upsert(added, bundle.item_embeddings[n_before:])
        popularity = self.popularity
        nobody = np.zeros(len(added), np.float32)
        new.popularity = FixedRanking(
            np.concatenate([popularity.scores, nobody]), np.concatenate([popularity.order, added])
        )
        new.filters = FilterCompiler(bundle.catalogue, new._index.prepare_filter)
        return new

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
        return self._index.search(queries, k, exclude=to_csr(exclude), allow=allow, bias=boosts)

    def similar(
        self,
        items: NDArray[np.int32],
        k: int,
        exclude: NDArray[np.int32],
        allowed: CompiledFilter | None = None,
        boosts: NDArray[np.float32] | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Returns the items nearest to the mean direction of ``items`` by cosine, (k,), padded as above."""
        vectors = self._vectors[items]
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        direction = (vectors / np.maximum(lengths, np.finfo(np.float32).tiny)).mean(axis=0, keepdims=True)
        # The mask: the filter's bits are in the order of the other index.
        allow = allowed.allow.mask if allowed else None
        scores, found = self._cosine_index.search(
            direction, k, exclude=to_csr([exclude]), allow=allow, bias=boosts
        )
        return scores[0], found[0]


def prepare_index(folder: Path | None, vectors: NDArray[np.float32], metric: str) -> ItemIndex:
    """Builds an index; with a folder, the one that another process left there, or for others to find."""
    if folder is None:
        return ItemIndex.build(vectors, metric=metric)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Processes that start together: one builds, the others wait for what it makes.
    with _alone(folder):
        if not folder.exists():
            ItemIndex.build(vectors, metric=metric).save(folder)
        return ItemIndex.open(folder)


def drop_indices(folder: Path, used: Collection[str]) -> None:
    """Removes what :func:`prepare_index` left in ``folder``, an hour ago or earlier, for other vectors.

    ``used``: digests of the vectors that are served. Who has mapped an index goes on with it.
    """
    for index in folder.iterdir():
        if _NAME.match(index.name) and index.is_dir() and index.stem not in used:
            with _alone(index):
                if index.exists() and time.time() - index.stat().st_mtime > KEPT_SECONDS:
                    # One that stays is in nobody's way.
                    shutil.rmtree(index, ignore_errors=True)


@contextmanager
def _alone(index: Path) -> Iterator[None]:
    with index.with_suffix(index.suffix + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def to_csr(rows: list[NDArray[np.int32]]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Returns ``rows`` as a search takes them: where each ends (batch + 1,), and all of them in one array."""
    indptr = np.array([0, *accumulate(map(len, rows))], np.int64)
    if len(rows) == 1:
        return indptr, rows[0]
    return indptr, np.concatenate(rows) if rows else np.empty(0, np.int32)
