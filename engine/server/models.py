"""A server over a repository of models: registry, manager, watcher and Admin put together."""

import tempfile
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from recserve.engine.bundle import Bundle
from recserve.engine.bundle.stamps import Stamps
from recserve.engine.config import EngineConfig
from recserve.engine.engine import Engine
from recserve.engine.models.config import RepositoryConfig
from recserve.engine.models.feeds import open_feed
from recserve.engine.models.manager import ModelManager
from recserve.engine.models.memory import release_memory
from recserve.engine.models.registry import Registry
from recserve.engine.models.repository import FoundBundle, Repository
from recserve.engine.models.router import Router
from recserve.engine.models.trial import Trials
from recserve.engine.models.watcher import Watcher
from recserve.engine.online.stage import OnlineStage
from recserve.engine.retrieval import drop_indices
from recserve.engine.server.admin import AdminService
from recserve.engine.server.remembering import Remembering
from recserve.engine.state.items import LiveItems
from recserve.engine.state.observed import ObservedEvents


class EngineLoader:
    """Loads engines; all share what was observed, so that a swap forgets nothing.

    ``observed``: where that is kept, its own memory by default. ``online``, ``live_items``: as those of
    Engine.load.
    """

    def __init__(
        self,
        config: EngineConfig,
        observed: ObservedEvents | None = None,
        online: Callable[[Bundle], OnlineStage] | None = None,
        live_items: LiveItems | None = None,
    ) -> None:
        self._config, self._online = config, online
        # What tries a bundle first, while others answer.
        self.trials: Trials | None = None
        self._live_items = live_items or LiveItems()
        self._observed = observed or ObservedEvents(
            max_users=config.max_observed_users, max_items=config.max_observed_items
        )

    def __call__(self, bundle: FoundBundle) -> Engine:
        """Loads, checks and warms a bundle of the repository."""
        if self.trials is None:
            return self._load(bundle.folder, self._config)
        # Once the index is mapped its files need no names any more.
        with tempfile.TemporaryDirectory(prefix="recserve-index-") as scratch:
            config = replace(self._config, index_folder=self._config.index_folder or Path(scratch))
            return self._load(bundle.folder, config, self.trials(bundle.folder, config))

    def _load(self, folder: Path, config: EngineConfig, checked: Stamps | None = None) -> Engine:
        return Engine.load(
            folder,
            config,
            observed=self._observed,
            online=self._online,
            live_items=self._live_items,
            checked=checked,
        )


class Models:
    """What a server over a repository has beside it; :meth:`start` before the first request."""

    def __init__(self, config: RepositoryConfig, engine: EngineConfig, remembering: Remembering) -> None:
        """Raises :class:`ConfigError` when folder or source cannot be used."""
        self._index_folder = engine.index_folder
        registry: Registry[Engine] = Registry(
            config.default_model,
            on_freed=lambda model, version: self._tidy(),
            run=lambda work: threading.Thread(target=work, name="recserve-free").start(),
        )
        self._trials = Trials(config.trial_seconds, config.trial_idle_seconds) if config.trial else None
        self._loader = EngineLoader(engine, remembering.observed, remembering.online, remembering.live_items)
        self.manager = ModelManager(Repository(Path(config.folder)), registry, self._loader)
        self.router = Router(registry, on_rollback=self.manager.rolled_back)
        remembering.router = self.router
        self.admin = AdminService(self.manager, self.router)
        source = open_feed(config.source) if config.source else None
        self.watcher = Watcher(self.manager, config, source, engine.signature_policy)

    def start(self) -> None:
        """Loads what shall answer, then watches; raises when nothing can answer."""
        self.manager.start()
        # Not before: until now nobody was answered who could have to wait.
        self._loader.trials = self._trials
        self.watcher.start()

    def _tidy(self) -> None:
        """Gives back what a version had that is freed, memory and its index on disk."""
        release_memory()
        if self._index_folder is not None and self._index_folder.exists():
            served = [engine.loaded for engine in self.manager.registry.engines()]
            drop_indices(self._index_folder, {name for loaded in served for name in loaded.index_names})

    def close(self) -> None:
        """Ends the threads; operations under way finish, those that try a bundle at once."""
        if self._trials is not None:
            self._trials.close()
        self.watcher.close()
        self.admin.close()
