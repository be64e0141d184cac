"""An order of the whole catalogue that no query changes: by popularity, of a segment or of all, by age."""

from dataclasses import dataclass
from itertools import filterfalse, islice

import numpy as np
from numpy.typing import NDArray

from recserve.engine.filters.compiler import CompiledFilter

Scores = NDArray[np.float32]
Items = NDArray[np.int32]
# What is looked through first where a filter may refuse much of it.
FIRST_LOOK = 1024


@dataclass(frozen=True, slots=True, eq=False)
class FixedRanking:
    """``scores``: (n_items,) float32; ``order``: (n_items,) int32, the items by descending score."""

    scores: Scores
    order: Items

    @classmethod
    def of(cls, scores: Scores) -> "FixedRanking":
        """Sorts; of equals the lower item_index comes first."""
        return cls(scores, np.argsort(-scores, kind="stable").astype(np.int32))

    def best(
        self, k: int, exclude: Items, allowed: CompiledFilter | None = None, boosts: Scores | None = None
    ) -> tuple[Scores, Items]:
        """Returns the scores and items of at most ``k`` of the best.

        ``exclude``: (m,) int32. Needs O(k + m), whatever the size of the catalogue; with a filter, as far as
        the k-th item that it allows; with ``boosts``, (n_items,) added to the scores, all of it.
        """
        if boosts is not None:
            return self._best_boosted(k, exclude, allowed, boosts)
        n = k + len(exclude)
        candidates = self.order[:n] if allowed is None else _first_allowed(self.order, allowed, n)
        if len(exclude):
            # Of so few NumPy takes four times as long.
            left_out = set(exclude.tolist()).__contains__
            candidates = np.array(list(islice(filterfalse(left_out, candidates.tolist()), k)), np.int32)
        return self.scores[candidates], candidates

    def scores_of(self, items: Items) -> Scores:
        """Returns the scores of ``items`` (n,)."""
        return self.scores[items]

    def _best_boosted(
        self, k: int, exclude: Items, allowed: CompiledFilter | None, boosts: Scores
    ) -> tuple[Scores, Items]:
        scores = self.scores + boosts
        scores[exclude] = -np.inf
        if allowed is not None:
            scores[~allowed.allow.mask] = -np.inf
        best = np.argsort(-scores, kind="stable")[:k].astype(np.int32)
        best = best[scores[best] > -np.inf]
        return scores[best], best


def _first_allowed(order: Items, allowed: CompiledFilter, n: int) -> Items:
    """Returns the first ``n`` items of ``order`` that a filter allows."""
    mask, n = allowed.allow.mask, min(n, allowed.n_items)
    length = max(n, FIRST_LOOK)
    while True:
        found = order[:length][mask[order[:length]]]
        if len(found) >= n:
            return found[:n]
        length *= 4
