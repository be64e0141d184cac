"""Attributes arrive as JSON and the wire can carry them, whatever the columns of the items file were."""

import datetime
import decimal
import json

import pyarrow as pa

from recserve.engine.bundle import Vocabulary
from recserve.engine.bundle.catalogue import Catalogue
from recserve.engine.wire.convert import item_from_message, item_to_message


def test_attributes_are_plain_values() -> None:
    table = pa.table(
        {
            "item_id": ["a", "b"],
            "released": [datetime.date(1999, 3, 31), None],
            "seen": [datetime.datetime(2001, 1, 1, 12), None],
            "price": pa.array([decimal.Decimal("9.50"), None], pa.decimal128(6, 2)),
            "stars": [float("nan"), 4.5],
            "genres": [["Drama", "War"], []],
            "new": [True, None],
        }
    )
    first, second = Catalogue(table, Vocabulary.build(["a", "b"])).attributes([0, 1])
    assert first == {
        "released": "1999-03-31",
        "seen": "2001-01-01 12:00:00.000000",
        "price": 9.5,
        "genres": ["Drama", "War"],
        "new": True,
    }
    assert second == {"stars": 4.5, "genres": []}
    for values in (first, second):
        assert json.loads(json.dumps(values, allow_nan=False)) == values
        assert item_from_message(item_to_message("x", values)) == values
