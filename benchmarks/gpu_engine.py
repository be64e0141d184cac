"""An engine that searches on the GPU: its slates against those of one on the CPU, and its times."""

import statistics
import time
from pathlib import Path
from typing import Any

from recserve.engine import Engine, EngineConfig, Request
from recserve.errors import CheckFailed

K = 10
BATCHES = (1, 32)
ROUNDS = 30


def check_engine(bundle: Path, rounds: int = ROUNDS) -> dict[str, Any]:
    """Returns where the graphs of ``bundle`` ran and the milliseconds of a batch; graphs run where they can.

    Raises CheckFailed where a slate is another one than with retrieval on the CPU, ConfigError without a GPU.
    """
    configs = {device: EngineConfig(provider="auto", retrieval_device=device) for device in ("cpu", "cuda")}
    with Engine.load(bundle, configs["cpu"]) as cpu, Engine.load(bundle, configs["cuda"]) as cuda:
        engines = {"cpu": cpu, "cuda": cuda}
        users = cpu.user_ids()
        rows = []
        for batch in BATCHES:
            times: dict[str, list[float]] = {name: [] for name in engines}
            for turn in range(rounds):
                first = turn * batch % max(1, len(users) - batch)
                requests = [Request(user_id=user, k=K) for user in users[first : first + batch]]
                slates = {name: _timed(engine, requests, times[name]) for name, engine in engines.items()}
                if slates["cuda"] != slates["cpu"]:
                    raise CheckFailed("slates of the engine", found="others", expected="those of the CPU")
            rows.append({"batch": batch, "ms": {name: statistics.median(ms) for name, ms in times.items()}})
        device = cuda.loaded.retriever.device
        if device.fell_back:
            raise CheckFailed("search on the GPU", found="given up", expected="an answer to every request")
        runtime = cuda.loaded.runtime
        return {"graphs": runtime.providers, "graphs_fell_back": runtime.fell_back, "times": rows}


def _timed(engine: Engine, requests: list[Request], times: list[float]) -> list[list[tuple[str, float]]]:
    start = time.perf_counter()
    slates = engine.recommend_many(requests)
    times.append(1e3 * (time.perf_counter() - start))
    return [[(item.item_id, item.score) for item in slate.items] for slate in slates]
