"""The item index: a catalogue made ready for exact top-K search."""

import threading
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from recserve.errors import InvalidRequest
from recserve.kernels import checks, masks, packing
from recserve.kernels.checks import Exclude, read_only
from recserve.kernels.isa import PORTABLE, Isa, choose
from recserve.kernels.packing import Tiles
from recserve.kernels.rows import Rows
from recserve.kernels.search import search_rows, search_tiles

Scores = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int32]
Words = npt.NDArray[np.uint32]

_NO_BIAS = read_only(np.empty(0, np.float32))
_NO_BIAS_BOUNDS = np.empty((2, 0), np.float32)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One version of the catalogue, never changed: a search reads one snapshot from start to end.

    The rows of ``base`` are in the order of their norms; row numbers of the tail follow after the last tile
    of the base. ``live`` has a bit per row; ``row_of_item`` is −1 for an item that is not there.
    """

    base: Rows
    tiles: Tiles
    tail: Rows
    live: Words
    row_of_item: Indices


class ItemIndex:
    """Exact top-K by inner product over a catalogue of float32 vectors.

    Scores are float32 dot products, summed in the one fixed order of :data:`recserve.kernels.simd.dot` (plus
    the bias): they depend on the two vectors alone, so a query gets the same answer, bit for bit, alone and
    in any batch, on any processor. The order of an answer is total: score descending, then item_index
    ascending.

    Searches never start threads and release the GIL; one index may be searched by many threads at once.
    """

    def __init__(self, snapshot: Snapshot, dim: int, isa: Isa | None) -> None:
        self._snapshot = snapshot
        self._dim = dim
        self._isa = isa
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
        norms = np.empty(len(vectors), np.float32)
        refused = packing.row_norms(vectors, norms)
        if refused >= 0:
            raise checks.refuse_row("vectors", vectors, refused)
        return cls(_build_snapshot(vectors, norms), vectors.shape[1], choice)

    @property
    def n_items(self) -> int:
        """The number of items: every item_index is below it."""
        return len(self._snapshot.row_of_item)

    @property
    def dim(self) -> int:
        """The embedding size d."""
        return self._dim

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
        allow: npt.NDArray[np.bool_] | None = None,
        bias: Scores | None = None,
    ) -> tuple[Scores, Indices]:
        """Returns (scores, indices), both (batch, k), float32 and int32; short rows end in −inf and −1.

        queries: (batch, d) float32 · exclude: (indptr (batch + 1,) int64, item_indices int32), per query the
        items never to return, unsorted and repeated as they come · allow: (n_items,) or (batch, n_items)
        bool, True where an item may be returned · bias: (n_items,) float32 added to the scores, within ±1e37.
        Raises InvalidRequest, naming the row, for NaN, Inf or item indices out of range.
        """
        snapshot = self._snapshot
        queries = checks.check_matrix("queries", queries, self._dim)
        k = checks.check_k(k)
        batch = len(queries)
        words = _words(snapshot, batch, exclude, allow)
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
            snapshot.base,
            snapshot.tail,
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
            blocking = self._isa.blocking_for(batch)
            refused = search_tiles(blocking, self._isa.query_limit, snapshot.tiles, *arguments)
        if refused >= 0:
            raise checks.refuse_row("queries", queries, refused)
        with self._counters_lock:
            self._counters += counters
        return scores, indices


def _build_snapshot(vectors: Scores, norms: Scores) -> Snapshot:
    n_items, dim = vectors.shape
    item_of_row = np.argsort(-norms, kind="stable").astype(np.int32)
    row_of_item = np.empty(n_items, np.int32)
    row_of_item[item_of_row] = np.arange(n_items, dtype=np.int32)
    base = _rows(vectors[item_of_row], item_of_row, norms[item_of_row])
    tiles = Tiles(*map(read_only, packing.pack_tiles(base.vectors, norms[item_of_row])))
    tail = _rows(np.empty((0, dim), np.float32), np.empty(0, np.int32), np.empty(0, np.float32))
    return Snapshot(base, tiles, tail, read_only(masks.live_words(n_items)[None]), read_only(row_of_item))


def _rows(vectors: Scores, item_of_row: Indices, norms: Scores) -> Rows:
    bounds = packing.norm_bounds(norms, vectors.shape[1])
    return Rows(read_only(vectors), read_only(item_of_row), read_only(bounds))


def _words(
    snapshot: Snapshot, batch: int, exclude: Exclude | None, allow: npt.NDArray[np.bool_] | None
) -> Words:
    """The mask words of one search: one row for the whole batch where all queries share it."""
    if exclude is None and allow is None:
        return snapshot.live
    n_items, n_base_words = len(snapshot.row_of_item), len(snapshot.base.norm_bounds)
    words = snapshot.live
    if allow is not None:
        allow = checks.check_allow(allow, batch, n_items)
        words = np.repeat(words, len(allow), axis=0)
        masks.apply_allow(words, 0, allow, snapshot.base.item_of_row)
        masks.apply_allow(words, n_base_words, allow, snapshot.tail.item_of_row)
    if exclude is not None:
        indptr, item_indices = checks.check_lists("exclude", exclude, batch)
        if len(words) != batch or allow is None:
            words = np.repeat(words, batch, axis=0)
        refused = masks.apply_exclude(words, indptr, item_indices, snapshot.row_of_item)
        if refused >= 0:
            raise InvalidRequest(
                f"exclude item_indices[{refused}]",
                found=int(item_indices[refused]),
                expected=f"an item_index from 0 to {n_items - 1}",
            )
    return read_only(words)


def _bias_bounds(snapshot: Snapshot, bias: Scores) -> Scores:
    bounds = np.empty((2, snapshot.live.shape[1]), np.float32)
    n_base_words = len(snapshot.base.norm_bounds)
    for item_of_row, part in (
        (snapshot.base.item_of_row, slice(0, n_base_words)),
        (snapshot.tail.item_of_row, slice(n_base_words, None)),
    ):
        part_bounds = np.empty((2, len(bounds[0, part])), np.float32)
        masks.bias_bounds(bias, item_of_row, part_bounds)
        bounds[:, part] = part_bounds
    return bounds


def exact_top_k(
    vectors: Scores,
    queries: Scores,
    k: int,
    *,
    exclude: Exclude | None = None,
    allow: npt.NDArray[np.bool_] | None = None,
    bias: Scores | None = None,
) -> tuple[Scores, Indices]:
    """Searches ``vectors`` once, without keeping an index; arguments and result are ItemIndex.search's."""
    return ItemIndex.build(vectors).search(queries, k, exclude=exclude, allow=allow, bias=bias)
