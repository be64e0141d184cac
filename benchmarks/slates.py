"""The whole pipeline next to the same one by hand: ``python -m recserve.benchmarks.slates``.

100,000 items, 500 candidates of a SASRec encoder, DeepFM ranks them, a determinantal point process takes 20,
each with its fast explanation. ``engine``: ``Engine.recommend_many``; ``by hand``: peers/pipeline.py, ONNX
Runtime, NumPy and Python. From user ids to Python objects, one process, one thread, 32 requests of each in
turns, so that each finds in the caches what its own last call left there; both must give the same slates
first. Models of one epoch on a made shop: what they know costs nothing.
"""

import argparse
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, cast

import numpy as np

from recserve.benchmarks.environment import check_compiled, describe
from recserve.benchmarks.kernels.bars import Bar
from recserve.benchmarks.output import Output
from recserve.benchmarks.peers.pipeline import Answer, Pipeline
from recserve.benchmarks.plain_ranker import as_exported
from recserve.benchmarks.runs import trained_run
from recserve.benchmarks.statistics import median_interval, percentiles
from recserve.benchmarks.tables import RESULTS, show
from recserve.engine import Engine, EngineConfig, Request, Rules, Slate
from recserve.engine.bundle import open_bundle
from recserve.errors import CheckFailed
from recserve.exporters.assemble import export_run
from recserve.training.commands import run_config
from recserve.training.data import load_dataset
from recserve.training.models.ranker import Ranker

SCHEMA = 1
PACKAGES = ("numpy", "numba", "onnxruntime-gpu", "onnxruntime")
K, N_CANDIDATES, DIVERSITY = 20, 500, 0.15
BATCHES = (1, 32)
PER_TURN = 32
BUNDLE, PLAIN_RANKER = "bundle", "ranker.onnx"
# Noon on a Thursday: the same moment for both.
HOUR, WEEKDAY = 12, 3
TOLERANCE = 1e-4
ENGINE, BY_HAND = "engine", "by hand"
# A median of at most so many milliseconds, alone; so many times the throughput.
MOST_MS, LEAST_RATIO = 5.0, 2.0

Way = Callable[[Sequence[str]], object]


def main(arguments: list[str] | None = None) -> int:
    """Measures, prints the tables and writes the result."""
    parser = argparse.ArgumentParser(prog="recserve.benchmarks.slates", description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS / "slates.json")
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=10.0, help="per batch size")
    parser.add_argument(
        "--models", type=Path, help="folder of the models: used if it is there, else kept there"
    )
    options = parser.parse_args(arguments)
    check_compiled()
    with tempfile.TemporaryDirectory(prefix="recserve-slates-") as folder:
        models = options.models or Path(folder) / "models"
        if not models.exists():
            make_models(models, options.items)
        result = measure(models, options.seconds)
    Output(options.out).publish("slates", result, show)
    return 0


def make_models(folder: Path, n_items: int) -> None:
    """Trains SASRec and DeepFM for an epoch each; writes them as one bundle, and the plain ranker by hand."""
    dataset = load_dataset(f"synthetic-shop:n_items={n_items},n_users=500,n_events=15000,seed=7")
    small = {"epochs": 1, "seed": 3, "max_history": 50}
    of_encoder = {"embedding_size": 64, "n_blocks": 2, "loss": "sampled"}
    retrieval = run_config("sasrec", "leave-one-out", small | of_encoder)
    ranking = run_config("deepfm", "temporal", small | {"labels": "sampled"})
    with tempfile.TemporaryDirectory(prefix="recserve-slates-runs-") as runs:
        encoder = trained_run(Path(runs) / "encoder", retrieval, dataset)
        ranker = trained_run(Path(runs) / "ranker", ranking, dataset)
        export_run(encoder, folder / BUNDLE, ranker=ranker)
        (folder / PLAIN_RANKER).write_bytes(as_exported(cast(Ranker, ranker.best_model())))


def measure(folder: Path, seconds: float) -> dict[str, Any]:
    """Returns the result for the models in ``folder``; raises :class:`CheckFailed` for other slates."""
    bundle, plain = folder / BUNDLE, (folder / PLAIN_RANKER).read_bytes()
    with Engine.load(bundle, EngineConfig(provider="cpu", rank_candidates=N_CANDIDATES)) as engine:
        by_hand = Pipeline(open_bundle(bundle), plain, K, N_CANDIDATES, DIVERSITY)
        users = [user for user in engine.user_ids() if len(by_hand.histories[user])]
        ways: dict[str, Way] = {
            ENGINE: lambda users: engine.recommend_many(map(_request, users)),
            BY_HAND: lambda users: by_hand.answer(users, [1 + HOUR, 1 + WEEKDAY]),
        }
        n_checked = check_same(engine, by_hand, users)
        # As the server does when it is warm: both ways are spared what a full collection costs.
        gc.collect()
        gc.freeze()
        rows = [time_batch(ways, users, batch, seconds) for batch in BATCHES]
        stages = [stages_of(engine, users, batch) for batch in BATCHES]
        n_items = engine.manifest.n_items
    return {
        "schema": SCHEMA,
        "bench": "slates",
        "environment": describe(PACKAGES),
        "n_items": n_items,
        "n_candidates": N_CANDIDATES,
        "k": K,
        "n_checked": n_checked,
        "rows": rows,
        "stages_us": dict(zip(map(str, BATCHES), stages, strict=True)),
        "bars": bars_of(rows),
    }


