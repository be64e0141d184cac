"""The store of one process against what it should hold: each event once, in order, and those of a user."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import apsw
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recserve.engine.state import row_index
from recserve.engine.state.database import TOGETHER, open_database
from recserve.engine.state.row_index import RowIndex
from recserve.engine.state.sqlite_store import EVENTS, SqliteStore
from recserve.engine.state.store import EventRow, Row
from recserve.errors import ConfigError, StorageFailed

LAST = 1 << 62


def row(event: int, user: int) -> EventRow:
    # Little endian: the first byte, which is random in real keys, tells them apart.
    return event.to_bytes(16, "little"), user.to_bytes(16, "little"), event, b"body"


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_index, "MAX_RECENT", 7)
    # A round over all parts is done in four calls.
    monkeypatch.setattr(row_index, "PARTS_TOGETHER", 64)


def left_behind(path: Path) -> int:
    """Counts what the index says of rows that are gone."""
    gone = "FROM {} WHERE seq NOT IN (SELECT seq FROM events)"
    counts = (f"(SELECT count(*) {gone.format(table)})" for table in ("rows_of_events", "rows_of_users"))
    return int(apsw.Connection(str(path)).execute(f"SELECT {' + '.join(counts)}").get)


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
        key = user.to_bytes(16, "little")
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
        assert left_behind(Path(folder) / "events") == 0


def test_a_log_of_before_is_brought_up_to_date(tmp_path: Path) -> None:
    database = apsw.Connection(str(tmp_path / "events"))
    database.execute(
        "CREATE TABLE events (seq INTEGER PRIMARY KEY AUTOINCREMENT, event_key BLOB NOT NULL UNIQUE,"
        " user_key BLOB NOT NULL, received INTEGER NOT NULL, body BLOB NOT NULL) STRICT;"
        "CREATE INDEX events_by_user ON events (user_key, seq); PRAGMA user_version = 1"
    )
    rows = [row(number, number % 2) for number in range(40)]
    database.executemany("INSERT INTO events (event_key, user_key, received, body) VALUES (?, ?, ?, ?)", rows)
    database.execute("DELETE FROM events WHERE seq = 40")
    database.close()
    for number in (50, 51):
        store = SqliteStore(tmp_path / "events", durability="process")
        assert store.append([row(7, 1), row(number, 1)]) == [False, True]
        found = store.rows_of((1).to_bytes(16, "little"), after=0, limit=100)
        assert [one.received for one in found] == [*range(1, 39, 2), *range(50, number + 1)]
        assert found[0] == Row(2, *rows[1])
        # Numbers of rows that are gone do not come again.
        assert found[-1].seq == number - 9
        store.close()
    # Builds of before would not see which events are there already.
    with pytest.raises(ConfigError, match=r"format of .*events is 2; expected 1"):
        open_database(tmp_path / "events", EVENTS, "SELECT 1", durability="process")


def test_few_rows_are_in_memory_or_read_at_a_start_whatever_was_deleted(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "events", durability="process")
    store.append([row(number, 0) for number in range(40)])
    assert store.delete_before(1000) == 40
    for number in range(100, 1000):
        store.append([row(number, 1)])
    store.close()
    database = apsw.Connection(str(tmp_path / "events"))
    [(n_indexed, cursor)] = database.execute("SELECT count(*), cursors.seq FROM rows_of_events, cursors")
    # All but those in memory, and the last one, which came there after it was looked for room.
    assert n_indexed == 900 - row_index.MAX_RECENT - 1
    # What came since the round before the last one began; a round takes some 256 of these rows.
    assert 300 < cursor < 940
    database.close()


def test_a_call_that_fails_changes_nothing_of_what_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SqliteStore(tmp_path / "events", durability="process")
    store.append([row(number, 0) for number in range(20)])
    with monkeypatch.context() as patched:
        # After the rows and a part of the index were written, before the commit.
        patched.setattr(RowIndex, "write_next", broken(RowIndex.write_next))
        with pytest.raises(StorageFailed):
            store.append([row(3, 0), row(30, 0)])
    for _ in range(2):
        known = [row(number, 0) for number in range(20)]
        assert store.append(known) == [False] * 20
        store.close()
        store = SqliteStore(tmp_path / "events", durability="process")
    assert store.append([row(30, 0)]) == [True]
    store.close()


def broken(write_next: Callable[[RowIndex], list[int]]) -> Callable[[RowIndex], list[int]]:
    def write_and_fail(index: RowIndex) -> list[int]:
        write_next(index)
        raise apsw.IOError("disk")

    return write_and_fail
