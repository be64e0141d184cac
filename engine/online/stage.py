"""What was learned, applied to the candidates of a request; and what is shown to learn, with what chance."""

import threading
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recserve.engine.online.config import THOMPSON, OnlineConfig
from recserve.engine.online.features import Items, Numbers
from recserve.engine.online.heads import Asked
from recserve.engine.online.learner import Learner
from recserve.engine.online.users import hash_of

Scores = NDArray[np.float32]
# Further draws by which thompson's propensities are estimated; one more shows the slate.
N_DRAWS = 31


class Choice(NamedTuple):
    """Candidates in their new order, (n,), and of the first k: propensities float64, explored bool, (k,)."""

    scores: Scores
    items: Items
    propensities: Numbers
    explored: NDArray[np.bool_]


class OnlineStage:
    """Moves scores by what a learner knows; safe to call from any thread.

    ``key_of``: the pseudonym of a user id. ``close`` ends what feeds the learner.
    """

    def __init__(
        self,
        learner: Learner,
        config: OnlineConfig,
        key_of: Callable[[str], str],
        close: Callable[[], None] = lambda: None,
        *,
        seed: int | None = None,
    ) -> None:
        self.learner, self.close = learner, close
        self.n_candidates = config.candidates
        self._config, self._key_of = config, key_of
        self._size = learner.vectors.dim + 1
        self._rng = np.random.default_rng(seed)
        # Guards the generator.
        self._lock = threading.Lock()

    def choose(
        self,
        user_id: str,
        context: Mapping[str, str],
        k: int,
        scores: Scores,
        items: Items,
        *,
        may_explore: bool,
    ) -> Choice:
        """Puts candidates, (n,) best first, −1 beyond their end, in a new order without the padding.

        A model that is not trusted changes nothing. A score moves by at most ``strength`` times the span of
        all, up where more clicks are expected than of the mean candidate. ``may_explore``: whether the first
        k of the new order are the slate; where rules still choose from it, nothing is left to chance.
        """
        scores, items = scores[items >= 0], items[items >= 0]
        # Of all k places: pins may fill some that have no candidate.
        sure = np.ones(k), np.zeros(k, np.bool_)
        k = min(k, len(items))
        if not len(items) or not self.learner.is_trusted:
            return Choice(scores, items, *sure)
        recent = self.learner.users.recent(self._key_of(user_id)) if user_id else ()
        asked = Asked(recent, tuple(hash_of(*entry) for entry in sorted(context.items())))
        moved = self._moved(scores, self._lifts(items, lambda known: self.learner.head.lifts(asked, known)))
        order = _best_first(moved)
        if not may_explore:
            return Choice(moved[order], items[order], *sure)
        if self._config.algorithm == THOMPSON:
            return self._draw(asked, scores, items, order[:k])
        order, propensities, explored = self._swap(order, k)
        return Choice(moved[order], items[order], propensities, explored)

    def _lifts(self, items: Items, learned: Callable[[Items], Numbers]) -> Numbers:
        """Returns ``learned(items)``, (…, n); items that came after the bundle have the others' mean."""
        known = items < self.learner.vectors.n_items
        if known.all():
            return learned(items)
        of_known = learned(items[known])
        lifts = np.zeros((*of_known.shape[:-1], len(items)))
        if known.any():
            lifts[..., known] = of_known
            lifts[..., ~known] = of_known.mean(axis=-1, keepdims=True)
        return lifts

    def _moved(self, scores: Scores, lifts: Numbers) -> Scores:
        # All equal: then any order is as good, and what was learned decides.
        span = float(scores.max() - scores.min()) or 1.0
        relative = np.clip(lifts - lifts.mean(), -1.0, 1.0)
        return np.asarray(scores + self._config.strength * span * relative, np.float32)

    def _swap(self, order: NDArray[np.int64], k: int) -> tuple[NDArray[np.int64], Numbers, NDArray[np.bool_]]:
        """Gives, with probability epsilon, one place of the slate to a random other candidate."""
        epsilon, n_others = self._config.epsilon, len(order) - k
        propensities, explored = np.ones(k), np.zeros(k, np.bool_)
        if not epsilon or not n_others:
            return order, propensities, explored
        propensities -= epsilon / k
        with self._lock:
            chance, place, other = self._rng.random(), self._rng.integers(k), self._rng.integers(n_others)
        if chance < epsilon:
            order[[place, k + other]] = order[[k + other, place]]
            propensities[place] = epsilon / (k * n_others)
            explored[place] = True
        return order, propensities, explored

    def _draw(self, asked: Asked, scores: Scores, items: Items, expected: NDArray[np.int64]) -> Choice:
        """Shows the slate of one draw. An item's propensity: in how many draws, this one among them, it had
        its place.
        """
        with self._lock:
            noise = self._rng.standard_normal((1 + N_DRAWS, self._size))
        lifts = self._lifts(items, lambda known: self.learner.head.draws(asked, known, noise))
        moved = [self._moved(scores, one) for one in lifts]
        orders = np.stack([_best_first(one) for one in moved])
        first, k = orders[0], len(expected)
        propensities = (orders[:, :k] == first[:k]).mean(axis=0)
        return Choice(moved[0][first], items[first], propensities, first[:k] != expected)


def _best_first(scores: Scores) -> NDArray[np.int64]:
    """Of equals, the one that was better before comes first."""
    return np.argsort(-scores, kind="stable")
