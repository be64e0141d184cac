"""What holds of a log wherever it lies: in SQLite, in Redis, in PostgreSQL."""

import time
from dataclasses import replace

import pytest

from recserve.engine.state.config import StateConfig
from recserve.engine.state.events import SERVE, Event
from recserve.engine.state.group_commit import Outcome
from recserve.engine.state.master import add_key
from recserve.engine.state.upkeep import look_after
from recserve.errors import AlreadyRecorded, InvalidRequest, StorageFull, UserErased
from tests.engine.state.conftest import event, items, logged, opened

DAY_SECONDS = 86_400


def test_events_survive_the_process_in_their_order(anywhere: StateConfig) -> None:
    with opened(anywhere) as state:
        outcome = state.record([event(1), event(2, action="impression"), event(3, purposes=2)])
        assert outcome == Outcome("power", n_stored=3)
        state.record([event(4)])
        # What was shown, and what slates must not know, is in the log and not in the history.
        assert items(state) == ["i1", "i4"]
    assert logged(anywhere) == ["e1", "e2", "e3", "e4"]
    with opened(anywhere) as state:
        assert items(state) == ["i1", "i4"]


def test_what_was_shown_is_counted_after_a_restart(anywhere: StateConfig) -> None:
    now = int(time.time())
    with opened(anywhere) as state:
        state.record([event(i, action="impression", item_id="seen", timestamp=now) for i in (1, 2)])
        assert len(state.observed.shown_to("u")) == 2
    with opened(anywhere) as state:
        assert len(state.observed.shown_to("u")) == 2


def test_an_event_counts_once_however_often_it_comes(anywhere: StateConfig) -> None:
    for _ in range(3):
        with opened(anywhere) as state:
            for _ in range(2):
                outcome = state.record([event(1), event(2), event(1)])
                assert outcome.n_stored + len(outcome.duplicates) == 3
            assert items(state) == ["i1", "i2"]
    assert logged(anywhere) == ["e1", "e2"]


@pytest.mark.parametrize(
    "other", [event(1, item_id="x"), event(1, user="v"), event(1, value=2.0), event(1, action="view")]
)
def test_another_event_of_the_same_id_is_refused(anywhere: StateConfig, other: Event) -> None:
    with opened(anywhere) as state:
        state.record([event(1)])
        [(position, error)] = state.record([event(2), other]).refused
        assert (position, type(error)) == (1, AlreadyRecorded)
        # A time that the server set differs when the event is sent again.
        assert state.record([event(1, timestamp=5)]).duplicates == [0]
    assert logged(anywhere) == ["e1", "e2"]


def test_a_bad_event_is_refused_alone(anywhere: StateConfig) -> None:
    with opened(anywhere) as state:
        outcome = state.record([event(1), event(2, action="clik"), event(3)])
        assert outcome.n_stored == 2
        [(position, error)] = outcome.refused
        assert (position, type(error)) == (1, InvalidRequest)
        assert "Did you mean 'click'?" in str(error)


def test_an_event_without_consent_is_not_kept(anywhere: StateConfig) -> None:
    with opened(anywhere) as state:
        outcome = state.record([event(1, purposes=0), event(2, purposes=SERVE)])
        assert (outcome.n_stored, outcome.n_withheld) == (1, 1)
    assert logged(anywhere) == ["e2"]


def test_events_go_when_their_time_is_over(anywhere: StateConfig) -> None:
    anywhere = replace(anywhere, retention_days=3)
    with opened(anywhere) as state:
        state.record([event(1), event(2, user="v")])
        assert state.expire(time.time() + 2 * DAY_SECONDS) == 0
        assert logged(anywhere) == ["e1", "e2"]
        assert state.expire(time.time() + 4 * DAY_SECONDS) == 2
        assert logged(anywhere) == []


def test_users_follow_the_newest_master_key_and_the_old_one_may_go(anywhere: StateConfig) -> None:
    with opened(anywhere) as state:
        state.record([event(1), event(2, user="v")])
        assert look_after(state) == (0, 0)
        add_key(anywhere.master_file)
        assert look_after(state) == (0, 2)
        assert look_after(state) == (0, 0)
        state.record([event(3, user="w")])
    newest = anywhere.master_file.read_text(encoding="ascii").splitlines(keepends=True)[-1]
    anywhere.master_file.write_text(newest, encoding="ascii")
    assert logged(anywhere) == ["e1", "e2", "e3"]
    with opened(anywhere) as state:
        assert state.record([event(1)]).n_stored == 0


def test_an_erased_user_is_gone_for_good(anywhere: StateConfig) -> None:
    with opened(anywhere) as state:
        state.record([event(number) for number in range(5)] + [event(7, user="v")])
        assert state.erase("u").result() == 5
        [(_, error)] = state.record([event(8)]).refused
        assert isinstance(error, UserErased)
        assert state.erase("u").result() == 0
    for _ in range(2):
        assert logged(anywhere) == ["e7"]
        with opened(anywhere) as state:
            assert state.observed.get("u") is None
            assert items(state, "v") == ["i7"]
            assert state.events_of("u").result() == ([], 0)


def test_an_erasure_that_was_cut_short_is_ended_at_the_next_start(
    anywhere: StateConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(anywhere) as state:
        state.record([event(1), event(2, user="v")])
        monkeypatch.setattr(state._store, "delete_user", fail)
        with pytest.raises(StorageFull):
            state.erase("u").result()
    with opened(anywhere) as state:
        assert state.observed.get("u") is None
        assert [row.seq for row in state._store.rows()] == [2]


def fail(user_key: bytes) -> int:
    raise StorageFull("disk", found="full", expected="room")


def test_a_user_is_read_in_pages(anywhere: StateConfig) -> None:
    with opened(anywhere) as state:
        state.record([event(number, user="uv"[number % 2]) for number in range(10)])
        first, after = state.events_of("u", limit=3).result()
        rest, end = state.events_of("u", after=after, limit=3).result()
        assert [one.event.event_id for one in first + rest] == ["e0", "e2", "e4", "e6", "e8"]
        assert end == 0


def test_a_reader_of_the_log_goes_on_where_it_was(anywhere: StateConfig) -> None:
    with opened(anywhere) as state:
        state.record([event(number, user="uv"[number % 2]) for number in range(6)])
        assert state.cursor("reader").result() == 0
        found, last = state.events_after(0, limit=4).result()
        assert [one.event.event_id for one in found] == ["e0", "e1", "e2", "e3"]
        state.move_cursor("reader", last).result()
        state.erase("v").result()
    with opened(anywhere) as state:
        found, last = state.events_after(state.cursor("reader").result(), limit=4).result()
        assert [one.event.event_id for one in found] == ["e4"]
        assert state.events_after(last, limit=4).result() == ([], 0)
        state.move_cursor("reader", last).result()
        assert (state.cursor("reader").result(), state.cursor("another").result()) == (last, 0)


def test_more_than_a_page_is_read_and_removed(anywhere: StateConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("sqlite_store", "redis_store", "postgres_store"):
        monkeypatch.setattr(f"recserve.engine.state.{module}.PAGE", 3)
    with opened(anywhere) as state:
        state.record([event(number, user="uv"[number % 2]) for number in range(20)])
    assert logged(anywhere) == [f"e{number}" for number in range(20)]
    with opened(anywhere) as state:
        assert items(state, "v") == [f"i{number}" for number in range(1, 20, 2)]
        assert state.erase("u").result() == 10
        assert state.expire(time.time() + 100 * DAY_SECONDS) == 10
    assert logged(anywhere) == []
