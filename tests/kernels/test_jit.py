"""The cache of compiled kernels follows every source file of the package, not only the caller's."""

import importlib.util
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
