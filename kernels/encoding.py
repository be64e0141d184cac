"""Search results → the protobuf wire format of a slate, without a Python object per item."""

# mypy: allow-untyped-defs

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import config, types

from recserve.kernels.jit import brief_kernel, kernel

# Field numbers of recserve.v1 with their wire types: Slate.items; SlateItem.item_id, score, rank.
TAG_ITEMS, TAG_ITEM_ID, TAG_SCORE, TAG_RANK = 0x0A, 0x0A, 0x15, 0x18
ARGUMENTS = (
    types.int64[::1],
    types.uint8[::1],
    types.int32[:, ::1],
    types.uint32[:, ::1],
    types.int64[::1],
    types.int64[::1],
)


def encode_slate_items(
    id_offsets: npt.NDArray[np.int64],
    id_bytes: npt.NDArray[np.uint8],
    items: npt.NDArray[np.int32],
    scores: npt.NDArray[np.float32],
    lengths: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Returns (bytes, ends): row q is ``bytes[ends[q - 1]:ends[q]]``, the field ``items`` of one Slate.

    id_offsets: (n_items + 1,), id_bytes: item i's UTF-8 is ``id_bytes[id_offsets[i]:id_offsets[i + 1]]`` ·
    items, scores: (batch, k), best first; negative items are left out · lengths: (batch,) how much of each
    row counts. All are C-order and of just these types, which nobody looks at again. Ranks count from 1.
    """
    ends = np.empty(len(items), np.int64)
    return _compiled()(id_offsets, id_bytes, items, scores.view(np.uint32), lengths, ends), ends


@functools.cache
def _compiled() -> Callable[..., Any]:
    """The compiled code itself: to find it by the types costs more than a short list (search.py)."""
    return _encode if config.DISABLE_JIT else _encode.compile(ARGUMENTS)  # type: ignore[no-any-return]


@brief_kernel
def _encode(id_offsets, id_bytes, items, bits, lengths, ends):
    out = np.empty(_measure(id_offsets, items, lengths, ends), np.uint8)
    _write(id_offsets, id_bytes, items, bits, lengths, out)
    return out


@kernel
def _measure(id_offsets, items, lengths, ends):
    position = 0
    for row in range(items.shape[0]):
        rank = 0
        for column in range(lengths[row]):
            item = items[row, column]
            if item >= 0:
                rank += 1
                size = _item_size(id_offsets[item + 1] - id_offsets[item], rank)
                position += 1 + _varint_size(size) + size
        ends[row] = position
    return position


@kernel
def _write(id_offsets, id_bytes, items, bits, lengths, out):
    position = 0
    for row in range(items.shape[0]):
        rank = 0
        for column in range(lengths[row]):
            item = items[row, column]
            if item < 0:
                continue
            rank += 1
            start, end = id_offsets[item], id_offsets[item + 1]
            out[position] = TAG_ITEMS
            position = _write_varint(out, position + 1, _item_size(end - start, rank))
            out[position] = TAG_ITEM_ID
            position = _write_varint(out, position + 1, end - start)
            for i in range(start, end):
                out[position] = id_bytes[i]
                position += 1
            out[position] = TAG_SCORE
            score = bits[row, column]
            for shift in range(4):
                out[position + 1 + shift] = (score >> np.uint32(8 * shift)) & np.uint32(0xFF)
            out[position + 5] = TAG_RANK
            position = _write_varint(out, position + 6, rank)


@kernel
def _item_size(id_length, rank):
    return 1 + _varint_size(id_length) + id_length + 5 + 1 + _varint_size(rank)


@kernel
def _varint_size(value):
    size = 1
    while value >= 0x80:
        value >>= 7
        size += 1
    return size


@kernel
def _write_varint(out, position, value):
    while value >= 0x80:
        out[position] = (value & 0x7F) | 0x80
        position += 1
        value >>= 7
    out[position] = value
    return position + 1
