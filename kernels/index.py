"""The item index: a catalogue made ready for exact top-K search."""

import threading
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from recserve.errors import InvalidRequest
from recserve.kernels import checks, masks, packing, storage
from recserve.kernels import snapshot as versions
from recserve.kernels.checks import Exclude, read_only
from recserve.kernels.filters import Allow, ItemFilter, Mask, search_words
from recserve.kernels.isa import PORTABLE, Isa, choose
from recserve.kernels.search import search_planes, search_rows, search_tiles
from recserve.kernels.snapshot import Snapshot

Scores = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int32]

MAX_ITEMS = 2**31 - 1
MAX_FEW = 3  # queries that are searched one by one: from 4 on a block is faster
_NO_BIAS = read_only(np.empty(0, np.float32))
_NO_BIAS_BOUNDS = np.empty((2, 0), np.float32)


class ItemIndex:
    """Exact top-K by inner product over a catalogue of float32 vectors.

    Scores are float32 dot products, summed in the one fixed order of :data:`recserve.kernels.simd.dot` (plus
    the bias): they depend on the two vectors alone, so a query gets the same answer, bit for bit, alone and
    in any batch, on any processor. The order of an answer is total: score descending, then item_index
    ascending.

    Searches never start threads and release the GIL; one index may be searched by many threads at once, also
    while others change it: a search answers from the version that is there when it begins.
    """

    def __init__(self, snapshot: Snapshot, isa: Isa | None) -> None:
        """Use :meth:`build` or :meth:`open`."""
        self._snapshot = snapshot  # replaced as a whole, read once per search
        self._dim = int(snapshot.base.vectors.shape[1])
        self._isa = isa
        self._change_lock = threading.Lock()  # one change at a time; searches do not take it
        self._counters_lock = threading.Lock()
        self._counters = np.zeros(3, np.int64)

    @classmethod
    def build(cls, vectors: Scores, *, isa: str | None = None) -> Self:
        """Builds the index from ``vectors``: (n_items, d) float32, n_items ≥ 0, 1 ≤ d ≤ 1024.

        Row i is item_index i. The rows are copied once, in the order of their norms. ``isa`` is the
        instruction set to search with, by default the best of this machine; the answers are the same. Raises
        InvalidRequest if a value is NaN or infinite or a norm exceeds 1e18, and names the row.
        """
        choice = choose(isa)
        vectors = checks.check_matrix("vectors", vectors)
        norms = _norms(vectors)
        items = np.arange(len(vectors), dtype=np.int32)
        return cls(versions.build(vectors, norms, items, len(vectors)), choice)

    @classmethod
    def open(cls, folder: str | Path, *, isa: str | None = None) -> Self:
        """Opens what :meth:`save` wrote, memory-mapped, so that processes share it; ``isa`` as in build.

        Raises BundleInvalid, naming the file, if the folder does not hold a whole index.
        """
        choice = choose(isa)
        return cls(storage.load(Path(folder)), choice)

    def save(self, folder: str | Path) -> None:
        """Writes the index to ``folder``, which must be new or empty; all or nothing."""
        with self._change_lock:
            storage.save(versions.rebuild(self._snapshot), Path(folder))

    @property
    def n_items(self) -> int:
        """The number of items: every item_index is below it."""
        return len(self._snapshot.row_of_item)

    @property
    def dim(self) -> int:
        """The embedding size d."""
        return self._dim

    def upsert(self, item_indices: Indices, vectors: Scores) -> None:
        """Adds items or replaces their vectors; the next search sees it.

        item_indices: (n,) int32; of an item that is there twice the last counts; new items continue the
        numbering, without gaps after this call · vectors: (n, d) float32. New vectors are scanned in float32
        until they are a sixteenth of the index; the call that makes them so rebuilds it, in the caller's
        thread, while searches go on. Raises InvalidRequest as build does.
        """
        vectors = checks.check_matrix("vectors", vectors, self._dim)
        _norms(vectors)
        with self._change_lock:
            items = checks.check_items("item_indices", item_indices, MAX_ITEMS)
            if len(items) != len(vectors):
                raise InvalidRequest("item_indices", found=f"{len(items)} items", expected=f"{len(vectors)}")
            # The last of several: np.unique returns the first position in the reversed array.
            unique, position = np.unique(items[::-1], return_index=True)
            n_new = np.count_nonzero(unique >= self.n_items)
            if len(unique) and unique[-1] >= self.n_items + n_new:
                raise InvalidRequest(
                    "item_indices",
                    found=f"up to {unique[-1]} with gaps",
                    expected=f"new items numbered from {self.n_items} on, without gaps",
                )
            changed = versions.upsert(self._snapshot, unique, vectors[::-1][position])
            self._snapshot = versions.rebuild(changed) if versions.needs_rebuild(changed) else changed

    def remove(self, item_indices: Indices) -> None:
        """Takes items out of every answer from the next search on; the numbers of the others stay.

        item_indices: (n,) int32 below n_items; an item that is not there any more is ignored.
        """
        with self._change_lock:
            items = checks.check_items("item_indices", item_indices, self.n_items)
            self._snapshot = versions.remove(self._snapshot, np.unique(items))

    def rebuild(self) -> None:
        """Packs every item that is there into the fast part of the index; answers do not change."""
        with self._change_lock:
            self._snapshot = versions.rebuild(self._snapshot)

    def prepare_filter(self, mask: Mask) -> ItemFilter:
        """Prepares a mask, (n_items,) bool, to be used in many searches and combined with others."""
        snapshot = self._snapshot
        mask = checks.check_allow(mask, 1, len(snapshot.row_of_item))[0].copy()
        return ItemFilter(read_only(mask), snapshot.base)

    def stats(self) -> dict[str, Any]:
        """What the index is and has done: counters of all searches since it was made.

        isa · n_items, tail_items · bytes_per_item · queries answered · tiles: the number of tiles ·
        tiles_scanned by the first pass, counted per query · rows_scored in float32 after it (the portable
        path counts neither).
        """
        snapshot = self._snapshot
        arrays = (*snapshot.base, *snapshot.tiles, *snapshot.tail, snapshot.live, snapshot.row_of_item)
        with self._counters_lock:
            queries, tiles_scanned, rows_scored = self._counters.tolist()
        return {
            "isa": self._isa.name if self._isa else PORTABLE,
            "n_items": self.n_items,
            "tail_items": len(snapshot.tail.item_of_row),
            "bytes_per_item": sum(array.nbytes for array in arrays) / max(1, self.n_items),
            "queries": queries,
            "tiles": len(snapshot.base.norm_bounds),
            "tiles_scanned": tiles_scanned,
            "rows_scored": rows_scored,
        }

    def search(
        self,
        queries: Scores,
        k: int,
        *,
        exclude: Exclude | None = None,
        allow: Allow | None = None,
        bias: Scores | None = None,
    ) -> tuple[Scores, Indices]:
        """Returns (scores, indices), both (batch, k), float32 and int32; short rows end in −inf and −1.

        queries: (batch, d) float32 · exclude: (indptr (batch + 1,) int64, item_indices int32), per query
        the items never to return, unsorted and repeated as they come · allow: (n_items,) or (batch,
        n_items) bool, True where an item may be returned, or a prepared filter, or one (or None) per query
        · bias: (n_items,) float32 added to the scores, within ±1e37. Raises InvalidRequest, naming the row,
        for NaN, Inf or item indices out of range.
        """
        snapshot = self._snapshot
        queries = checks.check_matrix("queries", queries, self._dim)
        k = checks.check_k(k)
        batch = len(queries)
        words = search_words(snapshot, batch, exclude, allow)
        bias_bounds = _NO_BIAS_BOUNDS
        if bias is None:
            bias = _NO_BIAS
        else:
            bias = checks.check_bias(bias, len(snapshot.row_of_item))
            bias_bounds = _bias_bounds(snapshot, bias)
        scores = np.empty((batch, k), np.float32)
        indices = np.empty((batch, k), np.int32)
        counters = np.array([batch, 0, 0])
        arguments = (
            *snapshot.base,
            *snapshot.tail,
            words,
            bias,
            bias_bounds,
            queries,
            scores,
            indices,
            counters,
        )
        if self._isa is None:
            refused = search_rows(*arguments)
        else:
            few = batch <= MAX_FEW
            search, blocking = (search_planes, self._isa.single) if few else (search_tiles, self._isa.block)
            refused = search(blocking, self._isa.query_limit, *snapshot.tiles, *arguments)
        if refused >= 0:
            raise checks.refuse_row("queries", queries, refused)
        with self._counters_lock:
            self._counters += counters
        return scores, indices


def _norms(vectors: Scores) -> Scores:
    """Upper bounds of the norms of item vectors; refuses a row that is not finite or too large."""
    norms = np.empty(len(vectors), np.float32)
    refused = packing.row_norms(vectors, norms)
    if refused >= 0:
        raise checks.refuse_row("vectors", vectors, refused)
    return norms


def _bias_bounds(snapshot: Snapshot, bias: Scores) -> Scores:
    bounds = np.empty((2, snapshot.live.shape[1]), np.float32)
    for rows, first_word in ((snapshot.base, 0), (snapshot.tail, snapshot.n_base_words)):
        masks.bias_bounds(bias, rows.item_of_row, first_word, bounds)
    return bounds


def exact_top_k(
    vectors: Scores,
    queries: Scores,
    k: int,
    *,
    exclude: Exclude | None = None,
    allow: Mask | None = None,
    bias: Scores | None = None,
) -> tuple[Scores, Indices]:
    """Searches ``vectors`` once, without keeping an index; arguments and result are ItemIndex.search's."""
    return ItemIndex.build(vectors).search(queries, k, exclude=exclude, allow=allow, bias=bias)
