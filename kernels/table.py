"""A table of addresses: all arrays of a catalogue as one argument of a search.

To take an array over from Python costs Numba about 60 ns, and half a microsecond where other work has filled
the caches meanwhile; a search needs a dozen of them, most of them the same in every call. So a snapshot lists
them once, and the search makes arrays of what is listed.

A table keeps nothing alive: who hands one to a kernel holds the arrays until the kernel returns.
"""

# mypy: allow-untyped-defs

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import carray, config, types
from numba.extending import intrinsic

from recserve.kernels.jit import kernel
from recserve.kernels.packing import Tiles
from recserve.kernels.rows import Rows

Table = npt.NDArray[np.int64]

# The rows of a table: the fields of Tiles, of the base and of the tail, and what masks and bias are.
(
    _HIGH,
    _LOW,
    _BOUNDS,
    _VECTORS,
    _ITEM_OF_ROW,
    _NORM_BOUNDS,
    _TAIL_VECTORS,
    _TAIL_ITEM_OF_ROW,
    _TAIL_NORM_BOUNDS,
    WORDS,
    BIAS,
    BIAS_BOUNDS,
) = range(12)

if config.DISABLE_JIT:

    def pointer(address: int) -> Any:
        """What carray takes."""
        return ctypes.c_void_p(int(address))
else:

    @intrinsic
    def pointer(typing_context: Any, address: Any) -> Any:
        """The pointer to an address, an int64."""

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

        return types.voidptr(types.int64), codegen


def make_table(tiles: Tiles, base: Rows, tail: Rows, *masks_and_bias: npt.NDArray[Any]) -> Table:
    """Lists the arrays of a search: (12, 3) int64, the address and the shape of each.

    masks_and_bias: words, bias and bias_bounds as in rows.Batch. All C-order, flat or of two dimensions.
    """
    table = np.zeros((BIAS_BOUNDS + 1, 3), np.int64)
    for row, array in enumerate((*tiles, *base, *tail, *masks_and_bias)):
        put(table, row, array)
    return table


def put(table: Table, row: int, array: npt.NDArray[Any]) -> None:
    """Writes one array to its row."""
    table[row, 0] = array.ctypes.data
    table[row, 1 : 1 + array.ndim] = array.shape


@kernel
def of_queries(table, start, end):
    """The table of a search for some of the queries: words of its own for each, if there are such."""
    n_rows, n_words = table[WORDS, 1], table[WORDS, 2]
    if n_rows == 1:
        return table
    part = table.copy()
    part[WORDS, 0] += 4 * n_words * start
    part[WORDS, 1] = end - start
    return part


@kernel
def tiles_in(table):
    """The tiles that are listed."""
    high, low, bounds = table[_HIGH], table[_LOW], table[_BOUNDS]
    return Tiles(
        carray(pointer(high[0]), high[1], np.uint8),
        carray(pointer(low[0]), low[1], np.uint8),
        carray(pointer(bounds[0]), (bounds[1], bounds[2]), np.float32),
    )


@kernel
def base_in(table):
    """The rows of the base that are listed."""
    return _rows_in(table, _VECTORS)


@kernel
def tail_in(table):
    """The rows of the tail that are listed."""
    return _rows_in(table, _TAIL_VECTORS)


@kernel
def _rows_in(table, first):
    vectors, items, bounds = table[first], table[first + 1], table[first + 2]
    return Rows(
        carray(pointer(vectors[0]), (vectors[1], vectors[2]), np.float32),
        carray(pointer(items[0]), items[1], np.int32),
        carray(pointer(bounds[0]), bounds[1], np.float32),
    )


@kernel
def masks_and_bias_in(table):
    """The words, the bias and its bounds that are listed."""
    words, bias, bounds = table[WORDS], table[BIAS], table[BIAS_BOUNDS]
    return (
        carray(pointer(words[0]), (words[1], words[2]), np.uint32),
        carray(pointer(bias[0]), bias[1], np.float32),
        carray(pointer(bounds[0]), (bounds[1], bounds[2]), np.float32),
    )
