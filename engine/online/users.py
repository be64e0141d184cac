"""What the learner knows of each user: newest items, the last slates, and how much of the hour counted."""

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple

from recserve.engine.online.config import OnlineConfig
from recserve.engine.state.events import HISTORY_ACTIONS, IMPRESSION, LEARN, SERVE
from recserve.engine.state.state import LoggedEvent

CLICKS = ("click", "add-to-cart", "purchase")
# A click on a slate before these came too late to be learned.
MAX_SLATES = 4
HOUR_SECONDS, DAY_HOURS = 3600, 24
# Items of a user that are known as had.
MAX_HAD = 1000
# Clicks of a user that count in an hour however seldom others click.
FREE_CLICKS = 3


class Example(NamedTuple):
    """An impression, or the click on one, with what was known when it was shown.

    ``recent``: item indices of the user's newest items, newest last · ``context``: hashes of its entries.
    """

    recent: tuple[int, ...]
    item: int
    rank: int
    context: tuple[int, ...]
    clicked: bool


@dataclass(slots=True)
class _Shown:
    """One slate: the user's newest items when it was shown, and its impressions that were not clicked."""

    recent: tuple[int, ...]
    waiting: dict[int, Example] = field(default_factory=dict)
    seen: set[int] = field(default_factory=set)


@dataclass(slots=True)
class _User:
    recent: tuple[int, ...] = ()
    slates: OrderedDict[str, _Shown] = field(default_factory=OrderedDict)
    hour: int = -1
    n_impressions: int = 0
    n_clicks: int = 0
    # Items whose impression counted on this day.
    shown: set[int] = field(default_factory=set)
    # The newest that the user did something with, oldest first.
    had: dict[int, None] = field(default_factory=dict)

    def has(self, item: int) -> None:
        """Notes that the user did something with an item."""
        self.had.pop(item, None)
        self.had[item] = None
        if len(self.had) > MAX_HAD:
            del self.had[next(iter(self.had))]


class Users:
    """Follows the log event by event; :meth:`recent` and :meth:`erase` may be called by any thread."""

    def __init__(self, config: OnlineConfig) -> None:
        self._config = config
        # Guards the two below; readers take none.
        self._lock = threading.Lock()
        self._users: OrderedDict[str, _User] = OrderedDict()
        self._erased: set[str] = set()
        # Of all users, those that counted: how often one clicks.
        self._n_impressions = self._n_clicks = 0

    def recent(self, user_key: str) -> tuple[int, ...]:
        """Returns the item indices of the newest items of a user, newest last."""
        user = self._users.get(user_key)
        return () if user is None else user.recent

    def erase(self, user_key: str) -> None:
        """Forgets a user for good."""
        with self._lock:
            self._erased.add(user_key)
            self._users.pop(user_key, None)

    def follow(self, logged: LoggedEvent, item: int) -> Example | None:
        """Takes the next event, of ``item`` (−1: not in the catalogue), and returns what is to be learned.

        A click counts once, among the last slates of its user. On one day one impression of a user and an
        item counts, none of an item that they had before (slates are for others), and so many in an hour
        only: that bounds what one of them, or a robot, can teach.
        """
        if item < 0:
            return None
        with self._lock:
            return None if logged.event.user_id in self._erased else self._follow(logged, item)

    def _follow(self, logged: LoggedEvent, item: int) -> Example | None:
        event = logged.event
        purposes = event.purposes or 0
        user = self._user(event.user_id, logged.received // HOUR_SECONDS)
        example = None
        if purposes & LEARN and event.slate_id:
            if event.action == IMPRESSION:
                context = tuple(hash_of(*entry) for entry in sorted(event.context.items()))
                example = self._impression(user, event.slate_id, item, event.rank, context)
            elif event.action in CLICKS:
                example = self._click(user, event.slate_id, item)
        if purposes & SERVE and event.action in HISTORY_ACTIONS:
            user.recent = (*user.recent, item)[-self._config.recent :]
            user.has(item)
        return example

    def _user(self, user_key: str, hour: int) -> _User:
        user = self._users.get(user_key)
        if user is None:
            user = self._users[user_key] = _User()
            if len(self._users) > self._config.max_users:
                self._users.popitem(last=False)
        self._users.move_to_end(user_key)
        if user.hour // DAY_HOURS != hour // DAY_HOURS:
            user.shown = set()
        if user.hour != hour:
            user.hour, user.n_impressions, user.n_clicks = hour, 0, 0
        return user

    def _impression(
        self, user: _User, slate_id: str, item: int, rank: int, context: tuple[int, ...]
    ) -> Example | None:
        slate = user.slates.get(slate_id)
        is_over = user.n_impressions >= self._config.impressions_per_hour
        if is_over or item in user.had or (slate and item in slate.seen):
            return None
        if slate is None:
            slate = user.slates[slate_id] = _Shown(user.recent)
            if len(user.slates) > MAX_SLATES:
                user.slates.popitem(last=False)
        slate.seen.add(item)
        example = slate.waiting[item] = Example(slate.recent, item, rank, context, clicked=False)
        if item in user.shown:
            return None
        user.n_impressions += 1
        self._n_impressions += 1
        user.shown.add(item)
        return example

    def _click(self, user: _User, slate_id: str, item: int) -> Example | None:
        slate = user.slates.get(slate_id)
        if slate is None or item not in slate.waiting or user.n_clicks >= self._most_clicks(user):
            return None
        user.n_clicks += 1
        self._n_clicks += 1
        user.has(item)
        example = slate.waiting[item]
        # The same item on another slate has no further vote.
        for shown in user.slates.values():
            shown.waiting.pop(item, None)
        return example._replace(clicked=True)

    def _most_clicks(self, user: _User) -> float:
        """Returns how many clicks count in this hour: few of who clicks far more often than others."""
        rate = (self._n_clicks + 1) / (self._n_impressions + 2)
        usual = FREE_CLICKS + self._config.click_excess * rate * user.n_impressions
        return min(usual, self._config.clicks_per_hour)


@lru_cache(maxsize=1 << 16)
def hash_of(key: str, value: str) -> int:
    """Returns 64 bits that stand for a context entry, the same in every process."""
    data = f"{key}\0{value}".encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little")
