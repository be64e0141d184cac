"""Which items a search may return: filters prepared once, and the mask words of one search."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from recserve.errors import InvalidRequest
from recserve.kernels import checks, masks
from recserve.kernels.checks import Exclude, read_only
from recserve.kernels.rows import TILE, Rows
from recserve.kernels.snapshot import Snapshot

Mask = npt.NDArray[np.bool_]
Words = npt.NDArray[np.uint32]


class ItemFilter:
    """A rule about items, prepared by ItemIndex.prepare_filter; combine filters with ``&``, ``|`` and ``~``.

    A search that gets a filter instead of a mask need not read one byte per item. It is immutable and stays
    right when the index changes; only a rebuild makes it as slow as a mask again, until it is prepared anew.
    """

    __slots__ = ("_base", "_mask", "_words")

    def __init__(self, mask: Mask, base: Rows, words: Words | None = None) -> None:
        self._mask = mask
        self._base = base
        self._words = _base_words(mask, base) if words is None else words

    def __and__(self, other: "ItemFilter") -> "ItemFilter":
        return ItemFilter(self._mask & other._mask, self._base, self._words & other.base_words(self._base))

    def __or__(self, other: "ItemFilter") -> "ItemFilter":
        return ItemFilter(self._mask | other._mask, self._base, self._words | other.base_words(self._base))

    def __invert__(self) -> "ItemFilter":
        return ItemFilter(~self._mask, self._base, ~self._words)

    @property
    def mask(self) -> Mask:
        """(n_items,) bool, True where an item may be returned."""
        return self._mask

    def base_words(self, base: Rows) -> Words:
        """The mask words of these rows."""
        return self._words if base.item_of_row is self._base.item_of_row else _base_words(self._mask, base)


Allow = Mask | ItemFilter | Sequence[ItemFilter | None]


def _base_words(mask: Mask, base: Rows) -> Words:
    words: Words = np.full(len(base.norm_bounds), 0xFFFFFFFF, np.uint32)
    masks.apply_allow(words[None], 0, read_only(mask[None]), base.item_of_row)
    return words


def search_words(snapshot: Snapshot, batch: int, exclude: Exclude | None, allow: Allow | None) -> Words:
    """The mask words of one search: one row for the whole batch where all queries share it."""
    words = snapshot.live
    if exclude is None and allow is None:
        return words
    if allow is not None:
        words = _allowed_words(snapshot, batch, allow)
    if exclude is not None:
        indptr, item_indices = checks.check_lists("exclude", exclude, batch)
        words = words.copy() if len(words) == batch else np.repeat(words, batch, axis=0)
        refused = masks.apply_exclude(words, indptr, item_indices, snapshot.row_of_item)
        if refused >= 0:
            raise InvalidRequest(
                f"exclude item_indices[{refused}]",
                found=int(item_indices[refused]),
                expected=f"an item_index from 0 to {len(snapshot.row_of_item) - 1}",
            )
    return read_only(words)


def _allowed_words(snapshot: Snapshot, batch: int, allow: Allow) -> Words:
    """The live rows that ``allow`` leaves; one row of words, or one per query."""
    if isinstance(allow, np.ndarray):
        mask = checks.check_allow(allow, batch, len(snapshot.row_of_item))
        words = np.repeat(snapshot.live, len(mask), axis=0)
        masks.apply_allow(words, 0, mask, snapshot.base.item_of_row)
        masks.apply_allow(words, snapshot.n_base_words, mask, snapshot.tail.item_of_row)
        return words
    filters = [allow] if isinstance(allow, ItemFilter) else list(allow)
    if not isinstance(allow, ItemFilter) and len(filters) != batch:
        raise InvalidRequest(
            "allow", found=f"{len(filters)} filters", expected=f"one for each of {batch} queries"
        )
    words = np.repeat(snapshot.live, len(filters), axis=0)
    for row, item_filter in zip(words, filters, strict=True):
        if item_filter is not None:
            _apply_filter(row, item_filter, snapshot)
    return words


def _apply_filter(row: Words, item_filter: ItemFilter, snapshot: Snapshot) -> None:
    n_items, mask = len(snapshot.row_of_item), item_filter.mask
    if len(mask) != n_items:
        found, cure = f"a filter of {len(mask)} items", "Prepare it again after new items have come."
        raise InvalidRequest("allow", found=found, expected=f"one of {n_items} items", cure=cure)
    row[: snapshot.n_base_words] &= item_filter.base_words(snapshot.base)
    tail = snapshot.tail.item_of_row
    bits = np.zeros((len(row) - snapshot.n_base_words) * TILE, np.bool_)
    bits[: len(tail)] = mask[tail]
    row[snapshot.n_base_words :] &= np.packbits(bits, bitorder="little").view("<u4")
