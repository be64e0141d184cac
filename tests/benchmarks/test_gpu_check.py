"""The GPU check fails where there is no GPU, and runs to its end in the simulator."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

needs_numba_cuda = pytest.mark.skipif(
    importlib.util.find_spec("numba_cuda") is None, reason="numba-cuda is not installed (extra [cuda])"
)


def gpu_check(folder: Path, *options: str, **variables: str) -> Any:
    command = [sys.executable, "-m", "recserve.benchmarks.gpu_check", *options]
    environment = {**os.environ, **variables}
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)


@needs_numba_cuda
def test_without_a_gpu_the_check_fails_and_says_so(tmp_path: Path) -> None:
    done = gpu_check(tmp_path, NUMBA_DISABLE_CUDA="1")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.strip() == "no CUDA device is found; expected one."


@needs_numba_cuda
def test_the_check_runs_in_the_simulator_and_names_it(tmp_path: Path) -> None:
    options = ["--laws", "none", "--items", "40", "--dim", "3", "--batch", "1", "--k", "2"]
    options += ["--dtype", "int8", "--seconds", "0", "--json"]
    done = gpu_check(tmp_path, *options, NUMBA_ENABLE_CUDASIM="1")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["environment"]["device"] == "simulator"
    [row] = result["times"]
    assert {"cpu", "cuda int8"} <= set(row["ms"])
