"""A rule's tree × the attributes of a catalogue → which items it holds for.

A comparison is false for an item that lacks the attribute, also ``!=``, ``not in`` and ``not between``;
``not (…)`` and ``is null`` are where such items come in. Of an attribute with a list of values, a comparison
holds when it does for one of them, but ``!=`` and ``not in`` when they do for all.
"""

import datetime
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recserve.engine.bundle.attributes import BOOLEAN, NUMBER, TEXT, TIME, Attribute
from recserve.engine.bundle.catalogue import ITEM_ID, Catalogue
from recserve.engine.filters.syntax import All, Comparison, Literal, Not, Rule, refuse
from recserve.errors import nearest

Mask = NDArray[np.bool_]

_ORDERINGS: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_ORDERED = (NUMBER, TIME)
_WRITTEN = {
    NUMBER: "a number",
    TEXT: 'a "text"',
    BOOLEAN: "true or false",
    TIME: 'a time as "2026-01-31" or "2026-01-31T12:00:00+01:00"',
}
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


def evaluate(rule: Rule, catalogue: Catalogue, name: str = "filter") -> Mask:
    """Returns (n_items,) bool.

    Raises :class:`InvalidRequest`, naming the character, for an attribute that the catalogue does not have
    and for a value of another type than the attribute's.
    """
    if isinstance(rule, Comparison):
        return _compare(rule, catalogue, name)
    if isinstance(rule, Not):
        return ~evaluate(rule.part, catalogue, name)
    parts = [evaluate(part, catalogue, name) for part in rule.parts]
    joined: Mask = np.logical_and.reduce(parts) if isinstance(rule, All) else np.logical_or.reduce(parts)
    return joined


def find_attribute(catalogue: Catalogue, attribute: str, position: int, name: str) -> Attribute:
    """Returns an attribute that rules can use, or refuses the ``attribute`` at ``position`` of a rule."""
    names = [ITEM_ID, *catalogue.attribute_names]
    if attribute not in names:
        known = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
        cure = nearest(attribute, names) or f"There are: {known}."
        refuse(name, attribute, position, "an attribute of the catalogue", cure)
    found = catalogue.attribute(attribute)
    if found is None:
        refuse(name, attribute, position, "an attribute of numbers, texts, booleans, times or their lists")
    return found


def _compare(comparison: Comparison, catalogue: Catalogue, name: str) -> Mask:
    attribute = find_attribute(catalogue, comparison.attribute, comparison.position, name)
    sign = comparison.operator
    if sign == "known":
        return attribute.known.copy()
    if sign == "true":
        if attribute.kind != BOOLEAN:
            cure = f"{attribute.name} is a {attribute.kind}: compare it with something."
            refuse(name, attribute.name, comparison.position, "an attribute of true and false", cure)
        return attribute.any_of(attribute.values)
    wanted = [_convert(value, attribute, name) for value in comparison.values]
    if sign in _ORDERINGS or sign == "between":
        if attribute.kind not in _ORDERED:
            cure = f"{attribute.name} is a {attribute.kind}: it has = , != and in."
            refuse(name, f"{attribute.name} {sign}", comparison.position, "a number or time to order", cure)
        if sign == "between":
            return attribute.any_of((attribute.values >= wanted[0]) & (attribute.values <= wanted[1]))
        return attribute.any_of(_ORDERINGS[sign](attribute.values, wanted[0]))
    equal = attribute.any_of(_equal(attribute, wanted))
    return attribute.known & ~equal if sign == "!=" else equal


def _equal(attribute: Attribute, wanted: list[Any]) -> Mask:
    if len(wanted) == 1:
        equal: Mask = attribute.values == wanted[0]
        return equal
    # Whole numbers and fractions apart: one float among them would round the large whole ones.
    equal = np.zeros(len(attribute.values), np.bool_)
    for kind in (int, float):
        values = [value for value in wanted if isinstance(value, kind)]
        if values:
            equal |= np.isin(attribute.values, np.array(values))
    return equal


def _convert(literal: Literal, attribute: Attribute, name: str) -> Any:
    """Returns the value in the form that the attribute's array has, or refuses it."""
    value = literal.value
    if attribute.kind == TEXT and isinstance(value, str):
        return attribute.code_of(value)
    if attribute.kind == BOOLEAN and isinstance(value, bool):
        return value
    if attribute.kind == NUMBER and isinstance(value, int | float) and not isinstance(value, bool):
        return value
    if attribute.kind == TIME and isinstance(value, str):
        try:
            return _microseconds(value)
        except ValueError:
            pass  # Refused below, with the form that a time has.
    written = f'"{value}"' if isinstance(value, str) else str(value).lower()
    refuse(name, written, literal.position, f"{_WRITTEN[attribute.kind]} to compare {attribute.name} with")


def _microseconds(text: str) -> int:
    moment = datetime.datetime.fromisoformat(text)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return (moment - _EPOCH) // datetime.timedelta(microseconds=1)
