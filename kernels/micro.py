"""The int8 micro-kernels: queries against tiles of 32 items, as LLVM IR.

Plain Numba reaches a few per cent of the machine's int8 rate, because it cannot say "multiply unsigned by
signed bytes and add groups of four". The IR below does little else: it keeps its accumulators in registers
and touches memory for output only when some item passes. `passing_items` scores a block of queries against
one tile whose codes are in the first-level cache, where `join_planes` put them; `next_passing_tile` scores
one query against tile after tile as they stream from memory. Neither asks for memory ahead: the processor
sees a stream by itself, and prefetch instructions only made it slower (AMD Zen 4: 46 µs became 49 to 61 for
100k × 64 in the third-level cache, and nothing was gained from main memory).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from recserve.kernels.isa import ISA_OF_BLOCKING, Isa
from recserve.kernels.rows import TILE

STEP_DIMS = 4  # bytes of one item in a 32-bit lane: what one instruction multiplies and adds
NEVER = -(2**30)  # an accumulator that starts here stays negative
STEP_BYTES = STEP_DIMS * TILE  # of one step of a tile's codes; a plane holds two steps in as many

_I1, _I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
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


def _store(builder: Any, value: Any, pointer: Any, align: int) -> None:
    builder.store(value, builder.bitcast(pointer, value.type.as_pointer())).align = align


def _splat(builder: Any, scalar: Any, lanes: int) -> Any:
    undefined = ir.Constant(ir.VectorType(scalar.type, lanes), ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(_I32, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(_I32, lanes), [0] * lanes))


def _bytes(isa: Isa) -> Any:
    return ir.VectorType(_I8, 4 * isa.lanes)


def _words(isa: Isa) -> Any:
    return ir.VectorType(_I32, isa.lanes)


def _every(kind: Any, value: int) -> ir.Constant:
    return ir.Constant(kind, [value] * kind.count)


def _load_vectors(builder: Any, isa: Isa, pointer: Any) -> list[Any]:
    """The 128 bytes of one step, as many vectors as the instruction set needs."""
    width = 4 * isa.lanes
    places = range(0, STEP_BYTES, width)
    return [_load(builder, _offset(builder, pointer, _constant(place)), _bytes(isa), 1) for place in places]


def _multiply_add(builder: Any, isa: Isa, accumulator: Any, items: Any, query: Any) -> Any:
    """accumulator + Σ over groups of four of items (u8) · query (s8), per 32-bit lane."""
    words, bytes_ = _words(isa), _bytes(isa)
    if isa.name != "avx2":
        name = f"llvm.x86.avx512.vpdpbusd.{32 * isa.lanes}"
        return builder.call(
            _declare(builder, name, words, [words, bytes_, bytes_]), [accumulator, items, query]
        )
    shorts = ir.VectorType(_I16, 2 * isa.lanes)
    pairs = builder.call(
        _declare(builder, "llvm.x86.avx2.pmadd.ub.sw", shorts, [bytes_, bytes_]), [items, query]
    )
    ones = _every(shorts, 1)
    fours = builder.call(_declare(builder, "llvm.x86.avx2.pmadd.wd", words, [shorts, shorts]), [pairs, ones])
    return builder.add(accumulator, fours)


def _join(builder: Any, isa: Isa, high: Any, low: Any) -> tuple[Any, Any]:
    """The codes of both steps of a pair from its two planes."""
    four, lower, upper = (_every(_bytes(isa), value) for value in (4, 0x0F, 0xF0))
    first = builder.or_(builder.shl(high, four), builder.and_(low, lower))
    second = builder.or_(builder.and_(high, upper), builder.lshr(low, four))
    return first, second


def _upper_halves(builder: Any, isa: Isa, high: Any) -> tuple[Any, Any]:
    """The upper halves of the codes of both steps of a pair, 0 to 15."""
    return builder.and_(high, _every(_bytes(isa), 0x0F)), builder.lshr(high, _every(_bytes(isa), 4))


def _loop(builder: Any, count: Any, carried: list[Any], body: Callable[[Any, list[Any]], list[Any]]) -> Any:
    """Emits a loop of ``count`` ≥ 1 turns over values in registers; returns what the last turn left."""
    before = builder.block
    turns = builder.append_basic_block("turns")
    after = builder.append_basic_block("turned")
    builder.branch(turns)
    builder.position_at_end(turns)
    turn = builder.phi(_I64)
    turn.add_incoming(_constant(0), before)
    values = []
    for value in carried:
        phi = builder.phi(value.type)
        phi.add_incoming(value, before)
        values.append(phi)
    results = body(turn, values)
    following = builder.add(turn, _constant(1))
    turn.add_incoming(following, builder.block)
    for phi, value in zip(values, results, strict=True):
        phi.add_incoming(value, builder.block)
    builder.cbranch(builder.icmp_signed("<", following, count), turns, after)
    builder.position_at_end(after)
    return results


def _allowed_starts(builder: Any, isa: Isa, start: Any, word: Any) -> list[Any]:
    """Accumulators that begin at ``start`` for the items of a mask word, and stay negative for others.

    An item that must not come back would otherwise pass again and again, as excluded items do that are the
    best of a query: each costs a mispredicted branch.
    """
    every_bit = builder.bitcast(word, ir.VectorType(_I1, TILE))
    starts = []
    for first in range(0, TILE, isa.lanes):
        lanes = ir.Constant(ir.VectorType(_I32, isa.lanes), list(range(first, first + isa.lanes)))
        allowed = builder.shuffle_vector(every_bit, every_bit, lanes)
        never = _every(_words(isa), NEVER)
        starts.append(builder.select(allowed, _splat(builder, start, isa.lanes), never))
    return starts


def _passing_word(builder: Any, isa: Isa, vectors: list[Any]) -> Any:
    """A bit per item whose accumulator is not negative."""
    zero, mask = _every(_words(isa), 0), ir.IntType(isa.lanes)
    word = ir.Constant(_I32, 0)
    for v, vector in enumerate(vectors):
        bits = builder.zext(builder.bitcast(builder.icmp_signed(">=", vector, zero), mask), _I32)
        word = builder.or_(word, builder.shl(bits, ir.Constant(_I32, isa.lanes * v)))
    return word


def _any_passes(builder: Any, isa: Isa, vectors: list[Any]) -> Any:
    """Whether some accumulator is not negative: their AND has a sign bit of 0 in that lane."""
    joined = vectors[0]
    for vector in vectors[1:]:
        joined = builder.and_(joined, vector)
    mask = ir.IntType(isa.lanes)
    negative = builder.bitcast(builder.icmp_signed("<", joined, _every(_words(isa), 0)), mask)
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
        high_at = _address(context, builder, kinds[1], high, first, STEP_BYTES)
        low_at = _address(context, builder, kinds[2], low, first, STEP_BYTES)
        codes_at = _address(context, builder, kinds[5], codes, _constant(0), 1)

        def join_pair(pair: Any, _: list[Any]) -> list[Any]:
            place = builder.mul(pair, _constant(STEP_BYTES))
            planes = [_offset(builder, plane, place) for plane in (high_at, low_at)]
            halves = zip(*(_load_vectors(builder, isa, plane) for plane in planes), strict=True)
            for v, (upper, lower) in enumerate(halves):
                for step, joined in enumerate(_join(builder, isa, upper, lower)):
                    out = builder.add(builder.mul(place, _constant(2)), _constant(step * STEP_BYTES))
                    out = builder.add(out, _constant(4 * isa.lanes * v))
                    _store(builder, joined, _offset(builder, codes_at, out), 1)
            return []

        _loop(builder, n_pairs, [], join_pair)
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
    word_rows: Any,
    tile: Any,
    passing: Any,
) -> Any:
    """Scores block ``block`` of the queries against one tile: a bit per query that an item passes.

    codes: flat uint8, [step][item][4] · query_codes: flat int32, [block][step][query], four signed bytes each
    · starts: flat int32, the accumulator of query i begins at starts[first_start + i * start_stride] · words:
    flat uint32, the items that query i may get are the bits of words[word_rows[block * n_queries + i] + tile]
    · passing: (n_queries,) uint32, written only when the result is not 0: bit j says that query i may get
    item j and that its sum is ≥ 0.
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
        word_rows,
        counts,
        passing,
    )
    isa = ISA_OF_BLOCKING[blocking.instance_class]
    n_queries = blocking.instance_class().n_queries
    n_vectors = TILE // isa.lanes

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, codes, query_codes, block, n_pairs, starts, first_start, start_stride, *rest = arguments
        words, word_rows, tile, passing = rest
        kinds = signature.args
        items_at = _address(context, builder, kinds[1], codes, _constant(0), 1)
        block_words = builder.mul(n_pairs, _constant(2 * n_queries))
        queries_at = _address(context, builder, kinds[2], query_codes, builder.mul(block, block_words), 4)
        begin = []
        for query in range(n_queries):
            element = builder.add(first_start, builder.mul(start_stride, _constant(query)))
            start = _load(builder, _address(context, builder, kinds[5], starts, element, 4), _I32, 4)
            slot = builder.add(builder.mul(block, _constant(n_queries)), _constant(query))
            word_row = _load(builder, _address(context, builder, kinds[9], word_rows, slot, 8), _I64, 8)
            place = _address(context, builder, kinds[8], words, builder.add(word_row, tile), 4)
            begin += _allowed_starts(builder, isa, start, _load(builder, place, _I32, 4))

        def add_pair(pair: Any, accumulators: list[Any]) -> list[Any]:
            accumulators = list(accumulators)
            for step in range(2):
                number = builder.add(builder.mul(pair, _constant(2)), _constant(step))
                step_at = _offset(builder, items_at, builder.mul(number, _constant(STEP_BYTES)))
                words_at = _offset(builder, queries_at, builder.mul(number, _constant(4 * n_queries)))
                items = _load_vectors(builder, isa, step_at)
                for query in range(n_queries):
                    word = _load(builder, _offset(builder, words_at, _constant(4 * query)), _I32, 4)
                    code = builder.bitcast(_splat(builder, word, isa.lanes), _bytes(isa))
                    for v in range(n_vectors):
                        i = query * n_vectors + v
                        accumulators[i] = _multiply_add(builder, isa, accumulators[i], items[v], code)
            return accumulators

        accumulators = _loop(builder, n_pairs, begin, add_pair)
        before = builder.block
        with builder.if_then(_any_passes(builder, isa, accumulators), likely=False):
            queries = ir.Constant(_I32, 0)
            for query in range(n_queries):
                vectors = accumulators[query * n_vectors : (query + 1) * n_vectors]
                word = _passing_word(builder, isa, vectors)
                address = _address(context, builder, kinds[11], passing, _constant(query), 4)
                _store(builder, word, address, 4)
                some = builder.zext(builder.icmp_unsigned("!=", word, ir.Constant(_I32, 0)), _I32)
                queries = builder.or_(queries, builder.shl(some, ir.Constant(_I32, query)))
            written = builder.block
        result = builder.phi(_I32)
        result.add_incoming(ir.Constant(_I32, 0), before)
        result.add_incoming(queries, written)
        return result

    return signature, codegen


