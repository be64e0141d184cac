"""What variants hold together: ``python -m recserve.benchmarks.variant_memory BUNDLE``.

A fresh process opens the default variant's encoder, then one more of every variant, and reads every item
through each, so that what could be copied is. The item table is mapped: it counts once, whoever reads it.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from recserve import console
from recserve.benchmarks.scale.memory import status_bytes
from recserve.engine import EngineConfig
from recserve.engine.bundle import Bundle, layout, open_bundle
from recserve.engine.runtime import Runtime
from recserve.engine.session import QueryEncoder
from recserve.errors import CheckFailed

BATCH = 32


def main(arguments: list[str] | None = None) -> int:
    """Prints a table, or JSON."""
    parser = argparse.ArgumentParser(prog="recserve.benchmarks.variant_memory", description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--copies", type=int, default=1, help="encoders of every variant")
    parser.add_argument("--hold", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    if options.hold:
        sys.stdout.write(json.dumps(hold(options.bundle, options.copies)))
        return 0
    found = measure(options.bundle, options.copies)
    if options.json:
        console.print_json(found)
        return 0
    rows = [[name, f"{value / 1e6:.1f}"] for name, value in found.items() if name.endswith("bytes")]
    rows.append(["variants", str(found["n_encoders"])])
    console.print_table(f"memory of the encoders of {options.bundle}", ["what", "MB"], rows)
    return 0


def measure(bundle: Path, copies: int = 1) -> dict[str, Any]:
    """Returns the bytes of the item table, and the proportional set size with one and with all encoders."""
    command = [sys.executable, "-m", "recserve.benchmarks.variant_memory", str(bundle), "--hold"]
    finished = subprocess.run(
        [*command, "--copies", str(copies)], stdout=subprocess.PIPE, text=True, check=False
    )
    if finished.returncode != 0:
        raise CheckFailed("process of a bundle", found=f"exit code {finished.returncode}", expected="0")
    said: dict[str, Any] = json.loads(finished.stdout)
    return said


def hold(folder: Path, copies: int) -> dict[str, Any]:
    """What the fresh process does."""
    bundle = open_bundle(folder)
    runtime = Runtime(bundle, EngineConfig(provider="cpu"))
    encoders = [_read_all(bundle, bundle.manifest.default_variant, runtime)]
    one = _resident()
    for name in bundle.manifest.variants:
        encoders += [_read_all(bundle, name, runtime) for _ in range(copies)]
    return {
        "table_bytes": sum(part.nbytes for part in bundle.item_parts.values()),
        "one_bytes": one,
        "all_bytes": _resident(),
        "n_encoders": len(encoders),
    }


def _read_all(bundle: Bundle, variant: str, runtime: Runtime) -> QueryEncoder:
    encoder = QueryEncoder(bundle, variant, runtime)
    length = bundle.manifest.inputs.max_history
    every = np.arange(bundle.manifest.n_items, dtype=np.int32)
    for start in range(0, len(every), BATCH * length):
        history = np.resize(every[start : start + BATCH * length], (BATCH, length))
        gaps = layout.TIME_GAPS_INPUT in encoder.features
        encoder.run(history, np.zeros(history.shape, np.float32) if gaps else None)
    return encoder


def _resident() -> int:
    """Bytes of this process, of shared pages its part; where the system does not tell, all of them."""
    rollup = Path("/proc/self/smaps_rollup")
    if not rollup.is_file():
        return status_bytes("VmRSS")
    line = next(line for line in rollup.read_text(encoding="utf-8").splitlines() if line.startswith("Pss:"))
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    sys.exit(main())
