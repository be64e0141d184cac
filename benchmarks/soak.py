"""Whether a server stays what it is: ``python -m recserve.benchmarks.soak BUNDLE``.

``recserve serve`` runs as a process and is asked by callers of whom most behave, some leave early, some send
what is no request and some allow too little time. Its own memory (not mapped files) is read all along: the
slope over the second half, by Theil and Sen, must stay below a bound, and so must open files and threads;
the latency of good requests is told. Then the same with a planted leak of 100 bytes a request, which has to
be found.
"""

import argparse
import asyncio
import itertools
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import uvloop

from recserve import console
from recserve.benchmarks.environment import environment, machine_line
from recserve.benchmarks.servers import running
from recserve.engine.bundle import open_bundle
from recserve.proto import recommender_pb2 as pb

RECOMMEND = "/recserve.v1.Recommender/Recommend"
# Of a hundred requests.
MIX = {"good": 90, "cancelled": 5, "bad": 3, "late": 2}
IN_FLIGHT, N_CHANNELS = 16, 4
N_SAMPLES = 200
TIMEOUT_SECONDS, LATE_SECONDS, LEAVE_SECONDS = 30.0, 0.0005, 0.005
BAD = (b"\xff\xff", pb.RecommendRequest(k=-1).SerializeToString(), b"\x0a\x03abc\x10\x00")
MAX_BYTES_PER_REQUEST = 20.0
PLANTED_BYTES = 100
# How much more of a thing there may be at the end than when it was warm: connections come and go.
MAX_MORE = 4


@dataclass(slots=True)
class Seen:
    """What was seen of the server: samples of (requests so far, bytes), counts by outcome, latencies."""

    samples: list[tuple[int, int]] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    # Of good requests, in seconds, by the order in which they were sent.
    latencies: list[float] = field(default_factory=list)
    files: list[int] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)


def main(arguments: list[str] | None = None) -> int:
    """Runs both and prints a table, or JSON; 1 when a promise did not hold or the leak was not found."""
    options = parse(arguments)
    machine = environment(("grpcio", "pygrpc-native", "uvloop", "onnxruntime-gpu"))
    console.note(machine_line(machine))
    found = soak(options.bundle, options.transport, options.requests)
    control = soak(options.bundle, options.transport, options.control, leak=PLANTED_BYTES)
    found["planted_leak_bytes_per_request"] = control["bytes_per_request"]
    if options.json:
        console.print_json({"environment": machine, "transport": options.transport, **found})
    else:
        title = f"{options.requests} requests, {options.transport}"
        console.print_table(title, ["what", "value"], [[name, value] for name, value in found.items()])
    broken = broken_promises(found)
    for line in broken:
        console.note(line)
    return 1 if broken else 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="recserve.benchmarks.soak", description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--transport", default="grpcio", choices=["native", "grpcio"])
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--control", type=int, default=30_000, help="requests of the run with the leak")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    return parser.parse_args(arguments)


