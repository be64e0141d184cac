"""Eight rows of a matrix at a time against one vector: what least squares spends its time with.

As in the simd module, but with fused multiply-adds where the processor has them: these results are steps of
a training, not scores, and the last bit may differ between processors.
"""

from typing import Any

from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic

from recserve.kernels.simd import (
    DOT_LANES,
    F32,
    F32_LANES,
    I1,
    I32,
    POINTER,
    declare,
    for_lanes,
    int64,
    load_floats,
    row_pointer,
    sum_by_halves,
)

ROWS = 8


def _multiply_add(builder: Any, left: Any, right: Any, addend: Any) -> Any:
    function = declare(builder, "llvm.fmuladd.v16f32", F32_LANES, [F32_LANES] * 3)
    return builder.call(function, [left, right, addend])


def _store_floats(builder: Any, value: Any, pointer: Any, element: Any, mask: Any) -> None:
    address = builder.gep(pointer, [element], source_etype=F32)
    arguments = [F32_LANES, POINTER, I32, ir.VectorType(I1, DOT_LANES)]
    store = declare(builder, "llvm.masked.store.v16f32.p0", ir.VoidType(), arguments)
    builder.call(store, [value, address, ir.Constant(I32, 4), mask])


def _columns(context: Any, builder: Any, array_type: Any, array: Any) -> Any:
    struct = context.make_array(array_type)(context, builder, array)
    return cgutils.unpack_tuple(builder, struct.shape, 2)[1]


def _element_pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    """The address of ``array[index]`` of a contiguous float32 array of one dimension."""
    struct = context.make_array(array_type)(context, builder, array)
    return builder.gep(builder.bitcast(struct.data, POINTER), [index], source_etype=F32)


def _eight_pointers(context: Any, builder: Any, array_type: Any, array: Any, first: Any) -> list[Any]:
    return [
        row_pointer(context, builder, array_type, array, builder.add(first, int64(row)))
        for row in range(ROWS)
    ]


@intrinsic
def _dot_rows_compiled(
    typing_context: Any, products: Any, start: Any, matrix: Any, first: Any, vector: Any, vector_row: Any
) -> Any:
    signature = types.void(products, types.int64, matrix, types.int64, vector, types.int64)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        products_type, _, matrix_type, _, vector_type, _ = signature.args
        rows = _eight_pointers(context, builder, matrix_type, arguments[2], arguments[3])
        vector = row_pointer(context, builder, vector_type, arguments[4], arguments[5])
        zeros = ir.Constant(F32_LANES, [0.0] * DOT_LANES)
        totals = [cgutils.alloca_once_value(builder, zeros) for _ in rows]
        # The slots outlive one call of the block where the caller loops.
        for total in totals:
            builder.store(zeros, total)

        def accumulate(element: Any, mask: Any) -> None:
            factor = load_floats(builder, vector, element, mask)
            for row, total in zip(rows, totals, strict=True):
                values = load_floats(builder, row, element, mask)
                builder.store(_multiply_add(builder, values, factor, builder.load(total)), total)

        for_lanes(builder, _columns(context, builder, matrix_type, arguments[2]), accumulate)
        out = _element_pointer(context, builder, products_type, arguments[0], arguments[1])
        for row, total in enumerate(totals):
            address = builder.gep(out, [int64(row)], source_etype=F32)
            builder.store(sum_by_halves(builder, builder.load(total)), address)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def _add_rows_compiled(
    typing_context: Any, target: Any, target_row: Any, factors: Any, start: Any, matrix: Any, first: Any
) -> Any:
    signature = types.void(target, types.int64, factors, types.int64, matrix, types.int64)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        target_type, _, factors_type, _, matrix_type, _ = signature.args
        target = row_pointer(context, builder, target_type, arguments[0], arguments[1])
        rows = _eight_pointers(context, builder, matrix_type, arguments[4], arguments[5])
        pointer = _element_pointer(context, builder, factors_type, arguments[2], arguments[3])
        every_lane = ir.Constant(ir.VectorType(I32, DOT_LANES), [0] * DOT_LANES)
        factors = []
        for row in range(ROWS):
            address = builder.gep(pointer, [int64(row)], source_etype=F32)
            value = builder.bitcast(address, POINTER)
            lane = builder.insert_element(
                ir.Constant(F32_LANES, ir.Undefined), builder.load(value, typ=F32), int64(0)
            )
            factors.append(builder.shuffle_vector(lane, lane, every_lane))

        def add(element: Any, mask: Any) -> None:
            # Two sums: one alone would wait for each of its eight additions.
            total = load_floats(builder, target, element, mask)
            other = ir.Constant(F32_LANES, [0.0] * DOT_LANES)
            for row in range(0, ROWS, 2):
                values = load_floats(builder, rows[row], element, mask)
                total = _multiply_add(builder, factors[row], values, total)
                values = load_floats(builder, rows[row + 1], element, mask)
                other = _multiply_add(builder, factors[row + 1], values, other)
            _store_floats(builder, builder.fadd(total, other), target, element, mask)

        for_lanes(builder, _columns(context, builder, target_type, arguments[0]), add)
        return context.get_dummy_value()

    return signature, codegen


def _dot_rows_python(
    products: Any, start: int, matrix: Any, first: int, vector: Any, vector_row: int
) -> None:
    products[start : start + ROWS] = matrix[first : first + ROWS] @ vector[vector_row]


def _add_rows_python(target: Any, target_row: int, factors: Any, start: int, matrix: Any, first: int) -> None:
    target[target_row] += factors[start : start + ROWS] @ matrix[first : first + ROWS]


# dot_rows(products, start, matrix, first, vector, vector_row): writes the dot products of the rows first to
# first + 7 of ``matrix`` with one row of ``vector`` into products[start : start + 8].
dot_rows: Any = _dot_rows_python if config.DISABLE_JIT else _dot_rows_compiled

# add_rows(target, target_row, factors, start, matrix, first): adds to one row of ``target`` the rows first to
# first + 7 of ``matrix``, each times its own of factors[start : start + 8].
add_rows: Any = _add_rows_python if config.DISABLE_JIT else _add_rows_compiled
