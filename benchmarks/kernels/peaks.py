"""Micro-kernels that do one thing as fast as the processor can: multiply, or read.

They are LLVM IR, as the product's are: plain Numba reaches no peak. Each multiplies vectors out of the first
cache into 12 accumulators (6 where three instructions make one step), enough to hide the latency.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from recserve.kernels.isa import ISAS

_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_F32, _POINTER = ir.FloatType(), ir.PointerType()
LINE = 64
READ_BYTES = 4 * LINE  # of one turn of the reading loop
OPERAND_BYTES = 4096  # what is multiplied: it stays in the first-level cache
N_ITEMS = 2  # vectors of items of a turn

Bytes = npt.NDArray[np.uint8]
Loop = Callable[[Bytes, int, int], int]
Step = Callable[[Any, Any, Any, Any], Any]


def multiply_loops(isa: str) -> dict[str, tuple[Loop, int]]:
    """Returns the loops "fp32" and "int8", each with the operations of one turn (a multiply-add is two).

    A loop is a function (operands, turns, passes), which makes so many passes of so many turns · ``isa``: a
    name of recserve.kernels.isa.ISAS; int8 is what its first pass is made of.
    """
    lanes = ISAS[isa].lanes
    floats, words = ir.VectorType(_F32, lanes), ir.VectorType(_I32, lanes)
    n_queries = 3 if isa == "avx2" else 6
    return {
        "fp32": (_multiply_loop(floats, 6, _fused_multiply_add), 2 * lanes * N_ITEMS * 6),
        "int8": (
            _multiply_loop(words, n_queries, _avx2_step if isa == "avx2" else _vnni_step),
            2 * 4 * lanes * N_ITEMS * n_queries,
        ),
    }


def read_loop() -> Loop:
    """Returns a loop (bytes, turns, passes) that reads READ_BYTES a turn, in every pass from the start on."""

    def turn_of(builder: Any, data: Any, turn: Any, accumulators: list[Any]) -> list[Any]:
        words = ir.VectorType(_I32, 16)
        at = builder.gep(data, [builder.mul(turn, ir.Constant(_I64, READ_BYTES))], source_etype=_I8)
        read = []
        for i, accumulator in enumerate(accumulators):
            line = builder.gep(at, [ir.Constant(_I64, LINE * i)], source_etype=_I8)
            read.append(builder.xor(accumulator, _load(builder, line, words)))
        return read

    return _compile(ir.VectorType(_I32, 16), READ_BYTES // LINE, turn_of)


def _multiply_loop(kind: Any, n_queries: int, step: Step) -> Loop:
    n_bytes = 4 * kind.count

    def turn_of(builder: Any, data: Any, turn: Any, accumulators: list[Any]) -> list[Any]:
        # The address changes with the turn, so that nothing can be moved out of the loop.
        mask = ir.Constant(_I64, OPERAND_BYTES // 2 - 1)
        start = builder.and_(builder.mul(turn, ir.Constant(_I64, N_ITEMS * n_bytes)), mask)
        items_at = builder.gep(data, [start], source_etype=_I8)
        items = [_load(builder, _beyond(builder, items_at, i * n_bytes), kind) for i in range(N_ITEMS)]
        queries_at = _beyond(builder, data, OPERAND_BYTES // 2)
        multiplied = []
        for q in range(n_queries):
            query = _load(builder, _beyond(builder, queries_at, q * n_bytes), kind)
            for i, item in enumerate(items):
                multiplied.append(step(builder, accumulators[q * N_ITEMS + i], item, query))
        return multiplied

    return _compile(kind, n_queries * N_ITEMS, turn_of)


def _fused_multiply_add(builder: Any, accumulator: Any, item: Any, query: Any) -> Any:
    kind = accumulator.type
    multiply = _function(builder, f"llvm.fma.v{kind.count}f32", kind, [kind, kind, kind])
    return builder.call(multiply, [item, query, accumulator])


def _vnni_step(builder: Any, accumulator: Any, item: Any, query: Any) -> Any:
    words = accumulator.type
    codes = ir.VectorType(_I8, 4 * words.count)
    name = f"llvm.x86.avx512.vpdpbusd.{32 * words.count}"
    multiply = _function(builder, name, words, [words, codes, codes])
    return builder.call(multiply, [accumulator, builder.bitcast(item, codes), builder.bitcast(query, codes)])


def _avx2_step(builder: Any, accumulator: Any, item: Any, query: Any) -> Any:
    words = accumulator.type
    codes, shorts = ir.VectorType(_I8, 4 * words.count), ir.VectorType(_I16, 2 * words.count)
    pairs = _function(builder, "llvm.x86.avx2.pmadd.ub.sw", shorts, [codes, codes])
    fours = _function(builder, "llvm.x86.avx2.pmadd.wd", words, [shorts, shorts])
    ones = ir.Constant(shorts, [1] * shorts.count)
    products = builder.call(pairs, [builder.bitcast(item, codes), builder.bitcast(query, codes)])
    return builder.add(accumulator, builder.call(fours, [products, ones]))


def _compile(kind: Any, n_accumulators: int, turn_of: Any) -> Loop:
    """A compiled loop that keeps its accumulators in registers."""

    @intrinsic  # type: ignore[untyped-decorator]
    def run(typing_context: Any, data: Any, turns: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            array = context.make_array(signature.args[0])(context, builder, arguments[0])
            pointer = builder.bitcast(array.data, _POINTER)
            before = builder.block
            body, after = builder.append_basic_block("turns"), builder.append_basic_block("done")
            builder.branch(body)
            builder.position_at_end(body)
            turn = builder.phi(_I64)
            turn.add_incoming(ir.Constant(_I64, 0), before)
            phis = [builder.phi(kind) for _ in range(n_accumulators)]
            results = turn_of(builder, pointer, turn, phis)
            following = builder.add(turn, ir.Constant(_I64, 1))
            turn.add_incoming(following, body)
            for phi, result in zip(phis, results, strict=True):
                phi.add_incoming(ir.Constant(kind, None), before)
                phi.add_incoming(result, body)
            builder.cbranch(builder.icmp_signed("<", following, arguments[1]), body, after)
            builder.position_at_end(after)
            return _sum_of_bits(builder, results, kind)

        return types.int64(data, types.int64), codegen

    @njit(nogil=True)  # type: ignore[untyped-decorator]
    def loop(data: Any, turns: Any, passes: Any) -> Any:
        total = 0
        for _ in range(passes):
            total ^= run(data, turns)
        return total

    compiled: Loop = loop
    return compiled


def _sum_of_bits(builder: Any, vectors: list[Any], kind: Any) -> Any:
    """One number that depends on every lane of every vector, so that none is optimised away."""
    words = ir.VectorType(_I32, kind.count)
    total = builder.bitcast(vectors[0], words)
    for vector in vectors[1:]:
        total = builder.xor(total, builder.bitcast(vector, words))
    lanes = [builder.extract_element(total, ir.Constant(_I32, lane)) for lane in range(kind.count)]
    joined = lanes[0]
    for lane in lanes[1:]:
        joined = builder.xor(joined, lane)
    return builder.sext(joined, _I64)


def _function(builder: Any, name: str, result: Any, arguments: list[Any]) -> Any:
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, arguments), name)


def _beyond(builder: Any, pointer: Any, n_bytes: int) -> Any:
    return builder.gep(pointer, [ir.Constant(_I64, n_bytes)], source_etype=_I8)


def _load(builder: Any, pointer: Any, kind: Any) -> Any:
    load = builder.load(pointer, typ=kind)
    load.align = 1
    return load