def soak(bundle: Path, transport: str, n_requests: int, *, leak: int = 0) -> dict[str, Any]:
    """Asks a server ``n_requests`` times; returns the figures. ``leak``: bytes that it keeps of each."""
    users = list(open_bundle(bundle).histories.vocabulary[:1000]) or [""]
    program = ["recserve.benchmarks.leaking", str(leak)] if leak else ["recserve.engine.cli"]
    command = [*program, "serve", str(bundle), "--port", "0", "--transport", transport, "--provider", "cpu"]
    with running("recserve serve", command, {}) as server:
        seen = uvloop.run(ask(server.address, server.process_id, users, n_requests))
    quarter = len(seen.latencies) // 4
    early, last = (sorted(seen.latencies[i * quarter : (i + 1) * quarter]) for i in (1, 3))
    half = seen.samples[len(seen.samples) // 2 :]
    return {
        **{f"n_{kind}": seen.outcomes[kind] for kind in (*MIX, "unexpected")},
        "bytes_per_request": slope(half),
        "memory_first_mb": seen.samples[len(seen.samples) // 4][1] / 1e6,
        "memory_last_mb": seen.samples[-1][1] / 1e6,
        "more_files": seen.files[-1] - seen.files[len(seen.files) // 4],
        "more_threads": seen.threads[-1] - seen.threads[len(seen.threads) // 4],
        "p99_second_quarter_ms": 1000 * early[len(early) * 99 // 100],
        "p99_last_quarter_ms": 1000 * last[len(last) * 99 // 100],
    }


def broken_promises(found: dict[str, Any]) -> list[str]:
    """Returns a line for each figure that is not what was promised."""
    broken = []
    if found["n_unexpected"]:
        broken.append(f"{found['n_unexpected']} requests ended otherwise than they should")
    if found["bytes_per_request"] > MAX_BYTES_PER_REQUEST:
        broken.append(f"{found['bytes_per_request']:.1f} bytes stay of each request")
    if found["planted_leak_bytes_per_request"] <= MAX_BYTES_PER_REQUEST:
        broken.append("the planted leak was not found")
    broken += [f"{found[name]} {name}" for name in ("more_files", "more_threads") if found[name] > MAX_MORE]
    return broken


def slope(samples: Sequence[tuple[int, int]]) -> float:
    """Returns the median slope of all pairs of (x, y) (Theil 1950, Sen 1968): outliers do not move it."""
    pairs = itertools.combinations(samples, 2)
    return float(statistics.median((b[1] - a[1]) / (b[0] - a[0]) for a, b in pairs if a[0] != b[0]))


async def ask(address: str, process_id: int, users: Sequence[str], n_requests: int) -> Seen:
    """Sends the mix with ``IN_FLIGHT`` callers and samples the process meanwhile."""
    seen, rng = Seen(), random.Random(7)
    kinds, weights = list(MIX), list(MIX.values())
    channels = [
        # Connections of their own: equal channels would share one.
        grpc.aio.insecure_channel(address, options=[("grpc.channel_number", i)])
        for i in range(N_CHANNELS)
    ]
    methods = itertools.cycle([channel.unary_unary(RECOMMEND) for channel in channels])
    good = itertools.cycle([pb.RecommendRequest(user_id=user, k=10).SerializeToString() for user in users])
    numbers = iter(range(n_requests))

    async def caller() -> None:
        for number in numbers:
            kind = rng.choices(kinds, weights)[0]
            data = rng.choice(BAD) if kind == "bad" else next(good)
            start = time.perf_counter()
            ended = await _one(next(methods), data, kind, rng.random() * LEAVE_SECONDS)
            seen.outcomes[kind if ended else "unexpected"] += 1
            if kind == "good":
                seen.latencies.append(time.perf_counter() - start)
            if number % max(1, n_requests // N_SAMPLES) == 0:
                _sample(process_id, number, seen)

    await asyncio.gather(*(caller() for _ in range(IN_FLIGHT)))
    for channel in channels:
        await channel.close()
    return seen


async def _one(method: Any, data: bytes, kind: str, leave_after: float) -> bool:
    """Sends one request; returns whether it ended as one of its kind should."""
    call = method(data, timeout=LATE_SECONDS if kind == "late" else TIMEOUT_SECONDS)
    if kind == "cancelled":
        await asyncio.sleep(leave_after)
        call.cancel()
    code = await call.code()
    allowed = {
        "good": {grpc.StatusCode.OK},
        "cancelled": {grpc.StatusCode.OK, grpc.StatusCode.CANCELLED},
        "bad": {grpc.StatusCode.INVALID_ARGUMENT},
        "late": {grpc.StatusCode.OK, grpc.StatusCode.DEADLINE_EXCEEDED},
    }
    return code in allowed[kind]


def _sample(process_id: int, number: int, seen: Seen) -> None:
    folder = Path("/proc", str(process_id))
    for line in (folder / "status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon:"):
            seen.samples.append((number, int(line.split()[1]) * 1024))
    seen.files.append(len(list((folder / "fd").iterdir())))
    seen.threads.append(len(list((folder / "task").iterdir())))


if __name__ == "__main__":
    sys.exit(main())
