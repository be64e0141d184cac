"""Splits of a dataset into what is learned from and what is held out, without a leak between them."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recserve.errors import DataError, InvalidRequest
from recserve.training.data.dataset import Dataset
from recserve.training.data.histories import Histories

MIN_LEAVE_ONE_OUT = 3
MIN_RANDOM = 5
# Of all interactions, for validation and for test, where a temporal split is not told.
HELD_OUT_FRACTION = 0.1


@dataclass(frozen=True, slots=True, eq=False)
class EvaluationSet:
    """Users to be tested, what was known of each before, and what each did then.

    user_index: (n,) int32; histories and targets: n rows each, row i of ``user_index[i]``. A target may
    repeat an item of the history, as it did in the source.
    """

    user_index: npt.NDArray[np.int32]
    histories: Histories
    targets: Histories

    def target_users(self) -> npt.NDArray[np.int32]:
        """Returns the user of every target, (n_targets,) int32."""
        return np.repeat(self.user_index, self.targets.lengths)

    def take(self, rows: npt.NDArray[np.integer]) -> "EvaluationSet":
        """Returns the users of the rows ``rows``, in their order."""
        return EvaluationSet(self.user_index[rows], self.histories.take(rows), self.targets.take(rows))


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """``train`` has a row for every user of the dataset, row = user_index; rows may be empty."""

    train: Histories
    validation: EvaluationSet
    test: EvaluationSet


def leave_one_out(dataset: Dataset) -> Split:
    """Holds out each user's last interaction for test and the one before for validation.

    Users with fewer than 3 interactions stay whole in train and are not tested. The test history includes
    the validation item. Raises DataError where no user has 3 interactions.
    """
    whole = dataset.histories()
    starts, stops = whole.indptr[:-1], whole.indptr[1:]
    tested = np.flatnonzero(whole.lengths >= MIN_LEAVE_ONE_OUT).astype(np.int32)
    if not len(tested):
        raise DataError(
            "longest history",
            found=int(whole.lengths.max()),
            expected=f"{MIN_LEAVE_ONE_OUT} interactions or more of at least one user",
            cure="Use more events, or the temporal split.",
        )
    held_out = np.where(whole.lengths >= MIN_LEAVE_ONE_OUT, 2, 0)

    def last_but(n_later: int) -> EvaluationSet:
        target = stops[tested] - 1 - n_later
        return EvaluationSet(tested, whole.gather(starts[tested], target), whole.gather(target, target + 1))

    return Split(whole.gather(starts, stops - held_out), validation=last_but(1), test=last_but(0))


def temporal_split(
    dataset: Dataset, validation_fraction: float = HELD_OUT_FRACTION, test_fraction: float = HELD_OUT_FRACTION
) -> Split:
    """Holds out the newest interactions of all users: the last part for test, the one before for validation.

    The fractions are of the number of interactions. Interactions of one second are never parted: they go
    to the earlier side. A user tested without earlier interactions has an empty history. Raises
    InvalidRequest for fractions that leave nothing to learn from, DataError where a part would be empty.
    """
    for name, fraction in (("validation_fraction", validation_fraction), ("test_fraction", test_fraction)):
        if not 0 < fraction < 1:
            raise InvalidRequest(name, found=fraction, expected="between 0 and 1, both excluded")
    if validation_fraction + test_fraction >= 1:
        raise InvalidRequest(
            "validation_fraction + test_fraction",
            found=validation_fraction + test_fraction,
            expected="less than 1",
        )
    whole = dataset.histories()
    train_end, validation_end = _cut_times(np.sort(whole.timestamp), validation_fraction, test_fraction)
    starts = whole.indptr[:-1]
    train_stops = _first_after(whole, train_end)
    validation_stops = _first_after(whole, validation_end)
    return Split(
        whole.gather(starts, train_stops),
        validation=_window(whole, train_stops, validation_stops),
        test=_window(whole, validation_stops, whole.indptr[1:]),
    )


def last_training_second(timestamp: npt.NDArray[np.int64]) -> int:
    """Returns the last second that :func:`temporal_split` trains on, of interactions at these times (n,)."""
    return _cut_times(np.sort(timestamp), HELD_OUT_FRACTION, HELD_OUT_FRACTION)[0]


def random_split(dataset: Dataset, seed: int = 0) -> Split:
    """Holds out a tenth of each user's interactions for test and a tenth for validation, drawn at random.

    It leaks the future, as every random split: for comparison with published figures. Shares are rounded;
    users with fewer than 5 interactions stay whole in train and are not tested. Raises DataError where no
    user has 5 interactions.
    """
    whole = dataset.histories()
    held_out = np.round(whole.lengths / 10).astype(np.int64)
    held_out[whole.lengths >= MIN_RANDOM] = np.maximum(held_out[whole.lengths >= MIN_RANDOM], 1)
    held_out[whole.lengths < MIN_RANDOM] = 0
    tested = np.flatnonzero(held_out).astype(np.int32)
    if not len(tested):
        raise DataError(
            "longest history",
            found=int(whole.lengths.max()),
            expected=f"{MIN_RANDOM} interactions or more of at least one user",
            cure="Use more events, or another split.",
        )
    row = np.repeat(np.arange(len(whole)), whole.lengths)
    # The place of each interaction in a random order of its user's.
    shuffled = np.lexsort((np.random.default_rng(seed).random(len(row)), row))
    place = np.empty(len(row), np.int64)
    place[shuffled] = np.arange(len(row)) - whole.indptr[row]
    is_test, is_validation = place < held_out[row], place < 2 * held_out[row]

    return _of_parts(whole, row, is_validation & ~is_test, is_test)


def random_folds(dataset: Dataset, n_folds: int = 5, seed: int = 0) -> list[Split]:
    """Divides all interactions at random into ``n_folds``; each split tests one of them.

    The protocol of published rating prediction. A tenth of what is not tested is for validation. A user may
    be tested with an empty history. Raises InvalidRequest for fewer than 2 folds or more folds than a
    tenth of the interactions.
    """
    whole = dataset.histories()
    n = len(whole.item_index)
    if not 2 <= n_folds <= n // 10:
        raise InvalidRequest(
            "n_folds", found=n_folds, expected=f"2 to {n // 10}, a tenth of the interactions"
        )
    row = np.repeat(np.arange(len(whole)), whole.lengths)
    rng = np.random.default_rng(seed)
    fold = rng.permutation(n) % n_folds
    is_validation = rng.random(n) < 0.1
    return [
        _of_parts(whole, row, is_validation & (fold != tested), fold == tested) for tested in range(n_folds)
    ]


def _of_parts(
    whole: Histories,
    row: npt.NDArray[np.int64],
    is_validation: npt.NDArray[np.bool_],
    is_test: npt.NDArray[np.bool_],
) -> Split:
    """Returns the split whose parts are these interactions of ``whole``; ``row`` is the user of each."""

    def part(chosen: npt.NDArray[np.bool_]) -> Histories:
        return Histories.from_sorted(
            row[chosen], whole.item_index[chosen], whole.timestamp[chosen], len(whole), whole.value[chosen]
        )

    def held_out(known: Histories, targets: Histories) -> EvaluationSet:
        users = np.flatnonzero(targets.lengths).astype(np.int32)
        return EvaluationSet(users, known.take(users), targets.take(users))

    train = part(~is_validation & ~is_test)
    return Split(
        train,
        validation=held_out(train, part(is_validation)),
        test=held_out(part(~is_test), part(is_test)),
    )


def _cut_times(
    sorted_timestamp: npt.NDArray[np.int64], validation_fraction: float, test_fraction: float
) -> tuple[int, int]:
    """Returns the last second of train and the last second of validation."""
    n = len(sorted_timestamp)
    n_train = max(1, round(n * (1 - validation_fraction - test_fraction)))
    n_before_test = max(n_train, round(n * (1 - test_fraction)))
    train_end = int(sorted_timestamp[n_train - 1])
    validation_end = int(sorted_timestamp[n_before_test - 1])
    if not train_end < validation_end < int(sorted_timestamp[-1]):
        raise DataError(
            "temporal split",
            found=f"an empty part among {n} interactions at {len(np.unique(sorted_timestamp))} times",
            expected="interactions in train, validation and test",
            cure="Use larger fractions, more events, or leave-one-out.",
        )
    return train_end, validation_end


def _first_after(whole: Histories, end: int) -> npt.NDArray[np.int64]:
    """Returns the flat position of each row's first interaction later than ``end``, (n_rows,) int64."""
    earlier = np.concatenate([[0], np.cumsum(whole.timestamp <= end)])
    until: npt.NDArray[np.int64] = earlier[whole.indptr[1:]] - earlier[whole.indptr[:-1]]
    return whole.indptr[:-1] + until


def _window(
    whole: Histories, target_starts: npt.NDArray[np.int64], target_stops: npt.NDArray[np.int64]
) -> EvaluationSet:
    users = np.flatnonzero(target_stops > target_starts).astype(np.int32)
    return EvaluationSet(
        users,
        whole.gather(whole.indptr[users], target_starts[users]),
        whole.gather(target_starts[users], target_stops[users]),
    )
