"""The server and an echo over the same transport, asked in turns by h2load.

``echo`` is the transport alone, its ceiling; ``chain`` an echo through the whole chain of the server;
``recommend`` is ``recserve serve``. Each is a process of its own. The client is h2load, written in C: one in
Python would measure itself. It does not look at gRPC statuses, so a checking client compares answers with
the embedded engine's before and after. Figures are medians of rounds in turns, ratios those within a round.
"""

import argparse
import contextlib
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recserve.benchmarks.h2load import Answered, Shape, h2load, reply_bytes, write_body
from recserve.benchmarks.servers import running
from recserve.engine import Engine, Request
from recserve.engine.client import RecommenderClient
from recserve.engine.wire.convert import request_to_message
from recserve.errors import CheckFailed

TRANSPORTS = ("native", "grpcio")
SERVERS = ("echo", "chain", "recommend")
# The same with batches of one.
UNBATCHED = "unbatched"
SHAPES = (Shape(1, 1), Shape(8, 32))
N_CHECKED = 20
N_USERS = 200
WARM_UP_SECONDS = 1
CLIENT_TIMEOUT_SECONDS = 30.0


@contextlib.contextmanager
def serving(name: str, transport: str, options: argparse.Namespace, *more: str) -> Iterator[str]:
    """Runs one of the servers, with ``more`` arguments; yields its address when it is ready.

    ``options``: ``bundle`` of those that have one, ``batcher_threads`` (None: the server's default).
    """
    if name in ("recommend", UNBATCHED):
        command = ["recserve.engine.cli", "serve", str(options.bundle), "--port", "0"]
        command += ["--transport", transport, "--provider", "cpu", *more]
    else:
        command = ["recserve.benchmarks.serving.echo", name, transport]
    # Without a brown-out: popular items, which cost next to nothing, are no answers of the model.
    settings = {
        "BROWNOUT": "false",
        "THREADS": options.batcher_threads,
        "MAX_SIZE": 1 if name == UNBATCHED else None,
    }
    extra = {f"RECSERVE__BATCHER__{key}": str(value) for key, value in settings.items() if value is not None}
    with running(f"server {name} over {transport}", command, extra) as server:
        yield server.address


def request_of(engine: Engine, k: int) -> Request:
    """Returns the one request that h2load sends: of the user with the longest history, so the dearest."""
    users = engine.user_ids()[:N_USERS] or [""]
    return Request(user_id=max(users, key=lambda user: len(engine.history(user)) if user else 0), k=k)


def ask_for(engine: Engine, k: int, folder: Path) -> Path:
    """Writes that request to a file in ``folder``; returns it."""
    return write_body(request_to_message(request_of(engine, k)).SerializeToString(), folder)


def check(engine: Engine, address: str, k: int) -> None:
    """Raises :class:`CheckFailed` unless the server answers what the embedded engine does."""
    users = list(engine.user_ids()[:N_CHECKED]) or [""]
    with RecommenderClient(address, timeout=CLIENT_TIMEOUT_SECONDS) as client:
        for user in users:
            ours, theirs = (asked.recommend(Request(user_id=user, k=k)) for asked in (engine, client))
            if [item.item_id for item in ours.items] != [item.item_id for item in theirs.items]:
                raise CheckFailed(f"slate of {user}", found="another", expected="the embedded engine's")


def measure(engine: Engine, transport: str, body: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns the rows of one transport: each server under each load; checked before and after."""
    with contextlib.ExitStack() as stack:
        addresses = {name: stack.enter_context(serving(name, transport, options)) for name in SERVERS}
        check(engine, addresses["recommend"], options.k)
        found = _rounds(addresses, body, options)
        check(engine, addresses["recommend"], options.k)
    return [
        {
            "transport": transport,
            "server": name,
            "in_flight": str(shape),
            "requests_per_second": statistics.median(one.per_second for one in figures),
            "p50_us": statistics.median(one.p50_us for one in figures),
            "p99_us": statistics.median(one.p99_us for one in figures),
            "of_echo": statistics.median(
                own.per_second / echo.per_second
                for own, echo in zip(figures, found["echo", shape], strict=True)
            ),
        }
        for (name, shape), figures in found.items()
    ]


def _rounds(
    addresses: dict[str, str], body: Path, options: argparse.Namespace
) -> dict[tuple[str, Shape], list[Answered]]:
    sizes = {name: reply_bytes(address, body) for name, address in addresses.items()}
    for name, address in addresses.items():
        h2load(address, SHAPES[-1], body, WARM_UP_SECONDS, sizes[name])
    found: dict[tuple[str, Shape], list[Answered]] = {}
    for _ in range(options.rounds):
        for shape in SHAPES:
            for name, address in addresses.items():
                one = h2load(address, shape, body, options.seconds, sizes[name])
                found.setdefault((name, shape), []).append(one)
    return found
