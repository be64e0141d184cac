"""Times an ALS epoch against an iteration of implicit's: ``python -m recserve.benchmarks.als_speed``.

The same interactions, width, confidence and number of threads; both do three steps of conjugate gradients in
float32 from the vectors of the round before, and ours computes its loss. Each repetition times ours, then
implicit, which waits in a process of its own meanwhile.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from recserve.benchmarks.environment import environment, machine_line

ROUNDS = 4
WEIGHT, REG = 5.0, 30.0


def main() -> None:
    """Times every width and number of threads; prints a table, or JSON."""
    parser = argparse.ArgumentParser(prog="recserve.benchmarks.als_speed", description=__doc__)
    parser.add_argument("--data", nargs="+", default=["ml-100k"])
    parser.add_argument("--width", nargs="+", type=int, default=[64, 128])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    options = parser.parse_args()
    if os.environ.get("OPENBLAS_NUM_THREADS") != "1":
        # implicit asks for it, and thread counts are read when NumPy loads: start again with it set.
        command = [sys.executable, "-m", "recserve.benchmarks.als_speed", *sys.argv[1:]]
        sys.exit(
            subprocess.run(command, check=False, env={**os.environ, "OPENBLAS_NUM_THREADS": "1"}).returncode
        )
    from recserve import console
    from recserve.benchmarks.peers.venv import peer_python
    from recserve.training.data import default_cache_dir, load_dataset

    python = peer_python("implicit", default_cache_dir() / "peers")
    machine = environment(("numpy", "numba"))
    console.note(machine_line(machine))
    cases = []
    for name in options.data:
        dataset = load_dataset(name)
        for width in options.width:
            for threads in options.threads:
                all_processors = os.sched_getaffinity(0)
                case = _time_case(dataset, width, threads, options.repetitions, python)
                os.sched_setaffinity(0, all_processors)
                cases.append({"data": dataset.name, "width": width, "threads": threads, **case})
                console.note(
                    f"{dataset.name}  width {width}  threads {threads}  "
                    f"recserve {case['recserve_ms']:.1f} ms  "
                    f"implicit {case['implicit_ms']:.1f} ms  ratio {case['ratio']:.2f}"
                )
    result = {"environment": machine, "weight": WEIGHT, "cases": cases}
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _time_case(dataset: Any, width: int, threads: int, repetitions: int, python: Path) -> dict[str, float]:
    """Returns the medians over the repetitions of the fastest round of each, in ms, and their ratio."""
    import numpy as np

    from recserve.benchmarks.peers.venv import PEERS
    from recserve.training.models.als import ALS, ALSConfig

    train = dataset.histories()
    # Ours takes as many threads as it may use processors; the peer inherits them.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    model = ALS(ALSConfig(embedding_size=width, weight=WEIGHT), dataset.n_users, dataset.n_items)
    with tempfile.TemporaryDirectory() as folder:
        user = np.repeat(np.arange(len(train)), train.lengths)
        shape = (dataset.n_users, dataset.n_items)
        arrays = Path(folder, "arrays.npz")
        np.savez(arrays, user=user, item=train.item_index, shape=shape, weight=WEIGHT, reg=REG)
        command = [str(python), str(PEERS / "implicit_speed.py"), str(arrays), str(width), str(threads)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as peer:
            assert peer.stdin is not None
            assert peer.stdout is not None
            ours: list[float] = []
            theirs: list[float] = []
            for repetition in range(repetitions + 1):
                rounds = []
                for epoch in range(1, ROUNDS + 1):
                    start = time.perf_counter()
                    model.fit_epoch(train, epoch=epoch, seed=0)
                    rounds.append(1e3 * (time.perf_counter() - start))
                peer.stdin.write("\n")
                peer.stdin.flush()
                answer = float(peer.stdout.readline())
                if repetition:  # the first may still set something up
                    ours.append(min(rounds))
                    theirs.append(answer)
            peer.stdin.close()
    ratios = [their / our for our, their in zip(ours, theirs, strict=True)]
    return {
        "recserve_ms": statistics.median(ours),
        "implicit_ms": statistics.median(theirs),
        "ratio": statistics.median(ratios),
    }


if __name__ == "__main__":
    main()
