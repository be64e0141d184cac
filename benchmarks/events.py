"""Times the event log: ``python -m recserve.benchmarks.events BUNDLE`` (`make bench-events BUNDLE=…`).

``recserve serve --state sqlite:///…`` runs as a process of its own, its log durable against a power failure.
One process sends batches of events of many users and looks at every reply; the load generator of
``bench load`` times single Record and Recommend calls from the moment at which they were due. Clients and
server share the machine, so rounds alternate between three: Recommend alone; while the promised rate of
events goes to a process that forgets them, which is what clients and transport cost by themselves; and while
the server itself gets them. The promise is about the third by the second, over grpcio: that is all that the
process which forgets speaks, and it costs more than native. At the end the log must have every acknowledged
event of the batches, and is brought to memory once more, as at a start.
"""

import argparse
import contextlib
import itertools
import multiprocessing
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc

from recserve import console
from recserve.benchmarks.environment import describe, machine_line
from recserve.benchmarks.kernels.bars import Bar
from recserve.benchmarks.load.options import Asked, Pace, Target
from recserve.benchmarks.load.run import PACKAGES, Load, read_ids
from recserve.benchmarks.output import Output
from recserve.benchmarks.serving import serving
from recserve.benchmarks.tables import show
from recserve.engine.server.feedback import PREFIX
from recserve.engine.state.config import StateConfig
from recserve.engine.state.state import open_state, read_log
from recserve.errors import CheckFailed
from recserve.proto import feedback_pb2 as pb

RATE = 20_000
BARS = (
    Bar("events, flat out", "/s", RATE, None, lambda found: found["events_per_second"]),
    Bar("events, beside Recommend", "/s", 0.99 * RATE, None, lambda found: found["events_per_second_beside"]),
    Bar("p99 of a single Record", "ms", 15, None, lambda found: found["record_p99_ms"], at_least=False),
    Bar(
        "p99 of Recommend, of that beside a server that forgets",
        "",
        1.3,
        None,
        lambda found: found["of_forgotten"],
        at_least=False,
    ),
    Bar("events of a log read at a start", "/s", 200_000, None, lambda found: found["rebuilt_per_second"]),
)
N_CALLERS = 4
ID_MARK = "-"
N_USERS = 5_000
WARM_UP_SECONDS = 2.0
TIMEOUT_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Ingest:
    """``batch`` events a call, flat out or ``rate`` events per second; ``items``: what they are about."""

    address: str
    items: tuple[str, ...]
    batch: int
    rate: float = 0.0


def ingest(work: Ingest, seconds: float, started: Any, acknowledged: Any) -> None:
    """Sends until the time is over (a process of its own); ``acknowledged`` gets the number of events."""
    end = 0.0
    counts: list[int] = []
    first = time.time_ns()

    def call(number: int) -> None:
        stored = 0
        with grpc.insecure_channel(work.address, options=[("grpc.channel_number", number)]) as channel:
            record = channel.unary_unary(PREFIX + "Record", None, pb.RecordResponse.FromString)
            sent = 0
            for batch in itertools.count(number, N_CALLERS):
                body = _batch(work, first, batch)
                # Callers take turns.
                due = begin + (sent * N_CALLERS + number * work.batch) / work.rate if work.rate else 0.0
                time.sleep(max(0.0, due - time.perf_counter()))
                if time.perf_counter() >= end:
                    break
                reply = record(body, timeout=TIMEOUT_SECONDS)
                if reply.stored != work.batch or reply.durability != pb.POWER:
                    raise CheckFailed("reply to Record", found=str(reply), expected="all stored, POWER")
                stored += reply.stored
                sent += work.batch
        counts.append(stored)

    begin = time.perf_counter()
    end = begin + seconds
    callers = [threading.Thread(target=call, args=(number,)) for number in range(N_CALLERS)]
    for caller in callers:
        caller.start()
    started.set()
    for caller in callers:
        caller.join()
    # A caller that failed is missing, and so is its sum.
    acknowledged.put(sum(counts) if len(counts) == N_CALLERS else -1)


def _batch(work: Ingest, first: int, batch: int) -> bytes:
    numbers = range(batch * work.batch, (batch + 1) * work.batch)
    return pb.RecordRequest(
        events=[
            pb.Event(
                user_id=f"user-{number * 7919 % N_USERS}",
                item_id=work.items[number * 31 % len(work.items)],
                action="view",
                timestamp=1_750_000_000 + number,
                event_id=f"{first:x}{ID_MARK}{number:x}",
            )
            for number in numbers
        ]
    ).SerializeToString()


@contextlib.contextmanager
def ingesting(work: Ingest, seconds: float) -> Iterator[Any]:
    """Runs :func:`ingest` beside what is inside; yields the queue that will have the number of events."""
    context = multiprocessing.get_context("spawn")
    started, acknowledged = context.Event(), context.SimpleQueue()
    process = context.Process(target=ingest, args=(work, seconds, started, acknowledged))
    process.start()
    try:
        if not started.wait(TIMEOUT_SECONDS):
            raise CheckFailed("sender of events", found="not running", expected="running")
        yield acknowledged
    finally:
        process.join()


