"""Latency while versions are swapped: ``python -m recserve.benchmarks.swaps BUNDLE``.

``recserve serve --repository`` runs as a process of its own over two versions of BUNDLE. An open-loop client
sends at 70 % of what the same client reached without a pause; a latency counts from the moment at which the
request was due. Rounds alternate: steady, then with a swap every four seconds (``--interval``), which is more
often than anybody publishes a model. Every reply must have its version's items only. The client is written
in Python and shares the machine, which both halves of a round suffer alike.
"""

import argparse
import asyncio
import contextlib
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import uvloop

from recserve import console
from recserve.benchmarks.environment import environment, machine_line
from recserve.benchmarks.versions import is_of, make_version
from recserve.engine.bundle import open_bundle
from recserve.errors import CheckFailed
from recserve.proto import admin_pb2, admin_pb2_grpc, recommender_pb2_grpc
from recserve.proto import recommender_pb2 as pb

MODEL, VERSIONS = "model", ("v1", "v2")
LOAD = 0.7
N_CHANNELS = 4
IN_FLIGHT = 32
TICK_SECONDS = 0.001
TIMEOUT_SECONDS = 30.0
# What tries a version has a low priority, and the machine is busy.
SWAP_SECONDS = 300.0
# Enough requests for a 99th percentile.
STEADY_SECONDS = 10.0
# Until memory of a version that was just replaced is back.
SETTLE_SECONDS = 2.0


