"""Latency while versions are swapped: ``python -m recserve.benchmarks.swaps BUNDLE``.

``recserve serve --repository`` runs as a process of its own over two versions of BUNDLE. An open-loop client
(``bench load``'s, a process of its own as well) sends 70 % of the highest rate whose p99 stays below 25 ms;
a latency counts from the moment at which the request was due. Rounds alternate: steady, then with a swap
every four seconds (``--interval``), which is more often than anybody publishes a model, then steady again.
Every reply must have its version's items only. Client and server share the machine in both.
"""

import argparse
import contextlib
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from recserve import console
from recserve.benchmarks.environment import environment, machine_line
from recserve.benchmarks.load.connection import OK
from recserve.benchmarks.load.messages import Workload, draw
from recserve.benchmarks.load.options import Asked, Client, Pace, Target, read_target
from recserve.benchmarks.load.process import Samples, run_processes
from recserve.benchmarks.load.search import highest_rate
from recserve.benchmarks.versions import is_of, make_version
from recserve.engine.bundle import open_bundle
from recserve.errors import CheckFailed
from recserve.proto import admin_pb2, admin_pb2_grpc
from recserve.proto import recommender_pb2 as pb

MODEL, VERSIONS = "model", ("v1", "v2")
LOAD = 0.7
# The highest rate is looked for from here on.
LOWEST_RATE, PRECISION = 250.0, 0.1
P99_BUDGET_MS = 25.0
CONNECTIONS = Client(1, 8)
TIMEOUT_SECONDS = 30.0
# What tries a version runs while nobody else does, and the machine is busy.
SWAP_SECONDS = 300.0
WARM_UP_SECONDS, PROBE_SECONDS = 0.5, 3.0
# Enough requests for a 99th percentile.
STEADY_SECONDS = 10.0
# Until memory of a version that was just replaced is back.
SETTLE_SECONDS = 2.0


@dataclass(slots=True)
class Window:
    """What the client saw for a while: latencies in seconds, failed requests, replies that mix versions."""

    latencies: NDArray[np.float64]
    failed: int = 0
    mixed: int = 0
    swaps: list[float] = field(default_factory=list)

    def ms(self, percentile: float) -> float:
        """Returns a percentile of the latency in milliseconds."""
        return float(1e3 * np.percentile(self.latencies, percentile))


class Asking:
    """Asks one server at a constant mean rate, and has its versions swapped meanwhile."""

    def __init__(self, address: str, admin: admin_pb2_grpc.AdminStub, workload: Workload, k: int) -> None:
        self._target: Target = read_target(f"grpc://{address}")
        self._admin = admin
        self._workload = workload
        self._asked = Asked(k=k)
        self._versions = itertools.cycle(VERSIONS)

    def swap(self) -> float:
        """Swaps to the other version; returns the seconds until it answered."""
        start = time.perf_counter()
        request = admin_pb2.ActivateRequest(model=MODEL, version=next(self._versions))
        self._admin.Activate(request, timeout=SWAP_SECONDS)
        return time.perf_counter() - start

    def steady(self, rate: float, seconds: float) -> Window:
        """Asks for ``seconds``; raises :class:`CheckFailed` for a failed request or a mixed reply."""
        window = self._ask(rate, seconds)
        _check(window)
        return window

    def highest_rate(self) -> float:
        """Returns the most requests per second whose p99 keeps the budget."""

        def holds(rate: float) -> bool:
            window = self._ask(rate, PROBE_SECONDS)
            return not window.failed and window.ms(99) <= P99_BUDGET_MS

        found, broke_at = highest_rate(holds, LOWEST_RATE, PRECISION)
        if found is None:
            raise CheckFailed(
                "p99", found=f"late at {broke_at:.0f} requests/s", expected=f"{P99_BUDGET_MS:g} ms"
            )
        return found

    def swapping(self, rate: float, n_swaps: int, interval: float) -> Window:
        """As :meth:`steady`, with up to ``n_swaps`` swaps, one every ``interval`` seconds or later.

        Those count that ended while somebody asked; raises :class:`CheckFailed` when none did.
        """
        swaps: list[float] = []
        seconds = n_swaps * interval

        def swap() -> None:
            end = time.monotonic() + WARM_UP_SECONDS + seconds
            for _ in range(n_swaps):
                spent = self.swap()
                if time.monotonic() > end:
                    return
                swaps.append(spent)
                time.sleep(max(0.0, interval - spent))

        thread = threading.Thread(target=swap)
        window = self._ask(rate, seconds, thread.start)
        thread.join()
        if not swaps:
            cure = "Raise --interval."
            raise CheckFailed("a swap", found="longer", expected=f"done within {seconds:g} s", cure=cure)
        window.swaps = swaps
        _check(window)
        return window

    def _ask(self, rate: float, seconds: float, on_start: Callable[[], None] = lambda: None) -> Window:
        begun = threading.Event()

        def on_tick(now: float) -> None:
            if not begun.is_set():
                begun.set()
                on_start()

        pace = Pace(rate=rate, warm_up=WARM_UP_SECONDS, duration=seconds, timeout=TIMEOUT_SECONDS)
        samples = run_processes(
            self._target, self._asked, self._workload, pace, CONNECTIONS, on_tick, read=_of_one_version
        )
        return _window(samples)


