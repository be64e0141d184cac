"""What the engine adds to its parts: ``python -m recserve.benchmarks.engine_overhead BUNDLE``.

``parts``: the query embeddings (``InferenceSession.run`` on arrays that are there already, or the rows of a
table) and ``ItemIndex.search``, nothing else. ``ranked``: ``Engine.rank_each`` and the bytes of the replies.
``slates``: ``Engine.recommend_many`` with its Python objects. Both from requests by user id. One process, one
thread, interleaved; medians of rounds, ratios within a round.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from recserve import console
from recserve.benchmarks.environment import environment, machine_line
from recserve.engine import Engine, EngineConfig, Request
from recserve.engine.bundle import open_bundle
from recserve.engine.features import pad_histories
from recserve.engine.ranked import Ranked
from recserve.engine.runtime import Runtime
from recserve.engine.session import QueryEncoder
from recserve.engine.sources import open_source
from recserve.engine.wire.slates import encode_ranked
from recserve.kernels import ItemIndex

WAYS = ("parts", "ranked", "slates")


def main(arguments: list[str] | None = None) -> int:
    """Times every batch size and prints a table, or JSON."""
    parser = argparse.ArgumentParser(prog="recserve.benchmarks.engine_overhead", description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8, 64])
    parser.add_argument("-k", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    options = parser.parse_args(arguments)
    machine = environment(("numpy", "numba", "onnxruntime-gpu"))
    console.note(machine_line(machine))
    with Engine.load(options.bundle, EngineConfig(provider="cpu")) as engine:
        rows = [time_batch(engine, size, options) for size in options.batch]
    if options.json:
        console.print_json({"environment": machine, "k": options.k, "rows": rows})
    else:
        console.print_table(
            "µs per request (medians) and the ratio to the parts",
            ["batch", *WAYS, "ranked / parts", "slates / parts"],
            [
                [
                    row["batch"],
                    *(f"{row[way]:.1f}" for way in WAYS),
                    *(f"{row[way + '_ratio']:.2f}" for way in WAYS[1:]),
                ]
                for row in rows
            ],
        )
    return 0


def time_batch(engine: Engine, size: int, options: argparse.Namespace) -> dict[str, Any]:
    """Returns the medians of one batch size."""
    users = [engine.user_ids()[i] for i in np.random.default_rng(7).integers(0, len(engine.user_ids()), size)]
    requests = [Request(user_id=user, k=options.k) for user in users]
    ways: dict[str, Callable[[], object]] = {
        "parts": parts(options.bundle, users, options.k),
        "ranked": lambda: encode_ranked(
            [row for row in engine.rank_each(requests) if isinstance(row, Ranked)]
        ),
        "slates": lambda: engine.recommend_many(requests),
    }
    for way in ways.values():
        way()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, way in ways.items():
            start = time.perf_counter_ns()
            way()
            times[name].append((time.perf_counter_ns() - start) / 1e3 / size)
    row: dict[str, Any] = {"batch": size, **{name: statistics.median(found) for name, found in times.items()}}
    for name in WAYS[1:]:
        pairs = zip(times[name], times["parts"], strict=True)
        row[f"{name}_ratio"] = statistics.median(whole / bare for whole, bare in pairs)
    return row


def parts(folder: Path, users: list[str], k: int) -> Callable[[], object]:
    """Returns the bare inference and search for the histories of ``users``, on arrays made beforehand."""
    bundle = open_bundle(folder)
    source = open_source(
        bundle, bundle.manifest.default_variant, Runtime(bundle, EngineConfig(provider="cpu"))
    )
    histories = bundle.histories.get_many(users)
    index = ItemIndex.build(bundle.item_embeddings)
    indptr = np.concatenate([[0], np.cumsum([len(history.items) for history in histories])]).astype(np.int64)
    exclude = (indptr, np.concatenate([history.items for history in histories]))
    if isinstance(source, QueryEncoder):
        # One call, padded to the longest: what a program without an engine would do.
        padded = pad_histories([history.items for history in histories], source.max_history)
        return lambda: index.search(source.run(padded), k, exclude=exclude)
    return lambda: index.search(source.encode(histories, 0), k, exclude=exclude)


if __name__ == "__main__":
    sys.exit(main())
