"""The item index: a catalogue made ready for exact top-K search."""

import threading
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from recserve.errors import InvalidRequest
from recserve.kernels import checks, metrics, packing, storage
from recserve.kernels import snapshot as versions
from recserve.kernels.calibration import Calibration, measure
from recserve.kernels.checks import FLOAT32, INT32, Exclude, read_only
from recserve.kernels.filters import Allow, ItemFilter, Mask, search_words
from recserve.kernels.helpers import MIN_PART, search_together
from recserve.kernels.isa import PORTABLE, Isa, choose
from recserve.kernels.metrics import Metric
from recserve.kernels.search import search_forms
from recserve.kernels.snapshot import Snapshot
from recserve.kernels.table import BIAS, BIAS_BOUNDS, WORDS, Table, put

Scores = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int32]

MAX_ITEMS = 2**31 - 1
MAX_FEW = 3  # queries that are searched one by one: from 4 on a block is faster


class ItemIndex:
    """Exact top-K by inner product, cosine or distance over a catalogue of float32 vectors.

    Scores are float32 dot products, summed in the one fixed order of :data:`recserve.kernels.simd.dot` (plus
    the bias): they depend on the two vectors alone, so a query gets the same answer, bit for bit, alone and
    in any batch, on any processor. The order of an answer is total: score descending, then item_index
    ascending.

    Searches release the GIL and use the caller's thread alone unless ``threads`` says more; one index may be
    searched by many threads at once, also while others change it: a search answers from the version that is
    there when it begins.
    """

    def __init__(
        self, snapshot: Snapshot, isa: Isa | None, metric: Metric, calibration: Calibration | None = None
    ) -> None:
        """Use :meth:`build` or :meth:`open`."""
        self._metric = metric
        self._calibration = calibration
        self._snapshot = snapshot  # replaced as a whole, read once per search
        self._dim = int(snapshot.base.vectors.shape[1])
        self._isa = isa
        self._search_few, self._search_many = search_forms(isa)
        self._change_lock = threading.Lock()  # one change at a time; searches do not take it
        self._counters = np.zeros(3, np.int64)  # kernels add to it, atomically

    @classmethod
    def build(cls, vectors: Scores, *, metric: str = "inner", isa: str | None = None) -> Self:
        """Builds the index from ``vectors``: (n_items, d) float32, n_items ≥ 0, 1 ≤ d ≤ 1024.

        Row i is item_index i. The rows are copied once, in the order of their norms. ``metric``: what a score
        is, "inner" for the inner product, "cosine", or "l2" for q·x − |x|²/2, which is the higher the nearer
        the item (:meth:`squared_distances`). ``isa`` is the instruction set to search with, by default the
        best of this machine; the answers are the same. Raises InvalidRequest if a value is NaN or infinite or
        a norm exceeds 1e18, and names the row.
        """
        choice, metric = choose(isa), metrics.check(metric)
        vectors = checks.check_matrix("vectors", vectors)
        norms = _norms(vectors)
        bias = metrics.item_bias(metric, vectors)
        if metric == "cosine":
            vectors = metrics.prepare(metric, vectors)
            norms = _norms(vectors)
        items = np.arange(len(vectors), dtype=np.int32)
        return cls(versions.build(vectors, norms, items, len(vectors), bias), choice, metric)

    @classmethod
    def open(cls, folder: str | Path, *, isa: str | None = None) -> Self:
        """Opens what :meth:`save` wrote, memory-mapped, so that processes share it; ``isa`` as in build.

        Raises BundleInvalid, naming the file, if the folder does not hold a whole index.
        """
        choice = choose(isa)
        snapshot, metric, calibration = storage.load(Path(folder))
        return cls(snapshot, choice, metric, calibration)

    def copy(self) -> "ItemIndex":
        """Returns an index of its own, which changes alone; what both have they share."""
        return ItemIndex(self._snapshot, self._isa, self._metric, self._calibration)

    def save(self, folder: str | Path) -> None:
        """Writes the index to ``folder``, which must be new or empty; all or nothing."""
        with self._change_lock:
            storage.save(versions.rebuild(self._snapshot), self._metric, self._calibration, Path(folder))

    @property
    def snapshot(self) -> Snapshot:
        """The version that a search which begins now answers from."""
        return self._snapshot

    @property
    def n_items(self) -> int:
        """The number of items: every item_index is below it."""
        return len(self._snapshot.row_of_item)

    @property
    def dim(self) -> int:
        """The embedding size d."""
        return self._dim

    @property
    def metric(self) -> str:
        """What a score is: "inner", "cosine" or "l2"."""
        return self._metric

    def squared_distances(self, queries: Scores, scores: Scores) -> Scores:
        """Returns ‖q − x‖² = |q|² − 2 · score, (batch, k) float32, for the answer of an "l2" index.

        Computed in float64 from the float32 score, so it is right up to the rounding of the score, about 2⁻²⁴
        of |q|² + |x|², and at least 0; padding (−inf) becomes +inf. Raises InvalidRequest for another metric.
        """
        if self._metric != "l2":
            raise InvalidRequest("metric", found=self._metric, expected="l2", cure="Build the index for it.")
        squares = np.einsum("nd,nd->n", queries, queries, dtype=np.float64)
        distances: Scores = np.maximum(squares[:, None] - 2.0 * scores, 0.0).astype(np.float32)
        return distances

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
            vectors = vectors[::-1][position]
            n_new = np.count_nonzero(unique >= self.n_items)
            if len(unique) and unique[-1] >= self.n_items + n_new:
                raise InvalidRequest(
                    "item_indices",
                    found=f"up to {unique[-1]} with gaps",
                    expected=f"new items numbered from {self.n_items} on, without gaps",
                )
            bias = metrics.item_bias(self._metric, vectors)
            changed = versions.upsert(self._snapshot, unique, metrics.prepare(self._metric, vectors), bias)
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

        isa, metric · n_items, tail_items · bytes_per_item · queries answered · tiles: the number of tiles ·
        tiles_scanned by the first pass, counted per query · rows_scored in float32 after it (the portable
        path counts neither).
        """
        snapshot = self._snapshot
        whole = (snapshot.live, snapshot.row_of_item, snapshot.bias, snapshot.bias_bounds)
        arrays = (*snapshot.base, *snapshot.tiles, *snapshot.tail, *whole)
        queries, tiles_scanned, rows_scored = self._counters.tolist()
        return {
            "isa": self._isa.name if self._isa else PORTABLE,
            "metric": self._metric,
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
        recall: float | None = None,
        threads: int = 1,
    ) -> tuple[Scores, Indices]:
        """Returns (scores, indices), both (batch, k), float32 and int32; short rows end in −inf and −1.

        queries: (batch, d) float32 · exclude: (indptr (batch + 1,) int64, item_indices int32), per query
        the items never to return, unsorted and repeated as they come · allow: (n_items,) or (batch,
        n_items) bool, True where an item may be returned, or a prepared filter, or one (or None) per query
        · bias: (n_items,) float32 added to the scores, within ±1e37 · recall: not given, the answer is exact;
        else about this share of the exact answer is found, as :meth:`calibrate` has measured it · threads:
        among how many the queries are shared out, 16 each at least; the answer is the same. Raises
        InvalidRequest, naming the row, for NaN, Inf or item indices out of range.
        """
        reach = 1.0
        if recall is not None:
            if self._calibration is None:
                raise InvalidRequest(
                    "recall",
                    found=recall,
                    expected="none",
                    cure="Measure it first: index.calibrate(queries).",
                )
            reach = self._calibration.choose(recall).reach
        return self._search(queries, k, exclude, allow, bias, reach, self._counters, threads)

    def calibrate(self, queries: Scores, k: int = 10) -> Calibration:
        """Measures what ``search(…, recall=…)`` may leave out.

        queries: (n, d) float32, at least 64, like those to come · k: the list length. Returns the measured
        recall and the share of the tiles scanned for each reach; the index keeps it, and saves it. Where
        leaving out saves nothing, as in a catalogue without structure, on the portable path or for a recall
        that was not reached, such a search stays exact. Measure again when catalogue or queries have changed.
        """

        def search(reach: float) -> tuple[Indices, float]:
            counters = np.zeros(3, np.int64)
            _, indices = self._search(queries, k, None, None, None, reach, counters)
            return indices, float(counters[1])

        self._calibration = measure(search, k, len(checks.check_matrix("queries", queries, self._dim)))
        return self._calibration

    def _search(
        self,
        queries: Scores,
        k: int,
        exclude: Exclude | None,
        allow: Allow | None,
        bias: Scores | None,
        reach: float,
        counters: npt.NDArray[np.int64],
        threads: int = 1,
    ) -> tuple[Scores, Indices]:
        """Counts its work in ``counters``, (3,) int64.

        Where little is to be done, the time of a search is that of the way to the kernel: keep it short.
        """
        snapshot = self._snapshot
        queries = checks.check_queries(queries, self._dim)
        k = checks.check_k(k)
        table: Table = snapshot.table
        _held: tuple[npt.NDArray[Any], ...] = ()
        if exclude is not None or allow is not None or bias is not None:
            # The arrays must live until the kernel returns: a table keeps nothing alive.
            table, _held = _with_masks_and_bias(snapshot, len(queries), exclude, allow, bias)
        if self._metric == "cosine":
            _norms(read_only(queries), "queries")
            queries = metrics.prepare(self._metric, queries)
        scores = np.empty((len(queries), k), FLOAT32)
        indices = np.empty((len(queries), k), INT32)
        arguments = table, queries, reach, scores, indices, counters
        search = self._search_few if len(queries) <= MAX_FEW else self._search_many
        if threads != 1 and checks.check_k(threads, "threads") > 1 and len(queries) >= 2 * MIN_PART:
            refused = search_together(threads, self._isa, search, *arguments)
        else:
            refused = search(*arguments)
        if refused >= 0:
            raise checks.refuse_row("queries", queries, refused)
        return scores, indices


def _with_masks_and_bias(
    snapshot: Snapshot, batch: int, exclude: Exclude | None, allow: Allow | None, bias: Scores | None
) -> tuple[Table, tuple[npt.NDArray[Any], ...]]:
    """The table of a search that is masked or biased, and what it lists beside the snapshot's arrays."""
    other: dict[int, npt.NDArray[Any]] = {}
    if exclude is not None or allow is not None:
        other[WORDS] = search_words(snapshot, batch, exclude, allow)
    if bias is not None:
        bias = checks.check_bias(bias, len(snapshot.row_of_item))
        other[BIAS] = bias + snapshot.bias if len(snapshot.bias) else bias
        other[BIAS_BOUNDS] = versions.bias_bounds(other[BIAS], snapshot.base, snapshot.tail)
    table = snapshot.table.copy()
    for row, array in other.items():
        put(table, row, array)
    return table, tuple(other.values())


def _norms(vectors: Scores, name: str = "vectors") -> Scores:
    """Upper bounds of the norms of rows; refuses a row that is not finite or too large."""
    norms = np.empty(len(vectors), np.float32)
    refused = packing.row_norms(vectors, norms)
    if refused >= 0:
        raise checks.refuse_row(name, vectors, refused)
    return norms


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
