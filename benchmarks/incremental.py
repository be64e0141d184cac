"""What one event costs who keeps what was computed: ``python -m recserve.benchmarks.incremental``.

Users whose histories fill the window get an event each in turns, and after it their history is encoded: in
full, and by what the engine keeps of them (``engine.history_cache_mb``). The times are those of the engine's
encoder, with looking for what is kept, keeping it and the windows that move on. Models are trained for one
epoch: what a call costs does not depend on the weights.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from recserve import console
from recserve.benchmarks.environment import environment, machine_line
from recserve.benchmarks.output import Output
from recserve.benchmarks.runs import trained_run
from recserve.engine import EngineConfig
from recserve.engine.bundle import open_bundle
from recserve.engine.bundle.histories import History
from recserve.engine.incremental import window_start
from recserve.engine.runtime import Runtime
from recserve.engine.session import QueryEncoder
from recserve.exporters.assemble import export_run
from recserve.training.commands import run_config
from recserve.training.data import Dataset, load_dataset

MODELS: dict[str, dict[str, Any]] = {
    "sasrec": {},
    "sasrec, 4 blocks of 128": {"embedding_size": 128, "n_blocks": 4, "n_heads": 4},
    "hstu": {},
    "hstu base": {"size": "base"},
}
LENGTH = 200
# An event costs at most so much of a full forward; query embeddings agree to so much.
MAX_RATIO, TOLERANCE = 0.25, 1e-5
FIRST, SECONDS_APART = 1_750_000_000, 3_600
CACHE_BYTES = 1 << 30


def encoders(name: str, dataset: Dataset, folder: Path) -> tuple[QueryEncoder, QueryEncoder]:
    """Returns the encoder of a model that keeps nothing and that of one that does."""
    settings = {**MODELS[name], "max_history": LENGTH, "incremental": True, "epochs": 1}
    config = run_config(name.split(",")[0].split()[0], "leave-one-out", settings)
    target = folder / "bundle"
    export_run(trained_run(folder / "run", config, dataset), target)
    bundle = open_bundle(target)
    runtime = Runtime(bundle, EngineConfig(provider="cpu"))
    full, keeping = (QueryEncoder(bundle, "fp32", runtime, kept) for kept in (0, CACHE_BYTES))
    return full, keeping


def measure(name: str, dataset: Dataset, options: argparse.Namespace) -> dict[str, Any]:
    """Times one model; returns its row."""
    with tempfile.TemporaryDirectory() as folder:
        full, keeping = encoders(name, dataset, Path(folder))
    rng = np.random.default_rng(0)
    n_events = LENGTH + options.events
    items = rng.integers(0, dataset.n_items, (options.users, n_events)).astype(np.int32)
    times = FIRST + np.cumsum(rng.integers(1, SECONDS_APART, (options.users, n_events)), axis=1)
    in_full: list[float] = []
    hits: list[float] = []
    misses: list[float] = []
    differences: list[float] = []
    missed = 0
    for n in range(LENGTH, n_events + 1):
        histories = [History(items[user, :n], times[user, :n], key=user) for user in range(options.users)]
        now = int(times[:, n - 1].max()) + 5
        # All users in one way, then in the other: a call finds the caches as one of its own kind left them.
        for history in histories:
            window = History(history.items[-LENGTH:], history.timestamps[-LENGTH:])
            begun = time.perf_counter()
            full.encode([window], now)
            in_full.append(time.perf_counter() - begun)
        for user, history in enumerate(histories):
            begun = time.perf_counter()
            found = keeping.encode([history], now)
            spent = time.perf_counter() - begun
            n_misses = keeping.stats()["history_cache_misses"]
            # The first of a user has nothing to go by.
            if n > LENGTH:
                (hits if n_misses == missed else misses).append(spent)
            missed = n_misses
            if user == 0:
                start = window_start(history.items, LENGTH)
                same = History(history.items[start:], history.timestamps[start:])
                differences.append(float(np.abs(found - full.encode([same], now)).max()))
    share = len(hits) / (len(hits) + len(misses))
    full_ms, hit_ms, miss_ms = (undisturbed(found) for found in (in_full, hits, misses))
    row = {
        "model": name,
        "full_ms": full_ms,
        "event_ms": share * hit_ms + (1 - share) * miss_ms,
        "hit_ms": hit_ms,
        "miss_ms": miss_ms,
        "hits": share,
        "largest_difference": max(differences),
        "bytes_per_user": keeping.kept_bytes / options.users,
    }
    row["ratio"] = row["event_ms"] / row["full_ms"]
    row["holds"] = row["ratio"] <= MAX_RATIO and row["largest_difference"] <= TOLERANCE
    return row


def undisturbed(seconds: list[float]) -> float:
    """Returns the mean of the fastest nine tenths in milliseconds: what other programs did is left out."""
    return 1e3 * float(np.mean(np.sort(seconds)[: max(1, len(seconds) * 9 // 10)]))


def show(result: dict[str, Any]) -> None:
    """Prints the rows."""
    columns = [name for name in result["rows"][0] if name not in ("model", "holds")]
    console.print_table(
        f"one event of a history of {LENGTH}",
        ["model", *columns, ""],
        [
            [row["model"], *(f"{row[name]:.3g}" for name in columns), "reached" if row["holds"] else "missed"]
            for row in result["rows"]
        ],
    )


def main() -> int:
    """Measures, writes the result, and returns 1 when a promise did not hold."""
    parser = argparse.ArgumentParser(prog="recserve.benchmarks.incremental", description=__doc__)
    parser.add_argument("--data", default="ml-100k")
    parser.add_argument("--users", type=int, default=20)
    parser.add_argument("--events", type=int, default=300, help="of each user")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    options = parser.parse_args()
    machine = environment(("torch", "numpy", "onnxruntime-gpu"))
    console.note(machine_line(machine))
    dataset = load_dataset(options.data, on_note=console.note)
    rows = [measure(name, dataset, options) for name in options.models]
    result = {"bench": "incremental", "environment": machine, "rows": rows}
    Output(options.out, json=options.json).publish("incremental", result, show)
    return 0 if all(row["holds"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
