"""Retention and the rotation of master keys."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from recserve.engine.state.config import StateConfig
from recserve.engine.state.master import add_key
from recserve.engine.state.state import State, open_state, read_log
from recserve.engine.state.upkeep import Upkeep, look_after
from recserve.errors import ConfigError
from tests.engine.state.conftest import event

TIMEOUT_SECONDS = 30
DAY_SECONDS = 86_400


def opened(config: StateConfig) -> State:
    state = open_state(config)
    state.load()
    return state


def logged(config: StateConfig) -> list[str]:
    return [one.event.event_id for one in read_log(config)]


def test_events_go_when_their_time_is_over(config: StateConfig) -> None:
    config = replace(config, retention_days=3)
    with opened(config) as state:
        state.record([event(1), event(2, user="v")])
        assert state.expire(time.time() + 2 * DAY_SECONDS) == 0
        assert logged(config) == ["e1", "e2"]
        assert state.expire(time.time() + 4 * DAY_SECONDS) == 2
        assert logged(config) == []


def test_users_follow_the_newest_master_key_and_the_old_one_may_go(config: StateConfig) -> None:
    with opened(config) as state:
        state.record([event(1), event(2, user="v")])
        assert look_after(state) == (0, 0)
        add_key(config.master_file)
        assert look_after(state) == (0, 2)
        assert look_after(state) == (0, 0)
        state.record([event(3, user="w")])
    newest = config.master_file.read_text(encoding="ascii").splitlines(keepends=True)[-1]
    config.master_file.write_text(newest, encoding="ascii")
    assert logged(config) == ["e1", "e2", "e3"]
    with opened(config) as state:
        assert state.record([event(1)]).n_stored == 0


def test_a_log_in_memory_has_no_key_file() -> None:
    with opened(StateConfig(url="memory://")) as state:
        assert look_after(state) == (0, 0)


def test_the_thread_goes_on_after_a_failure(config: StateConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = threading.Semaphore(0)
    with opened(config) as state:
        expire: Callable[[], int] = state.expire

        def fail_first(*arguments: Any) -> int:
            monkeypatch.setattr(state, "expire", count)
            raise ConfigError("key file", found="gone", expected="there")

        def count() -> int:
            looked.release()
            return expire()

        monkeypatch.setattr(state, "expire", fail_first)
        upkeep = Upkeep(state, every_seconds=0.001)
        assert looked.acquire(timeout=TIMEOUT_SECONDS)
        assert looked.acquire(timeout=TIMEOUT_SECONDS)
        upkeep.stop()
