"""One run: a fresh measuring process per number of threads, then the result, judged and complete."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recserve.benchmarks import start
from recserve.benchmarks.environment import check_compiled, describe
from recserve.benchmarks.kernels import bars
from recserve.benchmarks.kernels.options import Options
from recserve.errors import CheckFailed

SCHEMA = 1
PACKAGES = (
    "numpy",
    "numba",
    "torch",
    "onnxruntime-gpu",
    "onnxruntime",
    "faiss-cpu",
    "implicit",
    "usearch",
    "scann",
    "hnswlib",
)
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
OVERRIDES = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")  # a leftover of these would slow NumPy down


def run(options: Options, cache: Path, *, start_processes: int) -> dict[str, Any]:
    """Measures and returns the result as plain values, ready for JSON; progress goes to stderr.

    ``cache``: where learned catalogues are kept · start_processes: how many fresh processes are started to
    measure the cold start (0: none). Raises CheckFailed where a measuring process fails; it has said why.
    """
    check_compiled()
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "environment": describe(PACKAGES),
        "options": options.as_dict(),
        "limits": {},
        "catalogues": [],
        "cases": [],
        "approximate": [],
        "exclusions": [],
        "speed_ups": [],
        "dispatch_us": {},
        "fp32_kernel_gflops": None,
    }
    for threads in sorted({grid.threads for grid in options.grids}):
        measured = _measure(options.of_threads(threads), threads, cache)
        result["limits"][str(threads)] = measured["limits"]
        result["dispatch_us"] |= measured["dispatch_us"]
        if threads == 1:
            result["fp32_kernel_gflops"] = measured["fp32_kernel_gflops"]
        for name in ("catalogues", "cases", "approximate", "exclusions", "speed_ups"):
            result[name] += measured[name]
    result["start"] = start.measure(start_processes) if start_processes else None
    result["bars"] = bars.judge(result)
    return result


def pinned(threads: int, variables: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of a measuring process: so many threads for every library, none of which spins."""
    kept = {name: value for name, value in variables.items() if name not in OVERRIDES}
    return {**kept, **dict.fromkeys(THREAD_VARIABLES, str(threads)), "OMP_WAIT_POLICY": "PASSIVE"}


def _measure(options: Options, threads: int, cache: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        task, answer = Path(folder) / "options.json", Path(folder) / "result.json"
        content = {"options": options.as_dict(), "threads": threads, "cache": str(cache)}
        task.write_text(json.dumps(content), encoding="utf-8")
        module = "recserve.benchmarks.kernels.measure"
        command = [sys.executable, "-m", module, str(task), str(answer)]
        # Some peers write to stdout, which belongs to the data.
        finished = subprocess.run(command, env=pinned(threads), stdout=sys.stderr, check=False)
        if finished.returncode != 0:
            raise CheckFailed(
                "measuring process", found=f"exit code {finished.returncode}", expected="0; see above"
            )
        measured: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    return measured
