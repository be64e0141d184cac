"""Logs in temporary folders, and events to put in them."""

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from recserve.engine.state.config import StateConfig
from recserve.engine.state.events import Event
from recserve.engine.state.master import add_key
from recserve.engine.state.state import State, open_state, read_log
from tests.engine.state.servers import DatabaseServer, running

pytest.importorskip("apsw")
pytest.importorskip("cryptography")


@pytest.fixture
def config(tmp_path: Path) -> StateConfig:
    """The settings of a durable log."""
    return StateConfig(url=f"sqlite:///{tmp_path}/events")


@pytest.fixture(scope="session")
def start_server() -> Iterator[Callable[[str], DatabaseServer]]:
    """Returns the server of a kind, started by the first test that asks, with nothing in it."""
    with ExitStack() as stack:
        start = functools.cache(lambda kind: stack.enter_context(running(kind)))

        def started(kind: str) -> DatabaseServer:
            server = start(kind)
            server.empty()
            return server

        yield started


@pytest.fixture(params=["redis", "postgres"])
def server(request: pytest.FixtureRequest, start_server: Callable[[str], DatabaseServer]) -> DatabaseServer:
    """Each database server."""
    return start_server(request.param)


@pytest.fixture
def shared(server: DatabaseServer, tmp_path: Path) -> StateConfig:
    """The settings of a log in it."""
    return shared_config(server, tmp_path)


@pytest.fixture(params=["sqlite", "redis", "postgres"])
def anywhere(
    request: pytest.FixtureRequest, tmp_path: Path, start_server: Callable[[str], DatabaseServer]
) -> StateConfig:
    """The settings of a durable log in each of the places that there are."""
    if request.param == "sqlite":
        return StateConfig(url=f"sqlite:///{tmp_path}/events")
    return shared_config(start_server(request.param), tmp_path)


def shared_config(server: DatabaseServer, folder: Path) -> StateConfig:
    """Makes a master key; returns the settings."""
    add_key(folder / "keys")
    return StateConfig(url=server.url, key_file=folder / "keys")


def opened(config: StateConfig) -> State:
    """Opens and loads a log."""
    state = open_state(config)
    state.load()
    return state


def items(state: State, user: str = "u") -> list[str]:
    """The items that memory knows of a user, oldest first."""
    found = state.observed.get(user)
    assert found is not None
    return [state.observed.item_ids(0)[code] for code in found["code"]]


def logged(config: StateConfig) -> list[str]:
    """The ids of the events in the log, in its order."""
    return [one.event.event_id for one in read_log(config)]


def event(number: int, *, user: str = "u", **fields: Any) -> Event:
    """Event ``number`` of a user; the same number, the same event."""
    return Event(
        **{
            "user_id": user,
            "item_id": f"i{number}",
            "event_id": f"e{number}",
            "timestamp": 1_750_000_000 + number,
            **fields,
        }
    )
