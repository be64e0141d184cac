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
    """Yields (history, targets, time_gaps) batches of one epoch: as many windows as users (:func:`_windows`).

    history, targets: (batch, length) int64, −1 where padded; targets[t] is the item after history[t].
    The order depends on ``seed`` and ``epoch`` alone, so that a resumed run repeats an uninterrupted one.
    Processes of a data-parallel run take every ``world_size``-th window of the same order, as many each.
    """
    starts, stops = _windows(histories, max_history + 1, np.random.default_rng([seed, epoch]))
    if world_size > 1:
        # Every process must take as many steps, or the last gradient exchange never completes.
        n_windows = -(-len(stops) // world_size) * world_size
        starts, stops = (np.resize(bounds, n_windows)[rank::world_size] for bounds in (starts, stops))
    for first in range(0, len(stops), batch_size):
        chunk = slice(first, first + batch_size)
        windows = histories.gather(starts[chunk], stops[chunk])
        items, times = pad(windows, np.arange(len(windows)), int(max(windows.lengths)))
        gaps = gaps_of(times[:, :-1], times[:, -1])
        wanted = torch.from_numpy(items.astype(np.int64))
        yield wanted[:, :-1], wanted[:, 1:], torch.from_numpy(gaps)


def _windows(
    histories: Histories, length: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the flat ranges (start, stop) of the windows of an epoch, in the order of learning.

    Every history of two items or more is cut into as few windows of ``length`` items as hold all of it: the
    newest items, and for each step back a window about there, moved at random. Of all of them as many as
    there are such histories are drawn: an epoch costs the same whatever their length, and all of it counts.
    """
    rows = np.flatnonzero(histories.lengths >= 2)
    # The first item of a window is the target of none: the window before it ends with it.
    step = length - 1
    n_windows = -(-(histories.lengths[rows] - 1) // step)
    row = np.repeat(rows, n_windows)
    back = np.arange(len(row)) - np.repeat(np.cumsum(n_windows) - n_windows, n_windows)
    drawn = rng.permutation(len(row))[: len(rows)]
    row, back = row[drawn], back[drawn]
    n_items = histories.lengths[row]
    stop = n_items - back * step + np.where(back > 0, rng.integers(0, step, len(row)), 0)
    stop = np.maximum(stop, np.minimum(n_items, length))
    first = histories.indptr[row]
    return first + np.maximum(stop - length, 0), first + stop
