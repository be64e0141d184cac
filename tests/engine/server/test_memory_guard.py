"""A server near its memory limit drops, refuses and at last ends, instead of being killed."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recserve.engine import Engine, EngineConfig, Request
from recserve.engine.client import RecommenderClient
from recserve.engine.retry import NO_RETRY
from recserve.engine.server import app
from recserve.engine.server.config import ServerConfig
from recserve.engine.server.memory_guard import (
    LEVELS,
    MemoryGuard,
    Pressure,
    container_limit,
    pressure,
    used_bytes,
)
from recserve.engine.wire.status import RemoteError
from recserve.errors import ConfigError, RecserveError
from tests.engine.server.conftest import RunningServer

LIMIT = 1000
TIMEOUT_SECONDS = 60


@given(used=st.integers(0, 2 * LIMIT), before=st.sampled_from(Pressure), more=st.integers(0, LIMIT))
def test_more_memory_is_never_less_pressure(used: int, before: Pressure, more: int) -> None:
    level = pressure(used, LIMIT, before)
    assert pressure(used + more, LIMIT, before) >= level
    # A level that has begun does not flutter: the same reading gives it again.
    assert pressure(used, LIMIT, level) == level


def test_a_level_begins_at_its_share_and_ends_below_it() -> None:
    begins, ends = LEVELS[Pressure.REFUSE]
    assert pressure(int(begins * LIMIT) - 1, LIMIT, Pressure.NONE) is Pressure.DROP
    assert pressure(int(begins * LIMIT), LIMIT, Pressure.NONE) is Pressure.REFUSE
    assert pressure(int(ends * LIMIT), LIMIT, Pressure.REFUSE) is Pressure.REFUSE
    assert pressure(int(ends * LIMIT) - 1, LIMIT, Pressure.REFUSE) is Pressure.DROP


def test_it_tells_of_changes_alone() -> None:
    readings = iter([100, 810, 820, 950, 100])
    told: list[Pressure] = []
    guard = MemoryGuard(LIMIT, told.append, used=lambda: next(readings))
    for _ in range(5):
        guard.look()
    assert told == [Pressure.DROP, Pressure.RESTART, Pressure.NONE]


def test_what_is_used_is_the_own_memory_and_not_mapped_files(tmp_path: Path) -> None:
    size = 64 << 20
    path = tmp_path / "vectors"
    with path.open("wb") as file:
        file.truncate(size)
    before = used_bytes()
    mapped = np.memmap(path, np.uint8, mode="r")
    assert int(mapped.sum()) == 0
    assert used_bytes() - before < size // 2
    own = np.ones(size, np.uint8)
    assert used_bytes() - before > size // 2
    assert own.all()


@pytest.mark.parametrize(("text", "limit"), [("max\n", None), ("1048576\n", 1 << 20)])
def test_the_limit_of_a_container_is_read(tmp_path: Path, text: str, limit: int | None) -> None:
    assert container_limit(tmp_path) is None
    (tmp_path / "memory.max").write_text(text, encoding="ascii")
    assert container_limit(tmp_path) == limit


@pytest.fixture
def guards(monkeypatch: pytest.MonkeyPatch) -> list[MemoryGuard]:
    """The guards of the servers that are made from now on; they look when they are told to."""
    made: list[MemoryGuard] = []

    def new(limit: int, on_pressure: Callable[[Pressure], None]) -> MemoryGuard:
        guard = MemoryGuard(limit, on_pressure)
        monkeypatch.setattr(guard, "start", lambda: None)
        made.append(guard)
        return guard

    monkeypatch.setattr(app, "MemoryGuard", new)
    return made


def look(guard: MemoryGuard, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "_used", lambda: int(share * guard.limit))
    guard.look()


def test_near_the_limit_calls_are_refused_until_there_is_room_again(
    start: Callable[..., RunningServer],
    bundle_folder: Path,
    guards: list[MemoryGuard],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    running = start(memory_limit_mb=1 << 20)
    server, address = running.server, running.address
    [guard] = guards
    with Engine.load(bundle_folder, EngineConfig(cache_slates=10)) as engine:
        server.serve(engine)
        with RecommenderClient(address, timeout=TIMEOUT_SECONDS, retry=NO_RETRY) as client:
            client.recommend(Request(k=1))
            assert len(engine._cache or ()) == 1
            look(guard, 0.82, monkeypatch)
            assert len(engine._cache or ()) == 0
            assert client.recommend(Request(k=1)).items
            look(guard, 0.92, monkeypatch)
            with pytest.raises(RemoteError, match="memory is nearly used up") as caught:
                client.recommend(Request(k=1))
            assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert server.is_ready
            look(guard, 0.5, monkeypatch)
            assert client.recommend(Request(k=1)).items
            ended: list[RecserveError] = []
            monkeypatch.setattr(server, "on_end", ended.append)
            look(guard, 0.96, monkeypatch)
            assert not server.is_ready
            assert [error.name for error in ended] == ["memory"]


def test_a_server_whose_memory_is_used_up_ends_by_itself(bundle_folder: Path) -> None:
    """One MiB is used up by the start: it serves, notices, finishes and says why."""
    command: list[Any] = [sys.executable, "-m", "recserve.engine.cli", "serve", bundle_folder, "--port", "0"]
    finished = subprocess.run(
        command,
        env={**os.environ, "RECSERVE__SERVER__MEMORY_LIMIT_MB": "1"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    assert finished.returncode == 1
    assert finished.stdout.startswith("127.0.0.1:")
    assert "memory is used up; expected within its limit" in finished.stderr
    assert "stopped" in finished.stderr


def test_a_limit_below_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="memory_limit_mb"):
        ServerConfig(memory_limit_mb=-1)
