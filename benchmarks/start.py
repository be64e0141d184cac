"""How long a fresh process takes until it answers: ``recserve bench start``.

The process is real and does what Engine.load does for the kernels: it imports them, warms them up, builds the
index and searches it a few times. It says when it was ready on the clock that all processes share.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from recserve.benchmarks.environment import check_compiled
from recserve.errors import CheckFailed

N_ITEMS, DIM, K = 100_000, 64, 10
N_WARM = 16  # requests in one batch, then each alone, as Engine.load does
N_SEARCHES = 300
MEDIANS = ("ready_s", "import_s", "warmup_s", "index_s", "untouched_ms", "first_ms", "median_ms")


def measure(processes: int, *, cold: bool = False) -> dict[str, Any]:
    """Returns the medians over so many fresh processes whose kernels are in the cache.

    ready_s: from the start of the process until it is ready; import_s, warmup_s and index_s are parts of it ·
    compiled, loaded: forms of kernels, over all processes · untouched_ms: the batch that makes the process
    ready, of an index that nothing has read yet; first_ms: the first search after it; median_ms: of 300 more;
    first_by_median: their ratio. ``cold`` starts one more before, with an empty cache of its own:
    cold_ready_s and cold_compiled are its figures.
    """
    check_compiled()
    result: dict[str, Any] = {"processes": processes, "n_items": N_ITEMS, "dim": DIM}
    with tempfile.TemporaryDirectory() as folder:
        vectors = Path(folder) / "vectors.npy"
        np.save(vectors, np.random.default_rng(0).standard_normal((N_ITEMS, DIM), dtype=np.float32))
        environment = {**os.environ, "NUMBA_CACHE_DIR": folder} if cold else dict(os.environ)
        filled = _fresh_process(vectors, environment)  # from here on the cache is full
        if cold:
            result |= {"cold_ready_s": filled["ready_s"], "cold_compiled": filled["compiled"]}
        runs = [_fresh_process(vectors, environment) for _ in range(processes)]
    for name in MEDIANS:
        result[name] = statistics.median(run[name] for run in runs)
    result["first_by_median"] = statistics.median(run["first_ms"] / run["median_ms"] for run in runs)
    return result | {name: sum(run[name] for run in runs) for name in ("compiled", "loaded")}


def _fresh_process(vectors: Path, environment: dict[str, str]) -> dict[str, Any]:
    began = time.monotonic()
    command = [sys.executable, "-m", "recserve.benchmarks.start", str(vectors)]
    finished = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if finished.returncode != 0:
        raise CheckFailed("fresh process", found=f"exit code {finished.returncode}", expected="0; see above")
    said: dict[str, Any] = json.loads(finished.stdout)
    return {**said, "ready_s": said.pop("ready_at") - began}


def _become_ready_and_search(vectors: str) -> dict[str, Any]:
    """What the fresh process does."""
    began = time.monotonic()
    from recserve.kernels import ItemIndex
    from recserve.kernels.warmup import warmup_report

    imported = time.monotonic()
    warmed = warmup_report()
    warm = time.monotonic()
    index = ItemIndex.build(np.load(vectors))
    rng = np.random.default_rng(0)
    warm_up = rng.standard_normal((N_WARM, DIM), dtype=np.float32)
    untouched_ms = _search_ms(index, warm_up)
    for query in warm_up:
        _search_ms(index, query[None])
    ready = time.monotonic()
    queries = rng.standard_normal((1 + N_SEARCHES, 1, DIM), dtype=np.float32)
    first_ms, *times = (_search_ms(index, query) for query in queries)
    return {
        "ready_at": ready,
        "import_s": imported - began,
        "warmup_s": warm - imported,
        "index_s": ready - warm,
        "compiled": sum(kernel.compiled for kernel in warmed),
        "loaded": sum(kernel.loaded for kernel in warmed),
        "untouched_ms": untouched_ms,
        "first_ms": first_ms,
        "median_ms": statistics.median(times),
    }


def _search_ms(index: Any, queries: Any) -> float:
    start = time.perf_counter()
    index.search(queries, K)
    return 1e3 * (time.perf_counter() - start)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_become_ready_and_search(sys.argv[1])))
