"""What a search of a batch gains by a second thread."""

import statistics
from functools import partial
from typing import Any

from recserve.benchmarks.kernels import timing
from recserve.kernels import ItemIndex


def speed_up(
    index: ItemIndex, threads: int, queries: Any, batch: int, k: int, seconds: float
) -> dict[str, Any]:
    """Times one thread and ``threads`` in turns: medians, their ratio, and that of the least times.

    Call it before any peer has run: threads of OpenMP and of BLAS spin after their work and would take the
    other core.
    """
    methods: dict[str, timing.Search] = {
        timing.OURS: partial(index.search, threads=threads),
        "one thread": index.search,
    }
    times = timing.interleaved(methods, queries, batch, k, seconds, drop=False)
    many, one = times[timing.OURS], times["one thread"]
    return {
        "batch": batch,
        "k": k,
        "one_ms": statistics.median(one),
        "ms": statistics.median(many),
        "ratio": statistics.median(one) / statistics.median(many),
        "least_ratio": min(one) / min(many),
    }
