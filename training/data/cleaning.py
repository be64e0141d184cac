"""From a raw table to clean events, with every dropped row counted once, under its first reason."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import polars as pl

from recserve.errors import DataError, InvalidRequest
from recserve.training.data.columns import ACTION, ITEM_ID, TIMESTAMP, USER_ID, VALUE, ColumnMap
from recserve.training.data.timestamps import to_microseconds

ROLE_COLUMNS = {"user": USER_ID, "item": ITEM_ID, "timestamp": TIMESTAMP, "value": VALUE, "action": ACTION}


# Clocks differ, and a date without a zone may be a day ahead of UTC.
SECONDS_AHEAD = 24 * 3600


def _latest() -> int:
    return int(time.time()) + SECONDS_AHEAD


@dataclass(frozen=True, slots=True)
class CleaningRules:
    """What counts as out of range beyond the fixed rules."""

    min_value: float | None = None
    """Rows with a lower value are dropped."""
    max_value: float | None = None
    """Rows with a higher value are dropped."""
    latest: int | None = field(default_factory=_latest)
    """Seconds since 1970: a later event comes from a wrong clock. Default: a day from now; None: any."""

    @classmethod
    def of_range(cls, text: str) -> "CleaningRules":
        """Reads the scale of the values, ``1:5``, ``1:`` or ``:5``; raises InvalidRequest for other forms."""
        low, colon, high = text.partition(":")
        try:
            least, most = (float(part) if part else None for part in (low, high))
        except ValueError:
            colon = ""
        if not colon or (least is not None and most is not None and not least <= most):
            raise InvalidRequest("range of values", found=text, expected="LOW:HIGH, such as 1:5, 1: or :5")
        return cls(least, most)


@dataclass(frozen=True, slots=True)
class CleaningReport:
    """What became of every row: ``rows_read`` = ``kept`` + everything that was dropped.

    ``missing``, ``bad_type`` and ``out_of_range`` count rows by the role of the column at fault;
    ``below_core`` rows belonged to users or items with too few interactions.
    """

    rows_read: int
    kept: int
    missing: Mapping[str, int] = field(default_factory=dict)
    bad_type: Mapping[str, int] = field(default_factory=dict)
    out_of_range: Mapping[str, int] = field(default_factory=dict)
    duplicates: int = 0
    below_core: int = 0
    notes: tuple[str, ...] = ()

    @property
    def dropped(self) -> int:
        """Number of rows that did not stay."""
        by_role = sum(sum(counts.values()) for counts in (self.missing, self.bad_type, self.out_of_range))
        return by_role + self.duplicates + self.below_core

    def as_dict(self) -> dict[str, Any]:
        """Returns the report as JSON-ready values."""
        return asdict(self) | {"notes": list(self.notes)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "CleaningReport":
        """Reads what ``as_dict`` wrote."""
        return cls(**{**values, "notes": tuple(values["notes"])})

    def table_rows(self) -> list[tuple[str, int]]:
        """Returns (label, rows) pairs in the order of the checks, the drops that did not happen left out."""
        rows = [("rows read", self.rows_read)]
        for label, counts in (
            ("missing", self.missing),
            ("bad type", self.bad_type),
            ("out of range", self.out_of_range),
        ):
            rows += [(f"{label}: {role}", count) for role, count in counts.items()]
        rows += [("duplicates", self.duplicates), ("below k-core", self.below_core)]
        return [row for row in rows if row[1] or row[0] == "rows read"] + [("kept", self.kept)]

    def after_core(self, kept: int) -> "CleaningReport":
        """Returns the report once the k-core filter left ``kept`` rows."""
        return replace(self, kept=kept, below_core=self.below_core + self.kept - kept)

    def with_notes(self, *notes: str) -> "CleaningReport":
        """Returns the report with more notes."""
        return replace(self, notes=(*self.notes, *notes))


def clean(
    table: pl.DataFrame, columns: ColumnMap, rules: CleaningRules | None = None
) -> tuple[pl.DataFrame, CleaningReport]:
    """Returns the usable events, oldest first (ties in the order of the table), and the report.

    Events: user_id str, item_id str, timestamp int64 (seconds), value float32 (1 where the source has no
    value), and action str where the source has it. Ids are kept byte for byte. Without a timestamp column
    the order of the rows is the order in time. Of rows with the same user, item and second the first stays.
    Raises DataError where a column is missing or no row is usable.
    """
    return _joined([_usable(table, columns, rules or CleaningRules())])


def clean_parts(
    tables: Iterable[pl.DataFrame], columns: ColumnMap, rules: CleaningRules | None = None
) -> tuple[pl.DataFrame, CleaningReport]:
    """Returns what :func:`clean` returns for the tables one after the other, holding one of them at a time.

    Ids are categorical: what is kept of an event is numbers. The unit of times is judged for each table.
    """
    rules, n_rows = rules or CleaningRules(), 0
    parts = []
    for table in tables:
        usable, report = _usable(table, columns, rules, n_rows)
        texts = [name for name in (USER_ID, ITEM_ID, ACTION) if name in usable.columns]
        parts.append((usable.with_columns(pl.col(texts).cast(pl.Categorical)), report))
        n_rows += table.height
    return _joined(parts)


def _joined(parts: list[tuple[pl.DataFrame, CleaningReport]]) -> tuple[pl.DataFrame, CleaningReport]:
    """Returns the events in time, each once, of tables in which nothing but that is left to do."""
    usable = pl.concat([part for part, _ in parts]).sort("microseconds", maintain_order=True)
    reports = [report for _, report in parts]
    parts.clear()
    usable = usable.with_columns(pl.col("microseconds").floordiv(1_000_000)).rename(
        {"microseconds": TIMESTAMP}
    )
    is_first = _first_of_each(usable)
    kept = usable.filter(is_first)
    report = CleaningReport(
        rows_read=sum(one.rows_read for one in reports),
        kept=kept.height,
        duplicates=len(is_first) - kept.height,
        notes=tuple(dict.fromkeys(note for one in reports for note in one.notes)),
        missing=_summed(one.missing for one in reports),
        bad_type=_summed(one.bad_type for one in reports),
        out_of_range=_summed(one.out_of_range for one in reports),
    )
    if kept.is_empty():
        reasons = ", ".join(f"{label} {count}" for label, count in report.table_rows()[:-1])
        raise DataError("usable events", found="none", expected="at least one", cure=f"Counted: {reasons}.")
    names = [USER_ID, ITEM_ID, TIMESTAMP, VALUE, *([ACTION] if ACTION in kept.columns else [])]
    return kept.select(names), report


def _first_of_each(events: pl.DataFrame) -> pl.Series:
    """Returns which of ``events``, oldest first, are the first of their user, item and second.

    By sorting: grouping all rows by three columns takes several times the memory of the rows.
    """
    users, items = (events[name].cast(pl.Categorical).to_physical().to_numpy() for name in (USER_ID, ITEM_ID))
    pairs = users.astype(np.int64) << 32 | items
    order = np.argsort(pairs, kind="stable")
    # Those of one pair stand together now, in time.
    repeated = np.diff(pairs[order]) == 0
    repeated &= np.diff(events[TIMESTAMP].to_numpy()[order]) == 0
    is_first = np.ones(len(order), np.bool_)
    is_first[order[1:][repeated]] = False
    return pl.Series(is_first)


def _summed(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for one in counts:
        for role, count in one.items():
            total[role] = total.get(role, 0) + count
    return total


def _usable(
    table: pl.DataFrame, columns: ColumnMap, rules: CleaningRules, n_before: int = 0
) -> tuple[pl.DataFrame, CleaningReport]:
    """Returns the rows without a fault, with ``microseconds``, and what became of the others.

    ``n_before``: rows of the tables before this one.
    """
    resolved = columns.resolve(table.columns)
    given = columns.as_dict()
    guessed = [f"{role}={column}" for role, column in resolved.items() if given[role] is None]
    notes = [f"columns guessed: {', '.join(guessed)}"] if guessed else []
    parsed, faults = _parse(table, resolved, rules, notes)
    if "timestamp" not in resolved:
        parsed = parsed.with_columns(pl.col("microseconds") + n_before * 1_000_000)
    dropped = pl.repeat(False, table.height, eager=True)
    counts: dict[str, dict[str, int]] = {"missing": {}, "bad_type": {}, "out_of_range": {}}
    for kind, role, fault in faults:
        newly_dropped = fault & ~dropped
        if rows := int(newly_dropped.sum()):
            counts[kind][role] = rows
        dropped |= fault
    usable = parsed.filter(~dropped).with_columns(pl.col(VALUE).cast(pl.Float32))
    report = CleaningReport(
        rows_read=table.height,
        kept=usable.height,
        notes=tuple(notes),
        missing=counts["missing"],
        bad_type=counts["bad_type"],
        out_of_range=counts["out_of_range"],
    )
    return usable, report


Fault = tuple[str, str, pl.Series]


def _parse(
    table: pl.DataFrame, resolved: Mapping[str, str], rules: CleaningRules, notes: list[str]
) -> tuple[pl.DataFrame, list[Fault]]:
    """Returns the parsed columns and all faults, those of one kind together, in the order of the report."""
    parsed: dict[str, pl.Series] = {}
    missing: list[Fault] = []
    bad_type: list[Fault] = []
    out_of_range: list[Fault] = []
    for role, source in resolved.items():
        raw = table[source]
        if role == "action":
            parsed[ACTION] = _text(raw)
            continue
        absent = raw.is_null() | (raw == "") if raw.dtype == pl.String else raw.is_null()
        if role == "timestamp":
            numbers, outside, unit_notes = to_microseconds(raw)
            parsed["microseconds"] = numbers
            if rules.latest is not None:
                future = (numbers > rules.latest * 1_000_000).fill_null(False) & ~outside
                outside |= future
                unit_notes += [f"timestamps: {int(future.sum())} lie in the future"] if future.any() else []
            out_of_range.append(("out_of_range", role, outside))
            notes.extend(unit_notes)
        elif role == "value":
            numbers = _number(raw)
            parsed[VALUE] = numbers
            out_of_range.append(("out_of_range", role, _value_outside(numbers, rules)))
        else:
            if raw.dtype.is_float():
                absent |= raw.is_nan().fill_null(True)
            numbers = _text(raw)
            parsed[ROLE_COLUMNS[role]] = numbers
        missing.append(("missing", role, absent))
        bad_type.append(("bad_type", role, numbers.is_null()))
    if "timestamp" not in resolved:
        notes.append("no timestamp column: the order of the rows is taken as the order in time")
        parsed["microseconds"] = pl.int_range(table.height, eager=True) * 1_000_000
    if "value" not in resolved:
        parsed[VALUE] = pl.repeat(1.0, table.height, dtype=pl.Float64, eager=True)
    return pl.DataFrame(parsed), missing + bad_type + out_of_range


def _text(raw: pl.Series) -> pl.Series:
    """Strings as they are; whole floats as integers, since a column with gaps turns 17850 into 17850.0."""
    if raw.dtype == pl.String:
        return raw
    if raw.dtype.is_nested() or raw.dtype in (pl.Binary, pl.Object, pl.Null):
        return pl.repeat(None, len(raw), dtype=pl.String, eager=True)
    if raw.dtype.is_float() and bool((raw.drop_nulls().drop_nans() % 1 == 0).all()):
        return raw.fill_nan(None).cast(pl.Int64, strict=False).cast(pl.String)
    return raw.cast(pl.String)


def _number(raw: pl.Series) -> pl.Series:
    if raw.dtype == pl.String:
        raw = raw.str.strip_chars()
    elif not (raw.dtype.is_numeric() or raw.dtype == pl.Boolean):
        return pl.repeat(None, len(raw), dtype=pl.Float64, eager=True)
    return raw.cast(pl.Float64, strict=False)


def _value_outside(numbers: pl.Series, rules: CleaningRules) -> pl.Series:
    # Values are stored as float32: what overflows there would come back as infinity.
    outside = ~numbers.cast(pl.Float32).is_finite()
    if rules.min_value is not None:
        outside |= numbers < rules.min_value
    if rules.max_value is not None:
        outside |= numbers > rules.max_value
    return outside.fill_null(False)
