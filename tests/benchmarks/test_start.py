"""``recserve bench start`` starts real processes, and those that find the cache full compile nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
from numba import config

needs_jit = pytest.mark.skipif(config.DISABLE_JIT, reason="Numba is switched off: nothing is compiled")


@needs_jit
def test_a_fresh_process_compiles_nothing(run_cli: Any) -> None:
    code, out, err = run_cli("bench", "start", "--processes", "2", "--json")
    assert code == 0, err
    result = json.loads(out)
    assert result["compiled"] == 0
    assert result["loaded"] > 0
    assert result["ready_s"] > result["import_s"] + result["warmup_s"] + result["index_s"] > 0
    assert result["first_by_median"] > 0


@needs_jit
@pytest.mark.slow
def test_an_empty_cache_is_filled_once(run_cli: Any) -> None:
    code, out, err = run_cli("bench", "start", "--processes", "1", "--cold")
    assert code == 0, err
    assert "from an empty cache to ready" in out
    assert "forms compiled" in out


def test_no_processes_are_refused(run_cli: Any) -> None:
    code, _, err = run_cli("bench", "start", "--processes", "0")
    assert code == 2
    assert "--processes is 0; expected 1 to 100" in err


def test_warmup_reports_what_it_did(run_cli: Any, tmp_path: Path) -> None:
    code, out, err = run_cli("kernels", "warmup", "--json")
    assert code == 0, err
    assert set(json.loads(out)) == {"isa", "seconds", "kernels"}
    code, out, _ = run_cli("kernels", "warmup")
    assert code == 0
    assert "forms compiled" in out
