"""The measuring process: reads the options, measures every case and writes the result.

    python -m recserve.benchmarks.kernels.measure OPTIONS.json RESULT.json

``run`` starts it, with the thread variables set: they are read when NumPy loads, so only a fresh process is
sure to have them.
"""

import gc
import json
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from recserve import console
from recserve.benchmarks.kernels import approximate, data, exclusions, limits, peers, timing
from recserve.benchmarks.kernels.options import APPROXIMATE_DATA, Grid, Options
from recserve.benchmarks.kernels.split import speed_up
from recserve.errors import RecserveError
from recserve.kernels import ItemIndex, helpers, warmup
from recserve.kernels.isa import PORTABLE, choose

HOT_SHARE = 0.2  # of the seconds of a case, for each method that is timed alone
TINY_ITEMS = 32
AWAKE = helpers.TURNS
RECALL_QUERIES = 256
RECALL_K = 10
RECALL_BATCHES = (1, 64)


def run(options: Options, threads: int, cache: Path) -> dict[str, Any]:
    """Measures all grids; returns plain values."""
    isa = choose(options.isa)
    warmup()
    limit = limits.measure(isa.name if isa else PORTABLE, threads)
    result: dict[str, Any] = {
        "limits": limit.as_dict() if limit else None,
        "catalogues": [],
        "cases": [],
        "approximate": [],
        "exclusions": [],
        "speed_ups": [],
        "dispatch_us": {},
        "fp32_kernel_gflops": limits.fp32_kernel_gflops() if threads == 1 else None,
    }
    for grid in options.grids:
        for kind in grid.data:
            if threads == 1 and str(grid.dim) not in result["dispatch_us"]:
                result["dispatch_us"][str(grid.dim)] = _dispatch_us(grid.dim, options)
            _run_catalogue(options, grid, kind, limit, cache, result)
            gc.collect()
    return result


def _run_catalogue(
    options: Options,
    grid: Grid,
    kind: str,
    limit: limits.Limits | None,
    cache: Path,
    result: dict[str, Any],
) -> None:
    """Builds one catalogue for every method and measures all batch sizes and list lengths on it."""
    n_items = grid.items_of(kind)
    vectors, queries = data.make(kind, n_items, grid.dim, options.seed, cache)
    start = time.perf_counter()
    index = ItemIndex.build(vectors, isa=options.isa)
    built = time.perf_counter() - start
    key = {"data": kind, "n_items": n_items, "dim": grid.dim, "threads": grid.threads}
    stats = index.stats()
    result["catalogues"].append(
        {**key, "isa": stats["isa"], "build_s": built, "bytes_per_item": stats["bytes_per_item"]}
    )
    if grid.threads > 1:
        helpers.TURNS = AWAKE
        result["speed_ups"] += [
            {**key, **speed_up(index, grid.threads, queries, batch, k, 3 * options.seconds)}
            for batch in grid.batches
            for k in grid.ks
        ]
    helpers.TURNS = 0  # as of the peers (run.pinned): who waits awake takes a core from who is timed next
    methods: dict[str, peers.Search] = {timing.OURS: partial(index.search, threads=grid.threads)}
    methods |= peers.load(vectors, grid.threads, options.peers, _skip)
    for batch in grid.batches:
        for k in grid.ks:
            case = {**key, "batch": batch, "k": k, **_time_case(methods, index, queries, batch, k, options)}
            case["limit_ms"] = limit and limit.bound_ms(n_items, grid.dim, batch, case["scanned"])
            result["cases"].append(case)
            console.note(f"{kind} {n_items} × {grid.dim}  B{batch} K{k}  {_summary(case)}")
    if (
        grid.threads == 1
        and (kind, n_items) == exclusions.CATALOGUE
        and max(grid.batches) >= exclusions.BATCH
    ):
        rows = exclusions.measure(vectors, queries, index, options)
        result["exclusions"] += [{**key, **row} for row in rows]
    if grid.threads == 1 and kind in APPROXIMATE_DATA and n_items <= options.approximate_up_to:
        result["approximate"] += _approximate(key, vectors, queries, index, options)


