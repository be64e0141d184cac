"""Cleaning: every row is kept or counted once; a slow twin, row by row, counts the same."""

import json
import math
import re
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recserve.errors import DataError
from recserve.training.data import CleaningReport, CleaningRules, ColumnMap, clean
from recserve.training.data.cleaning import clean_parts

LAW = settings(derandomize=True, deadline=None, database=None, max_examples=150)
IDS = st.sampled_from(["a", "b", "ä ", " a", "", None])
TIMES = st.sampled_from(
    [
        "0",
        "10",
        "10.9",
        "1e3",
        "2011-12-09 12:50:00",
        "x",
        "12/1/2010 8:26",
        "-5",
        "nan",
        "inf",
        "5e9",
        "",
        None,
    ]
)
VALUES = st.sampled_from(["1", "2.5", "-1", "0", "1e39", "inf", "nan", "many", "", None])
TABLES = st.lists(st.tuples(IDS, IDS, TIMES, VALUES), min_size=1, max_size=30)


def table_of(rows: list[tuple[Any, ...]]) -> pl.DataFrame:
    names = ["user_id", "item_id", "timestamp", "rating"]
    return pl.DataFrame(rows, schema=dict.fromkeys(names, pl.String), orient="row")


def naive_counts(rows: list[tuple[Any, ...]], min_value: float | None) -> dict[str, int]:
    """One row at a time, with the standard library only."""
    counts: dict[str, int] = {}
    seen: set[tuple[str, str, int]] = set()
    for user, item, time, value in rows:
        reason = ""
        for role, text in (("user", user), ("item", item), ("timestamp", time), ("value", value)):
            if not reason and not text:
                reason = f"missing: {role}"
        seconds, amount = naive_seconds(time), naive_float(value)
        if not reason and seconds is None:
            reason = "bad type: timestamp"
        if not reason and amount is None:
            reason = "bad type: value"
        if not reason and not 0 <= float(seconds or 0) < 4102444800:
            reason = "out of range: timestamp"
        low = -math.inf if min_value is None else min_value
        if not reason and not (abs(amount or 0) < 3.4e38 and low <= (amount or 0)):
            reason = "out of range: value"
        if not reason:
            key = (user, item, math.floor(seconds or 0))
            reason = "duplicates" if key in seen else "kept"
            seen.add(key)
        counts[reason] = counts.get(reason, 0) + 1
    return counts


