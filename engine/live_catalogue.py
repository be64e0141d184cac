"""A loaded bundle with the items that came, and without those that went, since it was made."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import structlog
from numpy.typing import NDArray

from recserve.engine.batch import LoadedBundle
from recserve.engine.bundle import Bundle
from recserve.engine.bundle.histories import History
from recserve.engine.bundle.rules import PipelineConfig
from recserve.engine.sources import QuerySource
from recserve.engine.state.history import HistoryStore
from recserve.engine.state.items import ItemChange, LiveItems, check_change, check_room
from recserve.engine.state.observed import ObservedEvents

log = structlog.get_logger("recserve.engine")


class Serving(NamedTuple):
    """What answers now: the bundle with what has changed since, and the histories in its item indices."""

    loaded: LoadedBundle
    store: HistoryStore


class LiveCatalogue:
    """Keeps one bundle up with ``live_items``."""

    def __init__(
        self,
        loaded: LoadedBundle,
        config: PipelineConfig,
        observed: ObservedEvents,
        live_items: LiveItems,
    ) -> None:
        self._as_loaded, self._config, self._observed = loaded, config, observed
        self._live_items = live_items
        # Counted when a change is served: an answer that was begun before then is of the count before.
        self.n_changes = 0
        # Replaced as a whole: a batch that reads it once has no indices that its bundle lacks.
        self.serving = self._serve(loaded)

    def follow(self) -> None:
        """Serves what is known, and every change from now on; hears of users who are erased."""
        self._live_items.follow(self)
        self._observed.follow(self)

    def forget(self, key: Hashable) -> None:
        """As :meth:`Forgetful.forget`; None for what is kept of all users, who may come again."""
        for source in self._as_loaded.sources.values():
            source.forget(key)

    def change(self, changes: Sequence[ItemChange]) -> None:
        """Changes items for all that follow; raises :class:`InvalidRequest`, and then changes none."""
        for change in changes:
            check_change(change)
        check_room(self._live_items, changes)
        self._live_items.apply(changes)

    def serve_items(self, changes: Mapping[str, ItemChange]) -> None:
        """As :meth:`ItemFollower.serve_items`."""
        self.serving = self._serve(with_changes(self._as_loaded, changes, self._config))
        self.n_changes += 1

    def _serve(self, loaded: LoadedBundle) -> Serving:
        bundle = loaded.bundle
        return Serving(loaded, HistoryStore(bundle.histories, bundle.catalogue.vocabulary, self._observed))


def with_changes(
    loaded: LoadedBundle, changes: Mapping[str, ItemChange], config: PipelineConfig
) -> LoadedBundle:
    """Returns ``loaded``, as it came from disk, with ``changes`` by item id; ``loaded`` answers on.

    Items that the bundle lacks are numbered behind its own. Their vectors, attributes and the catalogue's are
    copied once: memory and time are O(n_items), whatever has changed.
    """
    bundle = loaded.bundle
    rows = bundle.catalogue.vocabulary.indices(list(changes))
    gone = [row for row, change in zip(rows.tolist(), changes.values(), strict=True) if not change.is_served]
    unknown = [
        change
        for row, change in zip(rows.tolist(), changes.values(), strict=True)
        if row < 0 and change.is_served
    ]
    new = [(change, vector) for change in unknown if (vector := _vector(bundle, change)) is not None]
    if n_without := len(unknown) - len(new):
        log.warning(
            "items left out: no vector of this bundle, like no item of it, and nothing that it makes one of",
            items=n_without,
            bundle_version=bundle.manifest.bundle_version,
        )
    if new and loaded.ranking is not None:
        log.warning("items left out: the ranker does not know them", items=len(new))
        new = []
    if new:
        loaded = _extended(loaded, new, config)
    return replace(loaded, gone=np.array([row for row in gone if row >= 0], np.int32))


def _vector(bundle: Bundle, change: ItemChange) -> NDArray[np.float32] | None:
    """Returns the embedding of an item that the bundle lacks, None where it cannot be told."""
    manifest = bundle.manifest
    of_this = change.bundle_version == manifest.bundle_version
    if of_this and len(change.vector) == manifest.embedding_size:
        return np.array(change.vector, np.float32)
    rows = bundle.catalogue.vocabulary.indices(change.like)
    known = rows[rows >= 0]
    if len(known):
        return bundle.item_embeddings[known].mean(axis=0)  # type: ignore[no-any-return]
    return None if bundle.item_encoder is None else bundle.item_encoder.encode(change.attributes)


def _extended(
    loaded: LoadedBundle, new: Sequence[tuple[ItemChange, NDArray[np.float32]]], config: PipelineConfig
) -> LoadedBundle:
    before = loaded.bundle
    changes = [change for change, _ in new]
    bundle = replace(
        before,
        catalogue=before.catalogue.extended(
            [change.item_id for change in changes], [change.attributes for change in changes]
        ),
        item_embeddings=np.concatenate([before.item_embeddings, np.stack([vector for _, vector in new])]),
        popularity=np.concatenate([before.popularity, np.zeros(len(new), np.int64)]),
    )
    n_items = len(before.popularity)
    sources: dict[str, QuerySource] = {
        name: _KnownItems(source, n_items) for name, source in loaded.sources.items()
    }
    retriever = loaded.retriever.extended(bundle)
    extended = LoadedBundle.of(bundle, loaded.runtime, sources, retriever, config)
    texts = None if loaded.texts is None else loaded.texts.extended(bundle)
    return replace(extended, online=loaded.online, costs=loaded.costs, texts=texts)


@dataclass(frozen=True, slots=True)
class _KnownItems:
    """A source that is shown the bundle's own items alone: its graph, or table, has no others."""

    source: QuerySource
    n_items: int

    def answers(self, history: History) -> bool:
        return self.source.answers(self._known(history))

    def encode(self, histories: Sequence[History], now: int) -> NDArray[np.float32]:
        return self.source.encode([self._known(history) for history in histories], now)

    def shares(
        self, history: History, items: NDArray[np.int32], n: int
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]] | None:
        if items.max(initial=0) >= self.n_items:
            return None
        return self.source.shares(self._known(history), items, n)

    def stats(self) -> dict[str, int]:
        return self.source.stats()

    def forget(self, key: Hashable) -> None:
        self.source.forget(key)

    def _known(self, history: History) -> History:
        known = history.items < self.n_items
        if known.all():
            return history
        return history.where(known)