def main(arguments: list[str] | None = None) -> int:
    """Runs the rounds and prints a table, or JSON; raises when a promise to callers did not hold."""
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
        workload = draw(Asked(k=options.k, zipf=0.0), users, [], seed=7)
        with (
            serving(repository, options.transport, trial=options.trial) as (address, admin, pid),
            grpc.insecure_channel(admin) as channel,
        ):
            stub = admin_pb2_grpc.AdminStub(channel)
            result = measure(Asking(address, stub, workload, options.k), pid, options)
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
    parser.add_argument("--steady", type=float, default=STEADY_SECONDS, help="seconds between the rounds")
    parser.add_argument("--rate", type=float, help="requests per second; default: 70 %% of the highest")
    parser.add_argument(
        "--no-trial", dest="trial", action="store_false", help="load in the server alone, as a baseline"
    )
    parser.add_argument("--users", type=int, default=1000)
    parser.add_argument("-k", type=int, default=10)
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    return parser.parse_args(arguments)


def measure(asking: Asking, pid: int, options: argparse.Namespace) -> dict[str, Any]:
    """Alternates steady windows and windows with swaps; returns the figures."""
    # Both versions were there once: what stays of the first load is not a leak.
    for _ in range(2 * len(VERSIONS)):
        asking.swap()
    rate = options.rate or LOAD * asking.highest_rate()
    n_swaps = -(-options.swaps // options.rounds)
    steady = [asking.steady(rate, options.steady)]
    # After the load that comes before the other look too: what waits then is memory as well.
    time.sleep(SETTLE_SECONDS)
    before = _memory(pid)
    swapped: list[Window] = []
    with console.progress("swaps", total=options.swaps) as update:
        while sum(len(window.swaps) for window in swapped) < options.swaps:
            swapped.append(asking.swapping(rate, n_swaps, options.interval))
            steady.append(asking.steady(rate, options.steady))
            update(len(swapped[-1].swaps))
    time.sleep(SETTLE_SECONDS)
    after = _memory(pid)
    # Of each round next to the steady windows before and after it.
    ratios = [
        2 * window.ms(99) / (earlier.ms(99) + later.ms(99))
        for window, (earlier, later) in zip(swapped, itertools.pairwise(steady), strict=True)
    ]
    median = statistics.median
    return {
        "interval_s": options.interval,
        "requests": sum(len(window.latencies) for window in (*steady, *swapped)),
        "requests_per_second": rate,
        "swaps": sum(len(window.swaps) for window in swapped),
        "failed": sum(window.failed for window in (*steady, *swapped)),
        "mixed": sum(window.mixed for window in (*steady, *swapped)),
        "swap_ms": 1000 * median(itertools.chain(*(window.swaps for window in swapped))),
        "steady_p50_ms": median(window.ms(50) for window in steady),
        "swaps_p50_ms": median(window.ms(50) for window in swapped),
        "steady_p99_ms": median(window.ms(99) for window in steady),
        "swaps_p99_ms": median(window.ms(99) for window in swapped),
        "p99_ratio": median(ratios),
        "p99_ratios": ratios,
        "rss_before_mb": before / 1e6,
        "rss_after_mb": after / 1e6,
        "rss_ratio": after / before,
    }


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


def _of_one_version(reply: bytes) -> dict[str, int]:
    """Raises ValueError for a slate that mixes versions; tells nothing else."""
    slate = pb.Slate.FromString(reply)
    if not is_of(slate.bundle_version, [item.item_id for item in slate.items]):
        raise ValueError("of several versions")
    return {}


def _window(samples: Samples) -> Window:
    counted = samples.due >= WARM_UP_SECONDS
    good = counted & (samples.code == OK)
    latencies = (samples.done - samples.due)[good]
    return Window(latencies, failed=int((samples.code != OK).sum()), mixed=samples.unreadable)


def _check(window: Window) -> None:
    if window.failed or window.mixed or not len(window.latencies):
        raise CheckFailed(
            "requests",
            found=f"{window.failed} failed, {window.mixed} mixed",
            expected="all answered, each by one version",
        )


if __name__ == "__main__":
    sys.exit(main())
