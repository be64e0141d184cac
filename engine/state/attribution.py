"""What became of what was shown: impressions and the actions on them, joined by user, slate and item.

The impressions that callers record are the log of what was shown: as durable, encrypted, agreed to and erased
as every other event, which a log of slates beside them would have to be once more.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recserve.engine.state.events import EXPORT, IMPRESSION, Event

CLICK, CONVERSION = 1, 2
OUTCOMES = {"click": CLICK, "purchase": CONVERSION}


@dataclass(frozen=True, slots=True)
class Impressions:
    """Impressions of several users, one an entry of every array, (n,).

    ``users``, ``groups``: int32, the user as a number, and the place in ``group_names`` of arm and variant ·
    ``ranks``: int32, 0 where it was not told · ``propensities``: float64, NaN where not known · ``explored``,
    ``clicked``, ``converted``: bool.
    ``n_unattributed``: actions that name a slate of which no such impression is there.
    """

    group_names: list[tuple[str, str]]
    users: NDArray[np.int32]
    groups: NDArray[np.int32]
    ranks: NDArray[np.int32]
    propensities: NDArray[np.float64]
    explored: NDArray[np.bool_]
    clicked: NDArray[np.bool_]
    converted: NDArray[np.bool_]
    n_unattributed: int

    def only(self, wanted: NDArray[np.bool_]) -> "Impressions":
        """Returns the impressions that a mask, (n,), leaves."""
        names = ("users", "groups", "ranks", "propensities", "explored", "clicked", "converted")
        arrays = {name: getattr(self, name)[wanted] for name in names}
        return Impressions(self.group_names, **arrays, n_unattributed=self.n_unattributed)


def attribute(events: Iterable[Event]) -> Impressions:
    """Joins impressions and actions, in whatever order they come.

    An item that was shown twice in one slate was shown once, and clicks on it count once. Only events whose
    user agreed to exports count: the figures leave the log.
    """
    shown: dict[tuple[str, str, str], Event] = {}
    outcomes: dict[tuple[str, str, str], int] = {}
    for event in events:
        if not event.slate_id or not (event.purposes or 0) & EXPORT:
            continue
        key = (event.user_id, event.slate_id, event.item_id)
        if event.action == IMPRESSION:
            shown.setdefault(key, event)
        elif outcome := OUTCOMES.get(event.action, 0):
            outcomes[key] = outcomes.get(key, 0) | outcome
    users: dict[str, int] = {}
    groups: dict[tuple[str, str], int] = {}
    rows = list(shown.values())
    became = np.array([outcomes.get(key, 0) for key in shown], np.int64)
    return Impressions(
        users=np.array([users.setdefault(row.user_id, len(users)) for row in rows], np.int32),
        groups=np.array([groups.setdefault((row.arm, row.variant), len(groups)) for row in rows], np.int32),
        group_names=list(groups),
        ranks=np.array([row.rank for row in rows], np.int32),
        propensities=np.array(
            [np.nan if row.propensity is None else row.propensity for row in rows], np.float64
        ),
        explored=np.array([row.explored for row in rows], np.bool_),
        clicked=(became & CLICK) > 0,
        converted=(became & CONVERSION) > 0,
        n_unattributed=len(outcomes.keys() - shown.keys()),
    )
