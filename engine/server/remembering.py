"""What a server remembers of users: a log with its service, or only what engines observe themselves."""

from collections.abc import Callable
from functools import partial
from types import TracebackType

import structlog

from recserve.engine.bundle import Bundle
from recserve.engine.config import EngineConfig
from recserve.engine.models.registry import Registry
from recserve.engine.models.router import Router
from recserve.engine.online.config import OnlineConfig
from recserve.engine.online.learning import OnlineLearning
from recserve.engine.online.stage import OnlineStage
from recserve.engine.server.catalogue import CatalogueService
from recserve.engine.server.config import ServerConfig
from recserve.engine.server.feedback import SERVICE, FeedbackService
from recserve.engine.server.health import NOT_SERVING, HealthService
from recserve.engine.server.kafka.sink import KafkaSink
from recserve.engine.server.kafka.source import KafkaSource
from recserve.engine.server.kafka.topic import parse_topic
from recserve.engine.server.log_process import run_log
from recserve.engine.server.methods import Method
from recserve.engine.state.config import StateConfig
from recserve.engine.state.distant import AnyState, DistantState
from recserve.engine.state.items import LiveItems
from recserve.engine.state.observed import ObservedEvents
from recserve.engine.state.state import open_state
from recserve.engine.state.upkeep import Upkeep
from recserve.errors import ConfigError

log = structlog.get_logger("recserve.server")

NOT_ONLINE = OnlineConfig()


class Remembering:
    """Opens the state that the settings name; :meth:`load` it before the engines answer.

    ``router``: where the service looks for engines; one over a repository takes the place of this one.
    """

    def __init__(
        self,
        config: StateConfig,
        engine: EngineConfig,
        server: ServerConfig,
        online: OnlineConfig = NOT_ONLINE,
        *,
        own_process: bool = False,
    ) -> None:
        """``own_process``: a log in a file is written by one.

        Raises :class:`ConfigError` when the state cannot be used.
        """
        if online.algorithm and not config.url:
            raise ConfigError(
                "online.algorithm",
                found=f"{online.algorithm} without state.url",
                expected="a log to learn from",
                cure="Serve with --state.",
            )
        self.router = Router(Registry())
        self._with_stream = (
            server.transport == "grpcio" if config.record_stream is None else config.record_stream
        )
        users, items = engine.max_observed_users, engine.max_observed_items
        self._state: AnyState | None = None
        self._helpers: list[Upkeep | KafkaSource | KafkaSink] = []
        self._source = parse_topic("state.source", config.source) if config.source else None
        self._sink = parse_topic("state.sink", config.sink) if config.sink else None
        if config.url:
            open_it = partial(DistantState, run=run_log) if own_process and config.path else open_state
            self._state = open_it(config, max_users=users, max_items=items)
            self.observed = self._state.observed
        else:
            self.observed = ObservedEvents(max_users=users, max_items=items)
        self._learning: OnlineLearning | None = None
        if online.algorithm and self._state is not None:
            self._learning = OnlineLearning(online, self._state)

    def __enter__(self) -> "Remembering":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for helper in self._helpers:
            helper.stop()
        if self._learning is not None:
            self._learning.close()
        if self._state is not None:
            self._state.close()

    @property
    def live_items(self) -> LiveItems | None:
        """What has changed of items, None without a log."""
        return None if self._state is None else self._state.live_items

    @property
    def online(self) -> Callable[[Bundle], OnlineStage] | None:
        """What makes a loaded bundle learn from the log, None where the settings do not ask for it."""
        return None if self._learning is None else self._learning.stage

    def methods(self) -> list[Method]:
        """Returns the rows of the services over the log; none without one."""
        if self._state is None:
            return []
        return [
            *FeedbackService(self._state, self.router).methods(with_stream=self._with_stream),
            *CatalogueService(self._state, self.router).methods(),
        ]

    def tell(self, health: HealthService) -> None:
        """Lets the service be NOT_SERVING once nothing is written any more."""
        if self._state is not None:
            self._state.on_failed = lambda: health.set(NOT_SERVING, SERVICE)

    def load(self) -> None:
        """Builds the histories in memory from the log, and begins what goes on beside it."""
        if self._state is not None:
            loaded = self._state.load()
            log.info(
                "event log loaded",
                events=loaded.n_events,
                unreadable=loaded.n_unreadable,
                seconds=round(loaded.seconds, 3),
                durability=self._state.durability,
            )
            self._helpers.append(Upkeep(self._state))
            if self._source is not None:
                self._helpers.append(KafkaSource(self._state, self._source))
            if self._sink is not None:
                self._helpers.append(KafkaSink(self._state, self._sink))