@dataclass(slots=True)
class Load:
    """What the client saw: latencies in seconds, requests that failed, replies that mix versions."""

    latencies: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    mixed: int = 0
    swaps: list[float] = field(default_factory=list)

    def p99(self) -> float:
        """Returns the 99th percentile of the latency in seconds."""
        return sorted(self.latencies)[len(self.latencies) * 99 // 100]

    def p50(self) -> float:
        """Returns the median latency in seconds."""
        return statistics.median(self.latencies)


class Client:
    """Asks for one user after the other over a few connections."""

    def __init__(self, address: str, admin: str, users: list[str], k: int) -> None:
        self._channels = [
            # Connections of their own: equal channels would share one.
            grpc.aio.insecure_channel(address, options=[("grpc.channel_number", i)])
            for i in range(N_CHANNELS)
        ]
        self._stubs = itertools.cycle(
            [recommender_pb2_grpc.RecommenderStub(channel) for channel in self._channels]
        )
        self._requests = itertools.cycle([pb.RecommendRequest(user_id=user, k=k) for user in users])
        self._channels.append(grpc.aio.insecure_channel(admin))
        self._admin = admin_pb2_grpc.AdminStub(self._channels[-1])

    async def ask(self, due: float, load: Load) -> None:
        """Sends one request and notes how it went."""
        try:
            slate = await next(self._stubs).Recommend(next(self._requests), timeout=TIMEOUT_SECONDS)
        except grpc.aio.AioRpcError as error:
            load.failed.append(f"{error.code().name} {error.details()}")
            return
        load.latencies.append(time.perf_counter() - due)
        load.mixed += not is_of(slate.bundle_version, [item.item_id for item in slate.items])

    async def activate(self, version: str) -> None:
        """Swaps to a version; returns when it answers."""
        request = admin_pb2.ActivateRequest(model=MODEL, version=version)
        await self._admin.Activate(request, timeout=SWAP_SECONDS)

    async def capacity(self, seconds: float) -> float:
        """Returns requests per second with ``IN_FLIGHT`` callers that never pause."""
        load = Load()
        end = time.perf_counter() + seconds

        async def caller() -> None:
            while time.perf_counter() < end:
                await self.ask(time.perf_counter(), load)

        await asyncio.gather(*(caller() for _ in range(IN_FLIGHT)))
        _check(load)
        return len(load.latencies) / seconds

    async def offer(self, rate: float, during: Callable[[Load], Awaitable[None]]) -> Load:
        """Sends ``rate`` requests per second for as long as ``during`` takes."""
        load = Load()
        work = asyncio.ensure_future(during(load))
        asked: set[asyncio.Task[None]] = set()
        start = time.perf_counter()
        n_sent = 0
        while not work.done():
            while n_sent < (time.perf_counter() - start) * rate:
                task = asyncio.create_task(self.ask(start + n_sent / rate, load))
                asked.add(task)
                task.add_done_callback(asked.discard)
                n_sent += 1
            await asyncio.sleep(TICK_SECONDS)
        await work
        await asyncio.gather(*asked)
        _check(load)
        return load

    async def close(self) -> None:
        """Closes the connections."""
        for channel in self._channels:
            await channel.close()


def main(arguments: list[str] | None = None) -> int:
    """Runs the rounds and prints a table, or JSON; 1 when a promise did not hold."""
    options = parse(arguments)
    machine = environment(("grpcio", "pygrpc-native", "uvloop", "onnxruntime-gpu"))
    console.note(machine_line(machine))
    result = {"environment": machine, "transport": options.transport, **run(options)}
    if options.json:
        console.print_json(result)
    else:
        console.print_table(
            f"{result['swaps']} swaps at {result['requests_per_second']:.0f} requests/s, {options.transport}",
            ["what", "value"],
            [[name, value] for name, value in result.items() if not isinstance(value, dict | list)],
        )
    return 0


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Makes two versions of the bundle, serves them and measures; returns the figures."""
    with tempfile.TemporaryDirectory() as scratch:
        repository = Path(scratch, "repository")
        (repository / MODEL).mkdir(parents=True)
        for day, version in enumerate(VERSIONS, start=1):
            make_version(options.bundle, repository / MODEL / version, version, day=day)
        bundle = open_bundle(options.bundle)
        users = list(bundle.histories.vocabulary[: options.users]) or [""]
        with serving(repository, options.transport, trial=options.trial) as (address, admin, pid):
            result = uvloop.run(measure(address, admin, pid, users, options))
    sizes = {"n_items": bundle.manifest.n_items, "embedding_size": bundle.manifest.embedding_size}
    return {**result, "bundle": sizes}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="recserve.benchmarks.swaps", description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--transport", default="grpcio", choices=["native", "grpcio"])
    parser.add_argument("--swaps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--interval", type=float, default=4.0, help="seconds from swap to swap, at least")
    parser.add_argument(
        "--no-trial", dest="trial", action="store_false", help="load in the server alone, as a baseline"
    )
    parser.add_argument("--users", type=int, default=1000)
    parser.add_argument("-k", type=int, default=10)
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    return parser.parse_args(arguments)


async def measure(
    address: str, admin: str, pid: int, users: list[str], options: argparse.Namespace
) -> dict[str, Any]:
    """Alternates steady halves and halves with swaps; returns the figures."""
    async with _client(address, admin, users, options.k) as client:
        await client.capacity(2.0)
        # Both versions were there once: what stays of the first load is not a leak.
        for version in VERSIONS * 2:
            await client.activate(version)
        capacity = await client.capacity(3.0)
        rate = LOAD * capacity
        await asyncio.sleep(SETTLE_SECONDS)
        before = _memory(pid)
        n_swaps = -(-options.swaps // options.rounds)
        versions = itertools.cycle(VERSIONS)

        async def swap(load: Load) -> None:
            for _ in range(n_swaps):
                start = time.perf_counter()
                await client.activate(next(versions))
                load.swaps.append(time.perf_counter() - start)
                await asyncio.sleep(max(0.0, options.interval - load.swaps[-1]))

        async def wait(load: Load) -> None:
            await asyncio.sleep(min(n_swaps * options.interval, STEADY_SECONDS))

        rounds = [
            (await client.offer(rate, wait), await client.offer(rate, swap)) for _ in range(options.rounds)
        ]
        await asyncio.sleep(SETTLE_SECONDS)
        after = _memory(pid)
    swapped = [load for _, load in rounds]
    return {
        "interval_s": options.interval,
        "requests": sum(len(load.latencies) for pair in rounds for load in pair),
        "requests_per_second": rate,
        "swaps": sum(len(load.swaps) for load in swapped),
        "failed": sum(len(load.failed) for pair in rounds for load in pair),
        "mixed": sum(load.mixed for pair in rounds for load in pair),
        "swap_ms": 1000 * statistics.median(itertools.chain(*(load.swaps for load in swapped))),
        "steady_p50_ms": 1000 * statistics.median(load.p50() for load, _ in rounds),
        "swaps_p50_ms": 1000 * statistics.median(load.p50() for load in swapped),
        "steady_p99_ms": 1000 * statistics.median(load.p99() for load, _ in rounds),
        "swaps_p99_ms": 1000 * statistics.median(load.p99() for load in swapped),
        "p99_ratio": statistics.median(load.p99() / steady.p99() for steady, load in rounds),
        "p99_ratios": [load.p99() / steady.p99() for steady, load in rounds],
        "rss_before_mb": before / 1e6,
        "rss_after_mb": after / 1e6,
        "rss_ratio": after / before,
    }


@contextlib.asynccontextmanager
async def _client(address: str, admin: str, users: list[str], k: int) -> AsyncIterator[Client]:
    client = Client(address, admin, users, k)
    try:
        yield client
    finally:
        await client.close()


@contextlib.contextmanager
def serving(repository: Path, transport: str, *, trial: bool = True) -> Iterator[tuple[str, str, int]]:
    """Runs the server; yields its address, its admin address and its process id."""
    admin = f"unix:{repository.parent}/admin"
    command = ["serve", "--repository", str(repository), "--port", "0", "--transport", transport]
    with subprocess.Popen(
        [
            sys.executable,
            "-m",
            "recserve.engine.cli",
            *command,
            "--provider",
            "cpu",
            "--admin-address",
            admin,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        # What is measured is latency: a machine that stalls must show there, not as refused requests.
        env={
            **os.environ,
            "RECSERVE__SERVER__MAX_IN_FLIGHT": "8192",
            "RECSERVE__REPOSITORY__TRIAL": str(trial).lower(),
        },
    ) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            if not address:
                raise CheckFailed("recserve serve", found="ended", expected="an address")
            yield address, admin, process.pid
        finally:
            process.terminate()


def _memory(pid: int) -> int:
    """Returns the resident memory of a process in bytes (Linux)."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise CheckFailed(f"memory of process {pid}", found="not told", expected="VmRSS in /proc")


def _check(load: Load) -> None:
    if load.failed or load.mixed or not load.latencies:
        raise CheckFailed(
            "requests",
            found=f"{len(load.failed)} failed {load.failed[:1]}, {load.mixed} mixed",
            expected="all answered, each by one version",
        )


if __name__ == "__main__":
    sys.exit(main())