def naive_float(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None


def naive_seconds(text: str | None) -> float | None:
    if text and re.fullmatch(r"\d{4}-\d{2}-\d{2} .*", text):
        return 1323435000.0
    return naive_float(text)


@LAW
@given(rows=TABLES, min_value=st.sampled_from([None, 0.0, 1.0]))
def test_every_row_is_counted_once_as_the_slow_twin_counts_it(
    rows: list[tuple[Any, ...]], min_value: float | None
) -> None:
    expected = naive_counts(rows, min_value)
    table, columns, rules = table_of(rows), ColumnMap(), CleaningRules(min_value=min_value)
    if "kept" not in expected:
        with pytest.raises(
            DataError, match=r"usable events is none; expected at least one\. Counted: rows read"
        ):
            clean(table, columns, rules)
        return
    events, report = clean(table, columns, rules)
    assert report.rows_read == len(rows) == report.kept + report.dropped
    assert dict(report.table_rows()) == {"rows read": len(rows), **expected}
    assert events.height == report.kept
    assert events.schema == {
        "user_id": pl.String,
        "item_id": pl.String,
        "timestamp": pl.Int64,
        "value": pl.Float32,
    }
    assert events["timestamp"].is_sorted()
    assert events["value"].is_finite().all()
    assert not events.select("user_id", "item_id", "timestamp").is_duplicated().any()
    assert set(events["user_id"]) <= {user for user, *_ in rows if user}


def test_ids_are_kept_byte_for_byte() -> None:
    composed, decomposed = "\u00e9", "e\u0301"
    table = pl.DataFrame(
        {"user": [composed, decomposed, " a "], "item": ["01", "1", "1.0"], "time": [1, 2, 3]}
    )
    events, _ = clean(table, ColumnMap())
    assert events["user_id"].to_list() == [composed, decomposed, " a "]
    assert events["item_id"].to_list() == ["01", "1", "1.0"]


def test_typed_ids_become_strings_and_whole_floats_integers() -> None:
    table = pl.DataFrame(
        {"user": [17850.0, None, float("nan")], "item": [1, 2, 3], "time": [1, 2, 3]}, strict=False
    )
    events, report = clean(table, ColumnMap())
    assert events.row(0)[:2] == ("17850", "1")
    assert dict(report.missing) == {"user": 2}


def test_a_nested_column_is_bad_type_and_not_a_crash() -> None:
    table = pl.DataFrame({"user": ["u"], "item": ["i"], "time": [1], "rating": [[1, 2]]})
    with pytest.raises(DataError, match="bad type: value 1"):
        clean(table, ColumnMap())
    with pytest.raises(DataError, match="bad type: user 1"):
        clean(table.with_columns(user=pl.Series([{"id": 1}])), ColumnMap())


def test_ties_stay_in_the_order_of_the_file_and_finer_times_are_obeyed() -> None:
    table = pl.DataFrame(
        {
            "user": ["u"] * 4,
            "item": ["c", "b", "a", "late"],
            "time": [1_700_000_000_500, 1_700_000_000_500, 1_700_000_000_400, 1_700_000_009_000],
        }
    )
    events, report = clean(table, ColumnMap())
    assert events["item_id"].to_list() == ["a", "c", "b", "late"]
    assert events["timestamp"].to_list() == [1_700_000_000] * 3 + [1_700_000_009]
    assert "timestamps read as milliseconds since 1970" in report.notes


def test_thousands_of_ties_stay_in_the_order_of_the_file() -> None:
    numbers = [number * 7919 % 3000 for number in range(3000)]
    table = pl.DataFrame(
        {"user": [f"u{number % 5}" for number in numbers], "item": [f"i{number}" for number in numbers]}
    ).with_columns(time=pl.lit(5))
    events, _ = clean(table, ColumnMap())
    assert events["item_id"].to_list() == [f"i{number}" for number in numbers]


def test_the_first_duplicate_stays() -> None:
    table = pl.DataFrame({"user": ["u", "u"], "item": ["i", "i"], "time": [5, 5], "rating": [4, 2]})
    events, report = clean(table, ColumnMap())
    assert events["value"].to_list() == [4.0]
    assert report.duplicates == 1


def test_without_a_time_the_order_of_the_rows_is_the_time_and_the_report_says_so() -> None:
    table = pl.DataFrame({"user": ["u", "u", "u"], "item": ["b", "a", "b"]})
    events, report = clean(table, ColumnMap())
    assert events["item_id"].to_list() == ["b", "a", "b"]
    assert events["timestamp"].to_list() == [0, 1, 2]
    assert report.notes == (
        "columns guessed: user=user, item=item",
        "no timestamp column: the order of the rows is taken as the order in time",
    )
    with pytest.raises(DataError, match="timestamp column is no column 'when'"):
        clean(table, ColumnMap(timestamp="when"))


def test_the_action_is_carried_and_never_a_reason_to_drop() -> None:
    table = pl.DataFrame({"user": ["u", "u"], "item": ["a", "b"], "time": [1, 2], "event": ["view", None]})
    events, report = clean(table, ColumnMap())
    assert events["action"].to_list() == ["view", None]
    assert report.kept == 2


def test_a_report_survives_json() -> None:
    report = CleaningReport(
        rows_read=10, kept=6, missing={"user": 1}, bad_type={"value": 2}, duplicates=1, notes=("a note",)
    )
    assert CleaningReport.from_dict(json.loads(json.dumps(report.as_dict()))) == report
    assert report.after_core(4).below_core == 2
    assert report.after_core(4).kept + report.after_core(4).dropped == 10


@LAW
@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.sampled_from("xy"), st.integers(0, 3), st.integers(0, 9)),
        min_size=1,
        max_size=30,
    )
)
def test_the_first_of_each_user_item_and_second_stays(rows: list[tuple[str, str, int, int]]) -> None:
    table = pl.DataFrame(
        [
            (user, item, 1_500_000_000 + second + part / 10, n)
            for n, (user, item, second, part) in enumerate(rows)
        ],
        schema=["user", "item", "timestamp", "value"],
        orient="row",
    )
    expected: dict[tuple[str, str, int], int] = {}
    for n, (user, item, second, _) in sorted(enumerate(rows), key=lambda row: (row[1][2], row[1][3])):
        expected.setdefault((user, item, second), n)
    events, report = clean(table, ColumnMap())
    assert events["value"].to_list() == list(expected.values())
    assert report.duplicates == len(rows) - len(expected)
    halves = (table.head(len(rows) // 2), table.tail(len(rows) - len(rows) // 2))
    found, _ = clean_parts(halves, ColumnMap())
    assert found["value"].to_list() == list(expected.values())
