"""The state behind a process of its own: the same answers and the same memory."""

import multiprocessing
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from recserve.engine.server import log_process
from recserve.engine.state import follower
from recserve.engine.state.config import StateConfig
from recserve.engine.state.distant import AnyState
from recserve.engine.state.items import ItemChange
from recserve.engine.state.state import read_log
from recserve.engine.wire.events import read_events
from recserve.errors import (
    ConfigError,
    InvalidRequest,
    MalformedRequest,
    Overloaded,
    Unavailable,
)
from recserve.proto import feedback_pb2 as pb
from tests.engine.server.distant import Heard, event, memory, open_distant, open_here, opened, process_of
from tests.engine.server.killing import TIMEOUT_SECONDS

pytest.importorskip("apsw")
pytest.importorskip("cryptography")


@pytest.fixture
def config(tmp_path: Path) -> StateConfig:
    return StateConfig(url=f"sqlite:///{tmp_path}/events")


def live(state: AnyState) -> list[Any]:
    """Does one of everything; returns what was answered and what is in memory."""
    heard = Heard()
    state.listeners.append(heard)
    shown = event(7, action="impression")
    outcomes = [
        state.record([event(i) for i in range(5)]),
        state.record([event(4), shown, event(9, rank=-1)]),
    ]
    with pytest.raises(InvalidRequest):
        state.change_items([ItemChange(item_id="")]).result(TIMEOUT_SECONDS)
    state.change_items([ItemChange(item_id="i1", is_served=False)]).result(TIMEOUT_SECONDS)
    page, after = state.events_of("u1", 0, 1).result(TIMEOUT_SECONDS)
    rest, end = state.events_of("u1", after).result(TIMEOUT_SECONDS)
    n_erased = state.erase("u0").result(TIMEOUT_SECONDS)
    state.move_cursor("mine", 3).result(TIMEOUT_SECONDS)
    logged, _ = state.events_after(0, 100).result(TIMEOUT_SECONDS)
    assert heard.n_stored >= 2
    assert [key.hex() for key in heard.gone] == [state.user_key("u0")]
    assert end == 0
    return [
        *[(one.n_stored, one.duplicates, [str(error) for _, error in one.refused]) for one in outcomes],
        *[[one.event.event_id for one in events] for events in (page, rest, logged)],
        *(n_erased, state.cursor("mine").result(TIMEOUT_SECONDS), state.expire(), state.follow_key_file()),
        *(memory(state), state.live_items.n_changed_with([]), state.durability),
    ]


def test_it_answers_and_remembers_what_a_state_here_does(tmp_path: Path) -> None:
    found = []
    for name, first, then in (("a", open_distant, open_here), ("b", open_here, open_distant)):
        config = StateConfig(url=f"sqlite:///{tmp_path}/{name}")
        with opened(first, config) as state:
            answered, identity = live(state), state.identity
        # What one of them wrote, the other one knows at its start.
        with opened(then, config) as state:
            assert state.identity == identity
            found.append((answered, memory(state), state.live_items.n_changed_with([])))
    assert found[0] == found[1]
    assert found[0][1]["u0"] is None


def test_a_load_of_several_parts_is_whole(config: StateConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(open_here, config) as state:
        state.record([event(i) for i in range(25)])
    told: list[tuple[Any, ...]] = []
    monkeypatch.setattr(log_process, "CHUNK", 10)
    log_process.ToldEvents(lambda *message: told.append(message)).load(  # type: ignore[arg-type]
        (b"key", f"i{i}", i, 5.0) for i in range(25)
    )
    assert [len(part) for _, part in told] == [10, 10, 5, 0]
    with opened(open_distant, config) as state:
        found = memory(state)
        assert [len(events or ()) for events in found.values()] == [9, 8, 8]


def test_not_everything_waits_for_a_message_that_is_sent_at_once() -> None:
    ours, theirs = multiprocessing.Pipe()
    tell = log_process.Teller(theirs)
    for number in range(log_process.MAX_HELD):
        tell.first("add", number)
    assert not ours.poll()
    tell.first("add", log_process.MAX_HELD)
    assert ours.recv() == [("add", (number,)) for number in range(log_process.MAX_HELD + 1)]
    tell.first("stored")
    tell("answer", 1)
    assert ours.recv() == [("stored", ()), ("answer", (1,))]


def test_impressions_of_a_load_go_to_memory_together(
    config: StateConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = int(time.time())
    with opened(open_here, config) as state:
        state.record([event(i, action="impression", timestamp=now + i) for i in range(25)])
        shown = [state.observed.shown_to(f"u{i}").tobytes() for i in range(3)]
    monkeypatch.setattr(follower, "SHOWN_TOGETHER", 10)
    with closing(open_here(config)) as state:
        added: list[int] = []
        add = state.observed.add

        def count(events: list[Any], *, shown: bool = False) -> None:
            added.append(len(events))
            add(events, shown=shown)

        monkeypatch.setattr(state.observed, "add", count)
        state.load()
        assert added == [10, 10, 5]
        assert [state.observed.shown_to(f"u{i}").tobytes() for i in range(3)] == shown


def test_a_signal_to_all_processes_of_a_server_ends_no_log(config: StateConfig) -> None:
    with opened(open_distant, config) as state:
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(process_of(config), number)
        assert state.record([event(0)]).n_stored == 1


def test_a_log_in_use_is_refused_and_so_is_one_without_its_key(
    config: StateConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(open_here, config), pytest.raises(ConfigError, match=f"in use by process {os.getpid()}"):
        open_distant(config)
    config.master_file.unlink()
    with pytest.raises(ConfigError, match="expected the keys of this log"):
        open_distant(config)


@pytest.mark.parametrize(
    ("data", "max_events", "kind", "message"),
    [
        (b"\xff", 9, MalformedRequest, "request is not decodable"),
        (pb.RecordRequest(events=[pb.Event()]).SerializeToString(), 0, InvalidRequest, "events is 1 long"),
    ],
)
def test_what_the_process_cannot_read_is_its_callers_matter(
    config: StateConfig, data: bytes, max_events: int, kind: type[Exception], message: str
) -> None:
    answers: list[Any] = []
    with opened(open_distant, config) as state:
        state.append(partial(read_events, data, max_events), answers.append)
        assert state.record([event(1)]).n_stored == 1
    [answer] = answers
    assert isinstance(answer, kind)
    assert str(answer).startswith(message)


def test_a_process_that_stands_still_is_sent_no_more_than_may_wait(config: StateConfig) -> None:
    answers: list[Any] = []
    with closing(open_distant(StateConfig(url=config.url, max_waiting_calls=2))) as state:
        os.kill(process_of(config), signal.SIGSTOP)
        for number in range(2):
            state.append(partial(tuple, [event(number)]), answers.append)
        with pytest.raises(Overloaded, match="calls that wait for the event log is 2"):
            state.append(partial(tuple, [event(2)]), answers.append)
        os.kill(process_of(config), signal.SIGCONT)
    # Who was let in is answered before it is closed.
    assert [answer.n_stored for answer in answers] == [1, 1]
    assert [logged.event.event_id for logged in read_log(config)] == ["e0", "e1"]
    with pytest.raises(Unavailable):
        state.record([event(300)])


def test_it_outlives_the_thread_that_made_it(config: StateConfig) -> None:
    with ThreadPoolExecutor(1) as made:
        state = made.submit(open_distant, config).result(TIMEOUT_SECONDS)
    with closing(state):
        before = process_of(config)
        assert [state.record([event(number)]).n_stored for number in range(5)] == [1] * 5
        assert process_of(config) == before
