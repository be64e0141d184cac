"""How far the load generator can be trusted: ``python -m recserve.benchmarks.load_check``.

*Alone*: it asks an echo server (the native transport's library, nothing behind it) as fast as it can, in
turns with h2load, which is written in C. *Together*: both look, going up and down in turns, for the highest
rate at which a server with the whole chain of this project keeps a promise. h2load has a clock of its own.
With --loadgen that server is also asked at half of that rate by MLPerf's LoadGen, at times that it draws.
"""

import argparse
import contextlib
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from recserve import console
from recserve.benchmarks import loadgen
from recserve.benchmarks.environment import describe, machine_line
from recserve.benchmarks.h2load import Shape, h2load, reply_bytes, require, write_body
from recserve.benchmarks.load.messages import Question, grpc_message
from recserve.benchmarks.load.options import Arrivals, Asked, Client, Pace, Slo, Target
from recserve.benchmarks.load.run import PACKAGES, Ids, Load
from recserve.benchmarks.load.search import highest_rate
from recserve.benchmarks.output import Output
from recserve.benchmarks.serving import SHAPES, serving
from recserve.benchmarks.statistics import median_interval
from recserve.benchmarks.tables import show
from recserve.engine.traces import RECOMMEND
from recserve.errors import CheckFailed

IN_FLIGHT = SHAPES[-1]
SEARCHED = Shape(8, 100)
ANSWERED = 0.98
LOWEST_RATE = 500.0
FIRST_PRECISION = 0.3
CONSTANT = Arrivals("constant")
GIVEN_UP_SECONDS = 5.0
USER = "1"


def main(arguments: list[str] | None = None) -> int:
    """Runs both checks and prints a table, or JSON."""
    options = parse(arguments)
    require()
    if options.loadgen:
        loadgen.require()
    machine = describe(PACKAGES)
    console.note(machine_line(machine))
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        body = write_body(grpc_message(Asked(), Question(RECOMMEND, USER)).body, Path(folder))
        echo = stack.enter_context(serving("echo", "native", options))
        chain = stack.enter_context(serving("chain", "grpcio", options))
        result = {
            "environment": machine,
            "alone": alone(echo, body, options),
            "together": together(chain, body, options),
        }
        if options.loadgen:
            result["loadgen"] = next_to_loadgen(chain, body, result["together"]["recserve"] / 2, options)
    Output(out=options.out, json=options.json).publish("load_check", result, show)
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="recserve.benchmarks.load_check", description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.5, help="per measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--slo-ms", type=float, default=20.0, help="limit of the 99th percentile")
    parser.add_argument("--turns", type=int, default=14, help="rates that each client is asked for")
    parser.add_argument("--step", type=float, default=0.06, help="from one rate to the next, as a share")
    parser.add_argument("--loadgen", action="store_true", help="ask with MLPerf's LoadGen too")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
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
        theirs.append(h2load(address, IN_FLIGHT, body, max(1, round(options.seconds)), size).per_second)
    return {
        "in_flight": str(IN_FLIGHT),
        "recserve": statistics.median(ours),
        "recserve_interval": median_interval(ours),
        "h2load": statistics.median(theirs),
        "rounds": {"recserve": ours, "h2load": theirs},
    }


def together(address: str, body: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Returns the highest rate that keeps the promise as each client finds it.

    Both go up and down in turns around the rate that one search has found (:func:`up_and_down`), so that what
    else the machine does meets both. Both ask at constant gaps, which is what h2load can do.
    """
    slo = Slo(99.0, options.slo_ms)
    load, size = generator(address, slo), reply_bytes(address, body)

    def ours(rate: float) -> bool:
        pace = Pace(
            rate=rate, arrivals=CONSTANT, warm_up=0.5, duration=options.seconds, timeout=GIVEN_UP_SECONDS
        )
        point = load.measure(pace)
        return all(point["slos"].values()) and not point["errors"]

    def theirs(rate: float) -> bool:
        one = h2load(address, SEARCHED, body, max(1, round(options.seconds)), size, rate)
        return one.per_second >= ANSWERED * rate and one.p99_us <= 1e3 * options.slo_ms

    start, _ = highest_rate(ours, LOWEST_RATE, FIRST_PRECISION)
    if start is None:
        raise CheckFailed(
            f"rate that holds {slo}",
            found=f"below {LOWEST_RATE:g}",
            expected="more",
            cure="Run it on a quiet machine.",
        )
    asked = up_and_down({"recserve": ours, "h2load": theirs}, start, options.turns, options.step)
    found = {name: statistics.median(rates) for name, rates in asked.items()}
    return {
        "slo": str(slo),
        **found,
        "intervals": {name: median_interval(rates) for name, rates in asked.items()},
        "ratio": found["recserve"] / found["h2load"],
        "asked": asked,
    }


def up_and_down(
    clients: Mapping[str, Callable[[float], bool]], start: float, turns: int, step: float
) -> dict[str, list[float]]:
    """Returns the rates that each client was asked for from its first change of direction on.

    A rate that held goes up by the share ``step``, one that broke down: the rates settle around the one that
    holds every other time, whatever single measurements say (Dixon and Mood 1948, doi:10.2307/2280071).
    """
    rates = dict.fromkeys(clients, start)
    held: dict[str, list[bool]] = {name: [] for name in clients}
    asked: dict[str, list[float]] = {name: [] for name in clients}
    for _ in range(turns):
        for name, holds in clients.items():
            held[name].append(holds(rates[name]))
            asked[name].append(rates[name])
            rates[name] *= 1 + step if held[name][-1] else 1 / (1 + step)
    for name, answers in held.items():
        turned = answers.index(not answers[0]) if len(set(answers)) == 2 else len(answers) - 1
        asked[name] = asked[name][turned:]
    return asked


def next_to_loadgen(address: str, body: Path, rate: float, options: argparse.Namespace) -> dict[str, Any]:
    """Returns the median and the 99th percentile at ``rate`` as each client finds it, rounds in turns."""
    load = generator(address)
    pace = Pace(rate=rate, warm_up=0, duration=options.seconds, timeout=GIVEN_UP_SECONDS)
    found: dict[str, dict[str, list[float]]] = {
        name: {"recserve": [], "loadgen": []} for name in ("p50", "p99")
    }
    for _ in range(options.rounds):
        ours = load.measure(pace)["latency_ms"]
        theirs = loadgen.server_scenario(address, body, rate, options.seconds)
        for name, microseconds in (("p50", theirs.p50_us), ("p99", theirs.p99_us)):
            found[name]["recserve"].append(ours[name])
            found[name]["loadgen"].append(1e-3 * microseconds)
    medians = {
        name: {client: statistics.median(values) for client, values in clients.items()}
        for name, clients in found.items()
    }
    return {"rate": rate, **medians, "rounds": found}


def generator(address: str, *slos: Slo) -> Load:
    """Returns the load generator, one process, asking for the one user that h2load asks for."""
    host, _, port = address.rpartition(":")
    return Load(
        Target("grpc", host, int(port)), Ids([USER]), client=Client(1, SEARCHED.connections), slos=slos
    )


if __name__ == "__main__":
    sys.exit(main())
