"""Labels from texts: the sentiment of reviews as a feature of items, and labels that a table lacks."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recserve.errors import DataError, InvalidRequest
from recserve.training.data.attributes import id_column
from recserve.training.data.cleaning import clean
from recserve.training.data.columns import TIMESTAMP, ColumnMap, guess_column
from recserve.training.data.splits import last_training_second
from recserve.training.data.timestamps import to_microseconds
from recserve.training.features.classifier import TextClassifier, out_of_fold
from recserve.training.ranking import metrics

# Of the newest rows with a label: what a classifier is judged on.
HELD_OUT_SHARE = 0.2
# Reviews of all items that are added to those of one, so that a single one does not decide.
PRIOR_REVIEWS = 5.0
YES, NO = "yes", "no"


@dataclass(frozen=True, slots=True)
class TextTable:
    """Texts of a table's rows and the label of each, None where it has none; both (n_rows,)."""

    table: pl.DataFrame
    texts: list[str]
    labels: list[str | None]

    @property
    def seconds(self) -> NDArray[np.int64]:
        """When each row was, (n_rows,): 0 where its time is none, its place in a table without times."""
        column = guess_column("timestamp", self.table.columns)
        if column is None:
            return np.arange(self.table.height)
        return to_microseconds(self.table[column])[0].fill_null(0).to_numpy() // 1_000_000

    @property
    def labelled(self) -> NDArray[np.int64]:
        """The rows that have a label, the oldest first."""
        rows = np.array([row for row, label in enumerate(self.labels) if label is not None], np.int64)
        return rows[np.argsort(self.seconds[rows], kind="stable")]

    @property
    def last_of_training(self) -> int:
        """The last second that a temporal split of the table trains on, whatever rows have a label."""
        columns = self.table.columns
        if all(guess_column(role, columns) for role in ("user", "item")):
            return last_training_second(clean(self.table, ColumnMap())[0][TIMESTAMP].to_numpy())
        return last_training_second(self.seconds)

    def of(self, rows: NDArray[np.int64]) -> tuple[list[str], list[str]]:
        """Returns texts and labels of ``rows``, all of which have one."""
        return [self.texts[row] for row in rows], [str(self.labels[row]) for row in rows]


def read_texts(table: pl.DataFrame, text: str, label: str, at_least: float | None) -> TextTable:
    """Joins the columns ``text`` (commas between) and reads ``label``; raises :class:`DataError` for none.

    ``at_least``: the label is a number, and the classes are "yes" from it on and "no" below. A blank text and
    NaN are no labels.
    """
    names = text.split(",")
    for name in (*names, label):
        if name not in table.columns:
            raise DataError(
                f"column {name}", found="not there", expected=f"one of {', '.join(table.columns)}"
            )
    texts = table.select(
        pl.concat_str(pl.col(names).cast(pl.String).fill_null(""), separator=" ")
    ).to_series()
    column = table[label]
    if at_least is not None:
        numbers = column.cast(pl.Float64, strict=False).fill_nan(None)
        values = [None if n is None else YES if n >= at_least else NO for n in numbers.to_list()]
        return TextTable(table, texts.to_list(), values)
    if column.dtype.is_nested():
        raise DataError(f"column {label}", found=str(column.dtype), expected="one value a row")
    if column.dtype.is_float():
        column = column.fill_nan(None)
    names_of = [None if own is None else own.strip() or None for own in column.cast(pl.String).to_list()]
    return TextTable(table, texts.to_list(), names_of)


def judge(table: TextTable) -> dict[str, Any]:
    """Returns how a classifier of the older labelled rows does on the newest fifth; AUC if that has both."""
    rows = table.labelled
    cut = int(len(rows) * (1 - HELD_OUT_SHARE))
    if not 0 < cut < len(rows):
        raise DataError("rows with a label", found=len(rows), expected="5 or more")
    classifier = TextClassifier(*table.of(rows[:cut]))
    texts, labels = table.of(rows[cut:])
    found = classifier.probabilities(texts)
    _, known = table.of(rows[:cut])
    likeliest = max(classifier.classes, key=known.count)
    predicted = [classifier.classes[best] for best in found.argmax(1)]
    result: dict[str, Any] = {
        "n_fitted": cut,
        "n_held_out": len(labels),
        "accuracy": float(np.mean(np.array(predicted) == np.array(labels))),
        "accuracy_of_likeliest": float(np.mean(np.array(labels) == likeliest)),
    }
    if set(labels) == {NO, YES} == set(classifier.classes):
        result["AUC"] = metrics.auc(found[:, 1], np.array([own == YES for own in labels], np.float32))
    return result


def mean_by(table: TextTable, key: str, name: str) -> pl.DataFrame:
    """Returns of each value of column ``key``, as text, the mean probability of "yes" of its texts, ``name``.

    Of the rows alone that a temporal split of the table trains on; a text is judged by a classifier that
    did not learn from it, and few texts are pulled to the mean of all. Raises :class:`InvalidRequest` where
    the classes are others than "yes" and "no".
    """
    rows = table.labelled
    rows = rows[table.seconds[rows] <= table.last_of_training]
    texts, labels = table.of(rows)
    if set(labels) != {YES, NO}:
        raise InvalidRequest(
            "--by", found="given", expected="given with --at-least, both sides of which occur"
        )
    likely = out_of_fold(texts, labels)[:, 1]
    prior = float(likely.mean())
    judged = pl.DataFrame({key: table.table[key][rows].cast(pl.String), name: likely}).drop_nulls(key)
    total = pl.col(name).sum() + PRIOR_REVIEWS * prior
    return judged.group_by(key, maintain_order=True).agg(total / (pl.len() + PRIOR_REVIEWS))


def with_means(items: pl.DataFrame, means: pl.DataFrame) -> pl.DataFrame:
    """Returns ``items`` with the means of :func:`mean_by` in a new column, null where an item has none.

    Raises :class:`DataError` where there is a column of that name.
    """
    key, name = means.columns
    if name in items.columns:
        raise DataError(
            f"column {name} of --items", found="there", expected="a new name", cure="Give --name."
        )
    ids = items[id_column(items, "item")].cast(pl.String)
    return items.hstack(
        pl.DataFrame({key: ids}).join(means, on=key, how="left", maintain_order="left")[[name]]
    )


def filled(table: TextTable, label: str) -> pl.DataFrame:
    """Returns the table with the likeliest class where ``label`` was missing, and how likely it is.

    Column LABEL_probability is 1 where the label was there.
    """
    classifier = TextClassifier(*table.of(table.labelled))
    found = classifier.probabilities(table.texts)
    best = [classifier.classes[place] for place in found.argmax(1)]
    missing = np.array([own is None for own in table.labels])
    labels = [own or other for own, other in zip(table.labels, best, strict=True)]
    likely = np.where(missing, found.max(1), 1.0)
    return table.table.with_columns(pl.Series(label, labels), pl.Series(f"{label}_probability", likely))
