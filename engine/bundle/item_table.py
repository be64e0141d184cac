"""The vectors of the items as a bundle stores them: float32, float16, or 8-bit codes with a scale a row.

A graph reads the stored parts and widens the rows that it gathers; everything else works on float32 vectors,
which are, number for number, what the graph makes of the same rows.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recserve.engine.bundle.layout import ITEM_EMBEDDINGS, ITEM_EMBEDDINGS_INITIALIZER
from recserve.errors import BundleInvalid, BundleReason

FLOAT32, FLOAT16, INT8 = "float32", "float16", "int8"
HALVES, CODES, SCALES = "item_halves", "item_codes", "item_scales"
MAX_CODE = 127

# The stored parts by the initializer that a graph reads each through.
Parts = dict[str, NDArray[Any]]


class Part(NamedTuple):
    """One array of a table: its file, its type, and whether a row of it is one number."""

    file: str
    dtype: np.dtype[Any]
    is_column: bool = False

    def shape(self, n_items: int, embedding_size: int) -> tuple[int, int]:
        """Returns the shape for a catalogue."""
        return n_items, 1 if self.is_column else embedding_size


FORMS: Mapping[str, Mapping[str, Part]] = {
    FLOAT32: {ITEM_EMBEDDINGS_INITIALIZER: Part(ITEM_EMBEDDINGS, np.dtype("<f4"))},
    FLOAT16: {HALVES: Part("item_halves.npy", np.dtype("<f2"))},
    INT8: {
        CODES: Part("item_codes.npy", np.dtype("i1")),
        SCALES: Part("item_scales.npy", np.dtype("<f4"), is_column=True),
    },
}


def pack(vectors: NDArray[np.float32], form: str) -> Parts:
    """Returns the parts of ``vectors`` (n_items, embedding_size) in ``form``, one of :data:`FORMS`.

    8-bit codes are the nearest multiples of a row's largest magnitude / 127. Raises :class:`BundleInvalid`
    for vectors that float16 cannot hold.
    """
    if form == FLOAT32:
        return {ITEM_EMBEDDINGS_INITIALIZER: vectors}
    if form == FLOAT16:
        with np.errstate(over="ignore"):
            halves = vectors.astype(np.float16)
        check_finite("the item table as float16", halves)
        return {HALVES: halves}
    scales = np.abs(vectors).max(axis=1, keepdims=True) / np.float32(MAX_CODE)
    codes = np.rint(vectors / np.where(scales > 0, scales, np.float32(1)))
    return {CODES: codes.astype(np.int8), SCALES: scales}


def unpack(parts: Parts) -> NDArray[np.float32]:
    """Returns the vectors (n_items, embedding_size) of stored parts; those of float32 are the part itself."""
    if ITEM_EMBEDDINGS_INITIALIZER in parts:
        return parts[ITEM_EMBEDDINGS_INITIALIZER]
    if HALVES in parts:
        return parts[HALVES].astype(np.float32)
    vectors = parts[CODES].astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # The reader looks whether all are numbers.
        vectors *= parts[SCALES]
    return vectors


def check_finite(name: str, array: NDArray[Any]) -> None:
    """Raises :class:`BundleInvalid` unless every number of ``array`` is one."""
    if not np.isfinite(array).all():
        raise BundleInvalid(
            name, found="NaN or infinite", expected="finite numbers", reason=BundleReason.NOT_FINITE
        )
