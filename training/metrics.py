"""Ranking metrics of a full ranking, from the ranks of held-out items.

Definitions, for one user with held-out items T whose ranks are r (1-based, ties counted against the
model, seen items left out): HR@k = 1 if any r ≤ k; recall@k = |{r ≤ k}| / |T|; NDCG@k = Σ_{r ≤ k}
1/log2(1 + r) over its value for ranks 1..min(k, |T|); MAP@k = Σ_{r ≤ k} (number of r' ≤ r) / r over
min(k, |T|); MRR@k = 1 / min(r) if min(r) ≤ k, else 0. A held-out item that cannot be reached has rank
infinity. Means are over users, those without a hit among them.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

N_BOOTSTRAP = 1000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over users with its bootstrap 95 % interval."""

    mean: float
    low: float
    high: float


class Ranks(NamedTuple):
    """The ranks of all users' held-out items after each other, whose each is, and how many each user has."""

    rank: NDArray[np.float64]
    owner: NDArray[np.int64]
    n_of_user: NDArray[np.int64]

    def sums(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """Returns the sum of ``values``, one of each target, of every user."""
        return np.bincount(self.owner, values, minlength=len(self.n_of_user)).astype(np.float64)


# Also as an array of ranks for each user.
RanksByUser = Ranks | list[NDArray[np.float64]]


def _targets(ranks: RanksByUser) -> Ranks:
    if isinstance(ranks, Ranks):
        return ranks
    lengths = np.fromiter(map(len, ranks), np.int64, len(ranks))
    flat = np.concatenate([*ranks, np.empty(0)])
    return Ranks(flat, np.repeat(np.arange(len(ranks)), lengths), lengths)


def joined(parts: list[Ranks]) -> Ranks:
    """Returns the ranks of the users of all ``parts``, one part after the other."""
    firsts = np.cumsum([0, *(len(part.n_of_user) for part in parts)])
    return Ranks(
        np.concatenate([np.empty(0), *(part.rank for part in parts)]),
        np.concatenate(
            [[], *(part.owner + first for part, first in zip(parts, firsts, strict=False))]
        ).astype(np.int64),
        np.concatenate([[], *(part.n_of_user for part in parts)]).astype(np.int64),
    )


def hit_rate(ranks: RanksByUser, k: int) -> NDArray[np.float64]:
    """Returns HR@k of each user, (n_users,), 0 for a user without held-out items."""
    targets = _targets(ranks)
    return (targets.sums(targets.rank <= k) > 0).astype(np.float64)


def ndcg(ranks: RanksByUser, k: int) -> NDArray[np.float64]:
    """Returns NDCG@k of each user, (n_users,), 0 for a user without held-out items."""
    targets = _targets(ranks)
    ideal = np.cumsum(1 / np.log2(np.arange(1, k + 1) + 1))
    gains = np.where(targets.rank <= k, 1 / np.log2(targets.rank + 1), 0.0)
    return targets.sums(gains) / ideal[np.clip(targets.n_of_user, 1, k) - 1]


def recall(ranks: RanksByUser, k: int) -> NDArray[np.float64]:
    """Returns recall@k of each user, (n_users,), 0 for a user without held-out items."""
    targets = _targets(ranks)
    return targets.sums(targets.rank <= k) / np.maximum(1, targets.n_of_user)


def average_precision(ranks: RanksByUser, k: int) -> NDArray[np.float64]:
    """Returns the average precision at k of each user, (n_users,), whose mean is MAP@k."""
    targets = _targets(ranks)
    order = np.lexsort((targets.rank, targets.owner))
    rank, owner = targets.rank[order], targets.owner[order]
    starts = np.cumsum(targets.n_of_user) - targets.n_of_user
    # Of targets that tie each has the place of the last.
    differs = (rank[1:] != rank[:-1]) | (owner[1:] != owner[:-1])
    is_last = np.append(differs, True)[: len(rank)]
    lasts = np.flatnonzero(is_last)
    place = lasts[np.searchsorted(lasts, np.arange(len(rank)))] - starts[owner] + 1
    precision = np.where(rank <= k, place / rank, 0.0)
    return np.bincount(owner, precision, minlength=len(targets.n_of_user)) / np.clip(targets.n_of_user, 1, k)


def reciprocal_rank(ranks: RanksByUser, k: int) -> NDArray[np.float64]:
    """Returns 1 / the best rank of each user, (n_users,), 0 behind the first k."""
    targets = _targets(ranks)
    best = np.full(len(targets.n_of_user), np.inf)
    np.minimum.at(best, targets.owner, targets.rank)
    return np.where(best <= k, 1 / best, 0.0)


def ranks_in_lists(
    scores: NDArray[np.float32], items: NDArray[np.int32], wanted: NDArray[np.int64], n_items: int
) -> Ranks:
    """Returns the pessimistic 1-based rank of each target of each row.

    ``wanted``: the keys of the targets, ascending. A target has the rank of the last place that ties with it;
    infinity where that lies behind the list, or where the target is not in it. Other targets do not push one
    down beyond their own place, as in any ranked list.
    """
    n_rows, length = scores.shape
    rank = np.empty(scores.shape)
    rank[:, -1] = length if length == n_items else np.inf
    for place in range(length - 2, -1, -1):
        tied = scores[:, place] == scores[:, place + 1]
        rank[:, place] = np.where(tied, rank[:, place + 1], place + 1)
    owner = np.repeat(np.arange(n_rows, dtype=np.int64), length)
    listed = items.ravel() >= 0
    keys = (owner[listed] << 32) | items.ravel()[listed]
    found = np.full(len(wanted), np.inf)
    at = np.searchsorted(wanted, keys)
    hit = wanted[np.minimum(at, len(wanted) - 1)] == keys if len(wanted) else np.zeros(len(keys), bool)
    found[at[hit]] = rank.ravel()[listed][hit]
    return Ranks(found, wanted >> 32, np.bincount(wanted >> 32, minlength=n_rows))


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
