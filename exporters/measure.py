"""The figures that the gate decides by: quality on held-out users, time, memory."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from recserve.engine.bundle import layout
from recserve.errors import CheckFailed
from recserve.exporters.gate import Measured, paired_loss
from recserve.exporters.parity import BATCH, TOP, Encode
from recserve.exporters.quantise import Inputs
from recserve.training import metrics
from recserve.training.data import EvaluationSet
from recserve.training.evaluate import MAX_SCORES_PER_STEP, ranks_of, top_k

MIN_CALLS, MAX_CALLS, MAX_SECONDS = 15, 300, 2.0


@dataclass(frozen=True, slots=True)
class Quality:
    """What one form answers to every held-out user: NDCG@10 (n,), its ten items (n, 10), its embeddings."""

    ndcg: NDArray[np.float64]
    top: NDArray[np.int64]
    queries: NDArray[np.float32]


def quality(encode: Encode, items: NDArray[np.float32], held_out: EvaluationSet) -> Quality:
    """Ranks all of ``items`` for every user of ``held_out`` that has a history, seen items left out."""
    users = np.flatnonzero(held_out.histories.lengths > 0)
    batch = max(1, min(BATCH, MAX_SCORES_PER_STEP // len(items)))
    ranks, tops, queries = [], [], []
    for start in range(0, len(users), batch):
        rows = users[start : start + batch]
        found = encode(rows)
        queries.append(found)
        for row, scores in zip(rows.tolist(), found @ items.T, strict=True):
            scores[held_out.histories.row(row)[0]] = -np.inf
            ranks.append(ranks_of(scores, np.unique(held_out.targets.row(row)[0])))
            top = top_k(scores, min(TOP, len(scores)))
            tops.append(np.pad(top, (0, TOP - len(top)), constant_values=-1))
    return Quality(metrics.ndcg(ranks, TOP), np.array(tops), np.concatenate(queries))


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds of a call, each of at least ``MIN_CALLS`` calls.

    ``fast``: of the fastest quarter, which what else the machine does disturbs least; for ratios.
    """

    fast: float
    p50: float
    p99: float


def timings(
    sessions: dict[str, ort.InferenceSession], inputs: Inputs, output: str = layout.QUERY_EMBEDDING_OUTPUT
) -> dict[str, Timing]:
    """Times the sessions in turns, so that what else the machine does hits all of them alike."""
    seconds: dict[str, list[float]] = {name: [] for name in sessions}
    for session in sessions.values():
        session.run([output], inputs)
    begun = time.perf_counter()
    for call in range(MAX_CALLS):
        if call >= MIN_CALLS and time.perf_counter() - begun > MAX_SECONDS * len(sessions):
            break
        for name, session in sessions.items():
            start = time.perf_counter()
            session.run([output], inputs)
            seconds[name].append(time.perf_counter() - start)
    return {
        name: Timing(*(float(value) * 1e3 for value in np.percentile(values, [25, 50, 99])))
        for name, values in seconds.items()
    }


def full_length(inputs: Inputs, n_rows: int, length: int) -> Inputs:
    """Returns ``n_rows`` of recorded inputs, repeated as needed, with their padding filled by their items."""
    filled = {}
    for name, values in inputs.items():
        rows = np.resize(values, (n_rows, *values.shape[1:]))[:, -length:]
        filled[name] = np.ascontiguousarray(np.maximum(rows, 0))
    return filled


def resident_bytes(graph: bytes, inputs: Inputs, parts: Iterable[str] = (), folder: Path = Path()) -> float:
    """Returns the bytes that loading and running ``graph`` adds to a fresh process.

    ``parts``: of the item table that it reads, whose files are in ``folder``. Raises :class:`CheckFailed`
    where the process fails.
    """
    with tempfile.TemporaryDirectory() as scratch:
        path, record = Path(scratch, "graph.onnx"), Path(scratch, "inputs.npz")
        path.write_bytes(graph)
        np.savez(record, **inputs)  # type: ignore[arg-type]
        command = [sys.executable, "-m", "recserve.exporters.resident", str(path), str(folder), str(record)]
        command += parts
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CheckFailed(
            "resident memory of a graph", found=done.stderr[-200:], expected="a graph that runs"
        )
    return float(done.stdout)


def compare(
    exact: Quality,
    found: Quality,
    items: tuple[NDArray[np.float32], NDArray[np.float32]],
    *,
    bytes_and_resident: tuple[float, float],
    exact_bytes: float,
    one: tuple[Timing, Timing],
    many: tuple[Timing, Timing],
) -> Measured:
    """Puts the figures of a form together; ``items``, ``one``, ``many`` have fp32's first, then its own."""
    loss, low, high = paired_loss(exact.ndcg, found.ndcg)
    kept = (exact.top[:, :, None] == found.top[:, None, :]).any(-1) & (exact.top >= 0)
    return Measured(
        ndcg=float(found.ndcg.mean()),
        ndcg_loss=loss,
        ndcg_loss_low=low,
        ndcg_loss_high=high,
        top10_overlap=float(kept.sum() / max(1, (exact.top >= 0).sum())),
        max_score_error=_max_score_error(exact.queries, found.queries, items),
        size_bytes=bytes_and_resident[0],
        size_ratio=bytes_and_resident[0] / exact_bytes,
        resident_bytes=bytes_and_resident[1],
        p50_batch1_ms=one[1].p50,
        p99_batch1_ms=one[1].p99,
        p50_batch32_ms=many[1].p50,
        p99_batch32_ms=many[1].p99,
        speedup_batch1=one[0].fast / one[1].fast,
        speedup_batch32=many[0].fast / many[1].fast,
    )


def _max_score_error(
    exact: NDArray[np.float32],
    found: NDArray[np.float32],
    items: tuple[NDArray[np.float32], NDArray[np.float32]],
) -> float:
    worst = 0.0
    step = max(1, MAX_SCORES_PER_STEP // len(items[0]))
    for start in range(0, len(exact), step):
        rows = slice(start, start + step)
        error = found[rows] @ items[1].T - exact[rows] @ items[0].T
        # Not max(): it would lose a NaN, which the gate must see.
        worst = float(np.maximum(worst, np.abs(error).max()))
    return worst
