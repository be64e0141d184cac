"""Small pieces of LLVM IR that the micro-kernels are put together from."""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils

I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
F32 = ir.FloatType()
POINTER = ir.PointerType()


def int64(value: int) -> ir.Constant:
    """A constant."""
    return ir.Constant(I64, value)


def declare(builder: Any, name: str, result: Any, arguments: list[Any]) -> Any:
    """A function of LLVM or of the processor, by name."""
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, arguments), name)


def address(context: Any, builder: Any, array_type: Any, array: Any, element: Any, itemsize: int) -> Any:
    """The address of ``array[element]`` of a flat array."""
    data = context.make_array(array_type)(context, builder, array).data
    return offset(builder, builder.bitcast(data, POINTER), builder.mul(element, int64(itemsize)))


def offset(builder: Any, pointer: Any, n_bytes: Any) -> Any:
    """The address so many bytes further."""
    return builder.gep(pointer, [n_bytes], source_etype=I8)


def load(builder: Any, pointer: Any, kind: Any, align: int) -> Any:
    """A value of type ``kind`` from memory."""
    value = builder.load(pointer, typ=kind)
    value.align = align
    return value


def store(builder: Any, value: Any, pointer: Any, align: int) -> None:
    """A value to memory."""
    builder.store(value, builder.bitcast(pointer, value.type.as_pointer())).align = align


def splat(builder: Any, scalar: Any, lanes: int) -> Any:
    """A vector with ``scalar`` in every lane."""
    undefined = ir.Constant(ir.VectorType(scalar.type, lanes), ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(I32, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(I32, lanes), [0] * lanes))


def every(kind: Any, value: int) -> ir.Constant:
    """A constant vector with ``value`` in every lane."""
    return ir.Constant(kind, [value] * kind.count)


def loop(builder: Any, count: Any, carried: list[Any], body: Callable[[Any, list[Any]], list[Any]]) -> Any:
    """Emits a loop of ``count`` ≥ 1 turns over values in registers; returns what the last turn left."""
    before = builder.block
    turns = builder.append_basic_block("turns")
    after = builder.append_basic_block("turned")
    builder.branch(turns)
    builder.position_at_end(turns)
    turn = builder.phi(I64)
    turn.add_incoming(int64(0), before)
    values = []
    for value in carried:
        phi = builder.phi(value.type)
        phi.add_incoming(value, before)
        values.append(phi)
    results = body(turn, values)
    following = builder.add(turn, int64(1))
    turn.add_incoming(following, builder.block)
    for phi, value in zip(values, results, strict=True):
        phi.add_incoming(value, builder.block)
    builder.cbranch(builder.icmp_signed("<", following, count), turns, after)
    builder.position_at_end(after)
    return results
