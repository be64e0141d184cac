"""The same bundle behind this server and behind what a user might pick instead, asked in turns.

Every server runs as a process of its own, the peers in environments of their own. All of them get the same
users from the same client, one after the other in each round; ratios are made within a round. Before that
each must give the answers of the embedded engine.
"""

import contextlib
import json
import socket
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from recserve import console
from recserve.benchmarks.environment import describe
from recserve.benchmarks.kernels.timing import check_same
from recserve.benchmarks.load.options import EMBED, Asked, Client, Pace, Target, read_target
from recserve.benchmarks.load.run import Ids, Load, read_ids
from recserve.benchmarks.peers.venv import PEERS, peer_python
from recserve.benchmarks.scale.grown import grow_bundle
from recserve.benchmarks.servers import Running, running
from recserve.engine import Engine, EngineConfig, Request
from recserve.engine.bundle import Bundle, layout, open_bundle
from recserve.engine.bundle.item_table import FLOAT32, FORMS
from recserve.engine.bundle.manifest import TABLE
from recserve.engine.client import RecommenderClient
from recserve.errors import CheckFailed, InvalidRequest, RecserveError

SCHEMA = 1
PACKAGES = ("numpy", "grpcio", "pygrpc-native", "uvicorn", "onnxruntime-gpu", "onnxruntime")
# By name: the script and what is pinned in the .txt of the same name.
SCRIPTS: Mapping[str, str] = MappingProxyType(
    {"fastapi": "serve_fastapi.py", "litserve": "serve_litserve.py", "ray": "serve_ray.py"}
)
OURS = ("recserve http", "recserve grpc", "recserve native")
READY_SECONDS, PAUSE_SECONDS, ANSWER_SECONDS = 90.0, 0.2, 10.0
N_CHECKED = 20
CONNECTIONS = 8
WARM_UP_SECONDS = 0.5
# As our engine does it, and what a server that answers many callers on few cores wants.
ONE_THREAD = MappingProxyType({"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"})

Answer = tuple[list[str], list[float]]


@dataclass(frozen=True, slots=True)
class Options:
    """``in_flight``: requests that wait for an answer at a time; ``seconds`` for each measurement.

    ``items``: the bundle's catalogue grows to so many (scale/grown.py), 0: as it is.
    """

    peers: tuple[str, ...] = tuple(SCRIPTS)
    in_flight: tuple[int, ...] = (1, 32)
    seconds: float = 3.0
    rounds: int = 3
    k: int = 10
    items: int = 0
    seed: int = 7

    def __post_init__(self) -> None:
        for name in self.peers:
            if name not in SCRIPTS:
                raise InvalidRequest("--peers", found=name, expected=f"some of {', '.join(SCRIPTS)}")
        for name, value in (("rounds", self.rounds), ("seconds", self.seconds), ("k", self.k)):
            if value <= 0:
                raise InvalidRequest(f"--{name}", found=value, expected="above 0")
        if not self.in_flight or min(self.in_flight) < 1:
            raise InvalidRequest("--in-flight", found=self.in_flight, expected="numbers above 0")


@dataclass(frozen=True, slots=True)
class Server:
    """A server that is ready, and where it is asked."""

    target: Target
    process: Running


