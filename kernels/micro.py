"""The int8 micro-kernel: a block of queries against a tile of 32 items, as LLVM IR.

Plain Numba reaches a few per cent of the machine's int8 rate, because it cannot say "multiply unsigned by
signed bytes and add groups of four". The IR below does little else: it keeps its accumulators in registers
and touches memory for output only when some item passes. `passing_items` scores a block of queries against
one tile whose codes are in the first-level cache, where `join_planes` put them; for one query see the module
stream.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from recserve.kernels.emit import (
    I1,
    I8,
    I16,
    I32,
    address,
    declare,
    every,
    int64,
    load,
    loop,
    offset,
    splat,
    store,
)
from recserve.kernels.isa import ISA_OF_BLOCKING, Isa
from recserve.kernels.rows import TILE

STEP_DIMS = 4  # bytes of one item in a 32-bit lane: what one instruction multiplies and adds
NEVER = -(2**30)  # an accumulator that starts here stays negative
STEP_BYTES = STEP_DIMS * TILE  # of one step of a tile's codes; a plane holds two steps in as many


def bytes_of(isa: Isa) -> Any:
    return ir.VectorType(I8, 4 * isa.lanes)


def words_of(isa: Isa) -> Any:
    return ir.VectorType(I32, isa.lanes)


def load_vectors(builder: Any, isa: Isa, pointer: Any) -> list[Any]:
    """The 128 bytes of one step, as many vectors as the instruction set needs."""
    width = 4 * isa.lanes
    places = range(0, STEP_BYTES, width)
    return [load(builder, offset(builder, pointer, int64(place)), bytes_of(isa), 1) for place in places]


def multiply_add(builder: Any, isa: Isa, accumulator: Any, items: Any, query: Any) -> Any:
    """accumulator + Σ over groups of four of items (u8) · query (s8), per 32-bit lane."""
    words, bytes_ = words_of(isa), bytes_of(isa)
    if isa.name != "avx2":
        name = f"llvm.x86.avx512.vpdpbusd.{32 * isa.lanes}"
        return builder.call(
            declare(builder, name, words, [words, bytes_, bytes_]), [accumulator, items, query]
        )
    shorts = ir.VectorType(I16, 2 * isa.lanes)
    pairs = builder.call(
        declare(builder, "llvm.x86.avx2.pmadd.ub.sw", shorts, [bytes_, bytes_]), [items, query]
    )
    ones = every(shorts, 1)
    fours = builder.call(declare(builder, "llvm.x86.avx2.pmadd.wd", words, [shorts, shorts]), [pairs, ones])
    return builder.add(accumulator, fours)


def join(builder: Any, isa: Isa, high: Any, low: Any) -> tuple[Any, Any]:
    """The codes of both steps of a pair from its two planes."""
    four, lower, upper = (every(bytes_of(isa), value) for value in (4, 0x0F, 0xF0))
    first = builder.or_(builder.shl(high, four), builder.and_(low, lower))
    second = builder.or_(builder.and_(high, upper), builder.lshr(low, four))
    return first, second


def upper_halves(builder: Any, isa: Isa, high: Any) -> tuple[Any, Any]:
    """The upper halves of the codes of both steps of a pair, 0 to 15."""
    return builder.and_(high, every(bytes_of(isa), 0x0F)), builder.lshr(high, every(bytes_of(isa), 4))


def _allowed_starts(builder: Any, isa: Isa, start: Any, word: Any) -> list[Any]:
    """Accumulators that begin at ``start`` for the items of a mask word, and stay negative for others.

    An item that must not come back would otherwise pass again and again, as excluded items do that are the
    best of a query: each costs a mispredicted branch.
    """
    every_bit = builder.bitcast(word, ir.VectorType(I1, TILE))
    starts = []
    for first in range(0, TILE, isa.lanes):
        lanes = ir.Constant(ir.VectorType(I32, isa.lanes), list(range(first, first + isa.lanes)))
        allowed = builder.shuffle_vector(every_bit, every_bit, lanes)
        never = every(words_of(isa), NEVER)
        starts.append(builder.select(allowed, splat(builder, start, isa.lanes), never))
    return starts


def passing_word(builder: Any, isa: Isa, vectors: list[Any]) -> Any:
    """A bit per item whose accumulator is not negative."""
    zero, mask = every(words_of(isa), 0), ir.IntType(isa.lanes)
    word = ir.Constant(I32, 0)
    for v, vector in enumerate(vectors):
        bits = builder.zext(builder.bitcast(builder.icmp_signed(">=", vector, zero), mask), I32)
        word = builder.or_(word, builder.shl(bits, ir.Constant(I32, isa.lanes * v)))
    return word


def any_passes(builder: Any, isa: Isa, vectors: list[Any]) -> Any:
    """Whether some accumulator is not negative: their AND has a sign bit of 0 in that lane."""
    joined = vectors[0]
    for vector in vectors[1:]:
        joined = builder.and_(joined, vector)
    mask = ir.IntType(isa.lanes)
    negative = builder.bitcast(builder.icmp_signed("<", joined, every(words_of(isa), 0)), mask)
    return builder.icmp_unsigned("!=", negative, ir.Constant(mask, -1))


@intrinsic
def join_planes(
    typing_context: Any, blocking: Any, high: Any, low: Any, tile: Any, n_pairs: Any, codes: Any
) -> Any:
    """Writes the codes of a tile, [step][item][4] uint8, from its planes."""
    signature = types.void(blocking, high, low, types.int64, types.int64, codes)
    isa = ISA_OF_BLOCKING[blocking.instance_class]

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, high, low, tile, n_pairs, codes = arguments
        kinds = signature.args
        first = builder.mul(tile, n_pairs)
        high_at = address(context, builder, kinds[1], high, first, STEP_BYTES)
        low_at = address(context, builder, kinds[2], low, first, STEP_BYTES)
        codes_at = address(context, builder, kinds[5], codes, int64(0), 1)

        def join_pair(pair: Any, _: list[Any]) -> list[Any]:
            place = builder.mul(pair, int64(STEP_BYTES))
            planes = [offset(builder, plane, place) for plane in (high_at, low_at)]
            halves = zip(*(load_vectors(builder, isa, plane) for plane in planes), strict=True)
            for v, (upper, lower) in enumerate(halves):
                for step, joined in enumerate(join(builder, isa, upper, lower)):
                    out = builder.add(builder.mul(place, int64(2)), int64(step * STEP_BYTES))
                    out = builder.add(out, int64(4 * isa.lanes * v))
                    store(builder, joined, offset(builder, codes_at, out), 1)
            return []

        loop(builder, n_pairs, [], join_pair)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def passing_items(
    typing_context: Any,
    blocking: Any,
    codes: Any,
    query_codes: Any,
    block: Any,
    n_pairs: Any,
    starts: Any,
    first_start: Any,
    start_stride: Any,
    words: Any,
    first_word: Any,
    word_stride: Any,
    passing: Any,
) -> Any:
    """Scores block ``block`` of the queries against one tile: a bit per query that an item passes.

    codes: flat uint8, [step][item][4] · query_codes: flat int32, [block][step][query], four signed bytes each
    · starts: flat int32, the accumulator of query i begins at starts[first_start + i * start_stride] · words:
    flat uint32, the items that query i may get are the bits of words[first_word + i * word_stride] · passing:
    (n_queries,) uint32, written only when the result is not 0: bit j says that query i may get item j and
    that its sum is ≥ 0.
    """
    counts = types.int64
    signature = types.uint32(
        blocking,
        codes,
        query_codes,
        counts,
        counts,
        starts,
        counts,
        counts,
        words,
        counts,
        counts,
        passing,
    )
    isa = ISA_OF_BLOCKING[blocking.instance_class]
    n_queries = blocking.instance_class().n_queries
    n_vectors = TILE // isa.lanes

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, codes, query_codes, block, n_pairs, starts, first_start, start_stride, *rest = arguments
        words, first_word, word_stride, passing = rest
        kinds = signature.args
        items_at = address(context, builder, kinds[1], codes, int64(0), 1)
        block_words = builder.mul(n_pairs, int64(2 * n_queries))
        queries_at = address(context, builder, kinds[2], query_codes, builder.mul(block, block_words), 4)
        begin = []
        for query in range(n_queries):
            element = builder.add(first_start, builder.mul(start_stride, int64(query)))
            start = load(builder, address(context, builder, kinds[5], starts, element, 4), I32, 4)
            element = builder.add(first_word, builder.mul(word_stride, int64(query)))
            place = address(context, builder, kinds[8], words, element, 4)
            begin += _allowed_starts(builder, isa, start, load(builder, place, I32, 4))

        def add_pair(pair: Any, accumulators: list[Any]) -> list[Any]:
            accumulators = list(accumulators)
            for step in range(2):
                number = builder.add(builder.mul(pair, int64(2)), int64(step))
                step_at = offset(builder, items_at, builder.mul(number, int64(STEP_BYTES)))
                words_at = offset(builder, queries_at, builder.mul(number, int64(4 * n_queries)))
                items = load_vectors(builder, isa, step_at)
                for query in range(n_queries):
                    word = load(builder, offset(builder, words_at, int64(4 * query)), I32, 4)
                    code = builder.bitcast(splat(builder, word, isa.lanes), bytes_of(isa))
                    for v in range(n_vectors):
                        i = query * n_vectors + v
                        accumulators[i] = multiply_add(builder, isa, accumulators[i], items[v], code)
            return accumulators

        accumulators = loop(builder, n_pairs, begin, add_pair)
        before = builder.block
        with builder.if_then(any_passes(builder, isa, accumulators), likely=False):
            queries = ir.Constant(I32, 0)
            for query in range(n_queries):
                vectors = accumulators[query * n_vectors : (query + 1) * n_vectors]
                word = passing_word(builder, isa, vectors)
                place = address(context, builder, kinds[11], passing, int64(query), 4)
                store(builder, word, place, 4)
                some = builder.zext(builder.icmp_unsigned("!=", word, ir.Constant(I32, 0)), I32)
                queries = builder.or_(queries, builder.shl(some, ir.Constant(I32, query)))
            written = builder.block
        result = builder.phi(I32)
        result.add_incoming(ir.Constant(I32, 0), before)
        result.add_incoming(queries, written)
        return result

    return signature, codegen
