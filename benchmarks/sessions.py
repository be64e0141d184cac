"""What the options of ONNX Runtime do to an encoder: ``python -m recserve.benchmarks.sessions BUNDLE``.

Each option alone against the defaults of ``engine.session``: time of a call for 1 and for 32 histories of
full length (of the fastest tenth, which other programs disturb least; in turns, one caller), time of the
load, and what a fresh process holds after ``--calls`` calls.
"""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recserve import console
from recserve.benchmarks.environment import environment, machine_line
from recserve.benchmarks.scale.memory import status_bytes
from recserve.engine import EngineConfig
from recserve.engine.bundle import Bundle, layout, open_bundle
from recserve.engine.config import SessionConfig
from recserve.engine.runtime import Runtime
from recserve.engine.session import QueryEncoder
from recserve.errors import CheckFailed

SIZES = (1, 32)
OPTIONS: dict[str, SessionConfig] = {
    "defaults": SessionConfig(),
    "threads = 2": SessionConfig(threads=2),
    "threads = 2, spinning": SessionConfig(threads=2, spinning=True),
    "arena": SessionConfig(arena=True),
    "no memory_pattern": SessionConfig(memory_pattern=False),
    "no prepacking": SessionConfig(prepacking=False),
    "io_binding": SessionConfig(io_binding=True),
    "optimisation = extended": SessionConfig(optimisation="extended"),
    "optimisation = basic": SessionConfig(optimisation="basic"),
    "optimisation = none": SessionConfig(optimisation="none"),
}


def main(arguments: list[str] | None = None) -> int:
    """Measures every option and prints a table, or JSON."""
    parser = argparse.ArgumentParser(prog="recserve.benchmarks.sessions", description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--calls", type=int, default=20)
    parser.add_argument("--hold", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    options = parser.parse_args(arguments)
    bundle = open_bundle(options.bundle)
    if options.hold:
        config = SessionConfig(**json.loads(options.hold))
        sys.stdout.write(str(held(bundle, config, options.calls)))
        return 0
    machine = environment(("numpy", "onnxruntime-gpu"))
    console.note(machine_line(machine))
    rows = time_options(bundle, options.rounds)
    for row, config in zip(rows, OPTIONS.values(), strict=True):
        row["resident_mb"] = _held_by_a_fresh_process(options.bundle, config, options.calls) / 1e6
    if options.json:
        console.print_json({"environment": machine, "model": bundle.manifest.model, "rows": rows})
        return 0
    names = [
        "load_ms",
        *(f"ms_{size}" for size in SIZES),
        *(f"ratio_{size}" for size in SIZES),
        "resident_mb",
    ]
    console.print_table(
        f"{bundle.manifest.model}: ONNX Runtime with one option changed",
        ["option", *(name.replace("_", " ") for name in names)],
        [[row["option"], *(f"{row[name]:.3g}" for name in names)] for row in rows],
    )
    return 0


def time_options(bundle: Bundle, rounds: int) -> list[dict[str, Any]]:
    """Returns a row an option; ``ratio``: how many times as fast as the defaults."""
    order = np.random.default_rng(7)
    encoders, rows = [], []
    for name, config in OPTIONS.items():
        start = time.perf_counter()
        encoders.append(_encoder(bundle, config))
        rows.append({"option": name, "load_ms": (time.perf_counter() - start) * 1e3})
    for size in SIZES:
        inputs = _inputs(bundle, size)
        times: list[list[float]] = [[] for _ in encoders]
        for turn in range(rounds + 1):
            # In another order each time: a scheduler's beat must not always hit the same one.
            for i in order.permutation(len(encoders)):
                start = time.perf_counter()
                encoders[i].run(*inputs)
                if turn:
                    times[i].append((time.perf_counter() - start) * 1e3)
        fast = [float(np.quantile(found, 0.1)) for found in times]
        for row, ms in zip(rows, fast, strict=True):
            row[f"ms_{size}"], row[f"ratio_{size}"] = ms, fast[0] / ms
    return rows


def held(bundle: Bundle, config: SessionConfig, calls: int) -> int:
    """Returns the resident bytes of this process after calls of the largest size."""
    encoder = _encoder(bundle, config)
    inputs = _inputs(bundle, SIZES[-1])
    for _ in range(calls):
        encoder.run(*inputs)
    return status_bytes("VmRSS")


def _encoder(bundle: Bundle, config: SessionConfig) -> QueryEncoder:
    runtime = Runtime(bundle, EngineConfig(provider="cpu", session=config))
    return QueryEncoder(bundle, bundle.manifest.default_variant, runtime)


def _inputs(bundle: Bundle, size: int) -> tuple[NDArray[np.int32], NDArray[np.float32] | None]:
    shape = (size, bundle.manifest.inputs.max_history)
    history = np.random.default_rng(7).integers(0, bundle.manifest.n_items, shape, np.int32)
    with_gaps = layout.TIME_GAPS_INPUT in bundle.manifest.inputs.features
    return history, np.zeros(shape, np.float32) if with_gaps else None


def _held_by_a_fresh_process(bundle: Path, config: SessionConfig, calls: int) -> int:
    command = [sys.executable, "-m", "recserve.benchmarks.sessions", str(bundle), "--calls", str(calls)]
    command += ["--hold", json.dumps(asdict(config))]
    finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if finished.returncode != 0:
        raise CheckFailed("process of an option", found=f"exit code {finished.returncode}", expected="0")
    return int(finished.stdout)


if __name__ == "__main__":
    sys.exit(main())
