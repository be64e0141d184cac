"""Writers of a log that are killed; with those of tests/engine/server/test_killed.py they are 60."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("apsw")
pytest.importorskip("cryptography")

TIMEOUT_SECONDS = 300


def test_acknowledged_events_survive_kills(tmp_path: Path) -> None:
    # A process of its own: it forks, which needs a process with one thread.
    command = [sys.executable, "-m", "tests.engine.state.killing", str(tmp_path), "--kills", "48"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    assert "48 kills" in done.stdout
