"""Ten times more requests than the model can answer: ``python -m recserve.benchmarks.overload``.

A SASRec of real weight (width 256, 4 blocks, the newest 200 events, 100,000 items) behind a real server. An
open loop, which does not wait for answers, offers ten times the peak that a closed loop found before. All
requests are interactive and have one deadline. Afterwards one caller asks until answers are as they were.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from recserve.benchmarks.environment import check_compiled, describe
from recserve.benchmarks.kernels.bars import Bar
from recserve.benchmarks.load.connection import OK
from recserve.benchmarks.load.options import EMBED, Asked, Client, Pace, Target, read_target
from recserve.benchmarks.load.run import PACKAGES, Load, read_ids
from recserve.benchmarks.output import Output
from recserve.benchmarks.servers import Running, running
from recserve.benchmarks.serving.cases import BATCH, METRIC, metrics
from recserve.benchmarks.statistics import percentiles
from recserve.benchmarks.tables import RESULTS, show
from recserve.engine import Request
from recserve.engine.client import RecommenderClient
from recserve.errors import CheckFailed

SCHEMA = 1
TIMES = 10.0
MODEL = "sasrec-large"
# While one batch of this model is computed, hundreds of calls arrive at that rate.
SETTINGS = {"RECSERVE__SERVER__MAX_IN_FLIGHT": "2048"}
WARM_UP_SECONDS = 0.5
SAMPLE_SECONDS = 0.05
N_CALM = 50
# As it was: no answer without the model, and none slower than so many times the calm median.
SLOWER, RECOVER_SECONDS = 3.0, 30.0
N_IN_A_ROW = 20

BARS = (
    Bar("answers in time, of the peak", "", 0.9, None, lambda result: result["goodput_of_peak"]),
    Bar("answers by the model, of the peak", "", 0.9, None, lambda result: result["model_of_peak"]),
    Bar("p99 of what was answered, of the deadline", "", 1, None, lambda r: r["p99_of_deadline"], False),
    Bar("calls that got a list in time", "", 0.99, None, lambda result: result["share_in_time"]),
    Bar("recovery", "s", 5, None, lambda result: result["recovery_s"], at_least=False),
    Bar("memory at its highest, of before", "", 1.25, None, lambda r: r["rss_of_before"], at_least=False),
)


def main(arguments: list[str] | None = None) -> int:
    """Runs it, writes the result and prints its tables."""
    parser = argparse.ArgumentParser(prog="recserve.benchmarks.overload", description=__doc__)
    parser.add_argument("--bundles", type=Path, help="where the bundle is kept from run to run")
    parser.add_argument("--transport", default="native", choices=["native", "grpcio"])
    parser.add_argument("--seconds", type=float, default=10.0, help="of overload")
    parser.add_argument("--deadline-ms", type=int, default=500)
    parser.add_argument("--out", type=Path, default=RESULTS / "overload.json")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the tables")
    options = parser.parse_args(arguments)
    check_compiled()
    with tempfile.TemporaryDirectory(prefix="recserve-overload-") as scratch:
        folder = options.bundles or Path(scratch)
        if not (folder / MODEL).exists():
            command = [sys.executable, "-m", "recserve.benchmarks.serving.bundles", str(folder), MODEL]
            subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        result = measure(folder / MODEL, options)
    result = {"schema": SCHEMA, "bench": "overload", "environment": describe(PACKAGES), **result}
    result["bars"] = [bar.judge(result) for bar in BARS]
    Output(options.out, json=options.json).publish("overload", result, show)
    return 0


def measure(bundle: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Finds the peak, offers ten times that, waits for the recovery."""
    ids = read_ids(Target(EMBED, path=str(bundle)), None, 0)
    command = ["recserve.engine.cli", "serve", str(bundle), "--port", "0", "--provider", "cpu"]
    command += ["--transport", options.transport, "--http-port", "0"]
    deadline = options.deadline_ms / 1e3
    with running("recserve serve", command, SETTINGS, with_url=True) as server:
        load = Load(read_target(f"grpc://{server.address}"), ids, Asked(), Client(1, 8))
        calm_ms = calm(server.address, ids.users[0])
        closed = Pace(concurrency=BATCH, warm_up=WARM_UP_SECONDS, duration=options.seconds / 2, timeout=10.0)
        peak = load.measure(closed)["answered_per_second"]
        before, counted = memory(server), metrics(server.url)
        with Watch(server) as watch:
            pace = Pace(
                rate=TIMES * peak, warm_up=WARM_UP_SECONDS, duration=options.seconds, timeout=deadline
            )
            samples = load.sample(pace)
        after = metrics(server.url)
        recovery = recover(server.address, ids.users[0], SLOWER * calm_ms)
    asked = samples.due >= WARM_UP_SECONDS
    latency = samples.done - samples.due
    good = asked & (samples.code == OK) & (latency <= deadline)
    answered = asked & (samples.code == OK)
    if not good.any():
        raise CheckFailed("answers in time", found=0, expected="some")
    # The warm-up is overload as well: what the server counts has both.
    by_model = after[METRIC.format("rows")] - counted[METRIC.format("rows")]
    return {
        "deadline_ms": options.deadline_ms,
        "calm_p50_ms": calm_ms,
        "peak_per_second": peak,
        "offered_per_second": float(asked.sum() / options.seconds),
        "in_time_per_second": float(good.sum() / options.seconds),
        "by_model_per_second": by_model / (options.seconds + WARM_UP_SECONDS),
        "goodput_of_peak": float(good.sum() / options.seconds / peak),
        "model_of_peak": by_model / (options.seconds + WARM_UP_SECONDS) / peak,
        "share_in_time": float(good.sum() / asked.sum()),
        "p99_of_deadline": float(percentiles(latency[answered], [99.0])[0] / deadline),
        "client_late_p99_ms": float(1e3 * np.quantile((samples.noticed - samples.due)[asked], 0.99)),
        "client_busy": samples.busy,
        "recovery_s": recovery,
        "rss_before_mb": before / 1e6,
        "rss_of_before": watch.highest / before,
    }


