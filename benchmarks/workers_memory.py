"""What more workers cost: ``python -m recserve.benchmarks.workers_memory BUNDLE``.

``recserve serve --workers N`` runs over BUNDLE grown to ``--items`` and is asked until all workers have
answered. The proportional set sizes (PSS: a page that n processes share counts 1/n in each; Linux) of its
processes are summed, those of mapped files (vectors, index, ids) apart from the rest. What is shared stays as
N grows.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from recserve import console
from recserve.benchmarks.environment import environment, machine_line
from recserve.benchmarks.scale.grown import grow_bundle
from recserve.benchmarks.servers import running
from recserve.engine.bundle import open_bundle
from recserve.engine.client import RecommenderClient
from recserve.engine.types import Request

# Connections are dealt out by the system: with so many every worker has some.
CONNECTIONS_PER_WORKER = 12
TIMEOUT_SECONDS = 60.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(prog="recserve.benchmarks.workers_memory", description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    options = parser.parse_args(arguments)
    console.note(machine_line(environment(("grpcio", "onnxruntime-gpu"))))
    with tempfile.TemporaryDirectory() as scratch:
        bundle = Path(scratch, "bundle")
        grow_bundle(options.bundle, bundle, options.items, seed=7)
        vectors = open_bundle(bundle).item_embeddings.nbytes
        # With one worker the index is mapped too, so that all rows hold the same things.
        os.environ["RECSERVE__ENGINE__INDEX_FOLDER"] = str(Path(scratch, "index"))
        rows = [[n, *map(_mb, measure(bundle, n))] for n in options.workers]
    title = f"PSS in MB, {options.items} items, vectors {_mb(vectors)} MB"
    console.print_table(title, ["workers", "mapped files", "all processes"], rows)
    return 0


def measure(bundle: Path, n_workers: int) -> tuple[int, int]:
    """Returns the PSS, in bytes, of the files that the processes of a server map, and of everything."""
    command = ["recserve.engine.cli", "serve", str(bundle), "--port", "0", "--workers", str(n_workers)]
    with running("recserve serve", command, {}) as server:
        for _ in range(CONNECTIONS_PER_WORKER * n_workers):
            with RecommenderClient(server.address, timeout=TIMEOUT_SECONDS) as client:
                client.recommend(Request(k=10))
        parts = [_pss(process) for process in _family(server.process_id)]
    return sum(mapped for mapped, _ in parts), sum(everything for _, everything in parts)


def _pss(process: int) -> tuple[int, int]:
    """Returns the PSS of a process: that of mapped data files (no code), and of everything, in bytes."""
    mapped = everything = 0
    is_data = False
    for line in Path(f"/proc/{process}/smaps").read_text(encoding="utf-8").splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            path = words[5] if len(words) > 5 else ""
            is_data = path.startswith("/") and path.endswith((".npy", ".arrow", ".index"))
        elif words[0] == "Pss:":
            everything += int(words[1]) << 10
            mapped += int(words[1]) << 10 if is_data else 0
    return mapped, everything


def _family(process: int) -> list[int]:
    """Returns a process and its children, which have none of their own."""
    tasks = Path(f"/proc/{process}/task")
    children = [(task / "children").read_text(encoding="ascii").split() for task in tasks.iterdir()]
    return [process, *(int(child) for of_task in children for child in of_task)]


def _mb(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:.0f}"


if __name__ == "__main__":
    sys.exit(main())
