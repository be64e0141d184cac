"""Symmetric positive definite systems of a model's width in float64: a Cholesky factor, tile by tile.

A matrix has whole tiles, of ``ROWS`` rows and ``LANES`` columns; what is beyond the system's own size is the
identity, on the right zeros. Nearly all the work is one step, a product subtracted from a tile that stays in
registers, which the loops of plain Numba do at a quarter of the speed.
"""

# mypy: allow-untyped-defs

from typing import Any

import numpy as np
from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic

from recserve.kernels.emit import POINTER, declare, int64, load, loop, offset, splat, store
from recserve.kernels.jit import kernel

ROWS, LANES = 4, 8
_F64 = ir.DoubleType()
_DOUBLES = ir.VectorType(_F64, LANES)
_BYTES = 8


def _place(context: Any, builder: Any, array_type: Any, array: Any, row: Any, column: Any) -> tuple[Any, Any]:
    """The address of ``array[row, column]`` of a C-order float64 matrix, and the bytes of a row."""
    struct = context.make_array(array_type)(context, builder, array)
    row_bytes = cgutils.unpack_tuple(builder, struct.strides, 2)[0]
    n_bytes = builder.add(builder.mul(row, row_bytes), builder.mul(column, int64(_BYTES)))
    return offset(builder, builder.bitcast(struct.data, POINTER), n_bytes), row_bytes


def _subtract_product(transposed: bool) -> Any:
    @intrinsic
    def compiled(
        typing_context: Any,
        target: Any,
        row: Any,
        column: Any,
        left: Any,
        left_row: Any,
        left_column: Any,
        right: Any,
        right_row: Any,
        right_column: Any,
        n: Any,
    ) -> Any:
        size = types.int64
        signature = types.void(target, size, size, left, size, size, right, size, size, size)

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            kinds = signature.args
            tile, tile_step = _place(context, builder, kinds[0], *arguments[:3])
            factors, factor_step = _place(context, builder, kinds[3], *arguments[3:6])
            values, value_step = _place(context, builder, kinds[6], *arguments[6:9])
            along, across = (factor_step, int64(_BYTES)) if transposed else (int64(_BYTES), factor_step)
            multiply_add = declare(builder, "llvm.fmuladd.v8f64", _DOUBLES, [_DOUBLES] * 3)
            rows = [offset(builder, tile, builder.mul(int64(r), tile_step)) for r in range(ROWS)]

            def step(turn: Any, totals: list[Any]) -> list[Any]:
                value = load(
                    builder, offset(builder, values, builder.mul(turn, value_step)), _DOUBLES, _BYTES
                )
                first = offset(builder, factors, builder.mul(turn, along))
                added = []
                for r, total in enumerate(totals):
                    place = offset(builder, first, builder.mul(int64(r), across))
                    factor = builder.fneg(load(builder, place, _F64, _BYTES))
                    added.append(builder.call(multiply_add, [splat(builder, factor, LANES), value, total]))
                return added

            with builder.if_then(builder.icmp_signed(">", arguments[9], int64(0))):
                before = [load(builder, place, _DOUBLES, _BYTES) for place in rows]
                for place, total in zip(rows, loop(builder, arguments[9], before, step), strict=True):
                    store(builder, total, place, _BYTES)
            return context.get_dummy_value()

        return signature, codegen

    return compiled


def _subtract_python(
    target: Any,
    row: int,
    column: int,
    left: Any,
    left_row: int,
    left_column: int,
    right: Any,
    right_row: int,
    right_column: int,
    n: int,
) -> None:
    factors = left[left_row : left_row + ROWS, left_column : left_column + n]
    target[row : row + ROWS, column : column + LANES] -= (
        factors @ right[right_row : right_row + n, right_column : right_column + LANES]
    )


def _subtract_transposed_python(
    target: Any,
    row: int,
    column: int,
    left: Any,
    left_row: int,
    left_column: int,
    right: Any,
    right_row: int,
    right_column: int,
    n: int,
) -> None:
    _subtract_python(target, row, column, left.T, left_column, left_row, right, right_row, right_column, n)


# subtract(target, row, column, left, left_row, left_column, right, right_row, right_column, n): takes from
# the tile of ``target`` at (row, column) the product of ROWS rows of ``left``, n of their numbers from
# left_column on, and n rows of ``right``, LANES of their numbers from right_column on; float64, C-order.
subtract: Any = _subtract_python if config.DISABLE_JIT else _subtract_product(False)

# subtract_transposed: the same with ROWS columns of ``left``, n of their numbers from left_row on.
subtract_transposed: Any = _subtract_transposed_python if config.DISABLE_JIT else _subtract_product(True)


@kernel
def whole(n, unit):
    """n, up to whole units."""
    return (n + unit - 1) // unit * unit


@kernel
def factorise(matrix, width):
    """Overwrites the upper half of ``matrix[:, :width]`` = UᵀU by U, and what is right of it, B, by U⁻ᵀB."""
    n_columns = matrix.shape[1]
    for first in range(0, width, ROWS):
        start = first // LANES * LANES
        for column in range(start, n_columns, LANES):
            subtract_transposed(matrix, first, column, matrix, 0, first, matrix, 0, column, first)
        for row in range(first, first + ROWS):
            for above in range(first, row):
                factor = matrix[above, row]
                for column in range(row, n_columns):
                    matrix[row, column] -= factor * matrix[above, column]
            inverse = 1.0 / np.sqrt(matrix[row, row])
            for column in range(row, n_columns):
                matrix[row, column] *= inverse


@kernel
def substitute(matrix, width):
    """Overwrites C, right of a factor U, by U⁻¹C."""
    n_columns = matrix.shape[1]
    for first in range(width - ROWS, -1, -ROWS):
        below = first + ROWS
        for column in range(width, n_columns, LANES):
            subtract(matrix, first, column, matrix, first, below, matrix, below, column, width - below)
        for row in range(below - 1, first - 1, -1):
            for under in range(row + 1, below):
                factor = matrix[row, under]
                for column in range(width, n_columns):
                    matrix[row, column] -= factor * matrix[under, column]
            inverse = 1.0 / matrix[row, row]
            for column in range(width, n_columns):
                matrix[row, column] *= inverse
