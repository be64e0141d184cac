"""From float32 vectors to 8-bit codes, with bounds that make the codes safe to search by.

Two computed quantities are compared everywhere: the *score* of an item, a float32 sum of products in the
order of `simd.dot`, and the *threshold*, the score that an item must reach to enter a list. The first pass
sees codes only, so it needs to know how far a score can be above what the codes say.

**The bound.** Let x be an item with codes c and residual r = x − s·c, s the step of its tile; let q be a
query with codes b and residual p = q − a·b. Exactly,

    q·x = q·r + s·(q·c) = q·r + s·(p·c) + a·s·(b·c)  ≤  |q||r| + s|p||c| + a·s·(b·c)          (Cauchy–Schwarz)

and b·c is an integer sum, computed without error. The computed score f differs from q·x by at most γ|q||x|
+ d·2⁻¹⁴⁹, where γ = m·u/(1 − m·u), u = 2⁻²⁴ and m is the number of roundings that one product passes
through (Higham, *Accuracy and Stability of Numerical Algorithms*, §3.1): one product, ⌈d/16⌉ lane sums,
four halvings; one more pays for the rounding of f + bias. So f ≥ t is possible only if

    b·c ≥ (t − |q|(|r| + γ|x|) − |p|·s|c|) / (a·s) =: v

with the largest |r|, |x| and |c| of the tile. v is evaluated in float32 as (t/a)(1/s) − (|q|/a)((|r| +
γ|x|)/s) − (|p|/a)|c|. The last two terms are below 128·d together and each is rounded up from float64,
which leaves an error below 0.01; the first passes through at most eight roundings; v is cut at ±2¹⁵·d,
beyond every |b·c| ≤ 127²·d. Hence the error of v is below 8u(2¹⁵ + 130)·d + 0.1 < d/63 + 0.1, cutting to an
integer costs less than 1, and d·2⁻¹⁴⁹/(a·s) is below 10⁻⁵ because steps are at least 10⁻¹⁸. `margin` = 2 +
⌊d/32⌋ exceeds the sum, and the first pass asks for b·c ≥ ⌊v⌋ − margin. No item that could reach the
threshold is lost; those that pass in vain are scored exactly and cost time, never correctness.

**The coarse bound.** A code is stored as two halves, c + 128 = 16h + l with 0 ≤ h, l ≤ 15, in two planes, so
that a scan may read the upper half alone. With B = Σb, Cauchy–Schwarz on the lower half gives

    Σ b(c + 128) = 16·(b·h) + b·(l − 7.5) + 7.5·B  ≤  16·(b·h) + |b||l − 7.5| + 7.5·B

so where the first pass asks for Σ b(c + 128) ≥ T, an integer, the coarse one asks for b·h ≥ ⌊(T − U)/16⌋ with
the integer U ≥ |b||l − 7.5| + 7.5·B of `coarse_slack`, for the largest |l − 7.5| of the tile. Its float32
product is below 127·7.5·1024 < 2²⁰, so its rounding is below 2⁻⁴ and the 1 that is added pays for it.
"""

# mypy: allow-untyped-defs

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from recserve.kernels.jit import kernel
from recserve.kernels.rows import TILE

MAX_NORM = 1e18  # beyond it a dot product of two allowed rows could leave the range of float32
MIN_STEP = 1e-18  # smaller vectors get the code 0 and are all residual; keeps products of steps normal
ITEM_LIMIT = 127
STEP_DIMS = 4  # dimensions that one 32-bit lane of the micro-kernel takes at once
CACHE_LINE_BYTES = 64
PADDED_DIMS = 8  # dimensions are padded to a multiple of this, two steps


class Tiles(NamedTuple):
    """The items as the first pass reads them.

    high, low: flat uint8, [tile][pair of steps][item][4], the upper and the lower halves of the codes plus
    128: the first step of a pair in the lower four bits, the second in the upper · bounds: (4, n_tiles)
    float32, the upper bounds 1/s, (|r| + γ|x|)/s, |c| and |l − 7.5| of the module's proof.
    """

    high: Any
    low: Any
    bounds: Any


