"""The cache of compiled kernels follows every source file and survives processes that fill it together."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from numba import config

from recserve.kernels import jit


@pytest.mark.skipif(bool(config.DISABLE_JIT), reason="nothing is compiled")
def test_a_change_in_any_file_makes_the_cache_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "one_kernel.py"
    path.write_text("def double(x):\n    return 2 * x\n", encoding="utf-8")
    spec: Any = importlib.util.spec_from_file_location("one_kernel", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def hits_of_a_first_call() -> int:
        compiled = jit.kernel(module.double)
        assert compiled(3) == 6
        return sum(compiled.stats.cache_hits.values())

    assert hits_of_a_first_call() == 0
    assert hits_of_a_first_call() == 1
    monkeypatch.setattr(jit, "_sources_digest", lambda: "another")
    assert hits_of_a_first_call() == 0


@pytest.mark.skipif(bool(config.DISABLE_JIT), reason="nothing is compiled")
def test_processes_that_fill_the_cache_together_do_not_mix_their_code(tmp_path: Path) -> None:
    (tmp_path / "one_kernel.py").write_text(
        "from recserve.kernels.jit import kernel\n@kernel\ndef name_of(x, n):\n    return x.ndim * 100 + n\n",
        encoding="utf-8",
    )
    use = (
        "import sys, time, numpy as np\n"
        "from numba.core import caching\n"
        "save_index = caching.IndexDataCacheFile._save_index\n"
        # Between the index and the data is the gap; this makes it wide enough to be met.
        "def slowly(*arguments): save_index(*arguments); time.sleep(0.05)\n"
        "caching.IndexDataCacheFile._save_index = slowly\n"
        "from one_kernel import name_of\n"
        "for ndim in map(int, sys.argv[1:]):\n"
        "    for dtype in ('f4', 'i4', 'u1'):\n"
        "        assert name_of(np.zeros((1,) * ndim, dtype), 7) == 100 * ndim + 7, ndim\n"
        "print(sum(name_of.stats.cache_misses.values()))\n"
    )
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}

    def start(*dimensions: str) -> Any:
        command = [sys.executable, "-c", use, *dimensions]
        return subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE)

    together = [start("1", "2", "3"), start("4", "5", "6")]
    for process in together:
        assert int(process.communicate()[0]) == 9
    assert int(start("1", "2", "3", "4", "5", "6").communicate()[0]) == 0
