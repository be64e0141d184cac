"""A server over a repository of models: registry, manager, watcher and Admin put together."""

from pathlib import Path

from recserve.engine.config import EngineConfig
from recserve.engine.engine import Engine
from recserve.engine.models.config import RepositoryConfig
from recserve.engine.models.feeds import open_feed
from recserve.engine.models.manager import ModelManager
from recserve.engine.models.memory import release_memory
from recserve.engine.models.registry import Registry
from recserve.engine.models.repository import FoundBundle, Repository
from recserve.engine.models.router import Router
from recserve.engine.models.watcher import Watcher
from recserve.engine.server.admin import AdminService
from recserve.engine.state.history import ObservedEvents


class EngineLoader:
    """Loads engines; those of one model share what was observed, so that a swap forgets nothing."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._observed: dict[str, ObservedEvents] = {}

    def __call__(self, bundle: FoundBundle) -> Engine:
        """Loads, checks and warms a bundle of the repository."""
        observed = self._observed.setdefault(
            bundle.model,
            ObservedEvents(
                max_users=self._config.max_observed_users, max_items=self._config.max_observed_items
            ),
        )
        return Engine.load(bundle.folder, self._config, observed=observed)


class Models:
    """What a server over a repository has beside it; :meth:`start` before the first request."""

    def __init__(self, config: RepositoryConfig, engine: EngineConfig) -> None:
        """Raises :class:`ConfigError` when folder or source cannot be used."""
        registry: Registry[Engine] = Registry(
            config.default_model, on_freed=lambda model, version: release_memory()
        )
        self.manager = ModelManager(Repository(Path(config.folder)), registry, EngineLoader(engine))
        self.router = Router(registry, on_rollback=self.manager.rolled_back)
        self.admin = AdminService(self.manager, self.router)
        source = open_feed(config.source) if config.source else None
        self.watcher = Watcher(self.manager, config, source)

    def start(self) -> None:
        """Loads what shall answer, then watches; raises when nothing can answer."""
        self.manager.start()
        self.watcher.start()

    def close(self) -> None:
        """Ends the threads; operations under way finish."""
        self.watcher.close()
        self.admin.close()
