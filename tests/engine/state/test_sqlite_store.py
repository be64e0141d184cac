"""The store of one process against what it should hold: each event once, in order, and those of a user."""

from pathlib import Path
from tempfile import TemporaryDirectory

import apsw
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recserve.engine.state import sqlite_store
from recserve.engine.state.sqlite_store import TOGETHER, SqliteStore
from recserve.engine.state.store import EventRow, Row

LAST = 1 << 62


def row(event: int, user: int) -> EventRow:
    return event.to_bytes(16, "big"), user.to_bytes(16, "big"), event, b"body"


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_store, "INDEXED_TOGETHER", 7)


# Few event numbers, so that many come twice: in one statement, in one call and in different ones.
calls = st.lists(st.lists(st.integers(0, 90), min_size=1, max_size=3 * TOGETHER), min_size=1, max_size=4)


@given(calls, st.integers(0, 3), st.integers(0, 90), st.booleans())
def test_rows_are_kept_once_and_leave_whole(
    events: list[list[int]], user: int, before: int, reopen: bool
) -> None:
    known: dict[int, int] = {}
    with TemporaryDirectory() as folder:
        store = SqliteStore(Path(folder) / "events", durability="process")
        for call in events:
            fresh = [number not in known and number not in call[:i] for i, number in enumerate(call)]
            assert store.append([row(number, number % 4) for number in call]) == fresh
            known.update(dict.fromkeys(call))
            if reopen:
                store.close()
                store = SqliteStore(Path(folder) / "events", durability="process")
        assert [one.received for one in store.rows()] == [*known]
        key = user.to_bytes(16, "big")
        own = [number for number in known if number % 4 == user]
        assert [one.received for one in store.rows_of(key, after=0, limit=LAST)] == own
        assert store.rows_of(key, after=0, limit=2) == store.rows_of(key, after=0, limit=LAST)[:2]
        assert store.delete_before(before) == sum(number < before for number in known)
        left = [number for number in own if number >= before]
        assert [one.received for one in store.rows_of(key, after=0, limit=LAST)] == left
        assert store.delete_user(key) == len(left)
        rest = [number for number in known if number >= before and number % 4 != user]
        assert [one.received for one in store.rows()] == rest
        store.close()
        # No pseudonym stays behind its rows.
        [(n_places,)] = apsw.Connection(f"{folder}/events").execute("SELECT count(*) FROM rows_of_users")
        assert n_places == len(rest)


def test_a_log_of_before_is_brought_up_to_date(tmp_path: Path) -> None:
    database = apsw.Connection(str(tmp_path / "events"))
    database.execute(
        "CREATE TABLE events (seq INTEGER PRIMARY KEY AUTOINCREMENT, event_key BLOB NOT NULL UNIQUE,"
        " user_key BLOB NOT NULL, received INTEGER NOT NULL, body BLOB NOT NULL) STRICT;"
        "CREATE INDEX events_by_user ON events (user_key, seq); PRAGMA user_version = 1"
    )
    rows = [row(number, number % 2) for number in range(40)]
    database.executemany("INSERT INTO events (event_key, user_key, received, body) VALUES (?, ?, ?, ?)", rows)
    database.close()
    store = SqliteStore(tmp_path / "events", durability="process")
    assert store.append([row(50, 1)]) == [True]
    found = store.rows_of((1).to_bytes(16, "big"), after=0, limit=100)
    assert [one.received for one in found] == [*range(1, 40, 2), 50]
    assert found[0] == Row(2, *rows[1])
    store.close()


def test_rows_of_users_do_not_lag_behind_after_all_were_deleted(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "events", durability="process")
    store.append([row(number, 0) for number in range(40)])
    assert store.delete_before(1000) == 40
    store.close()
    store = SqliteStore(tmp_path / "events", durability="process")
    for number in range(100, 116):
        store.append([row(number, 1)])
    store.close()
    [(n_places,)] = apsw.Connection(str(tmp_path / "events")).execute("SELECT count(*) FROM rows_of_users")
    assert n_places >= 7
