"""What plain Numba cannot say: vector instructions, written as LLVM IR and callable from kernels.

The vectors are generic LLVM types, so the same code runs on every processor that LLVM knows; wider registers
only make it faster. When Numba is switched off (``NUMBA_DISABLE_JIT=1``) plain Python stands in, with the
same result to the last bit.
"""

import platform
import threading
import time
from typing import Any

import numpy as np
from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic

X86 = platform.machine() in ("x86_64", "AMD64")
DOT_LANES = 16
CACHE_LINE_BYTES = 64
NAP_MICROSECONDS = 20

I1, _I8, I32, _I64 = (ir.IntType(bits) for bits in (1, 8, 32, 64))
F32 = ir.FloatType()
POINTER = ir.PointerType()
F32_LANES = ir.VectorType(F32, DOT_LANES)
_I64_LANES = ir.VectorType(_I64, DOT_LANES)


def int64(value: int) -> ir.Constant:
    return ir.Constant(_I64, value)


def declare(builder: Any, name: str, result: Any, arguments: list[Any]) -> Any:
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, arguments), name)


def row_pointer(context: Any, builder: Any, array_type: Any, array: Any, row: Any) -> Any:
    """The address of ``array[row]`` of a C-order matrix."""
    struct = context.make_array(array_type)(context, builder, array)
    row_bytes = cgutils.unpack_tuple(builder, struct.strides, 2)[0]
    return builder.gep(builder.bitcast(struct.data, POINTER), [builder.mul(row, row_bytes)], source_etype=_I8)


def load_floats(builder: Any, pointer: Any, element: Any, mask: Any) -> Any:
    address = builder.gep(pointer, [element], source_etype=F32)
    load = declare(
        builder,
        "llvm.masked.load.v16f32.p0",
        F32_LANES,
        [POINTER, I32, ir.VectorType(I1, DOT_LANES), F32_LANES],
    )
    zeros = ir.Constant(F32_LANES, [0.0] * DOT_LANES)
    return builder.call(load, [address, ir.Constant(I32, 4), mask, zeros])


def sum_by_halves(builder: Any, lanes: Any) -> Any:
    """Adds the upper half to the lower half until one number is left."""
    width = DOT_LANES
    while width > 1:
        width //= 2
        halves = [
            builder.shuffle_vector(lanes, lanes, ir.Constant(ir.VectorType(I32, width), list(selected)))
            for selected in (range(width), range(width, 2 * width))
        ]
        lanes = builder.fadd(halves[0], halves[1])
    return builder.extract_element(lanes, ir.Constant(I32, 0))


def for_lanes(builder: Any, size: Any, body: Any) -> None:
    """Calls ``body(element, mask)`` for every 16 elements of a row of ``size``, the last ones masked."""
    whole = builder.and_(size, int64(-DOT_LANES))
    every_lane = ir.Constant(ir.VectorType(I1, DOT_LANES), [1] * DOT_LANES)
    with cgutils.for_range_slice(builder, int64(0), whole, int64(DOT_LANES)) as (element, _):
        body(element, every_lane)
    with builder.if_then(builder.icmp_signed("<", whole, size)):
        # The lanes beyond the end read nothing and add 0 × 0.
        lane_numbers = ir.Constant(_I64_LANES, list(range(DOT_LANES)))
        rest = builder.insert_element(
            ir.Constant(_I64_LANES, ir.Undefined), builder.sub(size, whole), int64(0)
        )
        rest = builder.shuffle_vector(rest, rest, ir.Constant(ir.VectorType(I32, DOT_LANES), [0] * 16))
        body(whole, builder.icmp_signed("<", lane_numbers, rest))


@intrinsic
def _dot_compiled(typing_context: Any, left: Any, left_row: Any, right: Any, right_row: Any) -> Any:
    signature = types.float32(left, types.int64, right, types.int64)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        left_type, _, right_type, _ = signature.args
        left_pointer = row_pointer(context, builder, left_type, arguments[0], arguments[1])
        right_pointer = row_pointer(context, builder, right_type, arguments[2], arguments[3])
        struct = context.make_array(left_type)(context, builder, arguments[0])
        size = cgutils.unpack_tuple(builder, struct.shape, 2)[1]

        total = cgutils.alloca_once_value(builder, ir.Constant(F32_LANES, [0.0] * DOT_LANES))

        def accumulate(element: Any, mask: Any) -> None:
            product = builder.fmul(
                load_floats(builder, left_pointer, element, mask),
                load_floats(builder, right_pointer, element, mask),
            )
            builder.store(builder.fadd(builder.load(total), product), total)

        for_lanes(builder, size, accumulate)
        return sum_by_halves(builder, builder.load(total))

    return signature, codegen


