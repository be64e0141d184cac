"""Recorded events as interactions to learn from, beside those that a run had."""

from collections.abc import Iterable

import polars as pl

from recserve.engine.state.events import HISTORY_ACTIONS, LEARN
from recserve.engine.state.state import LoggedEvent
from recserve.training.data import Dataset
from recserve.training.data.columns import ITEM_ID, ITEM_INDEX, TIMESTAMP, USER_ID, USER_INDEX, VALUE

COLUMNS = {USER_ID: pl.String(), ITEM_ID: pl.String(), TIMESTAMP: pl.Int64(), VALUE: pl.Float32()}


def learnable(logged: Iterable[LoggedEvent], user_ids: dict[str, str], since: int) -> pl.DataFrame:
    """Returns the events of ``since`` (seconds) and later that belong in histories and may be learned.

    Columns: ``COLUMNS``, oldest first. ``user_ids``: pseudonym → the id that the run knows a user by; others
    keep their pseudonym.
    """
    rows = [
        (user_ids.get(event.user_id, event.user_id), event.item_id, event.timestamp, event.value)
        for event in (one.event for one in logged)
        if event.action in HISTORY_ACTIONS and (event.purposes or 0) & LEARN and event.timestamp >= since
    ]
    events = pl.DataFrame(rows, COLUMNS, orient="row")
    return events.with_columns(pl.col(VALUE).fill_null(1.0)).sort(TIMESTAMP, maintain_order=True)


def with_events(dataset: Dataset, events: pl.DataFrame) -> Dataset:
    """Returns a data set of the interactions of ``dataset`` and ``events``, each once, with all its items."""
    before = dataset.interactions.select(
        dataset.users[USER_ID][dataset.interactions[USER_INDEX]].alias(USER_ID),
        dataset.items[ITEM_ID][dataset.interactions[ITEM_INDEX]].alias(ITEM_ID),
        TIMESTAMP,
        VALUE,
    )
    # An event that the run has learned from already is in its data and in the log.
    merged = pl.concat([before, events]).unique(
        [USER_ID, ITEM_ID, TIMESTAMP], keep="first", maintain_order=True
    )
    return Dataset.from_events(
        dataset.name,
        merged,
        report=dataset.report.with_notes(f"with {len(merged) - len(before)} events of the log"),
        source=dataset.source,
        licence=dataset.licence,
        users=dataset.users,
        items=dataset.items,
        item_column=ITEM_ID,
        every_item=True,
    )
