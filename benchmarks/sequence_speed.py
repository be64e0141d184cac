"""Times an epoch of our SASRec against one of RecTools': ``python -m recserve.benchmarks.sequence_speed``.

The same histories, width, blocks, heads, length, batch size, dropout and loss (softmax over the catalogue),
one thread each, in turns, each in a process of its own that waits meanwhile: the largest memory of a process
is that of training.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recserve import console
from recserve.benchmarks.environment import environment, machine_line
from recserve.benchmarks.peers.venv import PEERS, peer_python
from recserve.benchmarks.quality.peer import ONE_THREAD
from recserve.errors import CheckFailed
from recserve.training.commands import run_config
from recserve.training.data import Dataset, default_cache_dir, load_dataset
from recserve.training.distributed import Processes
from recserve.training.gradient import GradientLearner
from recserve.training.models.sasrec import SASRec

WIDTH, BLOCKS, HEADS, LENGTH, BATCH_SIZE, DROPOUT = 64, 2, 2, 50, 128, 0.2
THEIRS = {
    "n_factors": WIDTH,
    "n_blocks": BLOCKS,
    "n_heads": HEADS,
    "session_max_len": LENGTH,
    "batch_size": BATCH_SIZE,
    "dropout_rate": DROPOUT,
}
OURS = {
    "embedding_size": WIDTH,
    "n_blocks": BLOCKS,
    "n_heads": HEADS,
    "max_history": LENGTH,
    "batch_size": BATCH_SIZE,
    "dropout": DROPOUT,
    "loss": "softmax",
}


def main() -> None:
    """Times every data set; prints lines, writes JSON."""
    parser = argparse.ArgumentParser(prog="recserve.benchmarks.sequence_speed", description=__doc__)
    parser.add_argument("--data", nargs="+", default=["ml-100k"])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--answer", help="(what the process of ours is told: time epochs of this data)")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    options = parser.parse_args()
    if options.answer:
        _answer(load_dataset(options.answer))
        return
    machine = environment(("torch", "numpy"))
    console.note(machine_line(machine))
    cases = [_time_case(name, options.repetitions) for name in options.data]
    if options.out:
        result = {"bench": "sequence_speed", "environment": machine, "shape": THEIRS, "rows": cases}
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _answer(dataset: Dataset) -> None:
    """Times an epoch for each line of stdin."""
    torch.set_num_threads(1)
    config = run_config("sasrec", "leave-one-out", OURS)
    model = SASRec(config.shape, dataset.n_items)
    learner = GradientLearner(model, dataset.histories(), config.loop, Processes())
    for epoch, _ in enumerate(sys.stdin, start=1):
        start = time.perf_counter()
        learner.train_epoch(epoch)
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        # The protocol of the two processes: stdout is a pipe to the one that asks.
        sys.stdout.write(json.dumps({"seconds": seconds, "peak_bytes": peak}) + "\n")
        sys.stdout.flush()


def _time_case(name: str, repetitions: int) -> dict[str, Any]:
    dataset = load_dataset(name, on_note=console.note)
    histories = dataset.histories()
    python = peer_python("rectools", default_cache_dir() / "peers")
    with tempfile.TemporaryDirectory() as folder:
        arrays = Path(folder, "arrays.npz")
        np.savez(
            arrays, user=np.repeat(np.arange(len(histories)), histories.lengths), item=histories.item_index
        )
        own = [sys.executable, "-m", "recserve.benchmarks.sequence_speed", "--answer", name]
        theirs = [str(python), str(PEERS / "rectools_speed.py"), str(arrays), json.dumps(THEIRS)]
        with _process(own, folder) as ours, _process(theirs, folder) as peer:
            # The first epochs may still set something up.
            rounds = [(_ask(ours), _ask(peer)) for _ in range(repetitions + 1)][1:]
    seconds = [[answer["seconds"] for answer in one] for one in zip(*rounds, strict=True)]
    case = {
        "data": dataset.name,
        "items": dataset.n_items,
        "recserve_seconds": statistics.median(seconds[0]),
        "rectools_seconds": statistics.median(seconds[1]),
        "ratio": statistics.median(their / own for own, their in zip(*seconds, strict=True)),
        "recserve_peak_bytes": rounds[-1][0]["peak_bytes"],
        "rectools_peak_bytes": rounds[-1][1]["peak_bytes"],
    }
    console.note("  ".join(f"{key} {value}" for key, value in case.items()))
    return case


def _process(command: list[str], folder: str) -> "subprocess.Popen[str]":
    environ = {**ONE_THREAD, "PATH": "/usr/bin:/bin"}
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder, env=environ
    )


def _ask(process: "subprocess.Popen[str]") -> dict[str, float]:
    if process.stdin is None or process.stdout is None:
        raise TypeError("process without pipes")
    process.stdin.write("\n")
    process.stdin.flush()
    # Other lines are what the libraries say.
    line = next((line for line in process.stdout if line.startswith("{")), "")
    if not line:
        raise CheckFailed("process that trains", found="ended", expected="an answer for each epoch")
    answer: dict[str, float] = json.loads(line)
    return answer


if __name__ == "__main__":
    main()
