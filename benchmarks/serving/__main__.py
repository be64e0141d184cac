"""``python -m recserve.benchmarks.serving`` (`make bench-serving`): every promise of speed, in minutes."""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recserve import console
from recserve.benchmarks.environment import check_compiled, describe
from recserve.benchmarks.h2load import require
from recserve.benchmarks.output import Output
from recserve.benchmarks.serving import bars, cases, transports
from recserve.benchmarks.tables import RESULTS, show
from recserve.engine import Engine, EngineConfig

SCHEMA = 1
MODELS = ("als", "sasrec")
PACKAGES = ("grpcio", "pygrpc-native", "uvloop", "protobuf", "numpy", "onnxruntime-gpu", "onnxruntime")


def main(arguments: list[str] | None = None) -> int:
    """Runs every case, writes the result and prints its tables."""
    options = parse(arguments)
    require()
    check_compiled()
    with tempfile.TemporaryDirectory(prefix="recserve-serving-") as folder:
        result = measure(options, options.bundles or Path(folder))
    result["bars"] = bars.judge(result)
    Output(options.out, json=options.json).publish("serving", result, show)
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="recserve.benchmarks.serving", description=__doc__)
    parser.add_argument("--bundles", type=Path, help="where the bundles are kept from run to run")
    parser.add_argument("--quick", action="store_true", help="one round of a second each: a rough look")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--batcher-threads", type=int, default=None, help="default: the server's")
    parser.add_argument("-k", type=int, default=10)
    parser.add_argument("--seconds", type=int, default=2, help="per measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "serving.json")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the tables")
    options = parser.parse_args(arguments)
    if options.quick:
        options.seconds = options.rounds = 1
    return options


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Runs the cases that are asked for over bundles in ``folder``."""
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "bench": "serving",
        "environment": describe(PACKAGES),
        "k": options.k,
        "rows": [],
        "cases": {},
    }
    if missing := [model for model in MODELS if not (folder / model).exists()]:
        command = [sys.executable, "-m", "recserve.benchmarks.serving.bundles", str(folder), *missing]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    bundles = {model: folder / model for model in MODELS}
    with console.progress("cases", total=len(options.cases)) as update:
        for name in options.cases:
            CASES[name](result, options, bundles, folder)
            update()
    return result


def _transports(result: Any, options: argparse.Namespace, bundles: dict[str, Path], folder: Path) -> None:
    options.bundle = bundles["als"]
    with Engine.load(options.bundle, EngineConfig(provider="cpu")) as engine:
        body = transports.ask_for(engine, options.k, folder)
        for transport in transports.TRANSPORTS:
            result["rows"] += transports.measure(engine, transport, body, options)


def _in_process(result: Any, options: argparse.Namespace, bundles: dict[str, Path], folder: Path) -> None:
    options.bundle = bundles["sasrec"]
    with Engine.load(options.bundle, EngineConfig(provider="cpu")) as engine:
        result["cases"] |= {
            "overhead": cases.overhead(engine, options),
            "served": cases.served(engine, options, folder),
            "batching": cases.batching(engine, options, folder),
        }


def _swaps(result: Any, options: argparse.Namespace, bundles: dict[str, Path], folder: Path) -> None:
    options.bundle = bundles["sasrec"]
    result["cases"]["swaps"] = cases.swapped(options)


def _late(result: Any, options: argparse.Namespace, bundles: dict[str, Path], folder: Path) -> None:
    options.bundle = bundles["sasrec"]
    result["cases"]["late"] = cases.late(options)


def _start(result: Any, options: argparse.Namespace, bundles: dict[str, Path], folder: Path) -> None:
    result["cases"]["start"] = {model: cases.start(bundle) for model, bundle in bundles.items()}


Run = Callable[[Any, argparse.Namespace, dict[str, Path], Path], None]
CASES: dict[str, Run] = {
    "transports": _transports,
    "sasrec": _in_process,
    "swaps": _swaps,
    "late": _late,
    "start": _start,
}


if __name__ == "__main__":
    sys.exit(main())
