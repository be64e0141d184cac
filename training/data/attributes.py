"""Joins what is known about users and items to their ids."""

import polars as pl

from recserve.errors import DataError
from recserve.training.data.columns import GUESSES, guess_column

# The attributes that have one type everywhere; all others stay as the source has them.
NUMBERS: dict[str, type[pl.DataType]] = {"price": pl.Float64, "year": pl.Int32, "age": pl.Int32}
LISTS = ("genres", "categories")
TEXTS = ("title",)
LIST_SEPARATOR = "|"


def join_attributes(
    ids: pl.Series, table: pl.DataFrame, role: str, column: str | None = None
) -> tuple[pl.DataFrame, list[str]]:
    """Returns a table with a row for each of ``ids``, in their order, and notes on what did not fit.

    ``ids`` has the name that the id column gets; ``column`` is its name in ``table`` (None: guessed for
    ``role``). price, year and age become numbers, genres and categories lists of strings (separated by
    ``|``), title one string. Raises DataError where no column or no row fits.
    """
    source = id_column(table, role, column)
    if source != ids.name:
        table = table.drop(ids.name, strict=False).rename({source: ids.name})
    typed, notes = _with_types(table)
    keyed = typed.with_columns(pl.col(ids.name).cast(pl.String)).drop_nulls(ids.name)
    distinct = keyed.unique(ids.name, keep="first", maintain_order=True)
    if repeated := keyed.height - distinct.height:
        notes.append(f"{role} attributes: {repeated} repeated ids, the first row of each is used")
    joined = ids.to_frame().join(distinct, on=ids.name, how="left", maintain_order="left")
    without = len(ids) - int(ids.is_in(distinct[ids.name].implode()).sum())
    if without == len(ids):
        raise DataError(
            f"{role} attributes",
            found=f"without any {role} of the events, but for example {distinct[ids.name].first()!r}",
            expected=f"ids such as {ids.first()!r}",
            cure="Check that both files write the ids the same way.",
        )
    if without:
        notes.append(f"{role} attributes: {without} of {len(ids)} {role}s have none")
    if unused := distinct.height - (len(ids) - without):
        notes.append(f"{role} attributes: {unused} {role}s without an interaction are left out")
    return joined.select(ids.name, pl.exclude(ids.name)), notes


def all_ids(ids: pl.Series, table: pl.DataFrame, role: str, column: str | None = None) -> pl.Series:
    """Returns ``ids`` and those of ``table``, each once, ascending; ``role`` and ``column`` as above."""
    others = table[id_column(table, role, column)].cast(pl.String).drop_nulls().alias(ids.name)
    return pl.concat([ids, others]).unique().sort()


def id_column(table: pl.DataFrame, role: str, column: str | None = None) -> str:
    """Returns the name of the column with the ids; DataError where there is none."""
    found = column if column in table.columns else guess_column(role, table.columns)
    if found is None:
        raise DataError(
            f"{role} attributes",
            found=f"a table with the columns {', '.join(table.columns)}",
            expected=f"a column named {column or ' or '.join(GUESSES[role][:4])}",
            cure=f"Rename the column that holds the {role} id.",
        )
    return found


def _with_types(table: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
    notes: list[str] = []
    typed: list[pl.Series] = []
    for name, kind in NUMBERS.items():
        if name in table.columns:
            numbers = table[name].cast(pl.Float64, strict=False).fill_nan(None).cast(kind, strict=False)
            if lost := numbers.null_count() - table[name].null_count():
                notes.append(f"{name}: {lost} values are not numbers and are left empty")
            typed.append(numbers)
    for name in LISTS:
        if table.schema.get(name) == pl.String:
            typed.append(table[name].str.split(LIST_SEPARATOR))
    for name in TEXTS:
        if isinstance(table.schema.get(name), pl.List):
            typed.append(table[name].list.join(" "))
    return table.with_columns(typed), notes