def bars_of(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns what was promised: the median alone, and the throughput next to the pipeline by hand."""
    alone = Bar("p50 alone, ms", "", MOST_MS, None, lambda row: row["p50_ms"][ENGINE], at_least=False)
    throughputs = (
        Bar(f"throughput, batch {row['batch']}", "", LEAST_RATIO, None, itemgetter("ratio")) for row in rows
    )
    return [alone.judge(rows[0]), *(bar.judge(row) for bar, row in zip(throughputs, rows, strict=True))]


def _request(user: str) -> Request:
    return Request(
        user_id=user,
        k=K,
        explain="fast",
        context={"hour": str(HOUR), "weekday": str(WEEKDAY)},
        rules=Rules(diversity=DIVERSITY),
    )


def check_same(engine: Engine, by_hand: Pipeline, users: Sequence[str]) -> int:
    """Compares slates, scores and explanations of 256 users in batches; returns how many were compared."""
    checked = list(users[:256])
    for start in range(0, len(checked), BATCHES[-1]):
        some = checked[start : start + BATCHES[-1]]
        ours = engine.recommend_many(map(_request, some))
        theirs = by_hand.answer(some, [1 + HOUR, 1 + WEEKDAY])
        for user, slate, answer in zip(some, ours, theirs, strict=True):
            _check_slate(user, slate, answer)
    return len(checked)


def _check_slate(user: str, slate: Slate, answer: Answer) -> None:
    names = [item.item_id for item in slate.items]
    if names != [item["item_id"] for item in answer] or len(names) != K:
        raise CheckFailed(f"slate of user {user} by hand", found="another", expected="the engine's")
    for item, other in zip(slate.items, answer, strict=True):
        explanation = item.explanation
        if explanation is None:
            raise CheckFailed(
                f"item {item.item_id} of user {user}", found="unexplained", expected="explained"
            )
        pairs = [(item.score, other["score"])]
        theirs = other["explanation"]["contributions"]
        pairs += [(a.value, b["value"]) for a, b in zip(explanation.contributions, theirs, strict=True)]
        codes = [reason.code.name for reason in explanation.reasons]
        if codes != [reason["code"] for reason in other["explanation"]["reasons"]]:
            raise CheckFailed(f"reasons of {item.item_id}", found=codes, expected="those by hand")
        worst = max(abs(a - b) for a, b in pairs)
        if worst > TOLERANCE:
            raise CheckFailed(f"numbers of {item.item_id}", found=worst, expected=f"within {TOLERANCE:g}")


def time_batch(ways: dict[str, Way], users: Sequence[str], batch: int, seconds: float) -> dict[str, Any]:
    """Returns medians of a call in ms, slates per second of each way, and the ratio of throughputs."""
    order = np.random.default_rng(7)
    times: dict[str, list[float]] = {name: [] for name in ways}
    ratios: list[float] = []
    end = time.perf_counter() + seconds
    while not ratios or time.perf_counter() < end:
        asked = [[users[i] for i in order.integers(0, len(users), batch)] for _ in range(PER_TURN // batch)]
        spent = {}
        for name, way in ways.items():
            calls = []
            for some in asked:
                start = time.perf_counter()
                way(some)
                calls.append((time.perf_counter() - start) * 1e3)
            times[name] += calls
            spent[name] = sum(calls)
        ratios.append(spent[BY_HAND] / spent[ENGINE])
    found = {name: percentiles(np.array(values), [50, 99]) for name, values in times.items()}
    return {
        "batch": batch,
        "n_rounds": len(ratios),
        "p50_ms": {name: values[0] for name, values in found.items()},
        "p99_ms": {name: values[1] for name, values in found.items()},
        "slates_per_second": {name: 1e3 * batch * len(one) / sum(one) for name, one in times.items()},
        "ratio": statistics.median(ratios),
        "intervals": {"ratio": median_interval(ratios)},
    }


def stages_of(engine: Engine, users: Sequence[str], batch: int) -> dict[str, float]:
    """Returns the median microseconds of each stage, for the whole batch."""
    found: dict[str, list[float]] = {}
    for start in range(0, 50 * batch, batch):
        asked = [users[i % len(users)] for i in range(start, start + batch)]
        for stage, spent in engine.recommend_many(map(_request, asked))[0].stage_ns.items():
            found.setdefault(stage, []).append(spent / 1e3)
    return {stage: statistics.median(spent) for stage, spent in found.items()}


if __name__ == "__main__":
    sys.exit(main())