def calm(address: str, user: str) -> float:
    """Returns the median latency of one caller, in milliseconds."""
    with RecommenderClient(address, timeout=RECOVER_SECONDS) as client:
        return statistics.median(_ask(client, user)[0] for _ in range(N_CALM))


def recover(address: str, user: str, limit_ms: float) -> float:
    """Returns the seconds until the first of 20 answers in a row that are by the model and fast enough."""
    begin, since, n = time.monotonic(), 0.0, 0
    with RecommenderClient(address, timeout=RECOVER_SECONDS) as client:
        while n < N_IN_A_ROW:
            asked = time.monotonic() - begin
            if asked > RECOVER_SECONDS:
                raise CheckFailed("recovery", found=f"none in {asked:.0f} s", expected="answers as before")
            ms, degraded = _ask(client, user)
            n = 0 if degraded or ms > limit_ms else n + 1
            since = asked if n == 1 else since
    return since


def _ask(client: RecommenderClient, user: str) -> tuple[float, tuple[str, ...]]:
    begin = time.perf_counter()
    slate = client.recommend(Request(user_id=user))
    return 1e3 * (time.perf_counter() - begin), slate.degraded


def memory(server: Running) -> int:
    """Returns the resident memory of the server in bytes (Linux)."""
    status = Path(f"/proc/{server.process_id}/status").read_text(encoding="utf-8")
    [line] = [line for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) * 1024


class Watch:
    """Looks at the memory of a server again and again; ``highest`` is the most that it saw, in bytes."""

    def __init__(self, server: Running) -> None:
        self.highest = memory(server)
        self._server = server
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(SAMPLE_SECONDS):
            self.highest = max(self.highest, memory(self._server))


if __name__ == "__main__":
    sys.exit(main())
