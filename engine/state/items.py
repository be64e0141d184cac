"""Items that came, or went, after a bundle was made: what every engine of this state serves beside it."""

import json
import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from recserve.engine.bundle.ids import check_id
from recserve.errors import DataError, InvalidRequest

MAX_LIKE = 100
MAX_ATTRIBUTE_BYTES = 4096
MAX_ENTRY = 1e6
# Each is looked at when items change, and the ones that are gone by every request.
MAX_CHANGED = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemChange:
    """The newest that is known of one item.

    ``is_served``: False takes the item out of every slate; all else is about items that a bundle lacks.
    ``vector``: its embedding in the bundle ``bundle_version``, in another one it means nothing; ``like``: ids
    of items between which it lies, in any bundle. ``attributes``: as the catalogue has them.
    """

    item_id: str
    is_served: bool = True
    vector: tuple[float, ...] = ()
    bundle_version: str = ""
    like: tuple[str, ...] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)


def check_change(change: ItemChange) -> None:
    """Raises :class:`InvalidRequest` naming the first field that cannot be kept."""
    check_id("item_id", change.item_id)
    # PostgreSQL's texts have none.
    if "\0" in change.item_id:
        raise InvalidRequest("item_id", found="with a NUL character", expected="a text without")
    if len(change.like) > MAX_LIKE:
        raise InvalidRequest("like", found=f"{len(change.like)} items", expected=f"at most {MAX_LIKE}")
    for item_id in change.like:
        check_id("like", item_id)
    if change.vector and not (change.bundle_version and np.abs(change.vector).max() <= MAX_ENTRY):
        raise InvalidRequest(
            "vector",
            found="of no bundle, or with entries that are no numbers or too large",
            expected=f"numbers up to {MAX_ENTRY:g}, with the bundle_version that they are of",
        )
    try:
        attributes = json.dumps(dict(change.attributes), ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise InvalidRequest("attributes", found="not JSON", expected="values that JSON has") from error
    if len(attributes) > MAX_ATTRIBUTE_BYTES:
        raise InvalidRequest("attributes", found="too long", expected=f"at most {MAX_ATTRIBUTE_BYTES} bytes")


def pack_change(change: ItemChange) -> bytes:
    """Returns the bytes of a checked change, all of it but the id."""
    known = {
        "is_served": change.is_served,
        "vector": list(change.vector),
        "bundle_version": change.bundle_version,
        "like": list(change.like),
        "attributes": dict(change.attributes),
    }
    return json.dumps(known, ensure_ascii=False).encode()


def unpack_change(item_id: str, data: bytes) -> ItemChange:
    """Reads what :func:`pack_change` wrote; raises :class:`DataError` when it is something else."""
    try:
        known = json.loads(data)
        return ItemChange(
            item_id=item_id,
            is_served=known["is_served"],
            vector=tuple(known["vector"]),
            bundle_version=known["bundle_version"],
            like=tuple(known["like"]),
            attributes=known["attributes"],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise DataError("item", found="of unknown bytes", expected="as this version writes it") from error


class LiveItems:
    """The changed items by id; engines follow it. Safe to call from any thread."""

    def __init__(self) -> None:
        # Taken by who changes or begins to follow: every follower gets the changes in one order.
        self._lock = threading.Lock()
        self._newest: dict[str, ItemChange] = {}
        self._followers: weakref.WeakSet[ItemFollower] = weakref.WeakSet()

    def n_changed_with(self, changes: Iterable[ItemChange]) -> int:
        """Returns how many items have changed when ``changes`` are applied."""
        return len(self._newest) + len({change.item_id for change in changes} - self._newest.keys())

    def apply(self, changes: Sequence[ItemChange]) -> None:
        """Takes changes; when it returns, all followers serve them."""
        with self._lock:
            # A log that is read again brings what is served: a copy of the catalogue for nothing.
            if all(self._newest.get(change.item_id) == change for change in changes):
                return
            self._newest.update((change.item_id, change) for change in changes)
            for follower in tuple(self._followers):
                follower.serve_items(self._newest)

    def follow(self, follower: "ItemFollower") -> None:
        """Lets ``follower`` serve what is known, now and after every change while somebody holds it."""
        with self._lock:
            if self._newest:
                follower.serve_items(self._newest)
            self._followers.add(follower)


class ItemFollower(Protocol):
    """What serves items: an engine."""

    def serve_items(self, changes: Mapping[str, ItemChange]) -> None:
        """Serves ``changes`` beside the bundle; must not raise."""


def check_room(known: LiveItems, changes: Iterable[ItemChange]) -> None:
    """Raises :class:`InvalidRequest` where more items would be changed than engines follow."""
    if known.n_changed_with(changes) > MAX_CHANGED:
        raise InvalidRequest(
            "changed items",
            found=f"over {MAX_CHANGED}",
            expected=f"at most {MAX_CHANGED} since the log began",
            cure="Export a bundle that has them, and run: recserve items prune BUNDLE --state …",
        )
