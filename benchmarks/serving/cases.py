"""What the server promises besides its rate next to an echo: each case a function, with plain figures."""

import argparse
import statistics
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recserve.benchmarks import engine_overhead, swaps
from recserve.benchmarks.h2load import Shape, h2load, reply_bytes
from recserve.benchmarks.load.options import EMBED, Asked, Client, Pace, Target, read_target
from recserve.benchmarks.load.run import Load, read_ids
from recserve.benchmarks.servers import running
from recserve.benchmarks.serving.transports import (
    SHAPES,
    UNBATCHED,
    WARM_UP_SECONDS,
    ask_for,
    request_of,
    serving,
)
from recserve.engine import Engine
from recserve.errors import CheckFailed

BATCH = 64
OVERHEAD_BATCHES = (1, 8, 64)
# Callers at a time, of whom the most that keep the promise count.
CALLERS = (
    *(Shape(1, 1), Shape(2, 1), Shape(4, 1)),
    *(Shape(8, streams) for streams in (1, 2, 4, 8, 12, 16, 24)),
)
P99_BUDGET_MS = 25.0
N_STARTS = 3
# Of what the server can do.
OVERLOAD = 2.0
METRIC = "recserve_batcher_{}_total"
ANSWERED = 'recserve_requests_total{code="OK",method="/recserve.v1.Recommender/Recommend"}'

Case = dict[str, Any]


def served(engine: Engine, options: argparse.Namespace, folder: Path) -> Case:
    """Requests per second through the native transport next to ``recommend_many`` in this process, in turns.

    Both have the same user asked again and again, as h2load does.
    """
    body = ask_for(engine, options.k, folder)
    requests = [request_of(engine, options.k)] * BATCH
    found = []
    with serving("recommend", "native", options) as address:
        size = reply_bytes(address, body)
        h2load(address, SHAPES[-1], body, WARM_UP_SECONDS, size)
        for _ in range(options.rounds):
            inside = BATCH * _per_second(lambda: engine.recommend_many(requests), options.seconds)
            through = h2load(address, SHAPES[-1], body, options.seconds, size).per_second
            found.append((through, inside))
    return {
        "requests_per_second": statistics.median(through for through, _ in found),
        "recommend_many_per_second": statistics.median(inside for _, inside in found),
        "of_recommend_many": statistics.median(through / inside for through, inside in found),
    }


def batching(engine: Engine, options: argparse.Namespace, folder: Path) -> Case:
    """The highest rate whose p99 keeps the budget, with batches and with batches of one."""
    body = ask_for(engine, options.k, folder)
    best = {}
    for name in ("recommend", UNBATCHED):
        with serving(name, "native", options) as address:
            size = reply_bytes(address, body)
            h2load(address, SHAPES[-1], body, WARM_UP_SECONDS, size)
            runs = [h2load(address, callers, body, 1, size) for callers in CALLERS]
        kept = [one.per_second for one in runs if one.p99_us <= 1e3 * P99_BUDGET_MS]
        if not kept:
            raise CheckFailed(
                f"p99 of {name}", found=f"{runs[0].p99_us / 1e3:.0f} ms", expected=f"{P99_BUDGET_MS:.0f} ms"
            )
        best[name] = max(kept)
    return {
        "p99_budget_ms": P99_BUDGET_MS,
        "batched_per_second": best["recommend"],
        "unbatched_per_second": best[UNBATCHED],
        "ratio": best["recommend"] / best[UNBATCHED],
    }


def overhead(engine: Engine, options: argparse.Namespace) -> Case:
    """The engine with the bytes of its replies by the bare inference and search, by batch size."""
    timed = argparse.Namespace(bundle=options.bundle, k=options.k, rounds=40 * options.rounds)
    rows = [engine_overhead.time_batch(engine, size, timed) for size in OVERHEAD_BATCHES]
    return {str(row["batch"]): row["ranked_ratio"] for row in rows}


def swapped(options: argparse.Namespace) -> Case:
    """Latency while versions are swapped (swaps.py), in fewer rounds than that program has."""
    arguments = [
        str(options.bundle),
        "--swaps",
        str(6 * options.rounds),
        "--rounds",
        str(2 * options.rounds),
    ]
    result = swaps.run(swaps.parse([*arguments, "--transport", "native"]))
    return {name: value for name, value in result.items() if name != "p99_ratios"}


def late(options: argparse.Namespace) -> Case:
    """Asks for twice what the server can do, with a deadline; returns how much was computed for nobody.

    ``in_vain``: requests whose deadline passed while their batch was computed; none is begun after that.
    """
    ids = read_ids(Target(EMBED, path=str(options.bundle)), None, 0)
    command = ["recserve.engine.cli", "serve", str(options.bundle), "--port", "0", "--provider", "cpu"]
    # What is refused at the door has no deadline to keep.
    extra = {"RECSERVE__SERVER__MAX_IN_FLIGHT": "4096", "RECSERVE__BATCHER__BROWNOUT": "false"}
    command += ["--transport", "native", "--http-port", "0"]
    with running("recserve serve", command, extra, with_url=True) as server:
        load = Load(read_target(f"grpc://{server.address}"), ids, Asked(k=options.k), Client(1, 8))
        full = load.measure(Pace(concurrency=BATCH, warm_up=0.5, duration=options.seconds))
        # Time enough where there is no queue, and less than the queue will take.
        deadline = 2 * full["latency_ms"]["p50"] / 1e3
        before = metrics(server.url)
        rate = OVERLOAD * full["answered_per_second"]
        point = load.measure(Pace(rate=rate, warm_up=0.5, duration=options.seconds, timeout=deadline))
        counted = {name: count - before.get(name, 0) for name, count in metrics(server.url).items()}
    computed = counted[METRIC.format("rows")]
    return {
        "asked_per_second": point["asked_per_second"],
        "answered_per_second": point["answered_per_second"],
        "deadline_ms": 1e3 * deadline,
        "computed": int(computed),
        "in_vain": int(computed - counted[ANSWERED]),
        "never_computed": int(counted[METRIC.format("late_rows")] + counted[METRIC.format("gone_rows")]),
    }


def start(bundle: Path) -> float:
    """Seconds from the start of the process until it answers, its kernels compiled before: a median."""
    options = argparse.Namespace(bundle=bundle, batcher_threads=None)
    times = []
    for _ in range(1 + N_STARTS):
        began = time.monotonic()
        with serving("recommend", "native", options):
            times.append(time.monotonic() - began)
    # The first one may have compiled.
    return statistics.median(times[1:])


def _per_second(work: Callable[[], object], seconds: float) -> float:
    work()
    begin, n = time.perf_counter(), 0
    while (passed := time.perf_counter() - begin) < seconds:
        work()
        n += 1
    return n / passed


def metrics(url: str) -> dict[str, float]:
    """Returns what /metrics of a server says, by name and labels."""
    with urllib.request.urlopen(f"{url}/metrics") as reply:
        lines = reply.read().decode().splitlines()
    return {line.split()[0]: float(line.split()[1]) for line in lines if not line.startswith("#")}
