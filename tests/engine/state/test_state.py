"""The log as the server and an embedding program use it: files, restarts, duplicates, faults."""

import os
import stat
import threading
from concurrent.futures import Future
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from recserve.engine import Engine, Request
from recserve.engine.state.config import StateConfig
from recserve.engine.state.events import Event
from recserve.engine.state.group_commit import EVENTS_BETWEEN, Outcome
from recserve.engine.state.items import LiveItems
from recserve.engine.state.observed import ObservedEvents
from recserve.engine.state.opening import open_places
from recserve.engine.state.sqlite_store import SqliteStore
from recserve.engine.state.state import State, open_state, read_log
from recserve.errors import (
    ConfigError,
    Overloaded,
    StorageFailed,
    StorageFull,
    Unavailable,
)
from tests.engine.state.conftest import event, items, logged, opened

TIMEOUT_SECONDS = 30


@pytest.mark.parametrize("durability", ["power", "process"])
def test_the_promise_is_named(config: StateConfig, durability: str) -> None:
    with opened(replace(config, durability=durability)) as state:
        assert state.record([event(1)]).durability == durability
    with opened(StateConfig(url="memory://")) as state:
        assert state.record([event(1)]) == Outcome("memory", n_stored=1)
        assert items(state) == ["i1"]


def test_one_process_uses_a_log(config: StateConfig) -> None:
    with opened(config):
        with pytest.raises(ConfigError, match=f"in use by process {os.getpid()}; expected used by one"):
            open_state(config)
        assert logged(config) == []
    with opened(config):
        pass


def test_files_are_their_owners_own(config: StateConfig) -> None:
    with opened(config):
        assert stat.S_IMODE(Path(f"{config.path}.master").stat().st_mode) == 0o600


@pytest.mark.parametrize("fault", ["missing", "readable by others", "another", "garbage"])
def test_a_wrong_master_key_is_noticed(config: StateConfig, fault: str) -> None:
    with opened(config) as state:
        state.record([event(1)])
    file = Path(f"{config.path}.master")
    before = file.read_text()
    key_id = before.partition(" ")[0]
    if fault == "missing":
        file.unlink()
    elif fault == "readable by others":
        file.chmod(0o644)
    elif fault == "another":
        file.write_text(f"{key_id} {'A' * 43}=\n")
    else:
        file.write_text("secret-looking garbage\n")
    with pytest.raises(ConfigError) as caught:
        open_state(config)
    assert "secret" not in str(caught.value)
    file.write_text(before)
    file.chmod(0o600)
    with opened(config) as state:
        assert items(state) == ["i1"]


def test_the_environment_may_hold_the_key(config: StateConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSERVE_STATE_KEY", f"k1 {'A' * 43}=")
    with opened(config) as state:
        state.record([event(1)])
    assert not Path(f"{config.path}.master").exists()
    assert logged(config) == ["e1"]


@pytest.mark.parametrize("url", ["postgres://x", "sqlite://", "sqlite:///", "file.db"])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"state\.url"):
        StateConfig(url=url)


def test_a_folder_or_file_that_cannot_be_used_is_named(config: StateConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="folder that is not writable"):
        open_state(StateConfig(url=f"sqlite:///{tmp_path}/absent/events"))
    Path(config.path).write_bytes(b"no database " * 100)
    with pytest.raises(ConfigError, match=r"not usable \(NotADBError\)"):
        open_state(config)
    # Nothing holds the lock of a log that was not opened.
    Path(config.path).unlink()
    with opened(config):
        pass


