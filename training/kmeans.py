"""k-means: Lloyd's iterations from a k-means++ start (Arthur & Vassilvitskii 2007)."""

import numpy as np
from numpy.typing import NDArray

MAX_ITERATIONS = 100
# Distances that are alive at once: 16 MB of float32.
DISTANCES_PER_STEP = 4_000_000


def k_means(
    vectors: NDArray[np.float32], k: int, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Returns the centres (k, d) float32 and the nearest centre of each vector, (n,) int64.

    vectors: (n, d) float32, n > 0. Where there are fewer different vectors than ``k``, centres repeat; a
    centre that loses all its vectors stays where it was.
    """
    centres = _start(vectors, k, rng)
    nearest, _ = nearest_centre(vectors, centres)
    for _ in range(MAX_ITERATIONS):
        sizes = np.bincount(nearest, minlength=k)
        order = np.argsort(nearest, kind="stable")
        full = np.flatnonzero(sizes)
        sums = np.add.reduceat(vectors[order], (np.cumsum(sizes) - sizes)[full], axis=0, dtype=np.float64)
        centres[full] = sums / sizes[full, None]
        before, (nearest, _) = nearest, nearest_centre(vectors, centres)
        if np.array_equal(before, nearest):
            break
    return centres, nearest


def nearest_centre(
    vectors: NDArray[np.float32], centres: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Returns the nearest of ``centres`` (k, d) to each vector, the first of equals, and the squared
    distance to it, (n,) each."""
    nearest = np.empty(len(vectors), np.int64)
    distances = np.empty(len(vectors), np.float32)
    step = max(1, DISTANCES_PER_STEP // len(centres))
    for start in range(0, len(vectors), step):
        some = vectors[start : start + step]
        squared = (some**2).sum(1)[:, None] - 2 * some @ centres.T + (centres**2).sum(1)
        nearest[start : start + step] = squared.argmin(1)
        distances[start : start + step] = np.maximum(squared.min(1), 0)
    return nearest, distances


def _start(vectors: NDArray[np.float32], k: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Draws centres among the vectors, each in proportion to its squared distance from those drawn."""
    centres = np.empty((k, vectors.shape[1]), np.float32)
    centres[0] = vectors[rng.integers(len(vectors))]
    distances = ((vectors - centres[0]) ** 2).sum(1)
    for place in range(1, k):
        total = distances.sum(dtype=np.float64)
        chosen = rng.choice(len(vectors), p=distances / total) if total > 0 else rng.integers(len(vectors))
        centres[place] = vectors[chosen]
        distances = np.minimum(distances, ((vectors - centres[place]) ** 2).sum(1))
    return centres
