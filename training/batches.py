"""Windows over histories as padded arrays: what the training loop and the evaluation feed to a model."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recserve.training.data import Histories


def pad(
    histories: Histories, rows: NDArray[np.int64], length: int
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Returns items (batch, length) int32 left-padded with −1, and timestamps (batch, length) int64 with 0.

    Row i holds the newest ``length`` interactions of history ``rows[i]``.
    """
    real, flat = _places(histories, rows, length)
    if len(histories.item_index) == 0:
        return np.full(real.shape, -1, np.int32), np.zeros(real.shape, np.int64)
    items = np.where(real, histories.item_index[flat], -1).astype(np.int32)
    return items, np.where(real, histories.timestamp[flat], 0)


def pad_values(histories: Histories, rows: NDArray[np.int64], length: int) -> NDArray[np.float32]:
    """Returns the values of what :func:`pad` returns, (batch, length) float32, padded with NaN."""
    real, flat = _places(histories, rows, length)
    if len(histories.value) == 0:
        return np.full(real.shape, np.nan, np.float32)
    return np.where(real, histories.value[flat], np.float32(np.nan))


def _places(
    histories: Histories, rows: NDArray[np.int64], length: int
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Returns which places of padded rows (batch, length) are taken, and by which interaction."""
    starts = histories.indptr[rows]
    counts = histories.indptr[rows + 1] - starts
    # Position j of a padded row is interaction counts − length + j of the history.
    positions = counts[:, None] - length + np.arange(length)[None, :]
    real = positions >= 0
    return real, np.where(real, starts[:, None] + positions, 0)


def gaps_of(timestamps: NDArray[np.int64], now: NDArray[np.int64]) -> NDArray[np.float32]:
    """Returns seconds from each event to the next, (batch, length) float32; the newest to ``now`` (batch,).

    Padding and unknown times (0) have no gap, as in serving.
    """
    following = np.concatenate([timestamps[:, 1:], now[:, None]], axis=1)
    return np.where(timestamps > 0, np.maximum(following - timestamps, 0), 0).astype(np.float32)


def training_batches(
    histories: Histories,
    *,
    max_history: int,
    batch_size: int,
    seed: int,
    epoch: int,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yields (history, targets, time_gaps) batches of one epoch: one window of each user, newest items first.

    history, targets: (batch, length) int64, −1 where padded; targets[t] is the item after history[t].
    The order depends on ``seed`` and ``epoch`` alone, so that a resumed run repeats an uninterrupted one.
    Processes of a data-parallel run take every ``world_size``-th user of the same order, as many each.
    """
    rows = np.flatnonzero(histories.lengths >= 2)
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(rows)
    if world_size > 1:
        # Every process must take as many steps, or the last gradient exchange never completes.
        order = np.resize(order, -(-len(order) // world_size) * world_size)[rank::world_size]
    for start in range(0, len(order), batch_size):
        chunk = order[start : start + batch_size]
        items, times = pad(histories, chunk, max_history + 1)
        real = (items >= 0).any(axis=0)
        first = min(int(np.argmax(real)), max_history - 1)
        items, times = items[:, first:].astype(np.int64), times[:, first:]
        gaps = gaps_of(times[:, :-1], times[:, -1])
        yield torch.from_numpy(items[:, :-1]), torch.from_numpy(items[:, 1:]), torch.from_numpy(gaps)
