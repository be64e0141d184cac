"""The int8 micro-kernel: a block of queries against one tile of 32 items, as LLVM IR.

Plain Numba reaches a few per cent of the machine's int8 rate, because it cannot say "multiply unsigned by
signed bytes and add groups of four". The IR below does little else: it keeps one accumulator per query and
vector of items in registers, and touches memory for output only when some item passes.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from recserve.kernels.isa import ISA_OF_BLOCKING, Isa
from recserve.kernels.rows import TILE

STEP_DIMS = 4  # bytes of one item in a 32-bit lane: what one instruction multiplies and adds
PREFETCH_BYTES = 4096  # how far ahead codes are asked for: the rate of memory, not its delay, is the limit
UNROLL = 2  # steps per turn of the loop; dimensions are padded to multiples of STEP_DIMS * UNROLL

_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_POINTER = ir.PointerType()


def _constant(value: int) -> ir.Constant:
    return ir.Constant(_I64, value)


def _declare(builder: Any, name: str, result: Any, arguments: list[Any]) -> Any:
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, arguments), name)


def _address(context: Any, builder: Any, array_type: Any, array: Any, element: Any, itemsize: int) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return _offset(builder, builder.bitcast(data, _POINTER), builder.mul(element, _constant(itemsize)))


def _offset(builder: Any, pointer: Any, n_bytes: Any) -> Any:
    return builder.gep(pointer, [n_bytes], source_etype=_I8)


def _load(builder: Any, pointer: Any, kind: Any, align: int) -> Any:
    load = builder.load(pointer, typ=kind)
    load.align = align
    return load


def _splat(builder: Any, scalar: Any, lanes: int) -> Any:
    undefined = ir.Constant(ir.VectorType(scalar.type, lanes), ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(_I32, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(_I32, lanes), [0] * lanes))


def _multiply_add(builder: Any, isa: Isa, accumulator: Any, items: Any, query: Any) -> Any:
    """accumulator + Σ over groups of four of items (u8) · query (s8), per 32-bit lane."""
    words = ir.VectorType(_I32, isa.lanes)
    bytes_ = ir.VectorType(_I8, 4 * isa.lanes)
    if isa.name != "avx2":
        name = f"llvm.x86.avx512.vpdpbusd.{32 * isa.lanes}"
        return builder.call(
            _declare(builder, name, words, [words, bytes_, bytes_]), [accumulator, items, query]
        )
    shorts = ir.VectorType(_I16, 2 * isa.lanes)
    pairs = builder.call(
        _declare(builder, "llvm.x86.avx2.pmadd.ub.sw", shorts, [bytes_, bytes_]), [items, query]
    )
    ones = ir.Constant(shorts, [1] * (2 * isa.lanes))
    fours = builder.call(_declare(builder, "llvm.x86.avx2.pmadd.wd", words, [shorts, shorts]), [pairs, ones])
    return builder.add(accumulator, fours)


def _score_tile(
    builder: Any, isa: Isa, n_queries: int, tile: Any, codes: Any, n_steps: Any, starts: Any
) -> Any:
    """Emits the loop over the dimensions; returns the accumulators [query][vector of items]."""
    n_vectors = TILE // isa.lanes
    bytes_ = ir.VectorType(_I8, 4 * isa.lanes)
    prefetch = _declare(builder, "llvm.prefetch.p0", ir.VoidType(), [_POINTER, _I32, _I32, _I32])
    before = builder.block
    body = builder.append_basic_block("steps")
    after = builder.append_basic_block("scored")
    builder.branch(body)
    builder.position_at_end(body)
    turn = builder.phi(_I64)
    turn.add_incoming(_constant(0), before)
    phis = []
    for start in starts:
        for _ in range(n_vectors):
            phi = builder.phi(start.type)
            phi.add_incoming(start, before)
            phis.append(phi)
    accumulators = list(phis)
    for step in range(UNROLL):
        number = builder.add(builder.mul(turn, _constant(UNROLL)), _constant(step))
        items_at = _offset(builder, tile, builder.mul(number, _constant(STEP_DIMS * TILE)))
        codes_at = _offset(builder, codes, builder.mul(number, _constant(STEP_DIMS * n_queries)))
        for line in range(0, STEP_DIMS * TILE, 64):
            ahead = _offset(builder, items_at, _constant(PREFETCH_BYTES + line))
            builder.call(prefetch, [ahead, ir.Constant(_I32, 0), ir.Constant(_I32, 3), ir.Constant(_I32, 1)])
        items = [
            _load(builder, _offset(builder, items_at, _constant(4 * isa.lanes * v)), bytes_, 1)
            for v in range(n_vectors)
        ]
        for query in range(n_queries):
            word = _load(builder, _offset(builder, codes_at, _constant(STEP_DIMS * query)), _I32, 4)
            code = builder.bitcast(_splat(builder, word, isa.lanes), bytes_)
            for v in range(n_vectors):
                i = query * n_vectors + v
                accumulators[i] = _multiply_add(builder, isa, accumulators[i], items[v], code)
    following = builder.add(turn, _constant(1))
    turn.add_incoming(following, body)
    for phi, accumulator in zip(phis, accumulators, strict=True):
        phi.add_incoming(accumulator, body)
    n_turns = builder.sdiv(n_steps, _constant(UNROLL))
    builder.cbranch(builder.icmp_signed("<", following, n_turns), body, after)
    builder.position_at_end(after)
    return [accumulators[q * n_vectors : (q + 1) * n_vectors] for q in range(n_queries)]


def _write_passing(builder: Any, isa: Isa, accumulators: Any, passing: Any) -> Any:
    """Emits the test and, where an item passes, the output; returns a bit per query that has one."""
    zero = ir.Constant(ir.VectorType(_I32, isa.lanes), [0] * isa.lanes)
    mask = ir.IntType(isa.lanes)
    # The AND of the accumulators has a sign bit of 0 in a lane exactly where one of them is not negative.
    joined = None
    for vectors in accumulators:
        for vector in vectors:
            joined = vector if joined is None else builder.and_(joined, vector)
    negative = builder.bitcast(builder.icmp_signed("<", joined, zero), mask)
    hit = builder.icmp_unsigned("!=", negative, ir.Constant(mask, -1))
    before = builder.block
    queries = ir.Constant(_I32, 0)
    with builder.if_then(hit, likely=False):
        for query, vectors in enumerate(accumulators):
            word = ir.Constant(_I32, 0)
            for v, vector in enumerate(vectors):
                bits = builder.zext(builder.bitcast(builder.icmp_signed(">=", vector, zero), mask), _I32)
                word = builder.or_(word, builder.shl(bits, ir.Constant(_I32, isa.lanes * v)))
            address = _offset(builder, passing, _constant(4 * query))
            builder.store(word, builder.bitcast(address, _I32.as_pointer()))
            some = builder.zext(builder.icmp_unsigned("!=", word, ir.Constant(_I32, 0)), _I32)
            queries = builder.or_(queries, builder.shl(some, ir.Constant(_I32, query)))
        written = builder.block
    result = builder.phi(_I32)
    result.add_incoming(ir.Constant(_I32, 0), before)
    result.add_incoming(queries, written)
    return result


@intrinsic
def passing_items(
    typing_context: Any,
    blocking: Any,
    tiles: Any,
    tile: Any,
    codes: Any,
    block: Any,
    n_steps: Any,
    starts: Any,
    first_start: Any,
    start_stride: Any,
    passing: Any,
) -> Any:
    """Scores block ``block`` of the queries against tile ``tile``: a bit per query that an item passes.

    tiles: flat uint8, [tile][step][item][4] · codes: flat int32, [block][step][query], four signed bytes
    each · starts: flat int32, the accumulator of query i begins at starts[first_start + i * start_stride] ·
    passing: (n_queries,) uint32, written only when the result is not 0: bit j says that item j's sum is ≥ 0.
    """
    signature = types.uint32(
        blocking,
        tiles,
        types.int64,
        codes,
        types.int64,
        types.int64,
        starts,
        types.int64,
        types.int64,
        passing,
    )
    isa = ISA_OF_BLOCKING[blocking.instance_class]
    n_queries = blocking.instance_class().n_queries

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, tiles, tile, codes, block, n_steps, starts, first_start, start_stride, passing = arguments
        kinds = signature.args
        tile_bytes = builder.mul(n_steps, _constant(STEP_DIMS * TILE))
        tile_at = _address(context, builder, kinds[1], tiles, builder.mul(tile, tile_bytes), 1)
        block_words = builder.mul(n_steps, _constant(n_queries))
        codes_at = _address(context, builder, kinds[3], codes, builder.mul(block, block_words), 4)
        first = []
        for query in range(n_queries):
            element = builder.add(first_start, builder.mul(start_stride, _constant(query)))
            start = _load(builder, _address(context, builder, kinds[6], starts, element, 4), _I32, 4)
            first.append(_splat(builder, start, isa.lanes))
        passing_at = _address(context, builder, kinds[9], passing, _constant(0), 4)
        accumulators = _score_tile(builder, isa, n_queries, tile_at, codes_at, n_steps, first)
        return _write_passing(builder, isa, accumulators, passing_at)

    return signature, codegen
