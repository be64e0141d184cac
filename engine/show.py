"""How slates look to a person and to a script."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from recserve import console
from recserve.engine.explain.cause import WhyNot
from recserve.engine.explain.texts import reason_text
from recserve.engine.types import Slate, SlateItem

LABELS = ("title", "genres", "category", "year", "price")


def named_items(slate: Slate) -> list[str]:
    """Returns the ids of the items of ``slate``, and of those that its reasons name."""
    explanations = [item.explanation for item in slate.items if item.explanation is not None]
    reasons = [reason for explanation in explanations for reason in explanation.reasons]
    named = [item_id for reason in reasons for item_id in reason.item_ids]
    return list(dict.fromkeys([*(item.item_id for item in slate.items), *named]))


def show_slate(
    title: str,
    slate: Slate,
    attributes: Mapping[str, Mapping[str, Any]],
    *,
    json: bool = False,
    language: str = "en",
) -> None:
    """Prints a slate with the attributes of its items to stdout, as a table or as JSON.

    ``language``: of the reasons, where the slate has them. Raises :class:`InvalidRequest` for an unknown one.
    """
    if json:
        value = dataclasses.asdict(dataclasses.replace(slate, stage_ns=dict(slate.stage_ns)))
        for item in value["items"]:
            item["attributes"] = dict(attributes.get(item["item_id"], {}))
        console.print_json(value)
        return
    is_explained = any(item.explanation for item in slate.items)
    has_sources = any(item.source for item in slate.items)
    labels = [label for label in LABELS if any(label in values for values in attributes.values())]
    console.print_table(
        title,
        [
            "rank",
            "item",
            *labels,
            "score",
            *(["source"] if has_sources else []),
            *(["why"] if is_explained else []),
        ],
        [
            [
                item.rank,
                item.item_id,
                *(attribute_text(attributes.get(item.item_id, {}).get(label)) for label in labels),
                f"{item.score:.4g}",
                *([item.source] if has_sources else []),
                *([_why(item, attributes, language)] if is_explained else []),
            ]
            for item in slate.items
        ],
    )
    console.note(f"{slate.source}, {slate.bundle_version}, {slate.variant}: {stage_text(slate)}")
    for warning in slate.warnings:
        console.note(f"warning: {warning}")
    if slate.degraded:
        console.note(f"left out to be in time: {', '.join(slate.degraded)}")
    if slate.next_page_token:
        console.note(f"next page: --page-token {slate.next_page_token}")


def _why(item: SlateItem, attributes: Mapping[str, Mapping[str, Any]], language: str) -> str:
    reasons = () if item.explanation is None else item.explanation.reasons
    names = {item_id: str(values["title"]) for item_id, values in attributes.items() if "title" in values}
    return "; ".join(reason_text(reason, language, names) for reason in reasons)


def show_why_not(why: WhyNot, *, json: bool = False) -> None:
    """Prints what keeps an item out of a slate to stdout, as a table or as JSON."""
    if json:
        console.print_json(dataclasses.asdict(dataclasses.replace(why, numbers=dict(why.numbers))))
        return
    numbers = [[name, f"{number:.4g}"] for name, number in why.numbers.items()]
    detail = [["which", why.detail]] if why.detail else []
    console.print_table(f"item {why.item_id}", ["what", "value"], [["cause", why.cause], *detail, *numbers])


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
