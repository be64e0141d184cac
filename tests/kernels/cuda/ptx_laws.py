"""What the compiler makes of the kernels, executed, against the NumPy twin: run by test_ptx.py, which
puts the folder of the PTX in PTX_FOLDER."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ptx_machine import Kernel

from recserve.benchmarks import gpu_laws
from recserve.kernels import reference
from recserve.kernels.cuda import CudaItemIndex, Launch, masks, scan, select
from recserve.kernels.cuda.arithmetic import SIMULATED

assert SIMULATED  # for its arrays: the kernels are replaced

FOLDER = Path(os.environ["PTX_FOLDER"])
LAUNCH = Launch(n_processors=1, scan_threads=32, select_threads=7, segment_keys=64)


@pytest.fixture(autouse=True)
def compiled(monkeypatch: Any) -> set[str]:
    """Every kernel runs as PTX; yields the names of those that did."""
    used = set()
    for path in FOLDER.glob("*.ptx"):
        (module,) = (module for module in (masks, scan, select) if hasattr(module, path.stem))
        kernel = Kernel(path.read_text(encoding="utf-8"))
        launch = kernel.launch

        def note(*arguments: Any, name: str = path.stem, launch: Any = launch) -> None:
            used.add(name)
            launch(*arguments)

        monkeypatch.setattr(kernel, "launch", note)
        monkeypatch.setattr(module, path.stem, kernel)
    return used


# "equal" makes the coarse scans search again in float32.
@pytest.mark.parametrize(
    ("dtype", "kind"), [*((dtype, "gaussian") for dtype in gpu_laws.DTYPES), ("int8", "equal")]
)
def test_equals_the_reference_bit_for_bit(dtype: str, kind: str, compiled: set[str]) -> None:
    rng = np.random.default_rng(len(kind))
    vectors = gpu_laws.make_vectors(rng, kind, 40, 17)
    queries = gpu_laws.make_vectors(rng, "gaussian", 2, 17)
    options = {
        "exclude": (np.array([0, 3, 4]), np.array([5, 5, 30, 1], np.int32)),
        "bias": rng.standard_normal(40).astype(np.float32) if kind == "gaussian" else None,
    }
    index = CudaItemIndex.build(vectors, dtype=dtype, launch=LAUNCH)  # type: ignore[arg-type]
    scores, indices = index.search(queries, 4, **options)
    expected = reference.exact_top_k(vectors, queries, 4, **options)
    np.testing.assert_array_equal(indices, expected[1])
    np.testing.assert_array_equal(scores.view(np.int32), expected[0].view(np.int32))
    assert index.stats()["queries_searched_again"] == (2 if kind == "equal" else 0)
    assert {f"scan_{dtype}", "score_groups", "select_largest", "write_answer", "clear_items"} <= compiled


def test_large_groups_two_levels_of_selection_and_padding(monkeypatch: Any) -> None:
    monkeypatch.setattr(Launch, "group_tiles", lambda self, n_tiles, batch: 3)
    rng = np.random.default_rng(1)
    vectors, queries = rng.standard_normal((130, 3), np.float32), rng.standard_normal((2, 3), np.float32)
    allow = rng.random((2, 130)) < [[0.5], [0.02]]
    launch = Launch(n_processors=1, scan_threads=64, select_threads=5, segment_keys=16)
    scores, indices = CudaItemIndex.build(vectors, launch=launch).search(queries, 6, allow=allow)
    expected = reference.exact_top_k(vectors, queries, 6, allow=allow)
    np.testing.assert_array_equal(indices, expected[1])
    np.testing.assert_array_equal(scores, expected[0])
