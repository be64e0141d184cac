"""A catalogue as the device reads it, and the bounds that make its coarse forms safe to search by.

Rows stand in the order of their norms, 32 to a tile, as in the CPU's index. A tile is stored dimension by
dimension, so that the 32 threads of a warp, one per row, read 32 neighbours. The float32 tiles are always
there: final scores come from them. A *coarse* form, float16 or int8, is read instead in the first pass; for
every row it gives an upper bound of the final score, and with the same notation as
:mod:`recserve.kernels.packing` (x a row, q a query, f the computed score, u = 2⁻²⁴, γ as there, so that
f ≤ q·x + γ|q||x| + d·2⁻¹⁴⁹):

**int8**: the codes of the CPU's tiles. packing proves q·x ≤ a·s·(b·c) + |q||r| + |p|·s|c|, hence

    f ≤ a·s·w + d·2⁻¹⁴⁹  with  w = b·c + (|q|/a)·((|r| + γ|x|)/s) + (|p|/a)·|c|

The integer |b·c| ≤ 127²·1024 < 2²⁴ is exact in float32. The two other terms are below 2¹⁷·1.01 together; they
are enlarged by 2⁻²⁰, which pays for their own three roundings, and by 2, which is more than the roundings of
the two sums of numbers below 2²⁵. Then w times a·s, where each step is known as the reciprocal of a rounded
reciprocal (2u each), two products are rounded, and two sums to come: 8u, paid for by 2⁻²⁰·|result| = 16u;
steps are at least 10⁻¹⁸, and 2⁻¹²⁶ pays for results so small that they lose digits.

**float16**: x = s·h + r, s a power of two per tile (at least 2⁻¹⁰⁰), h rounded to float16. The first pass
computes g, a sum of d fused products, so |g − q·h| ≤ γ'|q||h| + d·2⁻¹⁴⁹ with γ' = (d+1)u/(1 − (d+1)u), and

    f ≤ s·g + |q|·W + (s + 1)·d·2⁻¹⁴⁹  with  W = |r| + γ|x| + γ'·s|h|, the largest of the tile.

s·g is exact, or so small that 2⁻¹²⁶ pays for it; the product |q|·W and the three sums are rounded, 4u of
|s·g| + |q|W, which 2⁻²¹ = 8u of it pays for; (s + 1)·2⁻¹²⁶ pays for the rest.

Adding a bias is monotone: fl(f + bias) ≤ fl(bound + bias).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import cuda

from recserve.kernels import packing
from recserve.kernels.cuda.arithmetic import LANES
from recserve.kernels.rows import TILE
from recserve.kernels.snapshot import Snapshot

FLOAT16_TOP = 15  # the largest element of a tile becomes a number in [2¹⁴, 2¹⁵): small ones keep their digits
MIN_SCALE = -100  # as a power of two
FLOAT64_TILES = 256  # at once: a float64 copy of everything would be larger than the index

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Coarse:
    """What the first pass reads instead of float32.

    codes: (n_tiles, n, 32), float16 with n the padded dim, or uint32 of four (code + 128) with n a quarter
    of d rounded up to 8 · bounds: (3, n_tiles) float32: s, (|r| + γ|x|)/s, |c| for int8; s, W, 0 for float16.
    """

    codes: Any
    bounds: Any


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The device arrays of one catalogue.

    tiles: (n_tiles, padded dim, 32) float32, zeros beyond d and beyond the last row · item_of_row: (n_rows,)
    int32 · row_of_item: (n_items,) int32, read for items of these rows only · live: (1, n_tiles) uint32, a
    bit per row.
    """

    tiles: Any
    item_of_row: Any
    row_of_item: Any
    live: Any
    coarse: Coarse | None

    @property
    def n_tiles(self) -> int:
        """Tiles of 32 rows."""
        return int(self.tiles.shape[0])

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        arrays = [self.tiles, self.item_of_row, self.row_of_item, self.live]
        if self.coarse is not None:
            arrays += [self.coarse.codes, self.coarse.bounds]
        return sum(array.nbytes for array in arrays)


def upload(snapshot: Snapshot, dtype: str, stream: Any) -> Catalogue:
    """Copies the base of a snapshot, at least one row, to the current device."""
    tiles = float32_tiles(snapshot.base.vectors)
    codes: Any = None
    bounds: Any = None
    if dtype == "float16":
        codes, bounds = float16_tiles(tiles)
    elif dtype == "int8":
        codes, bounds = int8_tiles(snapshot.tiles, len(tiles))
    base_live = snapshot.live[:, : snapshot.n_base_words].copy()
    parts = (tiles, snapshot.base.item_of_row, snapshot.row_of_item, base_live, codes, bounds)
    vectors, item_of_row, row_of_item, live, codes, bounds = (
        None if part is None else cuda.to_device(part, stream=stream) for part in parts
    )
    stream.synchronize()
    coarse = None if codes is None else Coarse(codes, bounds)
    return Catalogue(vectors, item_of_row, row_of_item, live, coarse)


def padded(dim: int) -> int:
    """The number of dimensions on the device: whole rounds of 16 lanes."""
    return -(-dim // LANES) * LANES


def float32_tiles(vectors: Vectors) -> Vectors:
    """(n_rows, d) to (n_tiles, padded dim, 32)."""
    n_rows, dim = vectors.shape
    n_tiles = -(-n_rows // TILE)
    tiles = np.zeros((n_tiles, padded(dim), TILE), np.float32)
    whole = n_rows // TILE
    tiles[:whole, :dim] = vectors[: whole * TILE].reshape(whole, TILE, dim).transpose(0, 2, 1)
    if whole < n_tiles:
        tiles[whole, :dim, : n_rows - whole * TILE] = vectors[whole * TILE :].T
    return tiles


def float16_tiles(tiles: Vectors) -> tuple[npt.NDArray[np.float16], Vectors]:
    """Codes and bounds, see Coarse."""
    n_tiles, dim = tiles.shape[:2]
    largest = np.abs(tiles).max(axis=(1, 2))
    exponents = np.maximum(np.frexp(largest)[1] - FLOAT16_TOP, MIN_SCALE)
    scales = np.ldexp(np.float32(1), exponents)
    codes = np.empty(tiles.shape, np.float16)
    bounds = np.zeros((3, n_tiles), np.float32)
    bounds[0] = scales
    roundings = (dim + 1) * 2.0**-24
    of_first_pass, of_score = roundings / (1 - roundings), packing.relative_rounding(dim)
    for start in range(0, n_tiles, FLOAT64_TILES):
        part = slice(start, start + FLOAT64_TILES)
        scale = scales[part, None, None]
        codes[part] = (tiles[part] / scale).astype(np.float16)
        rows = tiles[part].astype(np.float64)
        rounded = codes[part].astype(np.float64) * scale
        error = np.linalg.norm(rows - rounded, axis=1)
        error += of_score * np.linalg.norm(rows, axis=1) + of_first_pass * np.linalg.norm(rounded, axis=1)
        bounds[1, part] = error.max(axis=1) * (1 + 2.0**-21) + 2.0**-148
    return codes, bounds


def int8_tiles(tiles: packing.Tiles, n_tiles: int) -> tuple[npt.NDArray[np.uint32], Vectors]:
    """Codes and bounds, see Coarse: the CPU's tiles as they are, four codes to a word."""
    codes = packing.whole_codes(tiles, n_tiles).view(np.uint32).reshape(n_tiles, -1, TILE)
    inverse_steps, residuals, code_norms, _ = tiles.bounds
    return codes, np.stack([1 / inverse_steps, residuals, code_norms]).astype(np.float32)
