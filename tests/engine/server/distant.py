"""States behind a process of their own, and what tests look at in them."""

import os
import signal
import threading
from collections.abc import Callable, Container, Iterator
from contextlib import closing, contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from recserve.engine.server import log_process
from recserve.engine.server.log_process import Teller, run_log
from recserve.engine.state.config import StateConfig
from recserve.engine.state.distant import AnyState, DistantState
from recserve.engine.state.events import Event
from recserve.engine.state.sqlite_store import SqliteStore
from recserve.engine.state.state import open_state
from recserve.engine.state.writing_process import Opened
from recserve.errors import StorageFailed
from tests.engine.server.killing import TIMEOUT_SECONDS

Open = Callable[[StateConfig], AnyState]
open_distant = partial(DistantState, run=run_log, max_users=100, max_items=10)
open_here = partial(open_state, max_users=100, max_items=10)


def event(number: int, **fields: Any) -> Event:
    known = {"user_id": f"u{number % 3}", "item_id": f"i{number}", "event_id": f"e{number}"}
    return Event(**{**known, "timestamp": 1_750_000_000 + number, **fields})


class Heard:
    """A listener that notes what it hears."""

    def __init__(self) -> None:
        self.n_stored = 0
        self.gone: list[bytes] = []
        self._moved = threading.Condition()

    def stored(self) -> None:
        with self._moved:
            self.n_stored += 1
            self._moved.notify_all()

    def erased(self, user_key: bytes) -> None:
        with self._moved:
            self.gone.append(user_key)
            self._moved.notify_all()

    def wait_until(self, n_stored: int, *, n_gone: int = 0) -> None:
        with self._moved:
            assert self._moved.wait_for(
                lambda: self.n_stored >= n_stored and len(self.gone) >= n_gone, TIMEOUT_SECONDS
            )


@contextmanager
def opened(open_it: Open, config: StateConfig) -> Iterator[AnyState]:
    with closing(open_it(config)) as state:
        state.load()
        yield state


def memory(state: AnyState) -> dict[str, list[tuple[str, int, str]] | None]:
    """What the next request of each user would see."""
    ids = state.observed.item_ids(0)
    found = {f"u{i}": state.observed.get(f"u{i}") for i in range(3)}
    return {
        user: None
        if events is None
        else [(ids[code], at, repr(value)) for code, at, value in events.tolist()]
        for user, events in found.items()
    }


def shown(state: AnyState) -> dict[str, list[tuple[str, int]]]:
    """What each user was shown, as the next request would see it."""
    ids = state.observed.item_ids(0)
    return {
        f"u{i}": [(ids[code], at) for code, at, _ in state.observed.shown_to(f"u{i}").tolist()]
        for i in range(3)
    }


def process_of(config: StateConfig) -> int:
    return int(Path(f"{config.path}.lock").read_text())


def life_of(config: StateConfig) -> int:
    """Returns how many processes have asked this of the log."""
    with Path(f"{config.path}.lives").open("ab") as lives:
        lives.write(b".")
        return lives.tell()


class DyingTeller(Teller):
    """Sends its process a signal, that to die, in place of telling ``what``, of all that was done."""

    what = ""
    number = signal.SIGKILL

    def __call__(self, what: str, *arguments: Any) -> None:
        self._die_of(what)
        super().__call__(what, *arguments)

    def first(self, what: str, *arguments: Any) -> None:
        self._die_of(what)
        super().first(what, *arguments)

    def _die_of(self, what: str) -> None:
        if what == self.what:
            os.kill(os.getpid(), self.number)
            # One that stops a process may stop this thread a little later.
            threading.Event().wait()


def run_dying(
    what: str,
    config: StateConfig,
    pipe: Connection,
    lives: Container[int] = (1,),
    number: signal.Signals = signal.SIGKILL,
) -> None:
    """As :func:`run_log`; processes ``lives`` end by a signal, or stop, where they would tell ``what``."""
    if life_of(config) in lives:
        DyingTeller.what, DyingTeller.number = what, number
        log_process.Teller = DyingTeller  # type: ignore[misc]
    run_log(config, pipe)


def run_failing(config: StateConfig, pipe: Connection) -> None:
    """As :func:`run_log`, over a disk that fails."""

    def fail(store: SqliteStore, rows: object) -> list[bool]:
        raise StorageFailed("event log", found="failing", expected="writable")

    SqliteStore.append = fail  # type: ignore[method-assign]
    run_log(config, pipe)


def run_of_another_log(config: StateConfig, pipe: Connection) -> None:
    """As :func:`run_log`; those after the first have other pseudonyms."""
    if life_of(config) == 1:
        run_log(config, pipe)
    else:
        pipe.send(Opened("power", b"of another log"))
        pipe.recv()
