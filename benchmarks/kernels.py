"""Times exact top-K search against its peers: ``python -m recserve.benchmarks.kernels``.

All methods run interleaved in one process on one thread, each repetition on queries that none has seen. A
peer's answer must have the same scores, and the same items up to scores that tie within rounding.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

from recserve.benchmarks.environment import environment, machine_line

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
OVERRIDES = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")  # a leftover of these would slow NumPy down


def main(arguments: list[str] | None = None) -> int:
    """Parses the command line, pins the threads and runs every case."""
    if "numpy" in sys.modules:
        # Thread counts are read when NumPy loads: start again in a process that has not loaded it.
        command = [sys.executable, "-m", "recserve.benchmarks.kernels", *(arguments or sys.argv[1:])]
        return subprocess.run(command, check=False).returncode
    options = parse(arguments)
    for name in THREAD_VARIABLES:
        os.environ[name] = "1"
    for name in OVERRIDES:
        os.environ.pop(name, None)
    cases = []
    machine = {**environment(("numpy", "numba", "onnxruntime-gpu", "faiss-cpu")), "threads used": 1}
    say(options, machine_line(machine))
    for kind in options.data:
        for n_items in options.items:
            cases += run_catalogue(options, kind, n_items)
    if options.json:
        result = {"environment": machine, "seed": options.seed, "cases": cases}
        sys.stdout.write(json.dumps(result, indent=1) + "\n")
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="recserve.benchmarks.kernels", description=__doc__)
    parser.add_argument("--data", nargs="+", default=["gaussian", "als"], choices=["gaussian", "als"])
    parser.add_argument("--items", nargs="+", type=int, default=[100_000])
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8, 64, 256])
    parser.add_argument("--k", nargs="+", type=int, default=[10, 100])
    parser.add_argument("--isa", help="the instruction set to search with; by default the best")
    parser.add_argument("--seconds", type=float, default=3.0, help="per case")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    return parser.parse_args(arguments)


def say(options: argparse.Namespace, text: str) -> None:
    stream = sys.stderr if options.json else sys.stdout
    stream.write(text + "\n")
    stream.flush()


def run_catalogue(options: argparse.Namespace, kind: str, n_items: int) -> list[dict[str, Any]]:
    """Builds one catalogue for every method and runs all batch sizes and list lengths on it."""
    from recserve.benchmarks import kernels_data, kernels_peers
    from recserve.kernels import ItemIndex, warmup

    vectors, queries = kernels_data.make(kind, n_items, options.dim, options.seed)
    warmup()
    start = time.perf_counter()
    index = ItemIndex.build(vectors, isa=options.isa)
    built = time.perf_counter() - start
    say(
        options,
        f"\n{kind} {n_items} × {options.dim} · isa {index.stats()['isa']} · built in {built:.2f} s",
    )
    methods: dict[str, Any] = {"recserve": index.search}
    methods |= kernels_peers.load(vectors, lambda name, why: say(options, f"skipped {name}: {why}"))
    cases = []
    for batch in options.batch:
        for k in options.k:
            case = {"data": kind, "n_items": n_items, "dim": options.dim, "batch": batch, "k": k}
            before = index.stats()
            case |= time_case(methods, queries, batch, k, options.seconds)
            case |= work_done(before, index.stats())
            cases.append(case)
            say(options, row(case))
    return cases


def time_case(methods: Any, queries: Any, batch: int, k: int, seconds: float) -> dict[str, Any]:
    """Returns the median and the least milliseconds of every method and the ratio to the best peer."""
    times: dict[str, list[float]] = {name: [] for name in methods}
    deadline = time.perf_counter() + seconds
    first, n_repetitions = 0, 0
    while n_repetitions < 5 or (time.perf_counter() < deadline and n_repetitions < 200):
        part = queries[first : first + batch]
        first = (first + batch) % (len(queries) - batch + 1)
        answers = {}
        for name, search in methods.items():
            start = time.perf_counter()
            answers[name] = search(part, k)
            times[name].append(1e3 * (time.perf_counter() - start))
        if n_repetitions == 0:
            for name, answer in answers.items():
                check_same(name, answers["recserve"], answer)
            times = {name: [] for name in methods}  # the first call of a method may still set something up
        n_repetitions += 1
    median = {name: statistics.median(values) for name, values in times.items()}
    best_peer = min(
        (name for name in median if name != "recserve"), key=lambda name: median[name], default=""
    )
    return {
        "median_ms": median,
        "min_ms": {name: min(values) for name, values in times.items()},
        "repetitions": n_repetitions - 1,
        "best_peer": best_peer,
        "ratio": median[best_peer] / median["recserve"] if best_peer else None,
    }


def check_same(name: str, ours: Any, theirs: Any) -> None:
    """Raises unless the answers agree, up to the rounding of the peer's own sums."""
    import numpy as np

    from recserve.errors import CheckFailed

    scores, indices = ours
    peer_scores, peer_indices = theirs
    tolerance = 1e-5 * max(1.0, float(np.abs(scores).max()))
    if not np.allclose(scores, peer_scores, rtol=0, atol=tolerance):
        raise CheckFailed(f"answer of {name}", found="of other scores", expected="the scores of recserve")
    for row_scores, row, peer_row in zip(scores, indices, peer_indices, strict=True):
        differing = row_scores[~np.isin(row, peer_row)]
        if len(differing) and (differing > row_scores[-1] + 2 * tolerance).any():
            raise CheckFailed(f"answer of {name}", found="of other items", expected="the items of recserve")


def work_done(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """What the searches between two readings of the counters did, per query."""
    n_queries = max(1, after["queries"] - before["queries"])
    return {
        "tiles_scanned": (after["tiles_scanned"] - before["tiles_scanned"])
        / n_queries
        / max(1, after["tiles"]),
        "rows_scored": (after["rows_scored"] - before["rows_scored"]) / n_queries,
    }


def row(case: dict[str, Any]) -> str:
    medians = "  ".join(
        f"{name} {case['median_ms'][name]:.3f}/{case['min_ms'][name]:.3f}" for name in case["median_ms"]
    )
    ratio = f"{case['ratio']:.1f}× {case['best_peer']}" if case["ratio"] else "no peer"
    return (
        f"B{case['batch']:<4}K{case['k']:<4} {ratio:<18} {medians}  (median/min ms)  "
        f"scanned {case['tiles_scanned']:.1%}, {case['rows_scored']:.0f} rows scored per query"
    )


if __name__ == "__main__":
    sys.exit(main())
