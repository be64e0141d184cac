"""The item index on a GPU: a catalogue in device memory, made ready for exact top-K search."""

import copy
import dataclasses
import threading
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
from numba import cuda

from recserve.errors import InvalidRequest
from recserve.kernels import checks, packing
from recserve.kernels import snapshot as versions
from recserve.kernels.checks import Exclude, read_only
from recserve.kernels.cuda import layout
from recserve.kernels.cuda.arithmetic import SIMULATED
from recserve.kernels.cuda.launch import MAX_BATCH, Launch
from recserve.kernels.cuda.search import Search
from recserve.kernels.filters import Allow, ItemFilter, Mask, Words, search_words
from recserve.kernels.index import ItemIndex
from recserve.kernels.isa import choose

Scores = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int32]

DTYPES = ("float32", "float16", "int8")
MAX_K = 8192  # the answer is put in order by counting, in a time that grows with k²


class CudaItemIndex:
    """Exact top-K by inner product over a catalogue of float32 vectors, on the current CUDA device.

    The answers are those of :class:`recserve.kernels.ItemIndex`, bit for bit: scores are float32 dot products
    in the order of :data:`recserve.kernels.simd.dot`, none of its operations fused, and the order is total.
    This is so for every dtype: "float16" and "int8" only shorten what the first pass reads, with a proven
    bound (:mod:`recserve.kernels.cuda.layout`); the items that it keeps are scored in float32. Where the
    bound cannot tell enough items apart (many equal scores, say), the batch is searched again in float32.

    Bytes per item on the device: about 4·d, and 2·d or d more for "float16" and "int8", d rounded up to 16.

    The first search of a process compiles the kernels; :meth:`warmup` does so ahead. Searches of one index
    wait for each other. An index does not change; :meth:`following` makes the next one of a catalogue that
    does. Nothing here has been timed yet.
    """

    def __init__(self, snapshot: versions.Snapshot, dtype: str, launch: Launch) -> None:
        """Use :meth:`build` or :meth:`of`."""
        self._dtype = dtype
        self._launch = launch
        self._stream = cuda.stream()
        catalogue = layout.upload(snapshot, dtype, self._stream) if len(snapshot.base.item_of_row) else None
        self._catalogue = catalogue
        self._search = Search(catalogue, launch, self._stream) if catalogue else None
        self._lock = threading.Lock()  # guards the buffers and the counters of the search
        self._queries = 0
        self._uploaded_live = snapshot.live
        self._take(snapshot)

    def _take(self, snapshot: versions.Snapshot) -> None:
        """Answers from ``snapshot``, whose base is on the device; its tail is searched on the CPU."""
        self._snapshot = without_vectors(snapshot)
        self._tail = tail_of(snapshot) if len(snapshot.tail.item_of_row) else None
        # The device has the words of the base as they were when it was uploaded.
        self._is_as_uploaded = self._uploaded_live is snapshot.live
        self._is_whole = bool(self._in_base(np.arange(self.n_items)).all())

    def _in_base(self, item_indices: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Which of these items are searched for on the device."""
        rows = self._snapshot.row_of_item[item_indices]
        in_base: npt.NDArray[np.bool_] = (rows >= 0) & (rows < self._snapshot.first_tail_row)
        return in_base

    @classmethod
    def build(
        cls,
        vectors: Scores,
        *,
        dtype: Literal["float32", "float16", "int8"] = "float32",
        launch: Launch | None = None,
    ) -> Self:
        """Builds the index from ``vectors``: (n_items, d) float32, n_items ≥ 0, 1 ≤ d ≤ 1024.

        Row i is item_index i. ``dtype`` is what the first pass reads, the answers are the same. ``launch``
        says how the work is spread, by default as the device needs it. Raises ConfigError if there is no
        CUDA device, InvalidRequest if a value is NaN or infinite or a norm exceeds 1e18, and names the row.
        """
        if dtype not in DTYPES:
            raise InvalidRequest("dtype", found=dtype, expected=f"one of {', '.join(DTYPES)}")
        vectors = checks.check_matrix("vectors", vectors)
        norms = np.empty(len(vectors), np.float32)
        refused = packing.row_norms(vectors, norms)
        if refused >= 0:
            raise checks.refuse_row("vectors", vectors, refused)
        launch = launch or Launch.for_device()
        items = np.arange(len(vectors), dtype=np.int32)
        return cls(
            versions.build(vectors, norms, items, len(vectors), np.empty(0, np.float32)), dtype, launch
        )

    @classmethod
    def of(
        cls,
        index: ItemIndex,
        *,
        dtype: Literal["float32", "float16", "int8"] = "float32",
        launch: Launch | None = None,
    ) -> Self:
        """Builds the index of what ``index`` has now, by inner product; they share their filters."""
        if index.metric != "inner":
            raise InvalidRequest("metric", found=index.metric, expected="inner on a GPU")
        return cls(index.snapshot, dtype, launch or Launch.for_device())

    def following(self, index: ItemIndex) -> Self:
        """Returns the index of what ``index`` has now; this one's searches go on.

        The device's arrays are shared unless ``index`` has been rebuilt since; then all is uploaded anew.
        """
        snapshot = index.snapshot
        if snapshot.base.item_of_row is not self._snapshot.base.item_of_row:
            return type(self)(snapshot, self._dtype, self._launch)
        new = copy.copy(self)
        new._take(snapshot)
        return new

    @property
    def n_items(self) -> int:
        """The number of items: every item_index is below it."""
        return len(self._snapshot.row_of_item)

    @property
    def dim(self) -> int:
        """The embedding size d."""
        return int(self._snapshot.base.vectors.shape[1])

    def prepare_filter(self, mask: Mask) -> ItemFilter:
        """Prepares a mask, (n_items,) bool, to be used in many searches and combined with others."""
        mask = checks.check_allow(mask, 1, self.n_items)[0].copy()
        return ItemFilter(read_only(mask), self._snapshot.base)

    def warmup(self) -> None:
        """Compiles every kernel that a search may need."""
        lists = (np.array([0, min(1, self.n_items)]), np.zeros(min(1, self.n_items), np.int32))
        self.search(np.ones((1, self.dim), np.float32), 1, exclude=lists)

    def stats(self) -> dict[str, Any]:
        """What the index is and has done: counters of all searches since it was made.

        device · dtype · n_items · bytes_per_item on the device · queries answered · rows_scored, those of the
        groups that the first pass kept · queries_searched_again because it could not prove their answer.
        """
        with self._lock:
            counters = self._search.counters if self._search else (0, 0)
            return {
                "device": "simulator" if SIMULATED else str(cuda.get_current_device().name),
                "dtype": self._dtype,
                "n_items": self.n_items,
                "bytes_per_item": self._catalogue.nbytes / self.n_items if self._catalogue else 0.0,
                "queries": self._queries,
                "rows_scored": counters[0],
                "queries_searched_again": counters[1],
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

        Arguments, errors and result are those of :meth:`recserve.kernels.ItemIndex.search`, but for k, which
        is at most 8192. A filter comes from the prepare_filter of any index of the same items.
        """
        queries = checks.check_matrix("queries", queries, self.dim)
        k = checks.check_k(k)
        if k > MAX_K:
            raise InvalidRequest("k", found=k, expected=f"at most {MAX_K} on a GPU")
        batch = len(queries)
        norms = np.empty(batch, np.float32)
        refused = packing.row_norms(queries, norms)
        if refused >= 0:
            raise checks.refuse_row("queries", queries, refused)
        words: Words | None = None
        if allow is not None or not self._is_as_uploaded:
            words = search_words(self._snapshot, batch, None, allow)[:, : self._snapshot.n_base_words]
        if exclude is not None:
            exclude = checks.check_lists("exclude", exclude, batch)
            checks.check_items("exclude item_indices", exclude[1], self.n_items)
        if bias is not None:
            bias = checks.check_bias(bias, self.n_items)
        scores = np.full((batch, k), -np.inf, np.float32)
        indices = np.full((batch, k), -1, np.int32)
        if self._search is not None:
            self._search_base(self._search, queries, norms, words, exclude, bias, scores, indices)
        if self._tail is not None:
            later = self._tail.search(queries, k, exclude=exclude, allow=allow, bias=bias)
            scores, indices = best_of((scores, indices), later, k)
        return scores, indices

    def _search_base(
        self,
        search: Search,
        queries: Scores,
        norms: Scores,
        words: Words | None,
        exclude: Exclude | None,
        bias: Scores | None,
        out_scores: Scores,
        out_indices: Indices,
    ) -> None:
        if exclude is not None and not self._is_whole:
            exclude = some_of_lists(exclude, self._in_base(exclude[1]))
        n_found = min(out_scores.shape[1], len(self._snapshot.base.item_of_row))
        with self._lock:
            self._queries += len(queries)
            for start in range(0, len(queries), MAX_BATCH):
                part = slice(start, start + MAX_BATCH)
                out_scores[part, :n_found], out_indices[part, :n_found] = search.run(
                    queries[part],
                    norms[part],
                    n_found,
                    words if words is None or len(words) == 1 else words[part],
                    None if exclude is None else part_of_lists(exclude, part),
                    bias,
                )


def without_vectors(snapshot: versions.Snapshot) -> versions.Snapshot:
    """The order of the rows, which filters need, without the rows, which are on the device."""
    base = snapshot.base._replace(vectors=read_only(snapshot.base.vectors[:0].copy()))
    tiles = packing.Tiles(*(part[:0].copy() for part in snapshot.tiles))
    return dataclasses.replace(snapshot, base=base, tiles=tiles)


def part_of_lists(lists: Exclude, part: slice) -> Exclude:
    """The lists of some of the queries."""
    indptr, item_indices = lists
    indptr = indptr[part.start : part.stop + 1]
    return indptr - indptr[0], item_indices[indptr[0] : indptr[-1]]


def some_of_lists(lists: Exclude, stays: npt.NDArray[np.bool_]) -> Exclude:
    """The lists without the items that do not stay."""
    indptr, item_indices = lists
    before = np.concatenate([[0], np.cumsum(stays)])
    return before[indptr], item_indices[stays]


def tail_of(snapshot: versions.Snapshot) -> ItemIndex:
    """An index of the items of the tail alone, under their own numbers."""
    nobody, tail = snapshot.base.item_of_row[:0], snapshot.tail
    nothing, no_bias = np.empty((0, tail.vectors.shape[1]), np.float32), np.empty(0, np.float32)
    empty = versions.build(nothing, no_bias, nobody, len(snapshot.row_of_item), no_bias)
    return ItemIndex(versions.upsert(empty, tail.item_of_row, tail.vectors, no_bias), choose(None), "inner")


def best_of(one: tuple[Scores, Indices], other: tuple[Scores, Indices], k: int) -> tuple[Scores, Indices]:
    """The best k of two answers, in the order of topk; they have no item in common."""
    scores, indices = (np.concatenate(pair, axis=1) for pair in zip(one, other, strict=True))
    order = np.lexsort((indices, -scores))[:, :k]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(indices, order, axis=1)
