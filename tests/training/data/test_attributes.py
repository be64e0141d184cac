"""Attributes: one row for each id in its order, types by name, notes on what does not fit."""

import polars as pl
import pytest

from recserve.errors import DataError
from recserve.training.data.attributes import join_attributes

IDS = pl.Series("item_id", ["a", "b", "c"])


def test_rows_follow_the_ids_and_everything_lost_is_noted() -> None:
    table = pl.DataFrame(
        {
            "title": ["C", "A", "A again", "Z"],
            "sku": ["c", "a", "a", "z"],
            "price": ["1.5", "free", "2", "3"],
            "genres": ["x|y", "x", None, "z"],
        }
    )
    joined, notes = join_attributes(IDS, table, "item")
    assert joined.columns == ["item_id", "title", "price", "genres"]
    assert joined.rows() == [("a", "A", None, ["x"]), ("b", None, None, None), ("c", "C", 1.5, ["x", "y"])]
    assert notes == [
        "price: 1 values are not numbers and are left empty",
        "item attributes: 1 repeated ids, the first row of each is used",
        "item attributes: 1 of 3 items have none",
        "item attributes: 1 items without an interaction are left out",
    ]


def test_types_of_the_attributes_that_have_one() -> None:
    table = pl.DataFrame({"item": [1], "year": ["1995"], "title": [["Toy", "Story"]], "note": ["7"]})
    joined, notes = join_attributes(pl.Series("item_id", ["1"]), table, "item")
    assert joined.row(0) == ("1", 1995, "Toy Story", "7")
    assert joined.schema["year"] == pl.Int32
    assert notes == []


def test_the_column_of_the_events_is_tried_first() -> None:
    table = pl.DataFrame({"item": ["x"], "code": ["a"]})
    joined, _ = join_attributes(IDS, table, "item", "code")
    assert joined.row(0) == ("a", "x")


def test_a_table_that_does_not_fit_is_refused() -> None:
    with pytest.raises(
        DataError, match=r"item attributes is a table with the columns x; expected a column named"
    ):
        join_attributes(IDS, pl.DataFrame({"x": ["a"]}), "item")
    with pytest.raises(DataError, match=r"without any item of the events.*'q'; expected ids such as 'a'"):
        join_attributes(IDS, pl.DataFrame({"item_id": ["q"]}), "item")
