"""What a copy of the log gives away, and what an attacker who can write it achieves: nothing."""

import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from recserve.engine import Engine, Request
from recserve.engine.state.config import StateConfig
from recserve.engine.state.keys import NONCE_BYTES
from recserve.engine.state.state import read_log
from tests.engine.state.conftest import event, items, logged, opened

apsw = pytest.importorskip("apsw")
TIMEOUT_SECONDS = 120


def change(config: StateConfig, statement: str, *values: object) -> None:
    with closing(apsw.Connection(config.path)) as database:
        database.execute(statement, values).fetchall()


def rows(config: StateConfig) -> list[tuple[int, bytes, bytes, int, bytes]]:
    with closing(apsw.Connection(config.path)) as database:
        return database.execute("SELECT seq, event_key, user_key, received, body FROM events").fetchall()


@pytest.mark.parametrize("column", ["event_key", "user_key", "received", "nonce", "body", "tag"])
def test_a_bit_that_flips_makes_an_event_unreadable_and_no_other(config: StateConfig, column: str) -> None:
    with opened(config) as state:
        state.record([event(1), event(2)])
    seq, event_key, user_key, received, body = rows(config)[0]
    if column == "received":
        change(config, "UPDATE events SET received = ? WHERE seq = ?", received ^ 1, seq)
    else:
        place = {"nonce": 0, "body": NONCE_BYTES, "tag": len(body) - 1}.get(column)
        name = column if place is None else "body"
        value = bytearray({"event_key": event_key, "user_key": user_key}.get(column, body))
        value[place or 0] ^= 1
        change(config, f"UPDATE events SET {name} = ? WHERE seq = ?", bytes(value), seq)
    assert logged(config) == ["e2"]
    with opened(config) as state:
        assert items(state) == ["i2"]


def test_events_cannot_be_given_to_another_user(config: StateConfig) -> None:
    with opened(config) as state:
        state.record([event(1, user="one"), event(2, user="other")])
    (first, _, one, _, body), (second, _, other, _, other_body) = rows(config)
    change(config, "UPDATE events SET user_key = ? WHERE seq = ?", other, first)
    change(config, "UPDATE events SET user_key = ? WHERE seq = ?", one, second)
    assert logged(config) == []
    # Nor the content alone.
    change(config, "UPDATE events SET user_key = ?, body = ? WHERE seq = ?", one, other_body, first)
    change(config, "UPDATE events SET user_key = ?, body = ? WHERE seq = ?", other, body, second)
    assert logged(config) == []


def test_no_nonce_is_used_twice_whatever_restarts(config: StateConfig) -> None:
    for start in range(0, 3000, 1000):
        with opened(config) as state:
            state.record([event(number) for number in range(start, start + 1000)])
    nonces = [row[4][:NONCE_BYTES] for row in rows(config)]
    assert len(set(nonces)) == len(nonces) == 3000


def test_a_destroyed_key_is_in_no_file(config: StateConfig) -> None:
    def files_with(key: bytes) -> list[str]:
        return [file.name for file in Path(config.path).parent.iterdir() if key in file.read_bytes()]

    with opened(config) as state:
        state.record([event(1), event(2, user="v")])
        user_key = bytes.fromhex(state.user_key("u"))
        with closing(apsw.Connection(f"{config.path}.keys")) as database:
            wrapped = database.execute("SELECT wrapped FROM keys WHERE name = ?", (user_key,)).get
        assert files_with(wrapped)
        state.erase("u").result()
        assert files_with(wrapped) == []
    assert files_with(wrapped) == []
    assert logged(config) == ["e2"]


def test_slates_do_not_depend_on_who_a_user_is(bundle_folder: Path, config: StateConfig) -> None:
    with opened(config) as state, Engine.load(bundle_folder, observed=state.observed) as engine:
        chosen = engine.loaded.bundle.catalogue.vocabulary.ids([3, 1, 4])
        for user in ("one", "other"):
            state.record(
                [event(n, user=user, item_id=item, event_id=f"{user}{n}") for n, item in enumerate(chosen)]
            )
        one, other = engine.recommend_many([Request(user_id="one"), Request(user_id="other")])
        assert one.source == "model"
        assert one.items == other.items


ERASE = """
import os, signal, sys
from recserve.engine.state.config import StateConfig
from recserve.engine.state.sqlite_store import SqliteKeys, SqliteStore
from recserve.engine.state.state import open_state
owner, name = sys.argv[2].split(".")
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
setattr({"keys": SqliteKeys, "store": SqliteStore}[owner], name, die)
state = open_state(StateConfig(url=sys.argv[1]))
state.load()
state.erase("u").result()
"""


@pytest.mark.parametrize(
    "killed_in", ["keys.erase", "store.delete_user", "keys.finish_erasure", "keys._truncate"]
)
def test_a_kill_leaves_an_erasure_done_or_to_be_done_and_never_half(
    config: StateConfig, killed_in: str
) -> None:
    with opened(config) as state:
        state.record([event(1), event(2, user="stays")])
    died = subprocess.run(
        [sys.executable, "-c", ERASE, config.url, killed_in], timeout=TIMEOUT_SECONDS, check=False
    )
    assert died.returncode == -9
    with opened(config) as state:
        if killed_in == "keys.erase":
            # Nothing was promised yet, and nothing is gone.
            assert items(state) == ["i1"]
        else:
            assert state.observed.get("u") is None
            assert logged(config) == ["e2"]
            assert len(rows(config)) == 1
        state.erase("u").result(TIMEOUT_SECONDS)
    assert [one.event.item_id for one in read_log(config)] == ["i2"]
