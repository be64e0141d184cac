"""Times the server: ``python -m recserve.benchmarks.serving BUNDLE`` (`make bench-serving BUNDLE=…`).

For each transport four servers run as processes of their own: ``echo`` (the transport alone, its ceiling),
``chain`` (an echo through the whole chain of the server), ``recommend`` (``recserve serve``), and
``unbatched`` (the same with batches of one). The client is h2load, written in C; a Python client would
measure itself. h2load does not look at gRPC statuses, so a checking client compares answers with the embedded
engine's before and after. Rounds are interleaved; figures are medians, ratios are made within a round.
"""

import argparse
import contextlib
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recserve import console
from recserve.benchmarks.environment import environment, machine_line
from recserve.benchmarks.h2load import Answered, Shape, h2load, reply_bytes, require, write_body
from recserve.benchmarks.servers import running
from recserve.engine import Engine, EngineConfig, Request
from recserve.engine.client import RecommenderClient
from recserve.engine.wire.convert import request_to_message
from recserve.errors import CheckFailed

SERVERS = ("echo", "chain", "unbatched", "recommend")
N_CHECKED = 20
WARM_UP_SECONDS = 1
CLIENT_TIMEOUT_SECONDS = 30.0


SHAPES = (Shape(1, 1), Shape(8, 32))


def main(arguments: list[str] | None = None) -> int:
    """Runs every case and prints a table, or JSON."""
    options = parse(arguments)
    require()
    machine = environment(("grpcio", "pygrpc-native", "uvloop", "protobuf", "onnxruntime-gpu"))
    console.note(machine_line(machine))
    rows: list[dict[str, Any]] = []
    with (
        Engine.load(options.bundle, EngineConfig(provider="cpu")) as engine,
        tempfile.TemporaryDirectory() as tmp,
    ):
        request = Request(user_id=next(iter(engine.user_ids()), ""), k=options.k)
        body = write_body(request_to_message(request).SerializeToString(), Path(tmp))
        for transport in options.transport:
            with contextlib.ExitStack() as stack:
                addresses = {name: stack.enter_context(serving(name, transport, options)) for name in SERVERS}
                check(engine, addresses["recommend"], options.k)
                rows += run(transport, addresses, body, options)
                check(engine, addresses["recommend"], options.k)
        bundle = {"n_items": engine.manifest.n_items, "embedding_size": engine.manifest.embedding_size}
    result = {"environment": machine, "bundle": bundle, "k": options.k, "rows": rows}
    if options.json:
        console.print_json(result)
    else:
        print_rows(rows)
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="recserve.benchmarks.serving", description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--transport", nargs="+", default=["native", "grpcio"], choices=["native", "grpcio"])
    parser.add_argument("--batcher-threads", type=int, default=None, help="default: the server's")
    parser.add_argument("-k", type=int, default=10)
    parser.add_argument("--seconds", type=int, default=3, help="per measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    return parser.parse_args(arguments)


@contextlib.contextmanager
def serving(name: str, transport: str, options: argparse.Namespace, *more: str) -> Iterator[str]:
    """Runs one of the servers, with ``more`` arguments; yields its address when it is ready."""
    if name in ("recommend", "unbatched"):
        command = [
            "recserve.engine.cli",
            "serve",
            str(options.bundle),
            "--port",
            "0",
            "--transport",
            transport,
        ]
        command += ["--provider", "cpu", *more]
    else:
        command = ["recserve.benchmarks.serving_echo", name, transport]
    settings = {"THREADS": options.batcher_threads, "MAX_SIZE": 1 if name == "unbatched" else None}
    extra = {f"RECSERVE__BATCHER__{key}": str(value) for key, value in settings.items() if value is not None}
    with running(f"server {name} over {transport}", command, extra) as server:
        yield server.address


def check(engine: Engine, address: str, k: int) -> None:
    """Raises :class:`CheckFailed` unless the server answers what the embedded engine does."""
    users = list(engine.user_ids()[:N_CHECKED]) or [""]
    with RecommenderClient(address, timeout=CLIENT_TIMEOUT_SECONDS) as client:
        for user in users:
            ours, theirs = (asked.recommend(Request(user_id=user, k=k)) for asked in (engine, client))
            if [item.item_id for item in ours.items] != [item.item_id for item in theirs.items]:
                raise CheckFailed(f"slate of {user}", found="another", expected="the embedded engine's")


def run(
    transport: str, addresses: dict[str, str], body: Path, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Measures each server under each load, in interleaved rounds."""
    sizes = {name: reply_bytes(address, body) for name, address in addresses.items()}
    for name, address in addresses.items():
        h2load(address, SHAPES[-1], body, WARM_UP_SECONDS, sizes[name])
    found: dict[tuple[str, Shape], list[Answered]] = {}
    for _ in range(options.rounds):
        for shape in SHAPES:
            for name in SERVERS:
                one = h2load(addresses[name], shape, body, options.seconds, sizes[name])
                found.setdefault((name, shape), []).append(one)
    rows = []
    for (name, shape), figures in found.items():
        ceiling = found["echo", shape]
        rows.append(
            {
                "transport": transport,
                "server": name,
                "in_flight": str(shape),
                "requests_per_second": statistics.median(one.per_second for one in figures),
                "p50_us": statistics.median(one.p50_us for one in figures),
                "p99_us": statistics.median(one.p99_us for one in figures),
                "of_echo": statistics.median(
                    own.per_second / echo.per_second for own, echo in zip(figures, ceiling, strict=True)
                ),
            }
        )
    return rows


def print_rows(rows: list[dict[str, Any]]) -> None:
    """Prints the table."""
    console.print_table(
        "serving (medians of interleaved rounds)",
        ["transport", "server", "in flight", "req/s", "p50 µs", "p99 µs", "of echo"],
        [
            [
                row["transport"],
                row["server"],
                row["in_flight"],
                f"{row['requests_per_second']:,.0f}",
                f"{row['p50_us']:.0f}",
                f"{row['p99_us']:.0f}",
                f"{row['of_echo']:.2f}",
            ]
            for row in rows
        ],
    )


if __name__ == "__main__":
    sys.exit(main())
