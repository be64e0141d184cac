"""Training interactions gone wrong on purpose: noise, fake users who push items, items cut to a few events.

Everything is drawn from the generator that is passed in; the interactions passed in stay as they are.
"""

import numpy as np
from numpy.typing import NDArray

from recserve.errors import InvalidRequest
from recserve.training.data import Histories

# Lam & Riedl 2004 (doi:10.1145/988672.988726); bandwagon: Mobasher et al. 2007 (doi:10.1145/1278366.1278372).
ATTACKS = ("random", "average", "bandwagon")
# Share of a bandwagon profile's fillers that are the most popular items.
POPULAR_SHARE = 0.5


def with_noise(train: Histories, share: float, n_items: int, rng: np.random.Generator) -> Histories:
    """Returns ``train`` with a ``share`` (0 to 1) of its interactions being of an item drawn at random."""
    items = train.item_index.copy()
    wrong = rng.permutation(len(items))[: round(share * len(items))]
    items[wrong] = rng.integers(0, n_items, len(wrong))
    return Histories(train.indptr, items, train.timestamp, train.value)


def with_attack(
    train: Histories,
    kind: str,
    n_profiles: int,
    targets: NDArray[np.int32],
    n_items: int,
    rng: np.random.Generator,
) -> Histories:
    """Returns ``train`` with ``n_profiles`` more rows, fake users who all have ``targets`` at the top value.

    Each has as many fillers as a user has on average. random: any items, values about the mean of all;
    average: items as users have them, each at its own mean; bandwagon: one half the most popular items at
    the top value, the rest as random. Times are spread over those of ``train``.
    """
    if kind not in ATTACKS:
        raise InvalidRequest("attack", found=kind, expected=f"one of {', '.join(ATTACKS)}")
    n_fillers = max(1, round(len(train.item_index) / max(1, int((train.lengths > 0).sum()))))
    rows = [_profile(train, kind, n_fillers, targets, n_items, rng) for _ in range(n_profiles)]
    parts = [(train.item_index, train.timestamp, train.value), *rows]
    item_index, timestamp, value = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    lengths = np.concatenate([train.lengths, [len(items) for items, _, _ in rows]]).astype(np.int64)
    return Histories.from_sorted(
        np.repeat(np.arange(len(lengths)), lengths), item_index, timestamp, len(lengths), value
    )


def _profile(
    train: Histories,
    kind: str,
    n_fillers: int,
    targets: NDArray[np.int32],
    n_items: int,
    rng: np.random.Generator,
) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.float32]]:
    low, high = train.value.min(), train.value.max()
    if kind == "average":
        fillers = rng.choice(train.item_index, n_fillers)
        sums = np.bincount(train.item_index, train.value, minlength=n_items)
        counts = np.bincount(train.item_index, minlength=n_items)
        values = sums[fillers] / counts[fillers]
    else:
        fillers = rng.integers(0, n_items, n_fillers)
        values = rng.normal(train.value.mean(), train.value.std(), n_fillers)
    if kind == "bandwagon":
        n_popular = round(POPULAR_SHARE * n_fillers)
        counts = np.bincount(train.item_index, minlength=n_items)
        fillers[:n_popular] = np.argsort(-counts, kind="stable")[np.arange(n_popular) % n_items]
        values[:n_popular] = high
    items = np.concatenate([fillers, targets]).astype(np.int32)
    values = np.concatenate([np.clip(values, low, high), np.full(len(targets), high)]).astype(np.float32)
    order = rng.permutation(len(items))
    times = np.sort(rng.integers(train.timestamp.min(), train.timestamp.max() + 1, len(items)))
    return items[order], times, values[order]


def cut_items(train: Histories, items: NDArray[np.integer], n: int) -> Histories:
    """Returns ``train`` with the first ``n`` interactions, in time, of each of ``items`` and none later."""
    order = np.lexsort((train.timestamp, train.item_index))
    ordered = train.item_index[order]
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order)) - np.searchsorted(ordered, ordered)
    kept = ~np.isin(train.item_index, items) | (place < n)
    row = np.repeat(np.arange(len(train)), train.lengths)[kept]
    return Histories.from_sorted(
        row, train.item_index[kept], train.timestamp[kept], len(train), train.value[kept]
    )
