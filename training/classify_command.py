"""The verb ``classify``: labels from texts."""

from pathlib import Path
from typing import Annotated

import typer

from recserve import console
from recserve.errors import DataError, InvalidRequest


def classify(
    table: Annotated[Path, typer.Argument(help="File with texts and labels: reviews, or items.")],
    text: Annotated[str, typer.Option(help="Columns that are read, commas between.")],
    label: Annotated[str, typer.Option(help="Column of what is to be predicted.")],
    out: Annotated[Path, typer.Option(help="The result, as Parquet: a file for train --items.")],
    at_least: Annotated[
        float | None, typer.Option(help="The label is a number; yes from this value on, no below.")
    ] = None,
    by: Annotated[
        str | None, typer.Option(help="Column of an id: the mean over its texts instead of a label a row.")
    ] = None,
    name: Annotated[str, typer.Option(help="Name of that mean.")] = "sentiment",
    items: Annotated[Path | None, typer.Option(help="File of item attributes to add the mean to.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Learn labels from texts: the sentiment of reviews by item, or labels where a table has none.

    Prints how good the classifier is on the newest fifth of the labelled rows.
    """
    from recserve.training.data import read_table
    from recserve.training.text_labels import filled, judge, mean_by, read_texts, with_means

    if out.suffix != ".parquet":
        raise InvalidRequest("--out", found=out, expected="a file named .parquet")
    if items is not None and by is None:
        raise InvalidRequest("--items", found="given", expected="given with --by")
    read = read_texts(read_table(table), text, label, at_least)
    result = judge(read)
    if by is None:
        filled(read, label).write_parquet(out)
    else:
        if by not in read.table.columns:
            raise DataError(f"column {by}", found="not there", expected="the column of an id")
        means = mean_by(read, by, name)
        if items is not None:
            means = with_means(read_table(items), means)
        means.write_parquet(out)
    if json:
        console.print_json(result)
        return
    console.print_table(
        f"{label} from {text}", ["held out", "value"], [[key, value] for key, value in result.items()]
    )
    console.note(f"written to {out}")