@intrinsic
def next_passing_tile(
    typing_context: Any,
    blocking: Any,
    coarse: Any,
    high: Any,
    low: Any,
    first: Any,
    end: Any,
    codes: Any,
    query: Any,
    n_pairs: Any,
    starts: Any,
    first_start: Any,
    passing: Any,
) -> Any:
    """The first tile of ``first`` to ``end`` in which an item passes for one query, or ``end``.

    coarse: whether the upper halves of the codes are read alone, to which the starts must belong then ·
    high, low: the planes of packing.Tiles · codes: (batch, 2 n_pairs) int32, row ``query`` counts · starts:
    flat int32, the accumulators of tile t begin at starts[first_start + t − first] · passing: (≥ 1,) uint32,
    passing[0] is written where a tile is found: bit j says that item j's sum is ≥ 0.
    """
    counts = types.int64
    signature = types.int64(
        blocking, types.boolean, high, low, counts, counts, codes, counts, counts, starts, counts, passing
    )
    isa = ISA_OF_BLOCKING[blocking.instance_class]

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, coarse, high, low, first, end, codes, query, n_pairs, starts, first_start, passing = arguments
        kinds = signature.args
        planes = [
            _address(context, builder, kind, plane, _constant(0), 1)
            for kind, plane in ((kinds[2], high), (kinds[3], low))
        ]
        query_words = builder.mul(query, builder.mul(n_pairs, _constant(2)))
        scan = _Stream(
            isa=isa,
            first=first,
            end=end,
            codes=_address(context, builder, kinds[6], codes, query_words, 4),
            n_pairs=n_pairs,
            starts=_address(context, builder, kinds[9], starts, first_start, 4),
            passing=_address(context, builder, kinds[11], passing, _constant(0), 4),
        )
        with builder.if_else(coarse) as (then, otherwise):
            with then:
                coarse_tile = scan.emit(builder, planes[:1])
                coarse_block = builder.block
            with otherwise:
                fine_tile = scan.emit(builder, planes)
                fine_block = builder.block
        tile = builder.phi(_I64)
        tile.add_incoming(coarse_tile, coarse_block)
        tile.add_incoming(fine_tile, fine_block)
        return tile

    return signature, codegen