def run(bundle: Path, cache: Path, options: Options) -> dict[str, Any]:
    """Measures and returns the result, ready for JSON. ``cache``: where environments of peers are kept.

    A peer that cannot be installed or started is left out; ``not_measured`` has the reason. One with other
    answers raises :class:`CheckFailed`.
    """
    with tempfile.TemporaryDirectory(prefix="recserve-peers-") as folder, contextlib.ExitStack() as stack:
        if options.items:
            grow_bundle(bundle, Path(folder) / "bundle", options.items, options.seed)
            bundle = Path(folder) / "bundle"
        ids = read_ids(Target(EMBED, path=str(bundle)), None, 0)
        write_material(open_bundle(bundle), Path(folder))
        servers = _start_ours(stack, bundle)
        reasons = {}
        for name in options.peers:
            try:
                servers[name] = stack.enter_context(_peer(name, Path(folder), cache, ids.users[0]))
            except RecserveError as error:
                reasons[name] = str(error)
                console.note(f"not measured: {name}: {error}")
        with Engine.load(bundle, EngineConfig(provider="cpu")) as engine:
            for name, server in servers.items():
                check_answers(name, server.target, engine, ids, options.k)
        rows = _measure(servers, ids, options)
    return {
        "schema": SCHEMA,
        "bench": "peers",
        "environment": describe(PACKAGES),
        "n_items": len(ids.items),
        "k": options.k,
        "rows": rows,
        "not_measured": reasons,
        "versions": {name: _pinned(name) for name in options.peers if name not in reasons},
    }


