"""Means over seeds with intervals, gains of one contender over another, and what they say of a bar."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recserve.benchmarks.quality.bars import Bar
from recserve.benchmarks.quality.protocol import Protocol, Rows, Values

N_SAMPLES = 500
Estimate = dict[str, float]
# Metric → its mean over the seeds: first of all users, then of each sample of users.
Samples = Mapping[str, NDArray[np.float64]]


class Seeds:
    """The same users tested with every seed, each seed with its own split."""

    def __init__(self, protocols: Sequence[Protocol]) -> None:
        self._protocols = protocols
        self._starts = [starts_of(protocol.owner) for protocol in protocols]
        self.n_users = len(self._starts[0]) - 1

    def by_seed(self, values: Sequence[Values]) -> list[dict[str, float]]:
        """Returns the figures over all users for each seed; ``values``: what one contender is worth."""
        return [
            protocol.figures(one, np.arange(len(protocol.owner)))
            for protocol, one in zip(self._protocols, values, strict=True)
        ]

    def samples(self, values: Sequence[Values]) -> Samples:
        """Returns the figures of all users and of samples of them, the same ones for every contender."""
        rng = np.random.default_rng(0)
        drawn = [rng.integers(0, self.n_users, self.n_users) for _ in range(N_SAMPLES)]
        found = [self._means(values, users) for users in (np.arange(self.n_users), *drawn)]
        return {name: np.array([one[name] for one in found]) for name in found[0]}

    def _means(self, values: Sequence[Values], users: NDArray[np.int64]) -> dict[str, float]:
        found = [
            protocol.figures(one, rows_of(starts, users))
            for protocol, starts, one in zip(self._protocols, self._starts, values, strict=True)
        ]
        return {name: float(np.mean([one[name] for one in found])) for name in found[0]}


def estimates(samples: Samples, other: Samples | None = None) -> dict[str, Estimate]:
    """Returns mean and 95 % interval of each metric, or of the gain over ``other``."""
    found = {}
    for name, values in samples.items():
        gains = values - (0 if other is None else other[name])
        low, high = np.percentile(gains[1:], [2.5, 97.5])
        found[name] = {"mean": float(gains[0]), "low": float(low), "high": float(high)}
    return found


def starts_of(owner: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns where each user's units begin in ``owner``, which is ascending, and where the last ones end."""
    return np.append(np.flatnonzero(np.diff(owner, prepend=-1)), len(owner))


def rows_of(starts: NDArray[np.int64], users: NDArray[np.int64]) -> Rows:
    """Returns the units of ``users``, who may repeat."""
    lengths = starts[users + 1] - starts[users]
    offsets = np.cumsum(lengths) - lengths
    rows: Rows = np.arange(lengths.sum()) + np.repeat(starts[users] - offsets, lengths)
    return rows


def judge(bar: Bar, measured: Estimate) -> dict[str, Any]:
    """Returns what was measured, what must be, and whether it is reached.

    ``measured``: the metric of the row's first contender, or its gain where the bar is one.
    """
    value = measured["mean"]
    reached = {
        "at least": value >= bar.value,
        "at most": value <= bar.value,
        "equal": abs(value - bar.value) <= bar.tolerance,
        "not below": measured["high"] >= bar.value,
    }
    told = {"metric": bar.metric, "over": bar.over, "kind": bar.kind, "must": bar.value}
    return {**told, **measured, "reached": reached[bar.kind]}
