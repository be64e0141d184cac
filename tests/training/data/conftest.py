"""Small datasets for the tests of this room."""

from collections.abc import Callable, Sequence

import polars as pl
import pytest

from recserve.training.data import CleaningReport, Dataset

Event = tuple[str, str, int]


@pytest.fixture(scope="session")
def make_dataset() -> Callable[[Sequence[Event]], Dataset]:
    """Builds a dataset of (user_id, item_id, timestamp) events, in the order of the source."""

    def build(events: Sequence[Event]) -> Dataset:
        schema = {"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64}
        table = pl.DataFrame(list(events), schema=schema, orient="row")
        table = table.with_columns(value=pl.lit(1.0, pl.Float32))
        report = CleaningReport(rows_read=table.height, kept=table.height)
        return Dataset.from_events("small", table, report=report, source="test")

    return build
