"""What the compiler makes of the kernels for GPUs that need not be here: instructions, registers, memory."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# Registers per thread and bytes of shared memory: what ptxas took, and room for another version of it. 128
# registers leave 16 warps to a multiprocessor.
BUDGET = {
    "scan_float32": (128, 0),
    "scan_float16": (64, 0),
    "scan_int8": (64, 0),
    "score_groups": (64, 0),
    "select_largest": (64, 2048),
    "write_answer": (64, 0),
    "spread_words": (40, 0),
    "clear_items": (40, 0),
}
# Every kernel in which a score comes to be; a fused operation in one of them would change the last bit.
EXACT = ("scan_float32", "score_groups")


def missing() -> str | None:
    """Why the kernels cannot be compiled here."""
    if importlib.util.find_spec("numba_cuda") is None:
        return "numba-cuda is not installed (extra [cuda])"
    from cuda.pathfinder import (
        DynamicLibNotFoundError,
        find_nvidia_binary_utility,
        load_nvidia_dynamic_lib,
    )

    if find_nvidia_binary_utility("ptxas") is None:
        return "ptxas is not installed (CUDA toolkit, or pip install nvidia-cuda-nvcc)"
    for library in ("nvrtc", "nvvm"):
        try:
            load_nvidia_dynamic_lib(library)
        except DynamicLibNotFoundError:
            return f"{library} is not installed (extra [cuda])"
    return None


WHY_NOT = missing()


needs_a_compiler = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))


def compile_kernels(capability: str, folder: Path) -> dict[str, dict[str, Any]]:
    script = Path(__file__).with_name("compile_kernels.py")
    command = [sys.executable, "-W", "error", str(script), *capability.split(), str(folder)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    found: dict[str, dict[str, Any]] = json.loads(run.stdout)
    return found


@needs_a_compiler
@pytest.mark.parametrize("capability", ["8 0", "9 0", "10 0"])
def test_the_kernels_compile_within_their_budget(capability: str, tmp_path: Path) -> None:
    found = compile_kernels(capability, tmp_path)
    assert set(found) == set(BUDGET)
    for name, kernel in found.items():
        registers, shared = BUDGET[name]
        assert kernel["target"] == "sm_" + capability.replace(" ", ""), name
        assert 0 < kernel["registers"] <= registers, (name, kernel)
        assert kernel["shared"] <= shared, (name, kernel)
        assert (kernel["stack"], kernel["spill_stores"], kernel["spill_loads"]) == (0, 0, 0), (name, kernel)
        assert (kernel["double"], kernel["flushed"]) == (0, 0), (name, kernel)
    for name in EXACT:
        assert found[name]["multiply"] > 0, name
        assert found[name]["add"] > 0, name
        assert (found[name]["fused"], found[name]["unrounded"]) == (0, 0), (name, found[name])
    assert found["scan_int8"]["dot4"] > 0


@needs_a_compiler
# The compiler has another front end for 10.0 than for 8.0 and 9.0.
@pytest.mark.parametrize("capability", ["9 0", pytest.param("10 0", marks=pytest.mark.slow)])
def test_what_the_compiler_made_keeps_the_laws(
    capability: str, tmp_path: Path, run_simulated: Callable[..., None]
) -> None:
    compile_kernels(capability, tmp_path)
    run_simulated("ptx_laws.py", PTX_FOLDER=str(tmp_path))
