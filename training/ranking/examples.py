"""Labelled examples: who met which item when, what was known then, and whether it was liked."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recserve.errors import DataError
from recserve.training.data import EvaluationSet, Histories

LISTWISE = "listwise"


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """n examples, oldest first.

    user_index, item_index: (n,) int32; timestamp: (n,) int64, seconds; value: (n,) float32, the rating. The
    history of example i is ``items[start[i]:stop[i]]``: what the user met in an earlier second, oldest first;
    ``items[start[i]:end[i]]`` is all that the user met; ``values``: the rating of each of ``items``, float32.
    """

    user_index: NDArray[np.int32]
    item_index: NDArray[np.int32]
    timestamp: NDArray[np.int64]
    value: NDArray[np.float32]
    start: NDArray[np.int64]
    stop: NDArray[np.int64]
    end: NDArray[np.int64]
    items: NDArray[np.int32]
    values: NDArray[np.float32]

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.item_index)

    def history(self, rows: NDArray[np.int64], length: int) -> NDArray[np.int64]:
        """Returns the newest ``length`` items before each of ``rows``, (rows, length), padded with −1."""
        return self._before(self.items.astype(np.int64), rows, length, -1)

    def history_values(self, rows: NDArray[np.int64], length: int) -> NDArray[np.float32]:
        """Returns the ratings of what :meth:`history` returns, (rows, length), padded with NaN."""
        return self._before(self.values, rows, length, np.nan)

    def _before(
        self, of_items: NDArray[Any], rows: NDArray[np.int64], length: int, padding: float
    ) -> NDArray[Any]:
        positions = self.stop[rows, None] - length + np.arange(length)
        real = positions >= self.start[rows, None]
        if not len(of_items):
            return np.full(real.shape, padding, of_items.dtype)
        return np.where(real, of_items[np.where(real, positions, 0)], of_items.dtype.type(padding))

    def others(self, rows: NDArray[np.int64], length: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Returns what the user of each of ``rows`` met at any time but the item of the row, padded with −1.

        (rows, length) int64: all of it, or that many drawn, some of them twice, where it is more.
        """
        start, n_met = self.start[rows, None], (self.end[rows] - self.start[rows])[:, None]
        drawn = rng.integers(0, n_met, (len(rows), length))
        place = np.where(n_met > length, drawn, np.arange(length))
        items = self.items[start + np.minimum(place, n_met - 1)].astype(np.int64)
        return np.where((place < n_met) & (items != self.item_index[rows, None]), items, -1)


def training_examples(train: Histories) -> Examples:
    """Returns every interaction of ``train`` (row = user)."""
    return _examples(
        np.repeat(np.arange(len(train), dtype=np.int32), train.lengths),
        train,
        np.ones(len(train.item_index), bool),
    )


def held_out_examples(held_out: EvaluationSet) -> Examples:
    """Returns every target; its history is what ``held_out`` knew before and the earlier targets."""
    known, targets = held_out.histories, held_out.targets
    n_rows = len(known)
    row = np.concatenate([np.repeat(np.arange(n_rows), part.lengths) for part in (known, targets)])
    timestamp = np.concatenate([known.timestamp, targets.timestamp])
    is_target = np.arange(len(row)) >= len(known.item_index)
    order = np.lexsort((is_target, timestamp, row))
    merged = Histories.from_sorted(
        row[order],
        np.concatenate([known.item_index, targets.item_index])[order],
        timestamp[order],
        n_rows,
        np.concatenate([known.value, targets.value])[order],
    )
    return _examples(held_out.user_index[row[order]], merged, is_target[order])


def _examples(user_index: NDArray[np.int32], whole: Histories, chosen: NDArray[np.bool_]) -> Examples:
    """``user_index``: of each interaction of ``whole``; ``chosen``: which of them are examples."""
    row = np.repeat(np.arange(len(whole)), whole.lengths)
    starts = whole.indptr[:-1][row]
    # Interactions of one second have no order: none of them is in the history of another.
    begins_second = np.diff(row, prepend=-1).astype(bool) | np.diff(whole.timestamp, prepend=-1).astype(bool)
    stops = np.maximum.accumulate(np.where(begins_second, np.arange(len(row)), 0))
    rows = np.flatnonzero(chosen)
    rows = rows[np.argsort(whole.timestamp[rows], kind="stable")]
    return Examples(
        user_index[rows].astype(np.int32),
        whole.item_index[rows],
        whole.timestamp[rows],
        whole.value[rows],
        starts[rows],
        stops[rows],
        whole.indptr[1:][row[rows]],
        whole.item_index,
        whole.value,
    )


@dataclass(frozen=True, slots=True)
class Labels:
    """What the examples of a run are labelled with.

    Rated: a value of ``click_at`` or more is a click, and the value itself is a second target, on the scale
    that the training ratings have (``mean``, ``std``, ``low``, ``high``). Sampled: every interaction is a
    click and items drawn at random are not; there is no rating.
    """

    is_rated: bool
    click_at: float
    mean: float = 0.0
    std: float = 1.0
    low: float = 0.0
    high: float = 1.0

    @property
    def targets(self) -> tuple[str, ...]:
        """The names of what is predicted, in the order of the model's outputs."""
        return ("click", "rating") if self.is_rated else ("click",)

    def clicks(self, value: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns 1 for a click, else 0, in the shape of ``value``."""
        return (value >= self.click_at).astype(np.float32)


def labels_of(train: Histories, source: str, click_at: float) -> Labels:
    """Returns the labels that ``train`` allows: "ratings", "sampled", or "auto" for the first that fits.

    "listwise" has the labels of "sampled", and another loss.

    Raises :class:`DataError` for ratings that are all clicks or all not.
    """
    values = train.value
    both = bool((values >= click_at).any() and (values < click_at).any())
    if source in ("sampled", LISTWISE) or (source == "auto" and not both):
        return Labels(is_rated=False, click_at=click_at)
    if not both:
        raise DataError(
            "values of the training interactions",
            found=f"{values.min(initial=np.inf):g} to {values.max(initial=-np.inf):g}",
            expected=f"some below and some at or above --click-at {click_at:g}",
            cure="Set --click-at between them, or use --labels sampled.",
        )
    return Labels(
        is_rated=True,
        click_at=click_at,
        mean=float(values.mean()),
        std=float(values.std()),
        low=float(values.min()),
        high=float(values.max()),
    )


def shuffled_rows(n: int, batch_size: int, *, seed: int, epoch: int) -> Iterator[NDArray[np.int64]]:
    """Yields the rows of each batch of one epoch; depends on ``seed`` and ``epoch`` alone."""
    order = np.random.default_rng([seed, epoch]).permutation(n)
    for start in range(0, n, batch_size):
        yield order[start : start + batch_size]
