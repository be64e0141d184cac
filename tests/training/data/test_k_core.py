"""The k-core: nobody inside is below the minimum, and nobody outside could have stayed."""

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recserve.errors import DataError, InvalidRequest
from recserve.training.data.k_core import k_core

LAW = settings(derandomize=True, deadline=None, database=None, max_examples=100)
PAIRS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=40)


def events_of(pairs: list[tuple[int, int]]) -> pl.DataFrame:
    table = pl.DataFrame(pairs, schema={"user_id": pl.Int64, "item_id": pl.Int64}, orient="row")
    return table.cast(pl.String).with_row_index("row")


def naive_core(pairs: list[tuple[int, int]], min_user: int, min_item: int) -> list[int]:
    rows = list(range(len(pairs)))
    while True:
        users = [pairs[row][0] for row in rows]
        items = [pairs[row][1] for row in rows]
        kept = [
            row
            for row in rows
            if users.count(pairs[row][0]) >= min_user and items.count(pairs[row][1]) >= min_item
        ]
        if kept == rows:
            return rows
        rows = kept


@LAW
@given(pairs=PAIRS, min_user=st.integers(1, 4), min_item=st.integers(1, 4))
def test_the_core_is_that_of_the_slow_twin(
    pairs: list[tuple[int, int]], min_user: int, min_item: int
) -> None:
    expected = naive_core(pairs, min_user, min_item)
    if not expected:
        with pytest.raises(DataError, match=r"k-core is empty; expected users with .* Lower"):
            k_core(events_of(pairs), min_user, min_item)
        return
    assert k_core(events_of(pairs), min_user, min_item)["row"].to_list() == expected


def test_a_minimum_below_one_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="min_item_interactions is 0; expected an integer of 1 or more"):
        k_core(events_of([(0, 0)]), 1, 0)
