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
FOR_YOU = (Reason(ReasonCode.FOR_YOU),)
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
        n, m = len(self.base), self.history.shape[1]
        ids = bundle.catalogue.vocabulary.ids(self.history.ravel())
        contributions = tuple(map(Contribution, ids, self.values.ravel().tolist()))
        n_named = (self.values[:, :MAX_NAMED] > self._least).sum(axis=1).tolist() or [0] * n
        reasons: list[tuple[Reason, ...]] = [()] * n
        for code, mark in self.marks.items():
            for row in np.flatnonzero(mark).tolist():
                reasons[row] += (Reason(code),)
        code = ReasonCode.SIMILAR_TO if self.method == SIMILARITY else ReasonCode.BECAUSE_YOU_HAD
        explanations = []
        for row, base in enumerate(self.base.tolist()):
            first = row * m
            if n_named[row]:
                reasons[row] += (Reason(code, tuple(ids[first : first + n_named[row]])),)
            own = contributions[first : first + m]
            explanations.append(Explanation(reasons[row] or FOR_YOU, own, self.method, base))
        return explanations

    @property
    def _least(self) -> float:
        """The value that an item must exceed to be named."""
        return MIN_SIMILARITY if self.method == SIMILARITY else 0.0
