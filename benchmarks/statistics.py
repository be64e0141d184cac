"""Figures with their doubt: percentiles, and intervals by bootstrap over slices of time."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

N_SLICES = 20
N_RESAMPLES = 400
CONFIDENCE = 95.0
# Bins of half a percent, from 1 ns (in ms) up to 1000 s.
N_BINS = 5_500
LOWEST_MS = 1e-6
STEP = 1.005
# Apart from the median of the slices' medians by this share (quartiles): a noisy run.
NOISY = 0.25


def percentiles(values: NDArray[np.float64], wanted: Sequence[float]) -> list[float]:
    """Returns the smallest values that so many percent of ``values`` do not exceed (nearest rank)."""
    if not len(values):
        return [float("nan")] * len(wanted)
    return np.percentile(values, wanted, method="inverted_cdf").tolist()  # type: ignore[no-any-return]


def intervals(
    values: NDArray[np.float64], times: NDArray[np.float64], wanted: Sequence[float], seed: int = 0
) -> list[tuple[float, float]]:
    """Returns the 95 % interval of each percentile.

    Neighbours in time share their queue, so whole slices of time are drawn anew, not single values. Values
    are binned by half a percent, which bounds how exact the ends are. ``times``: one per value, any unit.
    """
    if not len(values):
        return [(float("nan"), float("nan"))] * len(wanted)
    counts = _counts_by_slice(values, times)
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), N_RESAMPLES)
    drawn = np.cumsum(weights @ counts, axis=1)
    totals = drawn[:, -1:]
    found = []
    for percent in wanted:
        # A draw may consist of empty slices only.
        bins = (drawn < np.maximum(totals * (percent / 100), 1)).sum(axis=1)[totals[:, 0] > 0]
        low, high = np.percentile(bins, [(100 - CONFIDENCE) / 2, (100 + CONFIDENCE) / 2])
        found.append((_value(low), _value(high + 1)))
    return found


def spread(values: NDArray[np.float64], times: NDArray[np.float64]) -> float:
    """Returns how far the medians of the slices of time are apart: quartile range by median."""
    slices = _slice_numbers(times)
    medians = [float(np.median(values[slices == i])) for i in np.unique(slices)]
    if len(medians) < 2:
        return 0.0
    low, middle, high = np.percentile(medians, [25, 50, 75])
    return float((high - low) / middle) if middle else 0.0


def median_interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """Returns the 95 % interval of the median of independent values, by bootstrap."""
    rng = np.random.default_rng(seed)
    drawn = np.median(rng.choice(np.asarray(values), (N_RESAMPLES, len(values))), axis=1)
    low, high = np.percentile(drawn, [(100 - CONFIDENCE) / 2, (100 + CONFIDENCE) / 2])
    return float(low), float(high)


def _counts_by_slice(values: NDArray[np.float64], times: NDArray[np.float64]) -> NDArray[np.int64]:
    bins = np.clip(np.log(np.maximum(values, LOWEST_MS) / LOWEST_MS) / np.log(STEP), 0, N_BINS - 1)
    flat = _slice_numbers(times) * N_BINS + bins.astype(np.int64)
    return np.bincount(flat, minlength=N_SLICES * N_BINS).reshape(N_SLICES, N_BINS)


def _slice_numbers(times: NDArray[np.float64]) -> NDArray[np.int64]:
    first, last = float(times.min()), float(times.max())
    width = max(last - first, 1e-9) / N_SLICES
    return np.minimum(((times - first) / width).astype(np.int64), N_SLICES - 1)


def _value(bin_: float) -> float:
    return float(LOWEST_MS * STEP**bin_)