class Gate:
    """A store whose disk waits, or fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.waits, self.opens = threading.Event(), threading.Event()
        self.error: Exception | None = None
        append = SqliteStore.append

        def gated(store: SqliteStore, rows: Any) -> list[bool]:
            self.waits.set()
            assert self.opens.wait(TIMEOUT_SECONDS)
            if self.error is not None:
                raise self.error
            return append(store, rows)

        monkeypatch.setattr(SqliteStore, "append", gated)


def ask(state: State, *events: Event) -> "Future[Outcome | Exception]":
    future: Future[Outcome | Exception] = Future()
    state.log.append(lambda: events, future.set_result)
    return future


def test_a_call_that_cannot_be_read_leaves_nothing_of_it(config: StateConfig) -> None:
    def broken() -> list[Event]:
        raise ValueError("no event")

    future: Future[Outcome | Exception] = Future()
    with opened(config) as state:
        state.log.append(broken, future.set_result)
        assert isinstance(future.result(TIMEOUT_SECONDS), ValueError)
        state.record([event(2)])
    assert logged(config) == ["e2"]


def test_who_writes_gives_way_often(config: StateConfig) -> None:
    turns: list[str] = []
    lock, store, keys = open_places(config, give_way=partial(turns.append, "SQLite"))
    memory = ObservedEvents(max_users=10, max_items=10)
    give_way = partial(turns.append, "events")
    with closing(State(config, lock, store, keys, memory, LiveItems(), give_way)) as state:
        state.record([event(number) for number in range(10 * EVENTS_BETWEEN)])
    # When they are checked and closed, and when they go to memory.
    assert turns.count("events") == 20
    assert "SQLite" in turns


def test_what_waits_together_is_committed_together(
    config: StateConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    with opened(replace(config, commit_events=2)) as state:
        first = ask(state, event(0))
        assert gate.waits.wait(TIMEOUT_SECONDS)
        others = [ask(state, event(number)) for number in (1, 2, 3)]
        gate.opens.set()
        for future in (first, *others):
            assert future.result(TIMEOUT_SECONDS) == Outcome("power", n_stored=1)
    assert logged(config) == ["e0", "e1", "e2", "e3"]


def test_callers_are_refused_when_the_disk_does_not_keep_up(
    config: StateConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    with opened(replace(config, max_waiting_calls=2)) as state:
        waiting = [ask(state, event(0)), ask(state, event(1))]
        assert gate.waits.wait(TIMEOUT_SECONDS)
        with pytest.raises(Overloaded, match="calls that wait for the event log is 2"):
            ask(state, event(2))
        monkeypatch.setattr("recserve.engine.state.event_log.MAX_COMMIT_SECONDS", -1.0)
        with pytest.raises(Overloaded, match="event log is waiting for its disk"):
            ask(state, event(2))
        gate.opens.set()
        assert [future.result(TIMEOUT_SECONDS) for future in waiting] == [Outcome("power", n_stored=1)] * 2


def test_a_full_disk_refuses_and_gets_better(config: StateConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    gate.opens.set()
    gate.error = StorageFull("disk", found="full", expected="room")
    with opened(config) as state:
        with pytest.raises(StorageFull):
            state.record([event(1)])
        assert items(state) == []
        gate.error = None
        state.record([event(1)])
    assert logged(config) == ["e1"]


def test_after_a_failed_write_nothing_more_is_written(
    config: StateConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    gate.opens.set()
    gate.error = StorageFailed("event log", found="failing", expected="writable")
    told = []
    with opened(config) as state:
        state.on_failed = lambda: told.append(1)
        for _ in range(2):
            with pytest.raises(StorageFailed):
                state.record([event(1)])
            gate.error = None
    assert told == [1]
    assert logged(config) == []


def test_a_closed_log_says_so(config: StateConfig) -> None:
    state = opened(config)
    state.close()
    with pytest.raises(Unavailable, match="event log is closed"):
        state.record([event(1)])


def test_an_embedding_program_remembers_over_restarts(config: StateConfig, bundle_folder: Path) -> None:
    with opened(config) as state, Engine.load(bundle_folder, observed=state.observed) as engine:
        first = engine.recommend(Request(user_id="somebody", k=3))
        assert first.source == "popularity"
        chosen = first.items[0].item_id
        state.record([event(1, user="somebody", item_id=chosen)])
        assert engine.history("somebody") == [chosen]
    with opened(config) as state, Engine.load(bundle_folder, observed=state.observed) as engine:
        again = engine.recommend(Request(user_id="somebody", k=3))
        assert again.source == "model"
        assert chosen not in [item.item_id for item in again.items]


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ("DROP TABLE keys; CREATE TABLE keys (user_key, master, wrapped)", "earlier"),
        ("PRAGMA user_version=9", "9"),
    ],
)
def test_a_key_file_of_another_format_is_refused(tmp_path: Path, change: str, found: str) -> None:
    config = StateConfig(url=f"sqlite:///{tmp_path}/events")
    opened(config).close()
    apsw = pytest.importorskip("apsw")
    with closing(apsw.Connection(f"{tmp_path}/events.keys")) as keys:
        keys.execute(change)
    with pytest.raises(ConfigError, match=f"format of .*events.keys is .*{found}"):
        open_state(config)
    with pytest.raises(ConfigError, match="format of"):
        list(read_log(config))