def _time_case(
    methods: dict[str, peers.Search], index: ItemIndex, queries: Any, batch: int, k: int, options: Options
) -> dict[str, Any]:
    """Checks that all methods agree, then times them in turns, then the engine and the best peer alone."""
    answers = {name: search(queries[:batch], k) for name, search in methods.items()}
    for name, answer in answers.items():
        timing.check_same(name, answers[timing.OURS], answer)
    before = index.stats()
    wall, cpu = time.perf_counter(), time.process_time()
    times = timing.interleaved(methods, queries, batch, k, options.seconds)
    cpu_share = (time.process_time() - cpu) / (time.perf_counter() - wall)
    work = _work_done(before, index.stats())
    median = {name: statistics.median(values) for name, values in times.items()}
    peer = min((name for name in median if name != timing.OURS), key=median.__getitem__, default=None)
    alone = [name for name in methods if name in (timing.OURS, peer)]
    hot = {
        name: statistics.median(timing.alone(methods[name], queries, batch, k, HOT_SHARE * options.seconds))
        for name in alone
    }
    return {
        "median_ms": median,
        "min_ms": {name: min(values) for name, values in times.items()},
        "calls": {name: len(values) for name, values in times.items()},
        "hot_median_ms": hot,
        # With one thread: below 1 where another program had the core for a part of the time.
        "cpu_share": cpu_share,
        "best_peer": peer,
        "ratio": median[peer] / median[timing.OURS] if peer else None,
        "min_ratio": min(times[peer]) / min(times[timing.OURS]) if peer else None,
        "hot_ratio": hot[peer] / hot[timing.OURS] if peer else None,
        **work,
    }


def _work_done(before: dict[str, Any], after: dict[str, Any]) -> dict[str, float]:
    """What the searches between two readings of the counters did, per query."""
    done = {name: after[name] - before[name] for name in ("queries", "tiles_scanned", "rows_scored")}
    n_queries = max(1, done["queries"])
    return {
        "scanned": done["tiles_scanned"] / n_queries / max(1, after["tiles"]),
        "rows_scored": done["rows_scored"] / n_queries,
    }


def _approximate(
    key: dict[str, Any], vectors: Any, queries: Any, index: ItemIndex, options: Options
) -> list[dict[str, Any]]:
    """The recall and the time of every setting of the approximate peers, and of this engine."""
    searches, built = approximate.load(vectors, 1, options.peers, _skip)
    some = queries[:RECALL_QUERIES]
    scores, _ = index.search(some, RECALL_K)
    points = {(timing.OURS, "exact"): index.search, **searches}
    methods = {f"{name}: {setting}": search for (name, setting), search in points.items()}
    times = {
        batch: timing.interleaved(methods, queries, batch, RECALL_K, 2 * options.seconds, drop=False)
        for batch in RECALL_BATCHES
        if batch <= len(queries)
    }
    rows = []
    for (name, setting), label in zip(points, methods, strict=True):
        _, indices = methods[label](some, RECALL_K)
        row = {
            **key,
            "method": name,
            "setting": setting,
            "k": RECALL_K,
            "recall": approximate.recall(scores, some, vectors, indices),
            "build_s": built.get(name),
            "median_ms": {str(batch): statistics.median(times[batch][label]) for batch in times},
        }
        rows.append(row)
        console.note(f"  {label}  recall {row['recall']:.4f}  {row['median_ms']}")
    return rows


def _dispatch_us(dim: int, options: Options) -> float:
    rng = np.random.default_rng(options.seed)
    index = ItemIndex.build(rng.standard_normal((TINY_ITEMS, dim), dtype=np.float32), isa=options.isa)
    queries = rng.standard_normal((timing.DISPATCH_BATCH, dim), dtype=np.float32)
    return timing.dispatch_overhead_us(index.search, queries)


def _skip(name: str, reason: str) -> None:
    console.note(f"skipped {name}: {reason}")


def _summary(case: dict[str, Any]) -> str:
    ours = f"{case['median_ms'][timing.OURS]:.3f} ms, hot {case['hot_median_ms'][timing.OURS]:.3f}"
    return f"{ours}, {case['ratio']:.1f}× {case['best_peer']}" if case["best_peer"] else f"{ours}, no peer"


def main(arguments: list[str]) -> int:
    """Reads the options, measures, writes the result; returns the exit code."""
    options_path, result_path = map(Path, arguments)
    task = json.loads(options_path.read_text(encoding="utf-8"))
    try:
        result = run(Options.from_dict(task["options"]), task["threads"], Path(task["cache"]))
    except RecserveError as error:
        console.note(f"error: {error}")
        return error.exit_code
    result_path.write_text(json.dumps(result, allow_nan=False), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
