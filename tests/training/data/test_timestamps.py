"""Timestamps: every spelling of one moment gives the same microseconds."""

from datetime import UTC, date, datetime, timedelta, timezone

import polars as pl
import pytest

from recserve.training.data.timestamps import to_microseconds

MOMENT = datetime(2011, 12, 9, 12, 50, tzinfo=UTC)
SECONDS = int(MOMENT.timestamp())


@pytest.mark.parametrize(
    "raw",
    [
        pl.Series([str(SECONDS)]),
        pl.Series([f" {SECONDS}.0 "]),
        pl.Series([str(SECONDS * 1000)]),
        pl.Series([SECONDS]),
        pl.Series([float(SECONDS)]),
        pl.Series([SECONDS * 1000]),
        pl.Series([SECONDS * 1_000_000]),
        pl.Series([SECONDS * 1_000_000_000]),
        pl.Series(["2011-12-09 12:50:00"]),
        pl.Series(["2011-12-09T12:50"]),
        pl.Series(["2011-12-09T12:50:00.000Z"]),
        pl.Series(["2011-12-09T14:50:00+02:00"]),
        pl.Series(["2011-12-09 14:50:00 +0200"]),
        pl.Series([MOMENT.replace(tzinfo=None)], dtype=pl.Datetime("ms")),
        pl.Series([MOMENT.replace(tzinfo=None)], dtype=pl.Datetime("ns")),
        pl.Series([MOMENT]).dt.convert_time_zone("Asia/Tokyo"),
    ],
)
def test_one_moment_in_many_spellings(raw: pl.Series) -> None:
    microseconds, outside, _ = to_microseconds(raw)
    assert microseconds.to_list() == [SECONDS * 1_000_000]
    assert outside.to_list() == [False]


def test_dates_are_midnight_in_utc_and_fractions_are_kept() -> None:
    midnight = SECONDS // 86_400 * 86_400 * 1_000_000
    assert to_microseconds(pl.Series(["2011-12-09"]))[0].to_list() == [midnight]
    assert to_microseconds(pl.Series([date(2011, 12, 9)]))[0].to_list() == [midnight]
    spelled = pl.Series(["2011-12-09T00:00:00.5", "2011-12-09T00:00:00.123456789"])
    assert to_microseconds(spelled)[0].to_list() == [midnight + 500_000, midnight + 123_456]
    assert to_microseconds(pl.Series([1.75]))[0].to_list() == [1_750_000]


@pytest.mark.parametrize(
    "text",
    [
        "12/1/2010 8:26",
        "2010-13-01",
        "2010-02-30",
        "yesterday",
        "2010-01-01 25:00",
        "2010-1-1",
        "9 Dec 2011",
        "",
    ],
)
def test_what_is_ambiguous_or_no_time_is_null(text: str) -> None:
    microseconds, outside, _ = to_microseconds(pl.Series([text, "10"]))
    assert microseconds.to_list() == [None, 10_000_000]
    assert outside.to_list() == [False, False]


@pytest.mark.parametrize(
    "raw",
    [
        pl.Series(
            ["nan", "inf", "-inf", "-1", "4102444800", "1e300", "1969-12-31", "2100-01-01", "9999-12-31"]
        ),
        pl.Series([float("nan"), float("inf"), -0.5, 4102444800.0, 1e300]),
        pl.Series([-1, 4102444800, 2**62] + [1] * 4),
        pl.Series([datetime(1969, 1, 1), datetime(2200, 1, 1)]),
    ],
)
def test_what_is_no_time_of_an_event_is_outside(raw: pl.Series) -> None:
    bad = len(raw) - (4 if raw.dtype == pl.Int64 else 0)
    assert to_microseconds(raw)[1].to_list() == [True] * bad + [False] * (len(raw) - bad)


def test_the_unit_is_one_for_the_whole_column_and_noted() -> None:
    milliseconds = pl.Series([0, SECONDS * 1000, SECONDS * 1000 + 1])
    microseconds, outside, notes = to_microseconds(milliseconds)
    assert microseconds.to_list() == [0, SECONDS * 1_000_000, SECONDS * 1_000_000 + 1000]
    assert not outside.any()
    assert notes == ["timestamps read as milliseconds since 1970"]
    assert to_microseconds(pl.Series([SECONDS]))[2] == []


def test_other_types_are_null() -> None:
    for raw in (pl.Series([[1], [2]]), pl.Series([timedelta(1), None]), pl.Series([None, None])):
        assert to_microseconds(raw)[0].to_list() == [None, None]


def test_the_zone_offset_moves_the_day() -> None:
    shifted = MOMENT.astimezone(timezone(timedelta(hours=-13)))
    assert to_microseconds(pl.Series([shifted.isoformat()]))[0].to_list() == [SECONDS * 1_000_000]
