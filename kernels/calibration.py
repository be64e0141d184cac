"""How much of a catalogue a search may leave out for a wanted recall: measured on queries, never guessed.

An exact search goes on until |q||x| falls below the threshold, as if some item could point exactly the
query's way. In a catalogue of embeddings none does: the largest cosine is often far below 1. A search that
reckons with at most `reach` instead of 1 stops earlier, and is right as long as no item that it leaves out
has a larger cosine.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from recserve.errors import InvalidRequest

REACHES = tuple(round(0.3 + 0.05 * step, 2) for step in range(14))  # 0.3 to 0.95
MIN_QUERIES = 64
WORTHWHILE = 0.9  # of the tiles of an exact search: what saves less is answered exactly

Answer = tuple[npt.NDArray[np.int32], float]


@dataclass(frozen=True, slots=True)
class Point:
    """One reach: the share of the exact answers that it finds, and the share of the tiles that it scans."""

    reach: float
    recall: float
    scanned: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was measured on ``n_queries`` queries for lists of ``k``; ``points`` in the order of reach."""

    k: int
    n_queries: int
    points: tuple[Point, ...]

    def choose(self, recall: float) -> Point:
        """The point that scans least and was measured to reach ``recall``; exact search where none saves.

        Raises InvalidRequest unless 0 < recall ≤ 1.
        """
        if not 0.0 < recall <= 1.0:
            raise InvalidRequest("recall", found=recall, expected="a number above 0 and at most 1")
        for point in self.points:
            if recall < 1.0 and point.recall >= recall and point.scanned <= WORTHWHILE:
                return point
        return Point(1.0, 1.0, 1.0)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Reads what :meth:`as_dict` gave; raises KeyError or TypeError for anything else."""
        points = tuple(Point(**point) for point in values["points"])
        return cls(int(values["k"]), int(values["n_queries"]), points)


def measure(search: Callable[[float], Answer], k: int, n_queries: int) -> Calibration:
    """Compares the searches of every reach with the exact one.

    search: answers all queries, given a reach, with the item indices (n_queries, k) int32 and the number of
    tiles scanned. Recall is that of the worse half of the queries, first against second: a point that only
    suits one half would not suit the queries to come.
    """
    if n_queries < MIN_QUERIES:
        raise InvalidRequest(
            "queries",
            found=f"{n_queries} rows",
            expected=f"at least {MIN_QUERIES}",
            cure="Recall measured on fewer says little.",
        )
    exact, all_tiles = search(1.0)
    points = []
    for reach in REACHES:
        found, n_tiles = search(reach)
        hits = np.array([np.isin(right, left).sum() for right, left in zip(exact, found, strict=True)])
        wanted = np.maximum((exact >= 0).sum(axis=1), 1)
        halves = np.array_split(hits / wanted, 2)
        scanned = n_tiles / all_tiles if all_tiles else 1.0
        points.append(Point(reach, float(min(half.mean() for half in halves)), scanned))
    return Calibration(k, n_queries, tuple(points))
