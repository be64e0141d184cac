"""The forms of one bundle in turns: time here, quality as the gate of its export measured it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from recserve import console
from recserve.benchmarks.environment import describe, machine_line
from recserve.benchmarks.load.report import milliseconds
from recserve.benchmarks.scale.measure import Point, time_points
from recserve.engine import Engine, EngineConfig, Request
from recserve.errors import InvalidRequest

SCHEMA = 1
PACKAGES = ("numpy", "onnxruntime-gpu", "onnxruntime")
N_USERS = 1000
SEED = 7
MAX_BATCH = 256


def measure(bundle: Path, batch: int, seconds: float) -> dict[str, Any]:
    """Returns a row per form, ready for JSON. ``batch``: requests at a time, by users of the bundle."""
    if not 1 <= batch <= MAX_BATCH:
        raise InvalidRequest("--batch", found=batch, expected=f"1 to {MAX_BATCH}")
    with Engine.load(bundle, EngineConfig(provider="cpu")) as engine:
        names = list(engine.manifest.variants)
        points = [Point(name, "variant", batch, batch, _asker(engine, name, batch)) for name in names]
        timed = time_points(points, seconds)
        entries = engine.manifest.variants
    rows = []
    for name, row in zip(names, timed, strict=True):
        ndcg = entries[name].metrics.get("NDCG@10")
        rows.append(
            {
                "variant": name,
                "p50_ms": row["median_ms"],
                "us_per_request": row["us_per_request"],
                "speed_up": timed[0]["median_ms"] / row["median_ms"],
                **({} if ndcg is None else {"ndcg@10": ndcg}),
                "intervals": {"p50_ms": row["intervals"]["median_ms"]},
            }
        )
    return {
        "schema": SCHEMA,
        "bench": "variants",
        "environment": describe(PACKAGES),
        "bundle": str(bundle),
        "batch": batch,
        "rows": rows,
    }


def _asker(engine: Engine, variant: str, batch: int) -> Callable[[], object]:
    users = engine.user_ids()
    if not len(users):
        raise InvalidRequest("bundle", found="without users", expected="the histories of some")
    rows = np.random.default_rng(SEED).integers(0, len(users), N_USERS).tolist()
    requests = [Request(user_id=users[row], variant=variant) for row in rows]
    place = 0

    def ask() -> None:
        nonlocal place
        engine.recommend_many(requests[place : place + batch])
        place = (place + batch) % (N_USERS - batch + 1)

    return ask


def show(result: dict[str, Any]) -> None:
    """Prints the table."""
    console.stdout.print(machine_line(result["environment"]), markup=False, soft_wrap=True)
    console.print_table(
        f"forms of {result['bundle']}, batches of {result['batch']}, in turns",
        ["form", "p50 ms", "95 % interval", "µs per request", "speed-up", "NDCG@10"],
        [
            [
                row["variant"],
                milliseconds(row["p50_ms"]),
                " to ".join(map(milliseconds, row["intervals"]["p50_ms"])),
                f"{row['us_per_request']:.0f}",
                f"{row['speed_up']:.2f}",
                f"{row['ndcg@10']:.4f}" if "ndcg@10" in row else "–",
            ]
            for row in result["rows"]
        ],
    )
