"""Measures what training holds in memory: ``python -m recserve.benchmarks.training_memory``.

A run folder of SASRec over events drawn at random, then an epoch in a fresh process: the largest memory of
its own (anonymous pages), and that of what it read from files, which the system takes back when it needs
to. Two sizes tell what an event costs.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from recserve import console
from recserve.benchmarks.environment import environment, machine_line
from recserve.errors import CheckFailed
from recserve.training.commands import run_config
from recserve.training.data import CleaningReport, Dataset
from recserve.training.run import create_run, open_run

N_ITEMS, EVENTS_PER_USER = 5_000, 100
SAMPLED_EVERY_SECONDS = 0.01
SHAPE = {
    "embedding_size": 16,
    "n_blocks": 1,
    "n_heads": 1,
    "max_history": 50,
    "epochs": 1,
    "validate_every": 1,
}


def main() -> None:
    """Prints a line for each size and what a further event costs."""
    parser = argparse.ArgumentParser(prog="recserve.benchmarks.training_memory", description=__doc__)
    parser.add_argument("--events", type=int, nargs="+", default=[1_000_000, 4_000_000])
    parser.add_argument("--run", type=Path, help="(what the measured process is told: train this run)")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    options = parser.parse_args()
    if options.run:
        _train(options.run)
        return
    machine = environment(("torch", "numpy", "polars"))
    console.note(machine_line(machine))
    rows = [_measure(n) for n in options.events]
    first, last = rows[0], rows[-1]
    per_event = (last["own_bytes"] - first["own_bytes"]) / max(1, last["events"] - first["events"])
    console.note(f"own memory of a further event: {per_event:.1f} bytes")
    if options.out:
        result = {
            "bench": "training_memory",
            "environment": machine,
            "rows": rows,
            "bytes_per_event": per_event,
        }
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _measure(n_events: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        create_run(run, run_config("sasrec", "leave-one-out", SHAPE), _events(n_events))
        command = [sys.executable, "-m", "recserve.benchmarks.training_memory", "--run", str(run)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CheckFailed("process that trains", found=done.stderr[-200:], expected="an epoch")
    row: dict[str, Any] = {"events": n_events, **json.loads(done.stdout.splitlines()[-1])}
    console.note("  ".join(f"{key} {value:,}" for key, value in row.items()))
    return row


def _events(n: int) -> Dataset:
    rng = np.random.default_rng(0)
    n_users = n // EVENTS_PER_USER
    interactions = pl.DataFrame(
        {
            "user_index": np.repeat(np.arange(n_users, dtype=np.int32), EVENTS_PER_USER),
            "item_index": rng.integers(0, N_ITEMS, n_users * EVENTS_PER_USER, dtype=np.int32),
            "timestamp": np.tile(np.arange(EVENTS_PER_USER, dtype=np.int64), n_users),
            "value": np.ones(n_users * EVENTS_PER_USER, np.float32),
        }
    )
    users, items = (
        pl.DataFrame({f"{role}_id": [f"{role}{i}" for i in range(count)]})
        for role, count in (("user", n_users), ("item", N_ITEMS))
    )
    report = CleaningReport(rows_read=interactions.height, kept=interactions.height)
    return Dataset.create("random", interactions, users, items, report=report, source="drawn at random")


def _train(folder: Path) -> None:
    """Trains the run and prints the largest memory, beyond that of the imports."""
    from recserve.training.distributed import Processes
    from recserve.training.loop import Trainer

    largest = start = _memory()
    done = threading.Event()

    def watch() -> None:
        nonlocal largest
        while not done.wait(SAMPLED_EVERY_SECONDS):
            largest = {name: max(value, largest[name]) for name, value in _memory().items()}

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    run = open_run(folder)
    Trainer(run.new_model(), run.split(), run.folder, run.config.loop, Processes()).fit()
    done.set()
    watcher.join()
    found = {name: largest[name] - start[name] for name in start}
    # The protocol of the two processes.
    sys.stdout.write(json.dumps(found) + "\n")


def _memory() -> dict[str, int]:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    return {
        name: int(fields[field].split()[0]) * 1024
        for name, field in (("own_bytes", "RssAnon"), ("mapped_bytes", "RssFile"))
    }


if __name__ == "__main__":
    main()
