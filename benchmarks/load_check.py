"""How far the load generator can be trusted: ``python -m recserve.benchmarks.load_check``.

*Alone*: it asks an echo server (the native transport's library, nothing behind it) as fast as it can, in
turns with h2load, which is written in C. *Together*: both look, by the same search, for the highest rate at
which a server with the whole chain of this project keeps a promise. h2load has a clock of its own.
"""

import argparse
import contextlib
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from recserve import console
from recserve.benchmarks.environment import describe, machine_line
from recserve.benchmarks.load.messages import Question, grpc_message
from recserve.benchmarks.load.options import Asked, Client, Pace, Slo, Target
from recserve.benchmarks.load.run import PACKAGES, Ids, Load
from recserve.benchmarks.load.search import highest_rate
from recserve.benchmarks.serving import PATH, SHAPES, h2load, reply_bytes, serving
from recserve.benchmarks.statistics import median_interval, percentiles
from recserve.errors import CheckFailed, ConfigError

IN_FLIGHT = SHAPES[-1]
CONNECTIONS, STREAMS = 8, 100
ANSWERED = 0.98
LOWEST_RATE = 500.0
USER = "1"


def main(arguments: list[str] | None = None) -> int:
    """Runs both checks and prints a table, or JSON."""
    options = parse(arguments)
    if shutil.which("h2load") is None:
        raise ConfigError(
            "h2load",
            found="not installed",
            expected="on the path",
            cure="Install the package nghttp2-client.",
        )
    machine = describe(PACKAGES)
    console.note(machine_line(machine))
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        body = Path(folder) / "request.bin"
        message = grpc_message(Asked(), Question("recommend", USER)).body
        body.write_bytes(b"\0" + struct.pack(">I", len(message)) + message)
        echo = stack.enter_context(serving("echo", "native", options))
        chain = stack.enter_context(serving("chain", "grpcio", options))
        result = {
            "environment": machine,
            "alone": alone(echo, body, options),
            "together": together(chain, body, options),
        }
    if options.json:
        console.print_json(result)
    else:
        show(result)
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="recserve.benchmarks.load_check", description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="per measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--slo-ms", type=float, default=20.0, help="limit of the 99th percentile")
    parser.add_argument("--precision", type=float, default=0.05)
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.set_defaults(batcher_threads=None)
    return parser.parse_args(arguments)


def alone(address: str, body: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Returns requests per second of both clients on an echo, closed loop, rounds in turns."""
    load = generator(address)
    size = reply_bytes(address, body)
    pace = Pace(concurrency=IN_FLIGHT.connections * IN_FLIGHT.streams, warm_up=1, duration=options.seconds)
    ours, theirs = [], []
    for _ in range(options.rounds):
        ours.append(load.measure(pace)["answered_per_second"])
        theirs.append(h2load(address, IN_FLIGHT, body, max(1, round(options.seconds)), size)[0])
    return {
        "in_flight": str(IN_FLIGHT),
        "recserve": statistics.median(ours),
        "recserve_interval": median_interval(ours),
        "h2load": statistics.median(theirs),
        "rounds": {"recserve": ours, "h2load": theirs},
    }


def together(address: str, body: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Returns the highest rate that keeps the promise as each client finds it, rounds in turns."""
    slo = Slo(99.0, options.slo_ms)
    load = generator(address, slo)

    def ours(rate: float) -> bool:
        point = load.measure(Pace(rate=rate, warm_up=0.5, duration=options.seconds, timeout=5.0))
        return all(point["slos"].values()) and not point["errors"]

    def theirs(rate: float) -> bool:
        answered, p99_ms = h2load_at(address, rate, body, max(1, round(options.seconds)))
        return answered >= ANSWERED * rate and p99_ms <= options.slo_ms

    found: dict[str, list[float]] = {"recserve": [], "h2load": []}
    for _ in range(options.rounds):
        for name, holds in (("recserve", ours), ("h2load", theirs)):
            rate, _ = highest_rate(holds, LOWEST_RATE, options.precision)
            if rate is None:
                raise CheckFailed(
                    f"rate that holds {slo} as {name} sees it",
                    found=f"below {LOWEST_RATE:g}",
                    expected="more",
                    cure="Run it on a quiet machine.",
                )
            found[name].append(rate)
    ratios = [own / other for own, other in zip(*found.values(), strict=True)]
    return {
        "slo": str(slo),
        "recserve": statistics.median(found["recserve"]),
        "h2load": statistics.median(found["h2load"]),
        "ratio": statistics.median(ratios),
        "rounds": found,
    }


def generator(address: str, *slos: Slo) -> Load:
    """Returns the load generator, one process, asking for the one user that h2load asks for."""
    host, _, port = address.rpartition(":")
    return Load(Target("grpc", host, int(port)), Ids([USER]), client=Client(1, CONNECTIONS), slos=slos)


def h2load_at(address: str, rate: float, body: Path, seconds: int) -> tuple[float, float]:
    """Returns answers per second and the 99th percentile in ms of h2load at a constant rate."""
    log = body.with_suffix(".log")
    command = [
        "h2load", "-D", f"{seconds}", "-t", "1", "-c", str(CONNECTIONS), "-m", str(STREAMS),
        f"--rps={rate / CONNECTIONS:.3f}", "-d", str(body), "-H", "content-type: application/grpc",
        "-H", "te: trailers", f"--log-file={log}", f"http://{address}{PATH}",
    ]  # fmt: skip
    subprocess.run(command, capture_output=True, check=True)
    latencies = [int(line.split("\t")[2]) / 1e3 for line in log.read_text().splitlines()]
    log.unlink()
    return len(latencies) / seconds, percentiles(np.array(latencies), [99.0])[0]


def show(result: dict[str, Any]) -> None:
    """Prints the table."""
    one, two = result["alone"], result["together"]
    console.print_table(
        f"the load generator and h2load (medians of {len(two['rounds']['recserve'])} rounds in turns)",
        ["what", "recserve", "h2load", "ratio"],
        [
            [
                f"echo, {one['in_flight']} in flight, req/s",
                f"{one['recserve']:,.0f}",
                f"{one['h2load']:,.0f}",
                f"{one['recserve'] / one['h2load']:.2f}",
            ],
            [
                f"highest rate with {two['slo']}",
                f"{two['recserve']:,.0f}",
                f"{two['h2load']:,.0f}",
                f"{two['ratio']:.2f}",
            ],
        ],
    )


if __name__ == "__main__":
    sys.exit(main())
