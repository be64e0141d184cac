"""What an engine is asked besides for slates: its items, its users, and what they did."""

import time
from collections.abc import Sequence
from typing import Any

from recserve.engine.batch import LoadedBundle
from recserve.engine.bundle.histories import check_value
from recserve.engine.bundle.ids import check_id, check_timestamp
from recserve.engine.config import EngineConfig
from recserve.engine.counters import Counters
from recserve.engine.features import check_ids
from recserve.engine.life import Life
from recserve.engine.live_catalogue import LiveCatalogue
from recserve.engine.state.events import HISTORY_ACTIONS, IMPRESSION, check_action, rating_of
from recserve.engine.state.items import LiveItems
from recserve.engine.state.observed import ObservedEvents


class Lookups:
    """One loaded bundle with what came since; the part of an Engine that computes nothing."""

    def __init__(
        self,
        loaded: LoadedBundle,
        config: EngineConfig,
        observed: ObservedEvents | None,
        live_items: LiveItems | None,
    ) -> None:
        """Arguments are those of Engine.load; None: one's own."""
        self._config = config
        self._observed = observed or ObservedEvents(
            max_users=config.max_observed_users, max_items=config.max_observed_items
        )
        self._live = LiveCatalogue(loaded, config.pipeline, self._observed, live_items or LiveItems())
        self._life = Life("engine")
        self._counters = Counters(
            "requests", "cached", "cold_starts", "ignored_items", "observed_events", "ignored_events"
        )

    @property
    def _loaded(self) -> LoadedBundle:
        return self._live.serving.loaded

    def get_items(self, item_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Returns the attributes (title, category, price, ...) of the known ones among ``item_ids``."""
        self._life.check()
        check_ids("item_ids", item_ids, self._config.max_items)
        return self._loaded.bundle.catalogue.by_id(item_ids)

    def history(self, user_id: str) -> list[str]:
        """Returns the item ids that the engine remembers for ``user_id``, newest last."""
        return self.timed_history(user_id)[0]

    def timed_history(self, user_id: str) -> tuple[list[str], list[int]]:
        """Returns item ids as :meth:`history` does, and when each happened (seconds, 0: not known)."""
        self._life.check()
        check_id("user_id", user_id)
        loaded, store = self._live.serving
        history = store.get(user_id)
        return loaded.bundle.catalogue.vocabulary.ids(history.items), history.timestamps.tolist()

    def user_ids(self) -> Sequence[str]:
        """Returns the ids of the users whose histories the bundle brought, in its order."""
        return self._loaded.bundle.histories.vocabulary

    def observe(
        self,
        *,
        user_id: str,
        item_id: str,
        action: str = "click",
        timestamp: int | None = None,
        value: float | None = None,
    ) -> bool:
        """Remembers one event in memory; the next slate of ``user_id`` knows.

        ``timestamp``: seconds since the epoch, now when not given; ``value``: of a rating. Returns whether
        it entered the history: an unknown item (counted as ignored), an impression and a dislike do not.
        """
        self._life.check()
        check_id("user_id", user_id)
        check_id("item_id", item_id)
        check_action(action)
        timestamp = int(time.time()) if timestamp is None else timestamp
        check_timestamp("timestamp", timestamp)
        if value is not None:
            check_value("value", value)
        item = self._loaded.bundle.catalogue.vocabulary.index_of(item_id)
        if item < 0:
            self._counters.add(ignored_events=1)
            return False
        self._counters.add(observed_events=1)
        if action in (*HISTORY_ACTIONS, IMPRESSION):
            rating = rating_of(action, value)
            self._observed.observe(user_id, item_id, timestamp, rating, shown=action == IMPRESSION)
        return action in HISTORY_ACTIONS
