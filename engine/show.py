"""How slates look to a person and to a script."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from recserve import console
from recserve.engine.types import Slate

LABELS = ("title", "genres", "category", "year", "price")


def show_slate(
    title: str, slate: Slate, attributes: Mapping[str, Mapping[str, Any]], *, json: bool = False
) -> None:
    """Prints a slate with the attributes of its items to stdout, as a table or as JSON."""
    if json:
        value = dataclasses.asdict(dataclasses.replace(slate, stage_ns=dict(slate.stage_ns)))
        for item in value["items"]:
            item["attributes"] = dict(attributes.get(item["item_id"], {}))
        console.print_json(value)
        return
    labels = [label for label in LABELS if any(label in values for values in attributes.values())]
    console.print_table(
        title,
        ["rank", "item", *labels, "score"],
        [
            [
                item.rank,
                item.item_id,
                *(attribute_text(attributes.get(item.item_id, {}).get(label)) for label in labels),
                f"{item.score:.4g}",
            ]
            for item in slate.items
        ],
    )
    console.note(f"{slate.source}, {slate.bundle_version}, {slate.variant}: {stage_text(slate)}")
    for warning in slate.warnings:
        console.note(f"warning: {warning}")


def stage_text(slate: Slate) -> str:
    """Returns "resolve 0.05 ms · encode 0.41 ms · …"."""
    return " · ".join(f"{stage} {ns / 1e6:.2f} ms" for stage, ns in slate.stage_ns.items())


def attribute_text(value: Any) -> str:
    """Returns an attribute as a cell of a table."""
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        return ", ".join(str(entry) for entry in value)
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
