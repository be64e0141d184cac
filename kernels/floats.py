"""The float32 micro-kernel: a block of queries against rows as they are, with fused multiply-adds.

It scores what has no int8 codes: the items that came after the build, and every item where the processor has
no int8 instructions of ours. Its sums only tell which rows may enter a list; the score of such a row is
computed anew, in the one order of `simd.dot`, so that every path gives the same answer. It reached 99 % of
the rate at which the machine can multiply and add at all (115 of 116 GFLOP/s; AMD Zen 4; d 64 and 128).

**The bound.** A sum of d products by fused multiply-adds passes d roundings, a score at most ⌈d/16⌉ + 6
(packing module), so the two differ by at most (d + ⌈d/16⌉ + 6)·u/(1 − …)·|q||x| + 2d·2⁻¹⁴⁹, u = 2⁻²⁴. A row
is scored if its sum reaches the threshold less that much; `slack_per_norm` is the factor, rounded up.
"""

# mypy: allow-untyped-defs

from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic

from recserve.kernels.emit import F32, I32, I64, POINTER, declare, int64, load, splat, store
from recserve.kernels.jit import kernel
from recserve.kernels.rows import TILE, is_finished, scan_rows, score_row, shorten_list
from recserve.kernels.simd import trailing_zeros
from recserve.kernels.topk import NO_KEY, score_of

# One block: accumulators for ROWS × WIDTH sums fill half of the vector registers, enough to hide the delay of
# an addition, and leave room for the operands.
_WIDE = not config.DISABLE_JIT and bool(binding.get_host_cpu_features().get("avx512f"))
ROWS, WIDTH = (8, 32) if _WIDE else (4, 16)
# Of fewer queries most lanes would be empty; and plain Python, without the compiler, knows no vectors.
MIN_BATCH = WIDTH // 2 if not config.DISABLE_JIT else 2**31

_LANES = ir.VectorType(F32, WIDTH)


