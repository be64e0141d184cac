"""Retention and the rotation of master keys."""

import threading
from collections.abc import Callable
from typing import Any

import pytest

from recserve.engine.state.config import StateConfig
from recserve.engine.state.upkeep import Upkeep, look_after
from recserve.errors import ConfigError
from tests.engine.state.conftest import opened

TIMEOUT_SECONDS = 30
DAY_SECONDS = 86_400


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
