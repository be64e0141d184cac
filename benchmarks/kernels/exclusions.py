"""What it costs to exclude items, per query, from an exact search.

*any*: items drawn at random, another list for each query, against the same search without lists. *best*: the
items that the queries like best, against an index that was built without them. To exclude those lowers the
bar that others must pass, so more items pass it: that is the work of the answer and not of the exclusion, and
both sides do it.
"""

import statistics
from typing import Any

import numpy as np

from recserve.benchmarks.kernels import timing
from recserve.benchmarks.kernels.options import Options
from recserve.kernels import ItemIndex

CATALOGUE = ("gaussian", 100_000)
BATCH = 64
KS = (10, 100)
COUNTS = (10, 100, 1_000, 10_000)
NOISE = 0.01  # of queries that share their best items

Rows = list[dict[str, Any]]


def measure(vectors: Any, queries: Any, index: ItemIndex, options: Options) -> Rows:
    """One row per number of items, kind of list and k: ms with the lists, ms without, their ratio."""
    rng = np.random.default_rng(options.seed)
    alike = queries[:1] + NOISE * rng.standard_normal((BATCH, vectors.shape[1]), dtype=np.float32)
    rows = []
    for count in COUNTS:
        lists = [rng.choice(len(vectors), count, replace=False) for _ in range(BATCH)]
        best = np.argpartition(-(vectors @ queries[0]), count)[:count]
        without = ItemIndex.build(np.delete(vectors, best, axis=0), isa=options.isa)
        for kind, asked, excluded, other in (
            ("any", queries, lists, index),
            ("best", alike, [best] * BATCH, without),
        ):
            rows += [
                {"kind": kind, "count": count, **_compare(index, asked, excluded, other, k, options)}
                for k in KS
            ]
    return rows


def _compare(
    index: ItemIndex, queries: Any, lists: list[Any], other: ItemIndex, k: int, options: Options
) -> dict[str, Any]:
    """Times ``index`` with the lists and ``other`` without them, in turns."""
    exclude = (np.arange(BATCH + 1) * len(lists[0]), np.concatenate(lists).astype(np.int32))
    times = timing.interleaved(
        {
            timing.OURS: lambda part, k: index.search(part, k, exclude=exclude),
            "without": other.search,
        },
        queries,
        BATCH,
        k,
        options.seconds,
        drop=False,
    )
    excluding, plain = (statistics.median(times[name]) for name in (timing.OURS, "without"))
    return {"batch": BATCH, "k": k, "ms": excluding, "without_ms": plain, "ratio": excluding / plain}
