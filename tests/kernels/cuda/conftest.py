"""Tests that need the simulator run in processes of their own: it takes the place of the CUDA target."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[2]


@pytest.fixture
def run_simulated() -> Callable[..., None]:
    """Runs a file of tests of this folder in the simulator: ``run_simulated("file.py", NAME="value")``."""

    def run(name: str, **variables: str) -> None:
        options = ["-q", "--noconftest", "-p", "no:cacheprovider", "-p", "no:xdist"]
        environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1", "PYTHONPATH": str(HERE), **variables}
        environment.pop("PYTEST_ADDOPTS", None)
        command = [sys.executable, "-m", "pytest", *options, str(HERE / name)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    return run
