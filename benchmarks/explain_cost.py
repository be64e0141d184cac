"""What explanations cost: ``python -m recserve.benchmarks.explain_cost BUNDLE``.

``stage``: the stage ``explain`` of one request. ``reply``: writing the bytes of the answer. One process, one
thread; medians over users of the bundle with at least ``--history`` items, of which the newest are sent.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

from recserve import console
from recserve.benchmarks.environment import environment, machine_line
from recserve.engine import Engine, EngineConfig, Request
from recserve.engine.explain.explanation import EXPLAIN_LEVELS
from recserve.engine.ranked import Ranked
from recserve.engine.wire.slates import encode_ranked


def main(arguments: list[str] | None = None) -> int:
    """Times every level and prints a table, or JSON."""
    parser = argparse.ArgumentParser(prog="recserve.benchmarks.explain_cost", description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("-k", type=int, default=20)
    parser.add_argument("--history", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    options = parser.parse_args(arguments)
    machine = environment(("numpy", "numba", "onnxruntime-gpu"))
    console.note(machine_line(machine))
    with Engine.load(options.bundle, EngineConfig(provider="cpu")) as engine:
        rows = [{"explain": level, **time_level(engine, level, options)} for level in EXPLAIN_LEVELS]
        model = engine.manifest.model
    if options.json:
        console.print_json({"environment": machine, "model": model, "k": options.k, "rows": rows})
        return 0
    console.print_table(
        f"{model}: µs a slate of {options.k}, history of {options.history} (medians)",
        ["explain", "stage", "whole request", "reply", "bytes"],
        [[row["explain"], *(f"{row[name]:.1f}" for name in list(row)[1:])] for row in rows],
    )
    return 0


def time_level(engine: Engine, level: str, options: argparse.Namespace) -> dict[str, float]:
    """Returns the medians for one level."""
    found = [engine.history(user) for user in engine.user_ids()[:1000]]
    histories = [history[-options.history :] for history in found if len(history) >= options.history]
    times: dict[str, list[float]] = {"stage": [], "request": [], "reply": [], "bytes": []}
    for turn in range(options.rounds + 1):
        request = Request(history=histories[turn % len(histories)], k=options.k, explain=level)
        start = time.perf_counter_ns()
        [answer] = engine.rank_each([request])
        middle = time.perf_counter_ns()
        if not isinstance(answer, Ranked):
            raise answer
        [data] = encode_ranked([answer])
        end = time.perf_counter_ns()
        if turn:
            times["stage"].append(answer.stage_ns.get("explain", 0) / 1e3)
            times["request"].append((middle - start) / 1e3)
            times["reply"].append((end - middle) / 1e3)
            times["bytes"].append(len(data))
    return {name: statistics.median(values) for name, values in times.items()}


if __name__ == "__main__":
    sys.exit(main())
