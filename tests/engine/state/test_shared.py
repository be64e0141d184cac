"""Logs that several servers use, and database servers that end while they are written to."""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from recserve.engine.state.config import StateConfig
from recserve.engine.state.event_log import EventLog
from recserve.engine.state.events import Event
from recserve.engine.state.group_commit import Outcome
from recserve.engine.state.master import add_key
from recserve.engine.state.state import State, open_state
from recserve.errors import ConfigError, StorageFull, Unavailable, UserErased
from tests.engine.state.conftest import event, items, logged, opened, shared_config
from tests.engine.state.servers import DatabaseServer, RedisServer

TIMEOUT_SECONDS = 30


def caught_up(state: State) -> State:
    """Lets a server look for news now instead of in a moment."""
    state.log.do(state._follower.catch_up).result(TIMEOUT_SECONDS)
    return state


def test_what_one_server_writes_all_of_them_know_in_the_same_order(shared: StateConfig) -> None:
    with opened(shared) as one, opened(shared) as other:
        for number in range(0, 6, 2):
            one.record([event(number)])
            other.record([event(number + 1)])
        assert items(caught_up(one)) == items(other) == [f"i{number}" for number in range(6)]
        assert one.record([event(1)]).duplicates == [0]


def test_a_server_that_has_nothing_to_write_follows_by_itself(
    shared: StateConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    followed: queue.SimpleQueue[list[str]] = queue.SimpleQueue()
    follow = EventLog._follow

    def tell(log: EventLog) -> None:
        follow(log)
        if log is other.log:
            followed.put(items(other))

    with opened(shared) as one, opened(shared) as other:
        one.record([event(1)])
        monkeypatch.setattr(EventLog, "_follow", tell)
        seen = (followed.get(timeout=TIMEOUT_SECONDS) for _ in range(100))
        assert next(known for known in seen if known) == ["i1"]


def test_servers_that_meet_a_user_at_the_same_time_agree_on_the_key(shared: StateConfig) -> None:
    with opened(shared) as one, opened(shared) as other, ThreadPoolExecutor(2) as pool:
        for number in range(20):
            user = f"u{number}"
            for outcome in pool.map(
                lambda state, name, user=user: state.record(
                    [Event(user_id=user, item_id=name, event_id=user + name)]
                ),
                (one, other),
                "ab",
            ):
                assert outcome.n_stored == 1
            assert sorted(items(caught_up(one), user)) == sorted(items(caught_up(other), user)) == ["a", "b"]


def test_a_user_erased_by_one_server_is_erased_for_all(shared: StateConfig) -> None:
    with opened(shared) as one, opened(shared) as other:
        one.record([event(1)])
        assert items(caught_up(other)) == ["i1"]
        one.erase("u").result()
        # It had the key at hand: whatever it still writes is gone with the next look.
        other.log.do(lambda: None).result()
        other.record([event(2)])
        caught_up(other)
        assert other.observed.get("u") is None
        [(_, error)] = other.record([event(3)]).refused
        assert isinstance(error, UserErased)
        # One that never met the user is told by the place of the keys.
        one.erase("v").result()
        [(_, error)] = other.record([event(4, user="v")]).refused
        assert isinstance(error, UserErased)
    assert logged(shared) == []
    with opened(shared) as state:
        assert list(state._store.rows()) == []


def test_a_server_that_has_not_loaded_hears_of_erased_users_too(shared: StateConfig) -> None:
    with opened(shared) as one, open_state(shared) as other:
        one.record([event(1)])
        one.erase("u").result()
        one.erase("v").result()
        answered: queue.SimpleQueue[object] = queue.SimpleQueue()
        other.log.append(lambda: [event(2, user="v")], answered.put)
        outcome = answered.get(timeout=TIMEOUT_SECONDS)
        assert isinstance(outcome, Outcome)
        [(_, error)] = outcome.refused
        assert isinstance(error, UserErased)


def test_nothing_acknowledged_is_lost_when_the_database_ends(
    shared: StateConfig, server: DatabaseServer
) -> None:
    acknowledged: list[str] = []
    under_way: list[Event] = []
    enough = threading.Event()

    def ingest(state: State) -> None:
        while True:
            batch = under_way or [event(len(acknowledged) + i) for i in range(10)]
            under_way[:] = batch
            outcome = state.record([*batch, batch[0]])
            assert outcome.n_stored + len(outcome.duplicates) == 11
            acknowledged.extend(one.event_id for one in batch)
            under_way.clear()
            if len(acknowledged) % 100 == 0:
                enough.set()

    with opened(shared) as state, ThreadPoolExecutor(1) as pool:
        for _ in range(3):
            enough.clear()
            ingesting = pool.submit(ingest, state)
            assert enough.wait(TIMEOUT_SECONDS)
            server.kill()
            assert isinstance(ingesting.exception(TIMEOUT_SECONDS), Unavailable)
            with pytest.raises(Unavailable, match="is not answering"):
                state.record([event(1)])
            server.start()
        # What was under way may be there or not; sent again, it is there once.
        state.record(under_way)
        expected = acknowledged + [one.event_id for one in under_way]
        assert items(state) == [f"i{number}" for number in range(len(expected))][-1000:]
    assert logged(shared) == expected


def test_a_database_that_is_not_there_is_told_at_the_start(
    shared: StateConfig, server: DatabaseServer
) -> None:
    server.kill()
    try:
        with pytest.raises(Unavailable, match="event log is not answering"):
            open_state(shared)
    finally:
        server.start()


def test_a_shared_log_needs_a_key_that_is_shared(shared: StateConfig) -> None:
    with pytest.raises(ConfigError, match=r"state\.key_file is not set"):
        open_state(replace(shared, key_file=None))
    opened(shared).close()
    assert shared.key_file is not None
    shared.key_file.unlink()
    add_key(shared.key_file)
    with pytest.raises(ConfigError, match="without master key"):
        open_state(shared)


def test_a_key_that_another_server_closed_anew_is_opened(shared: StateConfig) -> None:
    with opened(shared) as one, opened(shared) as other:
        one.record([event(1)])
        add_key(shared.master_file)
        assert one.follow_key_file() == 1
        # It has not looked at the file since, and must for this user's key.
        assert items(caught_up(other)) == ["i1"]
        assert other.record([event(2)]).n_stored == 1
        # And finds nothing left to close anew.
        add_key(shared.master_file)
        assert one.follow_key_file() == 1
        assert other.follow_key_file() == 0


def test_closing_keys_anew_brings_no_erased_user_back(shared: StateConfig) -> None:
    with opened(shared) as one, opened(shared) as other:
        one.record([event(1)])
        # On the thread that has the connection.
        do, keys = one.log.do, one._keys
        user_key = keys.user_key("u")
        row = do(lambda: keys._table.get(user_key)).result()
        assert row is not None
        # Between reading a key and writing it.
        other.erase("u").result()
        do(lambda: keys._table.replace([(user_key, *row)])).result()
        assert do(lambda: keys._table.get(user_key)).result() is None


@pytest.mark.parametrize(
    ("settings", "durability"),
    [
        ({"appendonly": "yes", "appendfsync": "always"}, "power"),
        ({"appendonly": "yes", "appendfsync": "everysec"}, "process"),
        ({"appendonly": "no"}, "memory"),
    ],
)
def test_redis_promises_what_its_settings_hold(
    start_server: Callable[[str], DatabaseServer], tmp_path: Path, settings: dict[str, str], durability: str
) -> None:
    server = start_server("redis")
    assert isinstance(server, RedisServer)
    with server.configured(**settings), opened(shared_config(server, tmp_path)) as state:
        assert state.record([event(1)]).durability == durability


@pytest.mark.parametrize(("wanted", "durability"), [("power", "power"), ("process", "process")])
def test_postgres_promises_what_its_settings_hold(
    start_server: Callable[[str], DatabaseServer], tmp_path: Path, wanted: str, durability: str
) -> None:
    config = shared_config(start_server("postgres"), tmp_path)
    with opened(replace(config, durability=wanted)) as state:
        assert state.record([event(1)]).durability == durability
    with opened(replace(config, url=f"{config.url}?options=-csynchronous_commit%3Doff")) as state:
        assert state.record([event(2)]).durability == "process"


def test_redis_that_would_drop_events_is_refused_and_a_full_one_gets_better(
    start_server: Callable[[str], DatabaseServer], tmp_path: Path
) -> None:
    server = start_server("redis")
    assert isinstance(server, RedisServer)
    config = shared_config(server, tmp_path)
    with (
        server.configured(maxmemory="1gb", maxmemory_policy="allkeys-lru"),
        pytest.raises(ConfigError, match="maxmemory-policy of Redis is allkeys-lru"),
    ):
        open_state(config)
    with opened(config) as state:
        with server.configured(maxmemory="1", maxmemory_policy="noeviction"), pytest.raises(StorageFull):
            state.record([event(1)])
        assert state.record([event(1)]).n_stored == 1
    assert logged(config) == ["e1"]


def test_a_password_is_not_shown() -> None:
    with pytest.raises(ConfigError) as caught:
        StateConfig(url="postgres://user:secret@host/name?password=secret")
    assert "secret" not in str(caught.value)


def test_nothing_of_a_user_is_readable_in_the_database(shared: StateConfig, server: DatabaseServer) -> None:
    canary = "canary-5f2c"
    with opened(shared) as state:
        state.record(
            [
                Event(
                    user_id=f"{canary}-user",
                    item_id=f"{canary}-item",
                    event_id=f"{canary}-event",
                    context={canary: canary},
                )
            ]
        )
        assert "recserve pseudonym" in server.everything()
        assert canary not in server.everything()
