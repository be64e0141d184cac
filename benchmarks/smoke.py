"""Ratios that should not move, in under two minutes: ``python -m recserve.benchmarks.smoke`` (bench-smoke).

Absolute times say more of the machine than of the code, so both sides of each ratio run in turns here and
now. Higher is better throughout. The result before is compared and the change told; nothing fails on it.
"""

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recserve import console
from recserve.benchmarks import compare, engine_overhead
from recserve.benchmarks.environment import check_compiled, describe
from recserve.benchmarks.kernels import data, timing
from recserve.benchmarks.kernels.peers import numpy_search
from recserve.benchmarks.load.options import EMBED, Asked, Client, Pace, Target, read_target
from recserve.benchmarks.load.run import PACKAGES, Load, read_ids
from recserve.benchmarks.runs import trained_run
from recserve.benchmarks.serving import serving
from recserve.benchmarks.serving.bundles import SHAPES
from recserve.benchmarks.statistics import median_interval
from recserve.benchmarks.tables import RESULTS, show
from recserve.engine import Engine, EngineConfig
from recserve.exporters.assemble import export_run
from recserve.kernels import ItemIndex
from recserve.training.data import load_dataset
from recserve.training.loop_config import LoopConfig
from recserve.training.run import RunConfig

SCHEMA = 1
SHOP = "synthetic-shop:n_items=5000,n_users=1000,n_events=20000,seed=7"
N_ITEMS, DIM, K = 100_000, 64, 10
IN_FLIGHT = 64
SERVER_ROUNDS = 2
# What a busy machine does to a ratio stays within this, in percent.
GENEROUS = compare.Rule("ratio", "<", -30.0, is_change=True)

Row = dict[str, Any]


def main(arguments: list[str] | None = None) -> int:
    """Measures, compares with the file and replaces it."""
    parser = argparse.ArgumentParser(prog="recserve.benchmarks.smoke", description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS / "smoke.json")
    parser.add_argument("--seconds", type=float, default=0.5, help="per measurement")
    options = parser.parse_args(arguments)
    check_compiled()
    with tempfile.TemporaryDirectory(prefix="recserve-smoke-") as folder:
        bundle = make_bundle(Path(folder))
        rows = [
            *search_rows(Path(folder), options.seconds),
            *engine_rows(bundle),
            *server_rows(bundle, options.seconds),
        ]
    result = {"schema": SCHEMA, "bench": "smoke", "environment": describe(PACKAGES), "rows": rows}
    show(result)
    if options.out.is_file():
        tell_changes(compare.read_result(options.out), result)
    options.out.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return 0


def make_bundle(folder: Path) -> Path:
    """Trains SASRec for one epoch on a made shop: real shapes, and weights that nobody will praise."""
    loop = LoopConfig(epochs=1, batch_size=128, validate_every=1, seed=3)
    config = RunConfig(model="sasrec", shape=SHAPES["sasrec"], loop=loop)
    export_run(trained_run(folder / "run", config, load_dataset(SHOP)), folder / "bundle")
    return folder / "bundle"


def search_rows(cache: Path, seconds: float) -> list[Row]:
    """Exact search over made vectors next to NumPy."""
    vectors, queries = data.make("gaussian", N_ITEMS, DIM, 7, cache)
    methods = {timing.OURS: ItemIndex.build(vectors).search, "numpy": numpy_search(vectors, 1)}
    rows = []
    for batch in (1, 64):
        ours, theirs = (method(queries[:batch], K) for method in methods.values())
        timing.check_same("numpy", ours, theirs)
        times = timing.interleaved(methods, queries, batch, K, 2 * seconds, drop=False)
        pairs = zip(times["numpy"], times[timing.OURS], strict=True)
        rows.append(_row(f"search, batch {batch}, to NumPy", [other / own for other, own in pairs]))
    return rows


def engine_rows(bundle: Path) -> list[Row]:
    """The bare inference and search next to the whole engine with its reply."""
    options = argparse.Namespace(bundle=bundle, k=K, rounds=100)
    with Engine.load(bundle, EngineConfig(provider="cpu")) as engine:
        found = [(size, engine_overhead.time_batch(engine, size, options)) for size in (1, 64)]
    return [_row(f"engine, batch {size}, to its parts", [1 / row["ranked_ratio"]]) for size, row in found]


def server_rows(bundle: Path, seconds: float) -> list[Row]:
    """The server next to an echo over the same transport, as our load generator sees both."""
    ids = read_ids(Target(EMBED, path=str(bundle)), None, 0)
    options = argparse.Namespace(bundle=bundle, batcher_threads=None)
    pace = Pace(concurrency=IN_FLIGHT, warm_up=0.3, duration=seconds, timeout=10)
    rows = []
    for transport in ("native", "grpcio"):
        with contextlib.ExitStack() as stack:
            loads = [
                Load(
                    read_target(f"grpc://{stack.enter_context(serving(name, transport, options))}"),
                    ids,
                    Asked(),
                    Client(1, 8),
                )
                for name in ("recommend", "echo")
            ]
            rounds = [
                [load.measure(pace)["answered_per_second"] for load in loads] for _ in range(SERVER_ROUNDS)
            ]
        rows.append(_row(f"server over {transport}, to an echo", [own / echo for own, echo in rounds]))
    return rows


def _row(what: str, ratios: Sequence[float]) -> Row:
    return {
        "what": what,
        "ratio": statistics.median(ratios),
        "intervals": {"ratio": median_interval(ratios)},
    }


def tell_changes(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Prints both results side by side; what fell by more than a busy machine explains is marked."""
    compared = compare.compare(before, after, [GENEROUS])
    compare.show(compared)
    for row in compared["rows"]:
        if row["broken"]:
            console.note(f"look at this: {row['row']} fell from {row['before']:.2f} to {row['after']:.2f}")


if __name__ == "__main__":
    sys.exit(main())