def write_material(bundle: Bundle, folder: Path) -> None:
    """Writes what a server without this project needs besides the bundle's own files (top_list.py)."""
    entry = bundle.manifest.variants[bundle.manifest.default_variant]
    if entry.query == TABLE or bundle.manifest.inputs.features != [layout.HISTORY_INPUT]:
        raise InvalidRequest(
            f"bundle {bundle.folder}",
            found="without an encoder of histories alone",
            expected="one of a sequence model without time gaps",
        )
    users = list(bundle.histories.vocabulary)
    if not users:
        raise InvalidRequest(f"bundle {bundle.folder}", found="without users", expected="their histories")
    histories = [history.items for history in bundle.histories.get_many(users)]
    np.savez(
        folder / "known.npz",
        user_ids=np.array(users),
        item_ids=np.array(bundle.catalogue.vocabulary.ids(range(bundle.manifest.n_items))),
        indptr=np.concatenate([[0], np.cumsum([len(items) for items in histories])]),
        items=np.concatenate(histories),
    )
    stored, bundle_folder = FORMS[bundle.manifest.item_table], bundle.folder.resolve()
    vectors = bundle_folder / layout.ITEM_EMBEDDINGS
    if bundle.manifest.item_table != FLOAT32:
        vectors = folder / layout.ITEM_EMBEDDINGS
        np.save(vectors, bundle.item_embeddings)
    settings = {
        "bundle": str(bundle_folder),
        "graph": str(bundle_folder / entry.query_encoder),
        "item_embeddings": str(vectors),
        "initializers": {name: str(bundle_folder / part.file) for name, part in stored.items()},
        "max_history": bundle.manifest.inputs.max_history,
        "input": layout.HISTORY_INPUT,
        "output": layout.QUERY_EMBEDDING_OUTPUT,
        "external_folder_option": layout.EXTERNAL_FOLDER_OPTION,
    }
    (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")


def _start_ours(stack: contextlib.ExitStack, bundle: Path) -> dict[str, Server]:
    command = ["recserve.engine.cli", "serve", str(bundle), "--port", "0", "--provider", "cpu"]
    grpcio = [*command, "--transport", "grpcio", "--http-port", "0"]
    first = stack.enter_context(running("recserve serve", grpcio, {}, with_url=True))
    native = [*command, "--transport", "native"]
    second = stack.enter_context(running("recserve serve, native", native, {}))
    targets = (first.url, f"grpc://{first.address}", f"grpc://{second.address}")
    return {
        name: Server(read_target(target), process)
        for name, target, process in zip(OURS, targets, (first, first, second), strict=True)
    }


@contextlib.contextmanager
def _peer(name: str, folder: Path, cache: Path, user: str) -> Iterator[Server]:
    python = peer_python(name, cache)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    target = Target("http", "127.0.0.1", port)
    command = [str(PEERS / SCRIPTS[name]), str(folder), str(port)]
    with running(name, command, ONE_THREAD, python=str(python)) as process:
        deadline = time.monotonic() + READY_SECONDS
        while not _answers(target, user):
            if time.monotonic() > deadline:
                raise CheckFailed(name, found=f"silent for {READY_SECONDS:g} s", expected="an answer")
            time.sleep(PAUSE_SECONDS)
        yield Server(target, process)


def _answers(target: Target, user: str) -> bool:
    try:
        ask_http(target, user, 1)
    except OSError:
        return False
    return True


def ask_http(target: Target, user: str, k: int) -> Answer:
    """Returns ids and scores of one answer in JSON."""
    request = urllib.request.Request(
        f"http://{target.host}:{target.port}/v1/recommend",
        json.dumps({"user_id": user, "k": k}).encode(),
        # Our gateway gives up after a second otherwise; the peers do not look at it.
        {"content-type": "application/json", "grpc-timeout": f"{ANSWER_SECONDS:.0f}S"},
    )
    with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as reply:
        items = json.load(reply)["items"]
    return [item["itemId"] for item in items], [item["score"] for item in items]


def check_answers(name: str, target: Target, engine: Engine, ids: Ids, k: int) -> None:
    """Raises :class:`CheckFailed` unless the server answers some users as the engine does, ties aside."""
    index = {item: i for i, item in enumerate(ids.items)}
    for user in ids.users[:: max(1, len(ids.users) // N_CHECKED)][:N_CHECKED]:
        slate = engine.recommend(Request(user_id=user, k=k))
        own = [item.item_id for item in slate.items], [item.score for item in slate.items]
        if target.scheme == "http":
            theirs = ask_http(target, user, k)
        else:
            with RecommenderClient(f"{target.host}:{target.port}", timeout=ANSWER_SECONDS) as client:
                said = client.recommend(Request(user_id=user, k=k))
            theirs = [item.item_id for item in said.items], [item.score for item in said.items]
        if len(own[0]) != len(theirs[0]):
            raise CheckFailed(f"answer of {name}", found=f"{len(theirs[0])} items", expected=f"{len(own[0])}")
        arrays = [
            (np.array([scores], np.float32), np.array([[index[item] for item in items]]))
            for items, scores in (own, theirs)
        ]
        check_same(name, *arrays)


def _measure(servers: Mapping[str, Server], ids: Ids, options: Options) -> list[dict[str, Any]]:
    rows = []
    with console.progress("rounds", total=options.rounds * len(options.in_flight)) as update:
        for in_flight in options.in_flight:
            found: dict[str, list[dict[str, float]]] = {name: [] for name in servers}
            for _ in range(options.rounds):
                for name, server in servers.items():
                    found[name].append(_ask(name, server, ids, in_flight, options))
                update()
            rate = "requests_per_second"
            rows += [
                {
                    "server": name,
                    "in_flight": in_flight,
                    **{figure: statistics.median(one[figure] for one in own) for figure in own[0]},
                    "of_recserve_http": statistics.median(
                        one[rate] / ours[rate] for one, ours in zip(own, found[OURS[0]], strict=True)
                    ),
                }
                for name, own in found.items()
            ]
    return rows


def _ask(name: str, server: Server, ids: Ids, in_flight: int, options: Options) -> dict[str, float]:
    connections = in_flight if server.target.scheme == "http" else min(in_flight, CONNECTIONS)
    load = Load(server.target, ids, Asked(k=options.k), Client(1, connections))
    pace = Pace(
        concurrency=in_flight, warm_up=WARM_UP_SECONDS, duration=options.seconds, timeout=ANSWER_SECONDS
    )
    cpu = server.process.cpu_seconds()
    point = load.measure(pace)
    cpu = server.process.cpu_seconds() - cpu
    if point["errors"]:
        raise CheckFailed(f"answers of {name}", found=str(point["errors"]), expected="no errors")
    return {
        "requests_per_second": point["answered_per_second"],
        "p50_ms": point["latency_ms"]["p50"],
        "p99_ms": point["latency_ms"]["p99"],
        "cpu_us_per_request": 1e6 * cpu / (point["requests"] + point["warm_up"]["requests"]),
    }


def _pinned(name: str) -> Sequence[str]:
    lines = (PEERS / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if not line.startswith("#")]
