"""The GPU's kernels keep the laws in Numba's simulator, and who uses the CPU loads nothing of them."""

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Callable

import pytest


@pytest.mark.skipif(
    importlib.util.find_spec("numba_cuda") is None, reason="numba-cuda is not installed (extra [cuda])"
)
def test_the_kernels_keep_the_laws_in_the_simulator(run_simulated: Callable[..., None]) -> None:
    run_simulated("simulated_laws.py")


def test_the_cpu_never_loads_the_cuda_target() -> None:
    code = "import sys, recserve.kernels; print([name for name in sys.modules if 'cuda' in name])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(ast.literal_eval(run.stdout)) <= {"_numba_cuda_redirector"}  # an import hook, not the target