@kernel
def round_up(value):
    """A float32 at least as large as the float64 ``value`` ≥ 0, even if that is 2⁻²² too small."""
    return np.float32(value * (1.0 + 2.0**-21) + 2.0**-148)


@kernel
def row_norms(vectors, norms):
    """Writes an upper bound of each row's norm; returns the first row whose norm is not ≤ 1e18, or −1.

    vectors: (n, d) float32 · norms: (n,) float32, overwritten. A row with a NaN or an Inf fails the test.
    """
    for row in range(vectors.shape[0]):
        total = 0.0
        for column in range(vectors.shape[1]):
            value = np.float64(vectors[row, column])
            total += value * value
        norm = np.sqrt(total)
        if not norm <= MAX_NORM:
            return row
        norms[row] = round_up(norm)
    return -1


def relative_rounding(dim: int) -> float:
    """γ: how far a computed score may be from the true one, relative to |query| · |item|."""
    roundings = (-(-dim // 16) + 6) * 2.0**-24
    return roundings / (1.0 - roundings)


def norm_bounds(norms: npt.NDArray[np.float32], dim: int) -> npt.NDArray[np.float32]:
    """Per tile, what |query| must be multiplied by to exceed every computed dot product from here on."""
    n_tiles = -(-len(norms) // TILE)
    padded = np.zeros(n_tiles * TILE)
    padded[: len(norms)] = norms
    largest = padded.reshape(n_tiles, TILE).max(axis=1, initial=0.0)
    from_here_on = np.maximum.accumulate(largest[::-1])[::-1]
    return (from_here_on * (1.0 + relative_rounding(dim) + 2.0**-20) + 2.0**-126).astype(np.float32)


@kernel
def padded_dim(dim):
    """The number of codes per item of ``dim`` dimensions."""
    return -(-dim // PADDED_DIMS) * PADDED_DIMS


def pack_tiles(vectors: npt.NDArray[np.float32], norms: npt.NDArray[np.float32]) -> Tiles:
    """Packs rows, in their order, into tiles of 32 with one step per tile."""
    n_rows, dim = vectors.shape
    n_tiles = -(-n_rows // TILE)
    shape = (n_tiles, padded_dim(dim) // PADDED_DIMS, TILE, STEP_DIMS)
    high, low = _aligned_bytes(math.prod(shape)), _aligned_bytes(math.prod(shape))
    bounds = np.empty((4, n_tiles), np.float32)
    _fill_tiles(vectors, norms, relative_rounding(dim), high.reshape(shape), low.reshape(shape), bounds)
    return Tiles(high, low, bounds)


def _aligned_bytes(n_bytes: int) -> npt.NDArray[np.uint8]:
    """Bytes from the start of a cache line on: a vector load across two lines takes twice as long."""
    spare = np.empty(n_bytes + CACHE_LINE_BYTES, np.uint8)
    start = -spare.ctypes.data % CACHE_LINE_BYTES
    return spare[start : start + n_bytes]


@kernel
def _fill_tiles(vectors, norms, gamma, high, low, bounds):
    n_rows, dim = vectors.shape
    codes = np.empty((TILE, high.shape[1] * PADDED_DIMS), np.uint8)
    for tile in range(high.shape[0]):
        first, end = tile * TILE, min(tile * TILE + TILE, n_rows)
        largest = np.float32(0.0)
        for row in range(first, end):
            for column in range(dim):
                largest = max(largest, abs(vectors[row, column]))
        step = np.float64(np.float32(max(largest / np.float64(ITEM_LIMIT), MIN_STEP)))
        residual, code_norm, low_norm, norm = 0.0, 0.0, 0.0, 0.0
        codes[:] = 128
        for row in range(first, end):
            squares, code_squares, low_squares = 0.0, 0.0, 0.0
            for column in range(dim):
                value = np.float64(vectors[row, column])
                code = min(max(np.rint(value / step), np.float64(-ITEM_LIMIT)), np.float64(ITEM_LIMIT))
                shifted = np.uint8(code + 128)
                codes[row - first, column] = shifted
                squares += (value - step * code) ** 2
                code_squares += code * code
                low_squares += (np.float64(shifted & 15) - 7.5) ** 2
            residual = max(residual, np.sqrt(squares))
            code_norm = max(code_norm, np.sqrt(code_squares))
            low_norm = max(low_norm, np.sqrt(low_squares))
            norm = max(norm, np.float64(norms[row]))
        bounds[0, tile] = np.float32(1.0 / step)
        bounds[1, tile] = round_up((residual + gamma * norm) / step)
        bounds[2, tile] = round_up(code_norm)
        bounds[3, tile] = round_up(low_norm)
        _split_codes(codes, tile, high, low)


@kernel
def _split_codes(codes, tile, high, low):
    """Writes the codes of one tile, (TILE, padded d) uint8, to the two planes."""
    for pair in range(high.shape[1]):
        for item in range(TILE):
            for byte in range(STEP_DIMS):
                first = codes[item, pair * PADDED_DIMS + byte]
                second = codes[item, pair * PADDED_DIMS + STEP_DIMS + byte]
                high[tile, pair, item, byte] = (first >> 4) | (second & 0xF0)
                low[tile, pair, item, byte] = (first & 0x0F) | ((second & 0x0F) << 4)


def whole_codes(tiles: Tiles, n_tiles: int) -> npt.NDArray[np.uint8]:
    """The codes plus 128 in one plane: (n_tiles, n_steps, 32, 4) uint8."""
    high, low = (plane.reshape(n_tiles, -1, TILE, STEP_DIMS) for plane in (tiles.high, tiles.low))
    steps = np.stack([high << 4 | low & 0x0F, high & 0xF0 | low >> 4], axis=2)
    return steps.reshape(n_tiles, 2 * high.shape[1], TILE, STEP_DIMS)


@kernel
def quantise_queries(queries, query_norms, limit, codes, factors, code_sums):
    """Writes the codes of the queries and what the bound needs of them.

    codes: (batch, n_steps) int32, four signed bytes each, |code| ≤ limit · factors: (batch, 4) float32, the
    numbers 1/a, |q|/a, |p|/a and |b| of the module's proof · code_sums: (batch,) int32, Σb.
    """
    dim = queries.shape[1]
    for query in range(queries.shape[0]):
        largest = np.float32(0.0)
        for column in range(dim):
            largest = max(largest, abs(queries[query, column]))
        step = np.float64(np.float32(max(largest / np.float64(limit), MIN_STEP)))
        inverse = 1.0 / step
        squares, code_squares, total = 0.0, 0.0, np.int32(0)
        for word in range(codes.shape[1]):
            packed = np.uint32(0)
            for column in range(word * STEP_DIMS, min(word * STEP_DIMS + STEP_DIMS, dim)):
                value = np.float64(queries[query, column])
                code = np.int32(min(max(np.rint(value * inverse), -limit), limit))
                packed |= np.uint32(code & 0xFF) << np.uint32(8 * (column % STEP_DIMS))
                squares += (value - step * code) ** 2
                code_squares += np.float64(code * code)
                total += code
            codes[query, word] = np.int32(packed)
        factors[query, 0] = np.float32(inverse)
        factors[query, 1] = round_up(np.float64(query_norms[query]) * inverse)
        factors[query, 2] = round_up(np.sqrt(squares) * inverse)
        factors[query, 3] = round_up(np.sqrt(code_squares))
        code_sums[query] = total


@kernel
def coarse_slack(code_norm, code_sum, low_norm):
    """The integer U of the coarse bound."""
    return np.int32(np.ceil(code_norm * low_norm)) + np.int32(1) + ((np.int32(15) * code_sum + 1) >> 1)
