"""``recserve serve``: one process, or a supervisor with several workers."""

import sys
import tempfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

from recserve.engine.batch_policy import BatcherConfig
from recserve.engine.config import EngineConfig
from recserve.engine.logs import configure_logs
from recserve.engine.models.config import RepositoryConfig
from recserve.engine.online.config import OnlineConfig
from recserve.engine.server.config import ServerConfig
from recserve.engine.server.http.config import HttpConfig
from recserve.engine.server.processes import Supervisor, reserved_port
from recserve.engine.server.telemetry.config import TelemetryConfig
from recserve.engine.state.config import StateConfig
from recserve.errors import ConfigError

# How long a load, or events on their way to memory, may keep the interpreter from the threads that answer
# (Python's default is 5 ms): during swaps the median latency is 11 ms instead of 21 (benchmarks/swaps.py, 2
# cores, 70 % load). A Recommend call takes the interpreter back some five times, and waits so long each time.
SWITCH_SECONDS = 0.0001


@dataclass(frozen=True, slots=True)
class ServeBundle:
    """Serves one bundle until SIGTERM; what a worker process runs, hence plain data."""

    bundle: Path
    engine: EngineConfig
    server: ServerConfig
    batcher: BatcherConfig
    http: HttpConfig = field(default_factory=HttpConfig)
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)
    state: StateConfig = field(default_factory=StateConfig)
    online: OnlineConfig = field(default_factory=OnlineConfig)

    def __call__(self, announce: Callable[[str], None]) -> None:
        """Runs in the main thread of a process; ``announce`` gets the addresses when the engine is warm.

        One a line, the gRPC address first.
        """
        # Here, so that the parent of several workers stays small.
        from recserve.engine.engine import Engine
        from recserve.engine.models.memory import share_one_arena
        from recserve.engine.server.app import Server, run_server
        from recserve.engine.server.remembering import Remembering
        from recserve.engine.server.security.setup import harden_process
        from recserve.engine.server.telemetry.observers import new_observers

        configure_logs()
        harden_process()
        share_one_arena()
        if self.state.url:
            sys.setswitchinterval(SWITCH_SECONDS)
        with Remembering(self.state, self.engine, self.server, self.online, own_process=True) as remembering:
            server = Server(
                self.server,
                self.batcher,
                router=remembering.router,
                reuse_port=self.server.workers > 1,
                extra_methods=remembering.methods(),
                observers=new_observers(self.telemetry),
                http=self.http,
            )
            remembering.tell(server.health)

            def load() -> Engine:
                remembering.load()
                return Engine.load(
                    self.bundle,
                    self.engine,
                    observed=remembering.observed,
                    online=remembering.online,
                    live_items=remembering.live_items,
                )

            run_server(server, load, announce)


@dataclass(frozen=True, slots=True)
class ServeRepository:
    """Serves the models of a repository until SIGTERM; what changes in one process, the others follow."""

    repository: RepositoryConfig
    engine: EngineConfig
    server: ServerConfig
    batcher: BatcherConfig
    http: HttpConfig = field(default_factory=HttpConfig)
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)
    state: StateConfig = field(default_factory=StateConfig)
    online: OnlineConfig = field(default_factory=OnlineConfig)

    def __call__(self, announce: Callable[[str], None]) -> None:
        """Runs in the main thread of a process; ``announce`` gets the addresses when the models are warm."""
        from recserve.engine.models.memory import share_one_arena
        from recserve.engine.server.app import Server, run_server
        from recserve.engine.server.models import Models
        from recserve.engine.server.remembering import Remembering
        from recserve.engine.server.security.setup import harden_process
        from recserve.engine.server.telemetry.observers import new_observers

        configure_logs()
        harden_process()
        share_one_arena()
        sys.setswitchinterval(SWITCH_SECONDS)
        with (
            Remembering(self.state, self.engine, self.server, self.online, own_process=True) as remembering,
            closing(Models(self.repository, self.engine, remembering)) as models,
        ):
            server = Server(
                self.server,
                self.batcher,
                router=models.router,
                manager=models.manager,
                reuse_port=self.server.workers > 1,
                extra_methods=[*models.admin.methods(), *remembering.methods()],
                observers=new_observers(self.telemetry),
                http=self.http,
            )
            remembering.tell(server.health)

            def start() -> None:
                remembering.load()
                models.start()

            run_server(server, start, announce)


def serve(work: ServeBundle | ServeRepository, announce: Callable[[str], None]) -> None:
    """Serves with as many processes as the settings say."""
    if work.state.url and not work.state.is_shared and work.server.workers > 1:
        raise ConfigError(
            "state.url",
            found=f"{work.state.scheme}:// with {work.server.workers} workers",
            expected="one worker, or a log that several processes may write (redis://, postgresql://)",
        )
    if work.telemetry.capture and work.server.workers > 1:
        raise ConfigError(
            "telemetry.capture",
            found=f"given with {work.server.workers} workers",
            expected="one worker",
            cure="Each process would write the file.",
        )
    if work.state.sink and work.server.workers > 1:
        raise ConfigError(
            "state.sink", found=f"given with {work.server.workers} workers", expected="one that publishes"
        )
    if work.server.workers == 1:
        work(announce)
        return
    configure_logs()
    with reserved_port(work.server) as port, tempfile.TemporaryDirectory(prefix="recserve-index-") as folder:
        # The first worker prepares the index, the others map what it wrote.
        engine = work.engine if work.engine.index_folder else replace(work.engine, index_folder=Path(folder))
        shared = replace(work, engine=engine, server=replace(work.server, port=port))
        # One has the admin address: what it changes in the repository, the others follow.
        other = replace(shared, server=replace(shared.server, admin_address=""))
        Supervisor([shared, *[other] * (work.server.workers - 1)]).run(announce)
