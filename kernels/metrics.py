"""What a score means: inner product, cosine, or closeness by Euclidean distance.

The scans know inner products and a bias per item; each metric is put in these terms when vectors come in.
"""

from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from recserve.errors import InvalidRequest, nearest

Metric = Literal["inner", "cosine", "l2"]
METRICS: tuple[str, ...] = get_args(Metric)

Vectors = npt.NDArray[np.float32]


def check(metric: str) -> Metric:
    """Returns the metric; raises InvalidRequest for another word."""
    for known in get_args(Metric):
        if metric == known:
            return known  # type: ignore[no-any-return]
    raise InvalidRequest(
        "metric", found=metric, expected=f"one of {', '.join(METRICS)}", cure=nearest(str(metric), METRICS)
    )


def prepare(metric: Metric, vectors: Vectors) -> Vectors:
    """The vectors, of items or of queries, that are searched in their place.

    For cosine they have length one, rounded to float32; a zero vector stays zero, and a norm is taken in
    float64, so that none overflows.
    """
    if metric != "cosine":
        return vectors
    norms = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))
    norms[norms == 0] = 1.0
    unit: Vectors = np.divide(vectors, norms[:, None], out=np.empty_like(vectors), casting="same_kind")
    return unit


def item_bias(metric: Metric, vectors: Vectors) -> Vectors:
    """What is added to the inner product of each item: (n,) float32, or (0,) for nothing.

    For l2 it is −|x|²/2, the last coordinate of the augmented item vector, whose query coordinate is 1: the
    score q·x − |x|²/2 = (|q|² − ‖q − x‖²)/2 falls as the distance grows (Bachrach et al., "Speeding Up the
    Xbox Recommender System Using a Euclidean Transformation", 2014). As a bias it is exact: in the codes of a
    tile, this one large coordinate would cost the others their precision.
    """
    if metric != "l2":
        return np.empty(0, np.float32)
    squares: Vectors = (np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64) / -2).astype(np.float32)
    return squares
