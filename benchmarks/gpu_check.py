"""Checks search on the GPU of this machine and times it: ``python -m recserve.benchmarks.gpu_check``.

First the laws (:mod:`recserve.benchmarks.gpu_laws`), each answer against the exact answer of the CPU, bit for
bit. Then the times, whole searches from host arrays to host arrays, beside the CPU index on one thread and
torch on the same GPU where it can use it. Every timed method's first answer is checked as well. Then, with
``--bundle``, the engine: the slates of the bundle's users with retrieval on the GPU and on the CPU. Without a
GPU it fails: exit code 3.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from recserve.benchmarks.environment import environment, machine_line
from recserve.console import note, print_json, print_table
from recserve.errors import RecserveError
from recserve.kernels import ItemIndex, warmup

PACKAGES = ("numpy", "numba", "numba-cuda", "cuda-bindings", "torch")
N_QUERIES = 4096
SHAPE = ("items", "dim", "batch", "k")
SCORE_TOLERANCE = 1e-4  # of a peer, which sums in another order, relative to the largest score


def main(arguments: list[str] | None = None) -> int:
    """Runs the check; returns the exit code."""
    options = parse(arguments)
    try:
        return run(options)
    except RecserveError as error:
        note(str(error))
        return error.exit_code


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="recserve.benchmarks.gpu_check", description=__doc__)
    parser.add_argument("--laws", choices=["real", "tiny", "none"], default="real", help="sizes of the laws")
    parser.add_argument("--items", nargs="*", type=int, default=[100_000, 1_000_000], help="sizes to time")
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--k", nargs="+", type=int, default=[10, 100])
    parser.add_argument("--dtype", nargs="+", default=["float32", "float16", "int8"])
    parser.add_argument("--seconds", type=float, default=2.0, help="per case")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--bundle", type=Path, help="bundle to check the engine with")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> int:
    from recserve.benchmarks import gpu_laws
    from recserve.kernels.cuda import CudaItemIndex, Launch

    Launch.for_device()  # fails here if there is no device
    device = CudaItemIndex.build(np.ones((1, 1), np.float32)).stats()["device"]
    machine = {**environment(PACKAGES), "device": device}
    note(machine_line(machine))
    sizes: Any = {"real": gpu_laws.REAL, "tiny": gpu_laws.TINY, "none": ()}[options.laws]
    checked = []
    for case in gpu_laws.cases(sizes, options.dtype):
        checked.append({"case": str(case), **gpu_laws.check(case)})
        note(f"holds: {case}")
    timed = [row for n_items in options.items for row in time_catalogue(options, n_items)]
    engine = None
    if options.bundle is not None:
        from recserve.benchmarks.gpu_engine import check_engine

        engine = check_engine(options.bundle)
    if options.json:
        found = {"laws": checked, "times": timed, "engine": engine}
        print_json({"environment": machine, "seed": options.seed, **found})
        return 0
    show(device, checked, timed)
    if engine is not None:
        show_engine(engine)
    return 0


def show(device: str, checked: list[dict[str, Any]], timed: list[dict[str, Any]]) -> None:
    """Prints both tables."""
    again = sum(stats["queries_searched_again"] for stats in checked)
    queries = sum(stats["queries"] for stats in checked)
    if checked:
        row = [len(checked), len(checked), queries, again]
        print_table(f"Laws on {device}", ["cases", "hold", "queries", "again in float32"], [row])
    if timed:
        names = list(timed[0]["ms"])
        cells = [[row[name] for name in SHAPE] + [spell(row["ms"][name]) for name in names] for row in timed]
        print_table(f"Times on {device}, ms: median / least", [*SHAPE, *names], cells)


def show_engine(engine: dict[str, Any]) -> None:
    """Prints where graphs ran and how long batches took; their slates are the same."""
    for graph, provider in engine["graphs"].items():
        note(f"{graph} ran on {provider}{', a GPU was given up' if engine['graphs_fell_back'] else ''}")
    rows = [[row["batch"], *(f"{ms:.3f}" for ms in row["ms"].values())] for row in engine["times"]]
    print_table("The engine, ms by where it searches", ["batch", *engine["times"][0]["ms"]], rows)


def spell(times: dict[str, float]) -> str:
    """One cell."""
    return f"{times['median']:.3f} / {times['least']:.3f}"


def time_catalogue(options: argparse.Namespace, n_items: int) -> list[dict[str, Any]]:
    """One row per batch size and k: the times of every method, interleaved."""
    from recserve.kernels.cuda import CudaItemIndex

    rng = np.random.default_rng(options.seed)
    vectors = rng.standard_normal((n_items, options.dim), dtype=np.float32)
    queries = rng.standard_normal((N_QUERIES, options.dim), dtype=np.float32)
    warmup()
    methods: dict[str, Callable[..., Any]] = {"cpu": ItemIndex.build(vectors).search}
    for dtype in options.dtype:
        index = CudaItemIndex.build(vectors, dtype=dtype)
        index.warmup()
        methods[f"cuda {dtype}"] = index.search
    peer = torch_search(vectors)
    if peer is not None:
        methods["torch"] = peer
    rows = []
    for batch in options.batch:
        for k in options.k:
            times = time_case(methods, queries, batch, min(k, n_items), options.seconds)
            row: dict[str, Any] = dict(zip(SHAPE, (n_items, options.dim, batch, k), strict=True))
            row["ms"] = {
                name: {"median": statistics.median(values), "least": min(values)}
                for name, values in times.items()
            }
            rows.append(row)
            note(f"timed: {n_items} items, batch {batch}, k {k}")
    return rows


def time_case(
    methods: dict[str, Callable[..., Any]], queries: Any, batch: int, k: int, seconds: float
) -> dict[str, list[float]]:
    """Milliseconds of each search; every repetition has queries of its own."""
    times: dict[str, list[float]] = {name: [] for name in methods}
    deadline = time.perf_counter() + seconds * len(methods)
    first, n_repetitions = 0, 0
    while n_repetitions < 3 or (time.perf_counter() < deadline and n_repetitions < 200):
        part = queries[first : first + batch]
        first = (first + batch) % (len(queries) - batch + 1)
        answers = {}
        for name, search in methods.items():
            start = time.perf_counter()
            answers[name] = search(part, k)
            times[name].append(1e3 * (time.perf_counter() - start))
        if n_repetitions == 0:
            check_answers(answers)
            times = {name: [] for name in methods}  # the first call of a method may still set something up
        n_repetitions += 1
    return times


def check_answers(answers: dict[str, Any]) -> None:
    """Ours must equal the CPU's bit for bit, a peer's scores must be near."""
    from recserve.errors import CheckFailed

    scores, indices = answers["cpu"]
    tolerance = SCORE_TOLERANCE * max(1.0, float(np.abs(scores).max()))
    for name, (other_scores, other_indices) in answers.items():
        if name == "torch":
            same = bool(np.allclose(scores, other_scores, rtol=0, atol=tolerance))
        else:
            same = bool(np.array_equal(scores, other_scores) and np.array_equal(indices, other_indices))
        if not same:
            raise CheckFailed(f"answer of {name}", found="another", expected="the answer of the CPU index")


def torch_search(vectors: Any) -> Callable[..., Any] | None:
    """Matrix product and topk of torch in float32 on the GPU, or None where torch has no GPU."""
    try:
        import torch
    except ImportError:
        note("skipped torch: it is not installed")
        return None
    if not torch.cuda.is_available():
        note("skipped torch: this build of it sees no GPU")
        return None
    torch.backends.cuda.matmul.allow_tf32 = False
    items = torch.from_numpy(vectors).cuda()

    def search(queries: Any, k: int) -> tuple[Any, Any]:
        best = torch.topk(torch.from_numpy(queries).cuda() @ items.T, k)
        return best.values.cpu().numpy(), best.indices.cpu().numpy()

    return search


if __name__ == "__main__":
    sys.exit(main())
