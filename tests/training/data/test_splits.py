"""Splits: the parts are the whole, and nothing held out is known before its time."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from recserve.errors import DataError, InvalidRequest
from recserve.training.data import (
    Dataset,
    Histories,
    leave_one_out,
    load_dataset,
    random_split,
    temporal_split,
)

Maker = Callable[[Sequence[tuple[str, str, int]]], Dataset]
LAW = settings(derandomize=True, deadline=None, database=None, max_examples=100)
# Few times and few items: ties and repeated items are the rule here, not the exception.
EVENTS = st.lists(
    st.tuples(st.sampled_from("uvwxyz"), st.sampled_from("abcde"), st.integers(0, 12)),
    min_size=1,
    max_size=60,
)


def row_of(histories: Histories, i: int) -> list[tuple[int, int]]:
    items, times = histories.row(i)
    return list(zip(items.tolist(), times.tolist(), strict=True))


@LAW
@given(events=EVENTS)
def test_leave_one_out_holds_out_exactly_the_last_two(
    make_dataset: Maker, events: list[tuple[str, str, int]]
) -> None:
    dataset = make_dataset(events)
    whole = dataset.histories()
    tested = [user for user in range(len(whole)) if len(row_of(whole, user)) >= 3]
    if not tested:
        with pytest.raises(DataError, match=r"longest history is [12]; expected 3 interactions or more"):
            leave_one_out(dataset)
        return
    split = leave_one_out(dataset)
    assert len(split.train) == dataset.n_users
    assert split.test.user_index.tolist() == split.validation.user_index.tolist() == tested
    assert split.test.user_index.dtype == np.int32
    for user in range(dataset.n_users):
        known = row_of(whole, user)
        if user not in tested:
            assert row_of(split.train, user) == known
            continue
        i = tested.index(user)
        # By position: the parts, put together, are the history, so nothing held out is in train.
        assert row_of(split.train, user) == known[:-2] == row_of(split.validation.histories, i)
        assert row_of(split.validation.targets, i) == [known[-2]]
        assert row_of(split.test.histories, i) == known[:-1]
        assert row_of(split.test.targets, i) == [known[-1]]


@LAW
@given(events=EVENTS, validation=st.sampled_from([0.1, 0.3]), test=st.sampled_from([0.1, 0.4]))
def test_the_temporal_split_never_looks_ahead(
    make_dataset: Maker, events: list[tuple[str, str, int]], validation: float, test: float
) -> None:
    dataset = make_dataset(events)
    whole = dataset.histories()
    try:
        split = temporal_split(dataset, validation, test)
    except DataError:
        reject()
    times = [split.train.timestamp, split.validation.targets.timestamp, split.test.targets.timestamp]
    assert times[0].max() < times[1].min()
    assert times[1].max() < times[2].min()
    assert len(split.train) == dataset.n_users
    for user in range(dataset.n_users):
        parts = row_of(split.train, user)
        for part in (split.validation, split.test):
            if user in part.user_index:
                i = part.user_index.tolist().index(user)
                assert row_of(part.histories, i) == parts
                assert row_of(part.targets, i)
                parts = parts + row_of(part.targets, i)
        assert parts == row_of(whole, user)


def test_too_few_times_for_three_parts_are_refused(make_dataset: Maker) -> None:
    with pytest.raises(DataError, match=r"temporal split is an empty part among 4 interactions at 2 times"):
        temporal_split(make_dataset([("u", item, int(item == "d")) for item in "abcd"]))


def test_a_new_user_is_tested_with_an_empty_history(make_dataset: Maker) -> None:
    events = [("old", "a", time) for time in range(8)] + [("new", "b", 8), ("new", "c", 9)]
    split = temporal_split(make_dataset(events), 0.1, 0.1)
    assert split.validation.user_index.tolist() == [0]
    assert split.validation.histories.lengths.tolist() == [0]
    assert split.test.histories.lengths.tolist() == [1]
    assert split.train.lengths.tolist() == [0, 8]


def test_interactions_of_one_second_go_to_the_earlier_side(make_dataset: Maker) -> None:
    events = [("u", "a", time) for time in (0, 1, 1, 1, 1, 2, 3, 3, 3, 4)]
    split = temporal_split(make_dataset(events), 0.4, 0.3)
    assert split.train.timestamp.tolist() == [0, 1, 1, 1, 1]
    assert split.validation.targets.timestamp.tolist() == [2, 3, 3, 3]
    assert split.test.targets.timestamp.tolist() == [4]


@pytest.mark.parametrize(
    ("validation", "test", "sentence"),
    [
        (0.0, 0.1, "validation_fraction is 0.0; expected between 0 and 1"),
        (0.1, float("nan"), "test_fraction is nan; expected between 0 and 1"),
        (0.5, 0.5, r"validation_fraction \+ test_fraction is 1.0; expected less than 1"),
    ],
)
def test_fractions_that_leave_nothing_are_refused(
    make_dataset: Maker, validation: float, test: float, sentence: str
) -> None:
    with pytest.raises(InvalidRequest, match=sentence):
        temporal_split(make_dataset([("u", "a", 1)]), validation, test)


def test_a_random_split_holds_out_a_tenth_of_each_user() -> None:
    dataset = load_dataset("synthetic-shop:n_items=1000,n_users=100,n_events=3000,seed=4")
    whole, split = dataset.histories(), random_split(dataset)
    assert random_split(dataset).train.item_index.tolist() == split.train.item_index.tolist()
    assert random_split(dataset, seed=1).train.item_index.tolist() != split.train.item_index.tolist()
    for row, user in enumerate(split.test.user_index.tolist()):
        n_held_out = max(1, round(whole.lengths[user] / 10))
        parts = [part.targets.row(row)[0] for part in (split.validation, split.test)]
        assert [len(part) for part in parts] == [n_held_out] * 2
        assert sorted(np.concatenate([split.train.row(user)[0], *parts])) == sorted(whole.row(user)[0])
        assert split.validation.histories.row(row)[0].tolist() == split.train.row(user)[0].tolist()
        known = np.concatenate([split.train.row(user)[0], parts[0]])
        assert sorted(split.test.histories.row(row)[0]) == sorted(known)
        assert (np.diff(split.test.histories.row(row)[1]) >= 0).all()
    short = np.setdiff1d(np.arange(len(whole)), split.test.user_index)
    assert (whole.lengths[short] < 5).all()
    assert (split.train.lengths[short] == whole.lengths[short]).all()
