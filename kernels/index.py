"""The item index: a catalogue made ready for exact top-K search."""

from typing import Self

import numpy as np
import numpy.typing as npt

from recserve.errors import InvalidRequest
from recserve.kernels import checks, masks, packing
from recserve.kernels.checks import Exclude
from recserve.kernels.rows import scan_rows

Scores = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int32]

_NO_BIAS = checks.read_only(np.empty(0, np.float32))


class ItemIndex:
    """Exact top-K by inner product over a catalogue of float32 vectors.

    Scores are float32 dot products, summed in the one fixed order of :data:`recserve.kernels.simd.dot` (plus
    the bias): they depend on the two vectors alone, so a query gets the same answer, bit for bit, alone and
    in any batch, on any processor. The order of an answer is total: score descending, then item_index
    ascending.

    Searches never start threads and release the GIL; one index may be searched by many threads at once.
    """

    def __init__(self, vectors: Scores, item_of_row: Indices, row_of_item: Indices, norms: Scores) -> None:
        self._vectors = checks.read_only(vectors)
        self._item_of_row = checks.read_only(item_of_row)
        self._row_of_item = checks.read_only(row_of_item)
        self._norm_bounds = checks.read_only(packing.norm_bounds(norms, vectors.shape[1]))
        self._live = masks.live_words(len(vectors))

    @classmethod
    def build(cls, vectors: Scores) -> Self:
        """Builds the index from ``vectors``: (n_items, d) float32, n_items ≥ 0, 1 ≤ d ≤ 1024.

        Row i is item_index i. The rows are copied once, in the order of their norms. Raises InvalidRequest if
        a value is NaN or infinite or a norm exceeds 1e18, and names the row.
        """
        vectors = checks.check_matrix("vectors", vectors)
        norms = np.empty(len(vectors), np.float32)
        refused = packing.row_norms(vectors, norms)
        if refused >= 0:
            raise checks.refuse_row("vectors", vectors, refused)
        item_of_row = np.argsort(-norms, kind="stable").astype(np.int32)
        row_of_item = np.empty(len(vectors), np.int32)
        row_of_item[item_of_row] = np.arange(len(vectors), dtype=np.int32)
        return cls(vectors[item_of_row], item_of_row, row_of_item, norms[item_of_row])

    @property
    def n_items(self) -> int:
        """The number of items: every item_index is below it."""
        return len(self._row_of_item)

    @property
    def dim(self) -> int:
        """The embedding size d."""
        return int(self._vectors.shape[1])

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
        queries = checks.check_matrix("queries", queries, self.dim)
        k = checks.check_k(k)
        batch = len(queries)
        query_norms = np.empty(batch, np.float32)
        refused = packing.row_norms(queries, query_norms)
        if refused >= 0:
            raise checks.refuse_row("queries", queries, refused)

        words = self._words(batch, exclude, allow)
        bias_bounds = np.zeros(len(self._norm_bounds), np.float32)
        if bias is None:
            bias = _NO_BIAS
        else:
            bias = checks.check_bias(bias, self.n_items)
            masks.bias_bounds(bias, self._item_of_row, bias_bounds)

        scores = np.full((batch, k), -np.inf, np.float32)
        indices = np.full((batch, k), -1, np.int32)
        found = min(k, self.n_items)
        if found and batch:
            out = (scores, indices) if found == k else (scores[:, :found].copy(), indices[:, :found].copy())
            scan_rows(
                self._vectors,
                self._item_of_row,
                self._norm_bounds,
                words,
                bias,
                bias_bounds,
                queries,
                query_norms,
                *out,
            )
            scores[:, :found], indices[:, :found] = out
        return scores, indices

    def _words(
        self, batch: int, exclude: Exclude | None, allow: npt.NDArray[np.bool_] | None
    ) -> npt.NDArray[np.uint32]:
        """The mask words of one search: one row for the whole batch where all queries share it."""
        if allow is not None:
            allow = checks.check_allow(allow, batch, self.n_items)
        n_rows = batch if exclude is not None or (allow is not None and len(allow) > 1) else 1
        words = np.tile(self._live, (n_rows, 1))
        if allow is not None:
            if len(allow) == n_rows:
                masks.apply_allow(words, allow, self._item_of_row)
            else:
                masks.apply_allow(words[:1], allow, self._item_of_row)
                words[1:] = words[0]
        if exclude is not None:
            indptr, item_indices = checks.check_exclude(exclude, batch)
            refused = masks.apply_exclude(words, indptr, item_indices, self._row_of_item)
            if refused >= 0:
                raise InvalidRequest(
                    f"exclude item_indices[{refused}]",
                    found=int(item_indices[refused]),
                    expected=f"an item_index from 0 to {self.n_items - 1}",
                )
        return words


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