def main(arguments: list[str] | None = None) -> int:
    """Measures, writes the result, and returns 1 when a promise did not hold."""
    options = parse(arguments)
    machine = describe((*PACKAGES, "apsw", "cryptography"))
    console.note(machine_line(machine))
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        state = f"sqlite:///{folder}/events"
        with (
            serving("recommend", options.transport, options, "--state", state) as address,
            serving("discard", "grpcio", options) as forgetful,
        ):
            figures = measure(address, forgetful, options)
        # Events of single calls have ids that the server made.
        n_logged = sum(ID_MARK in one.event.event_id for one in read_log(StateConfig(url=state)))
        figures["rebuilt_per_second"] = rebuilt_per_second(state)
    if n_logged != figures["acknowledged"]:
        raise CheckFailed(
            "events in the log", found=n_logged, expected=f"{figures['acknowledged']}, as acknowledged"
        )
    bars = [bar.judge(figures) for bar in BARS]
    result = {
        "bench": "events",
        "environment": machine,
        "transport": options.transport,
        **figures,
        "bars": bars,
    }
    Output(options.out, json=options.json).publish("events", result, show)
    return 0 if all(bar["reached"] for bar in bars) else 1


def rebuilt_per_second(state: str) -> float:
    """Returns how many events a second a start brings from the log to memory, as its log line says."""
    with open_state(StateConfig(url=state)) as opened:
        loaded = opened.load()
    return loaded.n_events / loaded.seconds


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="recserve.benchmarks.events", description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--transport", default="grpcio", choices=["native", "grpcio"])
    parser.add_argument("--batch", type=int, default=500, help="events a call")
    parser.add_argument("--seconds", type=float, default=10.0, help="of ingest flat out, and of single calls")
    parser.add_argument("--rounds", type=int, default=4, help="of Recommend without and with ingest")
    parser.add_argument("--round-seconds", type=float, default=4.0)
    parser.add_argument("--rate", type=float, default=100.0, help="single calls per second")
    parser.add_argument("--folder", type=Path, help="where the log lies: on the disk to be measured")
    parser.add_argument("--out", type=Path, help="write the result as JSON to a file as well")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.set_defaults(batcher_threads=None)
    return parser.parse_args(arguments)


def measure(address: str, forgetful: str, options: argparse.Namespace) -> dict[str, Any]:
    """Asks the server, and one that forgets; returns the figures, and how many events were acknowledged."""
    host, _, port = address.rpartition(":")
    target = Target("grpc", host, int(port))
    ids = read_ids(target, options.bundle, 0)
    recommend, record = Load(target, ids), Load(target, ids, Asked(mix=(("feedback", 1.0),)))
    work = Ingest(address, tuple(ids.items), options.batch)

    def pace(seconds: float) -> Pace:
        return Pace(rate=options.rate, warm_up=WARM_UP_SECONDS, duration=seconds, timeout=TIMEOUT_SECONDS)

    def beside(where: str) -> tuple[dict[str, float], int]:
        seconds = options.round_seconds + WARM_UP_SECONDS
        with ingesting(replace(work, address=where, rate=RATE), seconds) as acknowledged:
            found = _checked(recommend.measure(pace(options.round_seconds)))
            return found, acknowledged.get()

    with ingesting(work, options.seconds) as acknowledged:
        n_flat_out = acknowledged.get()
    single = _checked(record.measure(pace(options.seconds)))
    alone: list[float] = []
    forgotten: list[float] = []
    kept: list[float] = []
    n_beside: list[int] = []
    for _ in range(options.rounds):
        alone.append(_checked(recommend.measure(pace(options.round_seconds)))["p99"])
        forgotten.append(beside(forgetful)[0]["p99"])
        found, n_events = beside(address)
        kept.append(found["p99"])
        n_beside.append(n_events)
    return {
        "acknowledged": n_flat_out + sum(n_beside),
        "batch": options.batch,
        "events_per_second": n_flat_out / options.seconds,
        "single_calls_per_second": options.rate,
        "record_p50_ms": single["p50"],
        "record_p99_ms": single["p99"],
        "recommend_p99_ms": statistics.median(alone),
        "recommend_p99_forgotten_ms": statistics.median(forgotten),
        "recommend_p99_beside_ms": statistics.median(kept),
        "events_per_second_beside": statistics.median(n_beside) / (options.round_seconds + WARM_UP_SECONDS),
        "of_forgotten": statistics.median(b / a for a, b in zip(forgotten, kept, strict=True)),
        "of_alone": statistics.median(b / a for a, b in zip(alone, kept, strict=True)),
    }


def _checked(point: dict[str, Any]) -> dict[str, float]:
    """Returns the latencies in ms; raises :class:`CheckFailed` when a call failed."""
    if any(point["errors"].values()):
        raise CheckFailed("calls", found=f"failed {point['errors']}", expected="answered")
    found: dict[str, float] = point["latency_ms"]
    return found


if __name__ == "__main__":
    sys.exit(main())
