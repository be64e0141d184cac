"""From item vectors to the order and the bounds that the scans rely on."""

# mypy: allow-untyped-defs

import numpy as np
import numpy.typing as npt

from recserve.kernels.jit import kernel
from recserve.kernels.rows import TILE

# Beyond this norm a dot product of two allowed rows could leave the range of float32.
MAX_NORM = 1e18


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


@kernel
def round_up(value):
    """A float32 at least as large as the float64 ``value`` ≥ 0, even after a relative error of 2⁻²³."""
    return np.float32(value * (1.0 + 2.0**-21) + 2.0**-148)


def norm_bounds(sorted_norms: npt.NDArray[np.float32], dim: int) -> npt.NDArray[np.float32]:
    """What multiplies |query| to bound the computed score of every row from a tile on.

    By Cauchy–Schwarz Σ|qᵢxᵢ| ≤ |q||x|, and a float32 sum of products in which no product passes through more
    than m roundings is within m·2⁻²⁴/(1 − m·2⁻²⁴) of it, relatively; m = ⌈d/16⌉ + 5 covers `simd.dot` and the
    addition of a bias. The norms fall, so the first row of a tile bounds the tile and all after it.
    """
    roundings = (-(-dim // 16) + 5) * 2.0**-24
    slack = 1.0 + 2.0 * roundings + 2.0**-20
    return (sorted_norms[::TILE].astype(np.float64) * slack + 2.0**-126).astype(np.float32)


def n_tiles_for(n_rows: int) -> int:
    """The number of tiles that hold ``n_rows`` rows."""
    return -(-n_rows // TILE)