@dataclass(frozen=True, slots=True)
class _Stream:
    """The loop of next_passing_tile over tiles; all but ``isa`` are values of the IR."""

    isa: Isa
    first: Any
    end: Any
    codes: Any
    n_pairs: Any
    starts: Any
    passing: Any

    def emit(self, builder: Any, planes: list[Any]) -> Any:
        """Emits the loop over upper halves, if ``planes`` is one, or over whole codes; returns the tile."""
        isa, n_vectors = self.isa, TILE // self.isa.lanes
        before = builder.block
        head, score, passed, done = (
            builder.append_basic_block(name) for name in ("tile", "score", "passed", "done")
        )
        builder.branch(head)
        builder.position_at_end(head)
        tile = builder.phi(_I64)
        tile.add_incoming(self.first, before)
        builder.cbranch(builder.icmp_signed("<", tile, self.end), score, done)

        builder.position_at_end(score)
        number = builder.sub(tile, self.first)
        start = _load(builder, _offset(builder, self.starts, builder.mul(number, _constant(4))), _I32, 4)
        tile_bytes = builder.mul(tile, builder.mul(self.n_pairs, _constant(STEP_BYTES)))
        at = [_offset(builder, plane, tile_bytes) for plane in planes]
        # Two chains of accumulators: one alone would wait for the delay of each addition.
        begin = [_splat(builder, start, isa.lanes)] * n_vectors + [_every(_words(isa), 0)] * n_vectors
        chains = _loop(
            builder, self.n_pairs, begin, lambda pair, sums: self._add_pair(builder, at, pair, sums)
        )
        sums = [builder.add(chains[v], chains[n_vectors + v]) for v in range(n_vectors)]
        tile.add_incoming(builder.add(tile, _constant(1)), builder.block)
        builder.cbranch(_any_passes(builder, isa, sums), passed, head)

        builder.position_at_end(passed)
        _store(builder, _passing_word(builder, isa, sums), self.passing, 4)
        builder.branch(done)
        builder.position_at_end(done)
        return tile

    def _add_pair(self, builder: Any, at: list[Any], pair: Any, chains: list[Any]) -> list[Any]:
        isa, n_vectors = self.isa, TILE // self.isa.lanes
        here = [_offset(builder, plane, builder.mul(pair, _constant(STEP_BYTES))) for plane in at]
        words_at = _offset(builder, self.codes, builder.mul(pair, _constant(8)))
        queries = []
        for step in range(2):
            word = _load(builder, _offset(builder, words_at, _constant(4 * step)), _I32, 4)
            queries.append(builder.bitcast(_splat(builder, word, isa.lanes), _bytes(isa)))
        results = list(chains)
        for v, halves in enumerate(zip(*(_load_vectors(builder, isa, plane) for plane in here), strict=True)):
            items = _upper_halves(builder, isa, *halves) if len(halves) == 1 else _join(builder, isa, *halves)
            for step in range(2):
                i = step * n_vectors + v
                results[i] = _multiply_add(builder, isa, results[i], items[step], queries[step])
        return results
