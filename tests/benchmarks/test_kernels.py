"""The benchmark runs at a tiny size, verifies the peers that are installed and prints JSON."""

import json
import subprocess
import sys
from pathlib import Path


def test_the_benchmark_prints_json(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "recserve.benchmarks.kernels", "--items", "300", "--dim", "8"]
    command += ["--batch", "2", "--k", "3", "--seconds", "0", "--json"]
    printed = subprocess.run(command, check=True, capture_output=True, cwd=tmp_path).stdout
    result = json.loads(printed)
    assert [case["data"] for case in result["cases"]] == ["gaussian", "als"]
    for case in result["cases"]:
        assert {"recserve", "numpy"} <= set(case["median_ms"])
        assert case["ratio"] > 0
    assert result["environment"]["threads used"] == 1
