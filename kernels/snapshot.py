"""The versions of a catalogue: each is immutable, and a change makes the next one.

A snapshot has a *base*, sorted by norm and packed into tiles, and a *tail* of the items that came since,
which is scanned in float32. An item that is replaced or removed loses its bit in ``live``; its row stays
until the next rebuild.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from recserve.kernels import masks, packing
from recserve.kernels.checks import read_only
from recserve.kernels.packing import Tiles
from recserve.kernels.rows import TILE, Rows
from recserve.kernels.table import Table, make_table

Vectors = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int32]
Words = npt.NDArray[np.uint32]

MIN_TAIL = 4096  # up to here a scan of the tail costs less than a rebuild is worth
TAIL_SHARE = 16  # beyond it, a tail of a sixteenth of the base makes searches about a third slower


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One version of the catalogue: a search reads one snapshot from start to end.

    live: (1, n_words) uint32, a bit per row, base first · row_of_item: (n_items,) int32, −1 for an item that
    is not there · bias: (n_items,) float32 that every search adds, or (0,) · bias_bounds: (2, n_words)
    float32 of masks.bias_bounds, or (2, 0) · table: the arrays of an unmasked search. The rows of the tail
    are numbered from the first multiple of 32 after the base.
    """

    base: Rows
    tiles: Tiles
    tail: Rows
    live: Words
    row_of_item: Indices
    bias: Vectors
    bias_bounds: Vectors
    table: Table = field(init=False)

    def __post_init__(self) -> None:
        table = make_table(self.tiles, self.base, self.tail, self.live, self.bias, self.bias_bounds)
        object.__setattr__(self, "table", table)

    @property
    def n_base_words(self) -> int:
        """The number of mask words before those of the tail."""
        return len(self.base.norm_bounds)

    @property
    def first_tail_row(self) -> int:
        """The row number of the first row of the tail."""
        return self.n_base_words * TILE


def build(vectors: Vectors, norms: Vectors, items: Indices, n_items: int, bias: Vectors) -> Snapshot:
    """A snapshot of these items alone.

    vectors: (n, d) · norms: (n,) · items: (n,) their item indices · bias: (n_items,), or (0,) for none.
    """
    order = np.lexsort((items, -norms))
    item_of_row = items[order]
    row_of_item = np.full(n_items, -1, np.int32)
    row_of_item[item_of_row] = np.arange(len(items), dtype=np.int32)
    base = make_rows(vectors[order], norms[order], item_of_row)
    tiles = Tiles(*map(read_only, packing.pack_tiles(base.vectors, norms[order])))
    tail = make_rows(vectors[:0].copy(), norms[:0], items[:0].copy())
    live = read_only(masks.live_words(len(items))[None])
    bounds = bias_bounds(bias, base, tail)
    return Snapshot(base, tiles, tail, live, read_only(row_of_item), read_only(bias), bounds)


def bias_bounds(bias: Vectors, base: Rows, tail: Rows) -> Vectors:
    """The bounds of a bias for all words, see masks.bias_bounds; (2, 0) for no bias."""
    n_base_words = len(base.norm_bounds)
    bounds = np.empty((2, n_base_words + len(tail.norm_bounds) if len(bias) else 0), np.float32)
    if len(bias):
        for rows, first_word in ((base, 0), (tail, n_base_words)):
            masks.bias_bounds(read_only(bias), rows.item_of_row, first_word, bounds)
    return bounds


def make_rows(vectors: Vectors, norms: Vectors, item_of_row: Indices) -> Rows:
    """Rows with their bounds."""
    bounds = packing.norm_bounds(norms, vectors.shape[1])
    return Rows(read_only(vectors), read_only(item_of_row), read_only(bounds))


def upsert(snapshot: Snapshot, items: Indices, vectors: Vectors, item_bias: Vectors) -> Snapshot:
    """The next version, in which ``items``, without repetitions, have these vectors and biases (or none)."""
    n_items = max(len(snapshot.row_of_item), int(items.max(initial=-1)) + 1)
    bias = snapshot.bias
    if len(item_bias):
        bias = np.concatenate([bias, np.zeros(n_items - len(bias), np.float32)])
        bias[items] = item_bias
    return _with_tail(snapshot, items, items, vectors, n_items, bias)


def remove(snapshot: Snapshot, items: Indices) -> Snapshot:
    """The next version, without ``items``."""
    nothing = snapshot.tail.vectors[:0]
    return _with_tail(snapshot, items, items[:0], nothing, len(snapshot.row_of_item), snapshot.bias)


def _with_tail(
    snapshot: Snapshot, gone: Indices, items: Indices, vectors: Vectors, n_items: int, bias: Vectors
) -> Snapshot:
    """The next version: without ``gone``, then with ``items`` at the end of the tail."""
    stays = ~np.isin(snapshot.tail.item_of_row, gone)
    tail_items = np.concatenate([snapshot.tail.item_of_row[stays], items])
    tail_vectors = np.concatenate([snapshot.tail.vectors[stays], vectors])
    norms = np.empty(len(tail_items), np.float32)
    packing.row_norms(read_only(tail_vectors), norms)
    tail = make_rows(tail_vectors, norms, tail_items)

    row_of_item = np.full(n_items, -1, np.int32)
    row_of_item[: len(snapshot.row_of_item)] = snapshot.row_of_item
    base_live = snapshot.live[0, : snapshot.n_base_words].copy()
    rows = row_of_item[gone]
    rows = rows[(rows >= 0) & (rows < snapshot.first_tail_row)]
    np.bitwise_and.at(base_live, rows // TILE, ~(np.uint32(1) << (rows % TILE).astype(np.uint32)))
    row_of_item[gone] = -1
    row_of_item[tail_items] = snapshot.first_tail_row + np.arange(len(tail_items), dtype=np.int32)
    live = np.concatenate([base_live, masks.live_words(len(tail_items))])[None]
    bounds = bias_bounds(bias, snapshot.base, tail)
    return Snapshot(
        snapshot.base, snapshot.tiles, tail, read_only(live), read_only(row_of_item), read_only(bias), bounds
    )


def needs_rebuild(snapshot: Snapshot) -> bool:
    """True if the tail has grown so long that searches suffer."""
    return len(snapshot.tail.item_of_row) > max(MIN_TAIL, len(snapshot.base.item_of_row) // TAIL_SHARE)


def rebuild(snapshot: Snapshot) -> Snapshot:
    """The same catalogue with everything in the base; the same snapshot where all is there already."""
    n_items = int(np.count_nonzero(snapshot.row_of_item >= 0))
    if n_items == len(snapshot.base.item_of_row) and not len(snapshot.tail.item_of_row):
        return snapshot
    items = np.flatnonzero(snapshot.row_of_item >= 0).astype(np.int32)
    rows = snapshot.row_of_item[items]
    in_base = rows < snapshot.first_tail_row
    vectors = np.empty((len(items), snapshot.base.vectors.shape[1]), np.float32)
    vectors[in_base] = snapshot.base.vectors[rows[in_base]]
    vectors[~in_base] = snapshot.tail.vectors[rows[~in_base] - snapshot.first_tail_row]
    norms = np.empty(len(items), np.float32)
    packing.row_norms(read_only(vectors), norms)
    return build(vectors, norms, items, len(snapshot.row_of_item), snapshot.bias)
