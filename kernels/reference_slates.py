"""The NumPy twins of the kernels that choose slates: one slate at a time, every gain anew."""

from typing import Any

import numpy as np
import numpy.typing as npt

from recserve.kernels.calibrated import Categories
from recserve.kernels.caps import Caps

Scores = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int32]


def mmr(
    scores: Scores,
    candidates: Indices,
    vectors: Scores,
    k: int,
    *,
    diversity: float,
    caps: Caps | None = None,
    n_pinned: Indices | None = None,
) -> Indices:
    """Recomputes every gain for every place: the twin of recserve.kernels.mmr."""
    relevance = np.float32(1) - np.float32(diversity)

    def gain(similarity: Any, score: np.float32, i: int, chosen: list[int]) -> Any:
        gain = relevance * score
        return gain - np.float32(diversity) * max(similarity[i, j] for j in chosen) if chosen else gain

    return _choose_greedily(scores, candidates, vectors, k, gain, caps, n_pinned)


def dpp(
    scores: Scores,
    candidates: Indices,
    vectors: Scores,
    k: int,
    *,
    diversity: float,
    caps: Caps | None = None,
    n_pinned: Indices | None = None,
) -> Indices:
    """Computes every determinant: the twin of recserve.kernels.dpp."""

    def log_det(similarity: Any, items: list[int]) -> Any:
        matrix = similarity[np.ix_(items, items)].astype(np.float64)
        np.fill_diagonal(matrix, 1.0)
        return np.linalg.slogdet(matrix)[1]

    def gain(similarity: Any, score: np.float32, i: int, chosen: list[int]) -> Any:
        growth = log_det(similarity, [*chosen, i]) - log_det(similarity, chosen)
        return (1 - diversity) * float(score) + (diversity * growth if diversity else 0.0)

    return _choose_greedily(scores, candidates, vectors, k, gain, caps, n_pinned)


def calibrated(
    scores: Scores,
    candidates: Indices,
    categories: Categories,
    targets: Scores,
    k: int,
    *,
    weight: float,
    caps: Caps | None = None,
    n_pinned: Indices | None = None,
) -> Indices:
    """Computes the whole divergence for every candidate: the twin of recserve.kernels.calibrated."""
    n_items = len(categories.indptr) - 1
    shares = np.zeros((n_items, categories.n_groups))
    for item in range(n_items):
        groups = categories.groups[categories.indptr[item] : categories.indptr[item + 1]]
        shares[item, groups] = 1 / max(1, len(groups))
    slates = np.full((len(scores), k), -1, np.int32)
    for slate in range(len(scores)):
        row, target = slice(slate, slate + 1), targets[slate].astype(np.float64)
        there = candidates[slate] >= 0
        items, points = candidates[slate][there], scores[slate][there].astype(np.float64)
        steer, liked = float(np.float32(weight)) if target.any() else 0.0, target > 0

        def fit(chosen: list[int], items: Any = items, target: Any = target, liked: Any = liked) -> Any:
            counts = shares[items[chosen]].sum(axis=0) if chosen else np.zeros(len(target))
            mixed = 0.99 * counts / max(counts.sum(), 1e-300) + 0.01 * target
            return (target[liked] * np.log(mixed[liked])).sum()

        def worth(chosen: list[int], points: Any = points, fit: Any = fit, steer: float = steer) -> Any:
            return (1 - steer) * points[chosen].sum() + steer * fit(chosen)

        def gain(_: Any, score: Any, i: int, chosen: list[int], fit: Any = fit, steer: float = steer) -> Any:
            return (1 - steer) * float(score) + steer * (fit([*chosen, i]) - fit(chosen))

        found = [
            _choose_greedily(
                scores[row],
                candidates[row],
                np.zeros((n_items, 1), np.float32),
                k,
                by,
                caps,
                None if n_pinned is None else n_pinned[row],
            )[0]
            for by in (gain, lambda _, score, i, chosen: score)
        ]
        worths = [worth([int(np.flatnonzero(items == item)[0]) for item in one[one >= 0]]) for one in found]
        slates[slate] = found[int(worths[1] > worths[0] + 1e-9)]
    return slates


def nearest_of(vectors: Scores, items: Indices, others: Indices, n: int) -> tuple[Indices, Scores]:
    """Sorts all cosines: the twin of recserve.kernels.nearest_of."""
    cosines = cosines_of(vectors[items], vectors[others])
    places = np.argsort(-cosines, axis=1, kind="stable")[:, :n].astype(np.int32)
    return places, np.take_along_axis(cosines, places, axis=1)


def cosines_of(left: Scores, right: Scores) -> Scores:
    """(n, m) float32 cosines, 0 with a zero vector, in the order of operations of the kernels."""
    inverse = []
    for vectors in (left, right):
        squares = np.diagonal(dot_products(vectors, vectors))
        inverse.append(
            np.divide(np.float32(1), np.sqrt(squares), out=np.zeros_like(squares), where=squares > 0)
        )
    cosines: Scores = dot_products(left, right) * inverse[0][:, None] * inverse[1][None, :]
    return cosines


def _choose_greedily(
    scores: Scores,
    candidates: Indices,
    vectors: Scores,
    k: int,
    gain: Any,
    caps: Caps | None,
    n_pinned: Indices | None,
) -> Indices:
    slates = np.full((len(scores), k), -1, np.int32)
    for slate, (row, items) in enumerate(zip(scores, candidates, strict=True)):
        there = np.flatnonzero(items >= 0)
        row, items = row[there], items[there]
        similarity = cosines_of(vectors[items], vectors[items])
        chosen: list[int] = []
        for place in range(min(k, len(items))):
            free = [i for i in range(len(items)) if i not in chosen and _has_room(i, items, chosen, caps)]
            if n_pinned is not None and place < n_pinned[slate]:
                free = [place]
            if not free:
                break
            chosen.append(max(free, key=lambda i: (gain(similarity, row[i], i, chosen), -items[i])))
            slates[slate, place] = items[chosen[-1]]
    return slates


def _has_room(i: int, items: Indices, chosen: list[int], caps: Caps | None) -> bool:
    """Whether each group of the i-th item has a place left."""
    if caps is None:
        return True
    groups = [caps.groups[caps.indptr[item] : caps.indptr[item + 1]].tolist() for item in items]
    return all(caps.limits[group] > sum(groups[j].count(group) for j in chosen) for group in groups[i])


def dot_products(queries: Scores, vectors: Scores) -> Scores:
    """(batch, n_items) float32 dot products in the summation order of recserve.kernels.simd.dot."""
    padding = ((0, 0), (0, -vectors.shape[1] % 16))
    products = np.pad(queries, padding)[:, None, :] * np.pad(vectors, padding)[None, :, :]
    lanes: npt.NDArray[Any] = np.zeros((len(queries), len(vectors), 16), np.float32)
    for start in range(0, products.shape[2], 16):
        lanes += products[:, :, start : start + 16]
    for width in (8, 4, 2, 1):
        lanes = lanes[:, :, :width] + lanes[:, :, width:]
    return lanes[:, :, 0]
