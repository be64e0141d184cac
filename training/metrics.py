"""Ranking metrics of a full ranking, from the ranks of held-out items.

Definitions, for one user with held-out items T whose ranks are r (1-based, ties counted against the
model, seen items left out): HR@k = 1 if any r ≤ k; NDCG@k = Σ_{r ≤ k} 1/log2(1 + r) over its value for
ranks 1..min(k, |T|); MRR = 1 / min(r). A held-out item that cannot be reached has rank infinity.
Coverage@k = share of the catalogue that stands in at least one user's top k.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

N_BOOTSTRAP = 1000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over users with its bootstrap 95 % interval."""

    mean: float
    low: float
    high: float


def hit_rate(ranks: list[NDArray[np.float64]], k: int) -> NDArray[np.float64]:
    """Returns HR@k of each user, (n_users,); ``ranks[i]`` are the ranks of user i's held-out items."""
    return np.array([float(row.min(initial=np.inf) <= k) for row in ranks])


def ndcg(ranks: list[NDArray[np.float64]], k: int) -> NDArray[np.float64]:
    """Returns NDCG@k of each user, (n_users,)."""
    ideal = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(1, k + 1) + 1))])
    return np.array([(1 / np.log2(row[row <= k] + 1)).sum() / ideal[min(k, len(row))] for row in ranks])


def reciprocal_rank(ranks: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Returns 1 / the best rank of each user, (n_users,)."""
    return np.array([1 / row.min(initial=np.inf) for row in ranks])


def bootstrap(values: NDArray[np.float64], *, seed: int = 0, n_samples: int = N_BOOTSTRAP) -> Estimate:
    """Returns the mean over users and the 2.5th and 97.5th percentile of the means of resampled users.

    Without samples the interval is the mean itself.
    """
    if n_samples == 0:
        mean = float(values.mean())
        return Estimate(mean, mean, mean)
    rng = np.random.default_rng(seed)
    means = np.array([values[rng.integers(0, len(values), len(values))].mean() for _ in range(n_samples)])
    low, high = np.percentile(means, [2.5, 97.5])
    return Estimate(float(values.mean()), float(low), float(high))
