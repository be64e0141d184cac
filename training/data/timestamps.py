"""Turns what sources call a time into microseconds since 1970, UTC."""

import polars as pl

# 2100-01-01T00:00:00Z: later times are a wrong unit or a placeholder, not an event.
END_MICROSECONDS = 4_102_444_800 * 1_000_000
# Seconds reach 1e11 only in the year 5138, and milliseconds were past it in 1973; so on by thousands.
UNITS = ((1e11, "seconds", 1e6), (1e14, "milliseconds", 1e3), (1e17, "microseconds", 1.0))
NANOSECONDS = ("nanoseconds", 1e-3)
ISO_8601 = (
    r"^(?P<date>\d{4}-\d{2}-\d{2})"
    r"(?:[T ](?P<minute>\d{2}:\d{2})(?::(?P<second>\d{2})(?:\.(?P<fraction>\d{1,9}))?)?"
    r" ?(?P<zone>Z|[+-]\d{2}:?\d{2})?)?$"
)


def to_microseconds(raw: pl.Series) -> tuple[pl.Series, pl.Series, list[str]]:
    """Returns (microseconds int64, outside bool, notes), both arrays as long as ``raw``.

    Reads seconds to nanoseconds since 1970 (one unit for the whole column, by the median), ISO 8601 dates
    and times (UTC where no offset is given) and typed dates. Null where it is none of these; ``outside``
    marks what is not finite, before 1970 or after 2099, whose microseconds mean nothing.
    """
    if raw.dtype in (pl.Date, pl.Datetime):
        microseconds = (
            raw.cast(pl.Datetime("us")).to_physical() if raw.dtype == pl.Date else raw.dt.epoch("us")
        )
        return _within_range(microseconds.cast(pl.Float64), microseconds, [])
    if raw.dtype == pl.String:
        text = raw.str.strip_chars()
        numbers = text.cast(pl.Float64, strict=False)
        dates = _parse_iso_8601(text.set(numbers.is_not_null(), None))
    elif raw.dtype.is_numeric():
        numbers = raw.cast(pl.Float64)
        dates = pl.repeat(None, len(raw), dtype=pl.Int64, eager=True)
    else:
        empty = pl.repeat(None, len(raw), dtype=pl.Int64, eager=True)
        return empty, pl.repeat(False, len(raw), eager=True), []
    unit, factor = _unit(numbers)
    scaled = numbers * factor
    notes = [] if unit == "seconds" else [f"timestamps read as {unit} since 1970"]
    microseconds = scaled.clip(-1, END_MICROSECONDS).fill_nan(-1).floor().cast(pl.Int64)
    return _within_range(scaled.fill_null(dates.cast(pl.Float64)), microseconds.fill_null(dates), notes)


def _within_range(
    exact: pl.Series, microseconds: pl.Series, notes: list[str]
) -> tuple[pl.Series, pl.Series, list[str]]:
    outside = ~exact.is_finite() | (exact < 0) | (exact >= END_MICROSECONDS)
    return microseconds, outside.fill_null(False), notes


def _unit(numbers: pl.Series) -> tuple[str, float]:
    median = numbers.filter(numbers.is_finite()).abs().median()
    size = median if isinstance(median, float) else 0.0
    return next(((unit, factor) for limit, unit, factor in UNITS if size < limit), NANOSECONDS)


def _parse_iso_8601(text: pl.Series) -> pl.Series:
    """Microseconds int64; null where the text is not ISO 8601 or no such day exists."""
    parts = text.str.extract_groups(ISO_8601).struct.unnest()
    zone = parts["zone"].fill_null("+0000").str.replace("Z", "+0000", literal=True)
    whole = (
        parts["date"]
        + "T"
        + parts["minute"].fill_null("00:00")
        + ":"
        + parts["second"].fill_null("00")
        + zone.str.replace(":", "", literal=True)
    )
    seconds = whole.str.to_datetime("%Y-%m-%dT%H:%M:%S%z", strict=False, time_unit="us").dt.epoch("us")
    fraction = parts["fraction"].fill_null("0").str.pad_end(6, "0").str.slice(0, 6).cast(pl.Int64)
    return seconds + fraction
