"""The vectors of the items as a bundle stores them: float32, float16, codes of 8 bits with a scale a row, or
of 4 bits with a scale for every 32.

A graph reads the stored parts and widens the rows that it gathers; everything else works on float32 vectors,
which are, number for number, what the graph makes of the same rows.
"""

import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recserve.engine.bundle.layout import ITEM_EMBEDDINGS, ITEM_EMBEDDINGS_INITIALIZER
from recserve.errors import BundleInvalid, BundleReason

FLOAT32, FLOAT16, INT8, INT4 = "float32", "float16", "int8", "int4"
HALVES, CODES, SCALES = "item_halves", "item_codes", "item_scales"
NIBBLES, BLOCK_SCALES = "item_nibbles", "item_block_scales"
MAX_CODE = 127
# Of 4 bits: what stands for 0, how far codes go from it, and how many dimensions share a scale.
ZERO_NIBBLE, MAX_NIBBLE, BLOCK = 8, 7, 32

# The stored parts by the initializer that a graph reads each through.
Parts = dict[str, NDArray[Any]]


class Part(NamedTuple):
    """One array of a table: its file, its type, and of how many dimensions a number of it tells."""

    file: str
    dtype: np.dtype[Any]
    dimensions: int = 1

    def shape(self, n_items: int, embedding_size: int) -> tuple[int, int]:
        """Returns the shape for a catalogue."""
        return n_items, -(-embedding_size // self.dimensions)


FORMS: Mapping[str, Mapping[str, Part]] = {
    FLOAT32: {ITEM_EMBEDDINGS_INITIALIZER: Part(ITEM_EMBEDDINGS, np.dtype("<f4"))},
    FLOAT16: {HALVES: Part("item_halves.npy", np.dtype("<f2"))},
    INT8: {
        CODES: Part("item_codes.npy", np.dtype("i1")),
        SCALES: Part("item_scales.npy", np.dtype("<f4"), dimensions=sys.maxsize),
    },
    INT4: {
        NIBBLES: Part("item_nibbles.npy", np.dtype("u1"), dimensions=2),
        BLOCK_SCALES: Part("item_block_scales.npy", np.dtype("<f4"), dimensions=BLOCK),
    },
}


def pack(vectors: NDArray[np.float32], form: str) -> Parts:
    """Returns the parts of ``vectors`` (n_items, embedding_size) in ``form``, one of :data:`FORMS`.

    8-bit codes are the nearest multiples of a row's largest magnitude / 127, 4-bit codes of a block's / 7,
    two a byte, the first in the low bits. Raises :class:`BundleInvalid` for vectors that float16 cannot hold.
    """
    if form == FLOAT32:
        return {ITEM_EMBEDDINGS_INITIALIZER: vectors}
    if form == FLOAT16:
        with np.errstate(over="ignore"):
            halves = vectors.astype(np.float16)
        check_finite("the item table as float16", halves)
        return {HALVES: halves}
    if form == INT4:
        return _pack_blocks(vectors)
    codes, scales = _codes(vectors, MAX_CODE)
    return {CODES: codes.astype(np.int8), SCALES: scales}


def unpack(parts: Parts) -> NDArray[np.float32]:
    """Returns the vectors (n_items, embedding_size) of stored parts; those of float32 are the part itself."""
    if ITEM_EMBEDDINGS_INITIALIZER in parts:
        return parts[ITEM_EMBEDDINGS_INITIALIZER]
    if HALVES in parts:
        return parts[HALVES].astype(np.float32)
    if NIBBLES in parts:
        return _unpack_blocks(parts[NIBBLES], parts[BLOCK_SCALES])
    vectors = parts[CODES].astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # The reader looks whether all are numbers.
        vectors *= parts[SCALES]
    return vectors


def _codes(rows: NDArray[np.float32], largest: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Returns whole numbers from −largest to largest, and what one stands for in each row (..., 1)."""
    scales = np.abs(rows).max(axis=-1, keepdims=True) / np.float32(largest)
    return np.rint(rows / np.where(scales > 0, scales, np.float32(1))), scales


def _pack_blocks(vectors: NDArray[np.float32]) -> Parts:
    n_items, size = vectors.shape
    blocks = np.pad(vectors, ((0, 0), (0, -size % BLOCK))).reshape(n_items, -1, BLOCK)
    codes, scales = _codes(blocks, MAX_NIBBLE)
    nibbles = (codes + ZERO_NIBBLE).astype(np.uint8).reshape(n_items, -1)[:, :size]
    return {NIBBLES: nibbles[:, ::2] | nibbles[:, 1::2] << 4, BLOCK_SCALES: scales[..., 0]}


def _unpack_blocks(nibbles: NDArray[np.uint8], scales: NDArray[np.float32]) -> NDArray[np.float32]:
    codes = np.stack([nibbles & 15, nibbles >> 4], axis=-1).reshape(len(nibbles), -1).astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # As above.
        vectors: NDArray[np.float32] = (codes - ZERO_NIBBLE) * scales.repeat(BLOCK, axis=1)[
            :, : codes.shape[1]
        ]
    return vectors


def check_finite(name: str, array: NDArray[Any]) -> None:
    """Raises :class:`BundleInvalid` unless every number of ``array`` is one."""
    if not np.isfinite(array).all():
        raise BundleInvalid(
            name, found="NaN or infinite", expected="finite numbers", reason=BundleReason.NOT_FINITE
        )