@intrinsic
def _trailing_zeros_compiled(typing_context: Any, word: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        count = declare(builder, "llvm.cttz.i32", I32, [I32, I1])
        return builder.zext(builder.call(count, [arguments[0], ir.Constant(I1, 1)]), _I64)

    return types.int64(types.uint32), codegen


@intrinsic
def _prefetch_row_compiled(typing_context: Any, matrix: Any, row: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = row_pointer(context, builder, signature.args[0], *arguments)
        struct = context.make_array(signature.args[0])(context, builder, arguments[0])
        row_bytes = cgutils.unpack_tuple(builder, struct.strides, 2)[0]
        fetch = declare(builder, "llvm.prefetch.p0", ir.VoidType(), [POINTER, I32, I32, I32])
        read, keep, data = (ir.Constant(I32, value) for value in (0, 3, 1))
        with cgutils.for_range_slice(builder, int64(0), row_bytes, int64(CACHE_LINE_BYTES)) as (offset, _):
            builder.call(fetch, [builder.gep(pointer, [offset], source_etype=_I8), read, keep, data])
        return context.get_dummy_value()

    return types.void(matrix, types.int64), codegen


@intrinsic
def _atomic_add_compiled(typing_context: Any, array: Any, position: Any, value: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        element = builder.gep(builder.bitcast(data, POINTER), [arguments[1]], source_etype=_I64)
        return builder.atomic_rmw("add", element, arguments[2], "monotonic")

    return types.int64(array, types.int64, types.int64), codegen


@intrinsic
def _wait_for_change_compiled(typing_context: Any, array: Any, position: Any, value: Any, turns: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        element = builder.gep(builder.bitcast(data, POINTER), [arguments[1]], source_etype=_I64)
        with cgutils.for_range(builder, arguments[3]) as turn:
            found = builder.load_atomic(element, "acquire", 8, typ=_I64)
            with builder.if_then(builder.icmp_signed("!=", found, arguments[2])):
                turn.do_break()
            if X86:  # a hint that spares power and the other thread of a core
                builder.call(declare(builder, "llvm.x86.sse2.pause", ir.VoidType(), []), [])
        return context.get_dummy_value()

    return types.void(array, types.int64, types.int64, types.int64), codegen


@intrinsic
def _compare_exchange_compiled(
    typing_context: Any, array: Any, position: Any, expected: Any, value: Any
) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        element = builder.gep(builder.bitcast(data, POINTER), [arguments[1]], source_etype=_I64)
        found = builder.cmpxchg(element, arguments[2], arguments[3], "seq_cst", "seq_cst")
        return builder.extract_value(found, 1)

    return types.boolean(array, types.int64, types.int64, types.int64), codegen


@intrinsic
def _nap_compiled(typing_context: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.call(declare(builder, "usleep", I32, [I32]), [ir.Constant(I32, NAP_MICROSECONDS)])
        return context.get_dummy_value()

    return types.void(), codegen


_one_at_a_time = threading.Lock()  # of the threads that exchange a value in plain Python


def _dot_python(left: Any, left_row: int, right: Any, right_row: int) -> Any:
    products = left[left_row] * right[right_row]
    lanes = np.zeros(DOT_LANES, np.float32)
    for start in range(0, len(products), DOT_LANES):
        chunk = products[start : start + DOT_LANES]
        lanes[: len(chunk)] += chunk
    while len(lanes) > 1:
        lanes = lanes[: len(lanes) // 2] + lanes[len(lanes) // 2 :]
    return lanes[0]


def _prefetch_row_python(matrix: Any, row: int) -> None:
    pass


def _atomic_add_python(array: Any, position: int, value: int) -> Any:
    with _one_at_a_time:
        array[position] += value
        return array[position] - value


def _wait_for_change_python(array: Any, position: int, value: int, turns: int) -> None:
    pass


def _compare_exchange_python(array: Any, position: int, expected: int, value: int) -> bool:
    with _one_at_a_time:
        found = bool(array[position] == expected)
        if found:
            array[position] = value
    return found


def _nap_python() -> None:
    time.sleep(NAP_MICROSECONDS * 1e-6)


def _trailing_zeros_python(word: int) -> int:
    return (int(word) & -int(word)).bit_length() - 1


# dot(left, left_row, right, right_row): the float32 dot product of two rows of C-order float32 matrices.
# Lane l of 16 sums the products of the elements l, l+16, l+32, ... in that order, each product and each sum
# rounded (no fused multiply-add), then the upper half of the lanes is added to the lower, four times. The
# result depends on the two rows alone: not on the batch, the position in it, or the processor.
dot: Any = _dot_python if config.DISABLE_JIT else _dot_compiled

# trailing_zeros(word): the number of the lowest set bit of a uint32 that is not zero.
trailing_zeros: Any = _trailing_zeros_python if config.DISABLE_JIT else _trailing_zeros_compiled

# prefetch_row(matrix, row): asks for a row of a C-order matrix to be in the cache when it is read.
prefetch_row: Any = _prefetch_row_python if config.DISABLE_JIT else _prefetch_row_compiled

# atomic_add(array, position, value): array[position] += value of a flat int64 array, also where other threads
# add to it meanwhile; returns what was there before.
atomic_add: Any = _atomic_add_python if config.DISABLE_JIT else _atomic_add_compiled

# wait_for_change(array, position, value, turns): returns when array[position] of a flat int64 array, which
# another thread writes, is not ``value`` any more, at the latest after so many turns of some 20 to 50 ns (in
# plain Python, which would hold the interpreter lock, at once).
wait_for_change: Any = _wait_for_change_python if config.DISABLE_JIT else _wait_for_change_compiled

# compare_exchange(array, position, expected, value): writes ``value`` to array[position] of a flat int64
# array if ``expected`` is there, at once for all threads; returns whether it was.
compare_exchange: Any = _compare_exchange_python if config.DISABLE_JIT else _compare_exchange_compiled

# nap(): lets the core go for some 0.1 ms, without the interpreter.
nap: Any = _nap_python if config.DISABLE_JIT else _nap_compiled
