"""Small catalogues for rules, and a second, slow reading of what a rule means."""

import operator
from typing import Any

import pyarrow as pa

from recserve.engine.bundle.catalogue import Catalogue
from recserve.engine.bundle.vocabulary import Vocabulary
from recserve.engine.filters import syntax

COLUMNS: dict[str, pa.DataType] = {
    "price": pa.float64(),
    "stock": pa.int32(),
    "category": pa.string(),
    "genres": pa.large_list(pa.large_string()),
    "sizes": pa.list_(pa.int16()),
    "in_stock": pa.bool_(),
    "since": pa.timestamp("ms", tz="UTC"),
}


def make_catalogue(rows: list[dict[str, Any]]) -> Catalogue:
    """A catalogue of these items: a, b, c, …; what a row does not name is missing."""
    ids = [f"item {i}" for i in range(len(rows))]
    columns: dict[str, Any] = {
        name: pa.array([row.get(name) for row in rows], type=kind) for name, kind in COLUMNS.items()
    }
    parts = pa.array([row.get("parts") for row in rows], type=pa.struct([("n", pa.int8())]))
    table = pa.table({"item_id": pa.array(ids, pa.large_string()), **columns, "parts": parts})
    return Catalogue(table, Vocabulary.build(ids))


def holds(rule: syntax.Rule, row: dict[str, Any]) -> bool:
    """Whether a rule holds for one item, by plain Python over its values."""
    if isinstance(rule, syntax.Not):
        return not holds(rule.part, row)
    if isinstance(rule, syntax.All):
        return all(holds(part, row) for part in rule.parts)
    if isinstance(rule, syntax.Any):
        return any(holds(part, row) for part in rule.parts)
    value = row.get(rule.attribute)
    if rule.operator == "known" or value is None:
        return rule.operator == "known" and value is not None
    values = value if isinstance(value, list) else [value]
    wanted = [literal.value for literal in rule.values]
    if rule.operator == "true":
        return any(values)
    if rule.operator == "between":
        return any(wanted[0] <= one <= wanted[1] for one in values)
    if rule.operator in ("=", "in"):
        return any(one in wanted for one in values)
    if rule.operator == "!=":
        return all(one not in wanted for one in values)
    order = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}[rule.operator]
    return any(order(one, wanted[0]) for one in values)
