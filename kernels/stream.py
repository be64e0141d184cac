"""The int8 micro-kernel of one query: tile after tile of 32 items as they stream from memory, as LLVM IR.

It does not ask for memory ahead: the processor sees a stream by itself, and prefetch instructions only made
it slower (AMD Zen 4: 46 µs became 49 to 61 for 100k × 64 in the third-level cache, with no gain from
main memory).
"""

from dataclasses import dataclass
from typing import Any

from numba import types
from numba.extending import intrinsic

from recserve.kernels.emit import I32, I64, address, every, int64, load, loop, offset, splat, store
from recserve.kernels.isa import ISA_OF_BLOCKING, Isa
from recserve.kernels.micro import (
    STEP_BYTES,
    any_passes,
    bytes_of,
    join,
    load_vectors,
    multiply_add,
    passing_word,
    upper_halves,
    words_of,
)
from recserve.kernels.rows import TILE


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
            address(context, builder, kind, plane, int64(0), 1)
            for kind, plane in ((kinds[2], high), (kinds[3], low))
        ]
        query_words = builder.mul(query, builder.mul(n_pairs, int64(2)))
        scan = _Stream(
            isa=isa,
            first=first,
            end=end,
            codes=address(context, builder, kinds[6], codes, query_words, 4),
            n_pairs=n_pairs,
            starts=address(context, builder, kinds[9], starts, first_start, 4),
            passing=address(context, builder, kinds[11], passing, int64(0), 4),
        )
        with builder.if_else(coarse) as (then, otherwise):
            with then:
                coarse_tile = scan.emit(builder, planes[:1])
                coarse_block = builder.block
            with otherwise:
                fine_tile = scan.emit(builder, planes)
                fine_block = builder.block
        tile = builder.phi(I64)
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
        tile = builder.phi(I64)
        tile.add_incoming(self.first, before)
        builder.cbranch(builder.icmp_signed("<", tile, self.end), score, done)

        builder.position_at_end(score)
        number = builder.sub(tile, self.first)
        start = load(builder, offset(builder, self.starts, builder.mul(number, int64(4))), I32, 4)
        tile_bytes = builder.mul(tile, builder.mul(self.n_pairs, int64(STEP_BYTES)))
        at = [offset(builder, plane, tile_bytes) for plane in planes]
        # Two chains of accumulators: one alone would wait for the delay of each addition.
        begin = [splat(builder, start, isa.lanes)] * n_vectors + [every(words_of(isa), 0)] * n_vectors
        chains = loop(
            builder, self.n_pairs, begin, lambda pair, sums: self._add_pair(builder, at, pair, sums)
        )
        sums = [builder.add(chains[v], chains[n_vectors + v]) for v in range(n_vectors)]
        tile.add_incoming(builder.add(tile, int64(1)), builder.block)
        builder.cbranch(any_passes(builder, isa, sums), passed, head)

        builder.position_at_end(passed)
        store(builder, passing_word(builder, isa, sums), self.passing, 4)
        builder.branch(done)
        builder.position_at_end(done)
        return tile

    def _add_pair(self, builder: Any, at: list[Any], pair: Any, chains: list[Any]) -> list[Any]:
        isa, n_vectors = self.isa, TILE // self.isa.lanes
        here = [offset(builder, plane, builder.mul(pair, int64(STEP_BYTES))) for plane in at]
        words_at = offset(builder, self.codes, builder.mul(pair, int64(8)))
        queries = []
        for step in range(2):
            word = load(builder, offset(builder, words_at, int64(4 * step)), I32, 4)
            queries.append(builder.bitcast(splat(builder, word, isa.lanes), bytes_of(isa)))
        results = list(chains)
        for v, halves in enumerate(zip(*(load_vectors(builder, isa, plane) for plane in here), strict=True)):
            items = upper_halves(builder, isa, *halves) if len(halves) == 1 else join(builder, isa, *halves)
            for step in range(2):
                i = step * n_vectors + v
                results[i] = multiply_add(builder, isa, results[i], items[step], queries[step])
        return results