@kernel
def slack_per_norm(dim):
    """What a sum may be too small by, as a share of |query| · |row|."""
    roundings = (dim + -(-dim // 16) + 8) * 2.0**-24
    return roundings / (1.0 - roundings)


@intrinsic
def passing_rows(
    typing_context: Any, vectors: Any, row: Any, columns: Any, group: Any, limits: Any, passing: Any
) -> Any:
    """Scores ROWS rows from ``row`` on for one group of WIDTH queries; returns a bit per row that passes.

    vectors: (n, d) float32, C-order · columns: (n_groups, d, WIDTH) float32, the queries side by side ·
    limits: (WIDTH,) float32, the sum of query i must reach limits[i] · passing: (ROWS,) uint32, written only
    when the result is not 0: bit i of passing[j] says that row j passes for query i.
    """
    signature = types.uint32(vectors, types.int64, columns, types.int64, limits, passing)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        arrays = {
            place: context.make_array(signature.args[place])(context, builder, arguments[place])
            for place in (0, 2, 4, 5)
        }
        data = {place: builder.bitcast(array.data, POINTER) for place, array in arrays.items()}
        dim = cgutils.unpack_tuple(builder, arrays[0].shape, 2)[1]
        first = builder.gep(data[0], [builder.mul(arguments[1], dim)], source_etype=F32)
        rows = [builder.gep(first, [builder.mul(dim, int64(j))], source_etype=F32) for j in range(ROWS)]
        group_size = builder.mul(dim, int64(WIDTH))
        queries = builder.gep(data[2], [builder.mul(arguments[3], group_size)], source_etype=F32)
        sums = _emit_sums(builder, rows, queries, dim)
        return _emit_passing(builder, sums, load(builder, data[4], _LANES, 4), data[5])

    return signature, codegen


def _emit_sums(builder: Any, rows: list[Any], queries: Any, dim: Any) -> list[Any]:
    """Emits the loop over the dimensions; returns a vector of sums per row."""
    before = builder.block
    body, after = builder.append_basic_block("dimensions"), builder.append_basic_block("summed")
    multiply = declare(builder, f"llvm.fma.v{WIDTH}f32", _LANES, [_LANES] * 3)
    builder.branch(body)
    builder.position_at_end(body)
    column = builder.phi(I64)
    column.add_incoming(int64(0), before)
    phis = [builder.phi(_LANES) for _ in rows]
    place = builder.mul(column, int64(WIDTH))
    query = load(builder, builder.gep(queries, [place], source_etype=F32), _LANES, 4)
    sums = []
    for row, phi in zip(rows, phis, strict=True):
        element = load(builder, builder.gep(row, [column], source_etype=F32), F32, 4)
        sums.append(builder.call(multiply, [splat(builder, element, WIDTH), query, phi]))
    following = builder.add(column, int64(1))
    column.add_incoming(following, body)
    for phi, value in zip(phis, sums, strict=True):
        phi.add_incoming(ir.Constant(_LANES, [0.0] * WIDTH), before)
        phi.add_incoming(value, body)
    builder.cbranch(builder.icmp_signed("<", following, dim), body, after)
    builder.position_at_end(after)
    return sums


def _emit_passing(builder: Any, sums: list[Any], limits: Any, passing: Any) -> Any:
    """Emits the test and, where a row passes, the output."""
    mask = ir.IntType(WIDTH)
    passes = [builder.fcmp_ordered(">=", row_sums, limits) for row_sums in sums]
    some = passes[0]
    for other in passes[1:]:
        some = builder.or_(some, other)
    before = builder.block
    with builder.if_then(
        builder.icmp_unsigned("!=", builder.bitcast(some, mask), ir.Constant(mask, 0)), likely=False
    ):
        result = ir.Constant(I32, 0)
        for j, row_passes in enumerate(passes):
            word = builder.bitcast(row_passes, mask)
            word = builder.zext(word, I32) if WIDTH < 32 else word
            at = builder.gep(passing, [int64(j)], source_etype=I32)
            store(builder, word, at, 4)
            bit = builder.zext(builder.icmp_unsigned("!=", word, ir.Constant(I32, 0)), I32)
            result = builder.or_(result, builder.shl(bit, ir.Constant(I32, j)))
        written = builder.block
    phi = builder.phi(I32)
    phi.add_incoming(ir.Constant(I32, 0), before)
    phi.add_incoming(result, written)
    return phi


@kernel
def scan_vectors(rows, first_word, batch, lists):
    """Does what rows.scan_rows does, by the faster way for this batch."""
    if batch.queries.shape[0] >= MIN_BATCH and rows.vectors.shape[0] >= ROWS:
        scan_floats(slack_per_norm(batch.queries.shape[1]), rows, first_word, batch, lists)
    else:
        scan_rows(rows, first_word, batch, lists)


@kernel
def scan_floats(slack, rows, first_word, batch, lists):
    """Does what rows.scan_rows does, with the same result, for a batch of at least MIN_BATCH queries.

    slack: slack_per_norm(d).
    """
    vectors, item_of_row, norm_bounds = rows
    queries, norms, reaches, words, bias, bias_bounds = batch
    k, keys, counts, n_scored, thresholds = lists
    n_queries, n_groups = queries.shape[0], -(-queries.shape[0] // WIDTH)
    columns = side_by_side(queries, n_groups)
    limits, passing = np.empty((n_groups, WIDTH), np.float32), np.empty(ROWS, np.uint32)
    for tile in range(norm_bounds.shape[0]):
        union = np.uint32(0)
        for row in range(words.shape[0]):
            union |= words[row, first_word + tile]
        if union == 0:
            continue
        largest_bias = bias_bounds[1, first_word + tile] if bias.shape[0] else np.float32(0.0)
        tile_bias = bias_bounds[0, first_word + tile] if bias.shape[0] else np.float32(0.0)
        n_alive = 0
        for query in range(n_queries):
            finished = is_finished(thresholds[query], reaches[query], norm_bounds[tile], largest_bias)
            n_alive += not finished
            limits[query // WIDTH, query % WIDTH] = limit_of(
                finished, thresholds[query], slack * norms[query] * norm_bounds[tile], tile_bias
            )
        if n_alive == 0:
            break
        for query in range(n_queries, n_groups * WIDTH):
            limits[query // WIDTH, query % WIDTH] = np.inf
        end = min(tile * TILE + TILE, vectors.shape[0])
        for group in range(n_groups):
            for row in range(tile * TILE, end, ROWS):
                # Where less than a block is left, the block ends at the last row and begins among rows done.
                start = max(0, min(row, vectors.shape[0] - ROWS))
                hits = passing_rows(vectors, start, columns, group, limits[group], passing)
                hits &= np.uint32(0xFFFFFFFF) << np.uint32(row - start)
                while hits:
                    hit = trailing_zeros(hits)
                    hits &= hits - np.uint32(1)
                    lane_bits = passing[hit]
                    while lane_bits:
                        query = group * WIDTH + trailing_zeros(lane_bits)
                        lane_bits &= lane_bits - np.uint32(1)
                        word = words[query if words.shape[0] > 1 else 0, first_word + tile]
                        if (word >> np.uint32((start + hit) % TILE)) & np.uint32(1) == 0:
                            continue
                        key = score_row(vectors, start + hit, item_of_row[start + hit], queries, query, bias)
                        if key > thresholds[query]:
                            keys[query, counts[query]] = key
                            counts[query] += 1
                            if counts[query] == keys.shape[1]:
                                shorten_list(keys, counts, thresholds, query, k)
    for query in range(n_queries):
        n_scored[query] = counts[query]


@kernel
def side_by_side(queries, n_groups):
    """(n_groups, d, WIDTH) float32: the queries as columns, zero where a group is not full."""
    columns = np.zeros((n_groups, queries.shape[1], WIDTH), np.float32)
    for query in range(queries.shape[0]):
        for column in range(queries.shape[1]):
            columns[query // WIDTH, column, query % WIDTH] = queries[query, column]
    return columns


@kernel
def limit_of(finished, threshold, slack, bias):
    """The least sum of a row that may enter a list, rounded down."""
    if finished:
        return np.float32(np.inf)
    if threshold == NO_KEY:
        return np.float32(-np.inf)
    score = np.float64(score_of(threshold))
    size = abs(score) + abs(np.float64(bias)) + slack
    return np.float32(score - bias - slack - size * 2.0**-22 - 2.0**-138)
