"""The explanations of one slate before its items get names: arrays, as cheap as the stage must be."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from recserve.engine.bundle import Bundle
from recserve.engine.explain.explanation import SIMILARITY, Contribution, Explanation, Reason, ReasonCode

# Of the items that a reason names.
MAX_NAMED = 2
# A smaller cosine is no likeness that a person would see.
MIN_SIMILARITY = 0.3
NO_HISTORY = np.empty((0, 0), np.int32)


@dataclass(frozen=True, slots=True)
class Explained:
    """Row r explains the r-th item of a slate of n.

    ``history``: (n, m) int32 items of the user's own history, the largest value first; ``values``: (n, m)
    float32; ``base``: (n,) float64; ``marks``: what else is true of the items, (n,) bool by code, in the
    order in which a person should hear it, None for the place of what the history says.
    """

    base: NDArray[np.float64]
    marks: Mapping[ReasonCode, NDArray[np.bool_]]
    method: str = ""
    history: NDArray[np.int32] = field(default_factory=lambda: NO_HISTORY)
    values: NDArray[np.float32] = field(default_factory=lambda: NO_HISTORY.view(np.float32))
    warnings: tuple[str, ...] = ()

    def explanations(self, bundle: Bundle) -> list[Explanation]:
        """Gives the items their names."""
        n, m = self.history.shape
        ids = bundle.catalogue.vocabulary.ids(self.history.ravel())
        values = self.values.tolist()
        rows = [list(map(Contribution, ids[r * m : r * m + m], values[r])) for r in range(n)]
        return [
            Explanation(
                self._reasons(row, contributions), tuple(contributions), self.method, float(self.base[row])
            )
            for row, contributions in enumerate(rows or [[]] * len(self.base))
        ]

    def _reasons(self, row: int, contributions: list[Contribution]) -> tuple[Reason, ...]:
        reasons = [Reason(code) for code, mark in self.marks.items() if mark[row]]
        similar = self.method == SIMILARITY
        least = MIN_SIMILARITY if similar else 0.0
        named = tuple(one.item_id for one in contributions[:MAX_NAMED] if one.value > least)
        if named:
            code = ReasonCode.SIMILAR_TO if similar else ReasonCode.BECAUSE_YOU_HAD
            reasons.append(Reason(code, named))
        return tuple(reasons) or (Reason(ReasonCode.FOR_YOU),)
