"""Times the points of each axis in turns: every round calls each once, on the next queries or users, in a
rotating order. So each finds the caches as the others left them, and a disturbance meets all.
"""

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recserve.benchmarks.kernels import data
from recserve.benchmarks.load.run import Ids
from recserve.benchmarks.scale.options import BUNDLE_AXES, SEARCH_AXES, Base, ScaleOptions
from recserve.benchmarks.statistics import median_interval
from recserve.engine import Engine, Request
from recserve.engine.ranked import Ranked
from recserve.engine.wire.slates import encode_ranked
from recserve.kernels import ItemIndex

MIN_ROUNDS, MAX_ROUNDS = 5, 300
# Users that take turns, and queries.
N_USERS = 1000
MADE_LENGTH = 10

Ask = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Point:
    """One size on one axis: ``ask`` answers ``n_requests``."""

    what: str
    axis: str
    size: int
    n_requests: int
    ask: Ask


def time_points(points: Sequence[Point], seconds: float) -> list[dict[str, Any]]:
    """Returns a row per point: medians of wall time per call, of wall and CPU time per request."""
    for point in points:
        point.ask()
    wall: list[list[float]] = [[] for _ in points]
    cpu: list[list[float]] = [[] for _ in points]
    deadline = time.perf_counter() + seconds
    n_rounds = 0
    while n_rounds < MIN_ROUNDS or (time.perf_counter() < deadline and n_rounds < MAX_ROUNDS):
        for i in range(len(points)):
            turn = (i + n_rounds) % len(points)
            began, used = time.perf_counter(), time.process_time()
            points[turn].ask()
            cpu[turn].append(1e3 * (time.process_time() - used))
            wall[turn].append(1e3 * (time.perf_counter() - began))
        n_rounds += 1
    return [
        {
            "what": point.what,
            "axis": point.axis,
            "size": point.size,
            "median_ms": statistics.median(wall[i]),
            "us_per_request": 1e3 * statistics.median(wall[i]) / point.n_requests,
            "cpu_us_per_request": 1e3 * statistics.median(cpu[i]) / point.n_requests,
            "intervals": {"median_ms": median_interval(wall[i])},
        }
        for i, point in enumerate(points)
    ]


def time_search(options: ScaleOptions, cache: Path, on_axis: Callable[[str], None]) -> list[dict[str, Any]]:
    """Returns the rows of exact search over made catalogues (``kernels.data``)."""
    rows = []
    for axis in SEARCH_AXES:
        if sizes := options.axes.get(axis):
            on_axis(f"search by {axis}")
            with ThreadPoolExecutor(max(sizes)) as pool:
                rows += time_points(_search_points(axis, sizes, options, cache, pool), options.seconds)
    return rows


def _search_points(
    axis: str, sizes: Sequence[int], options: ScaleOptions, cache: Path, pool: ThreadPoolExecutor
) -> list[Point]:
    made: dict[tuple[int, int], tuple[ItemIndex, Any]] = {}
    points = []
    for size in sizes:
        base = options.base.at(axis, size)
        if (key := (base.items, base.dim)) not in made:
            vectors, queries = data.make(options.data, *key, options.seed, cache)
            made[key] = ItemIndex.build(vectors), queries
        index, queries = made[key]
        parts = _in_turns(len(queries), base.batch)

        def one(index: ItemIndex = index, queries: Any = queries, k: int = base.k, parts: Any = parts) -> Any:
            return index.search(queries[next(parts)], k)

        ask = _together(one, base.callers, pool)
        points.append(Point("search", axis, size, base.batch * base.callers, ask))
    return points


def time_bundles(
    engines: Sequence[Engine], ids: Ids, options: ScaleOptions, on_axis: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Returns the rows of whole engines, the smallest catalogue first: request objects → bytes of replies.

    All axes but that of items are measured on the first. Users are those of ``ids`` with their stored
    histories; where there are none, or the history's length is the axis, requests bring made histories.
    """
    rows = []
    for axis in BUNDLE_AXES:
        sizes = [one.manifest.n_items for one in engines] if axis == "items" else options.axes.get(axis, ())
        if axis == "history":
            sizes = [size for size in sizes if size <= engines[0].manifest.inputs.max_history]
        if not sizes or axis not in options.axes:
            continue
        on_axis(f"bundle by {axis}")
        with ThreadPoolExecutor(max(sizes) if axis == "callers" else 1) as pool:
            points = []
            for i, size in enumerate(sizes):
                base = options.base.at(axis, size)
                length = size if axis == "history" else 0
                one = _one_batch(
                    engines[i if axis == "items" else 0], _requests(ids, base.k, length, options.seed), base
                )
                ask = _together(one, base.callers, pool)
                points.append(Point("bundle", axis, size, base.batch * base.callers, ask))
            rows += time_points(points, options.seconds)
    return rows


def _one_batch(engine: Engine, requests: list[Request], base: Base) -> Ask:
    parts = _in_turns(len(requests), base.batch)

    def one() -> None:
        ranked = []
        for answer in engine.rank_each(requests[next(parts)]):
            if not isinstance(answer, Ranked):
                raise answer
            ranked.append(answer)
        encode_ranked(ranked)

    return one


def _requests(ids: Ids, k: int, length: int, seed: int) -> list[Request]:
    rng = np.random.default_rng(seed)
    if length or ids.users == [""]:
        rows = rng.integers(0, len(ids.items), (N_USERS, length or MADE_LENGTH)).tolist()
        return [Request(history=[ids.items[item] for item in row], k=k) for row in rows]
    return [Request(user_id=ids.users[row], k=k) for row in rng.integers(0, len(ids.users), N_USERS).tolist()]


def _in_turns(n: int, batch: int) -> Iterator[slice]:
    """Endlessly the next ``batch`` of ``n``; no generator, so that threads may share it."""
    starts = range(0, max(1, n - batch + 1), batch)
    return itertools.cycle([slice(start, start + batch) for start in starts])


def _together(one: Ask, callers: int, pool: ThreadPoolExecutor) -> Ask:
    """Returns what asks from so many threads at once and waits for all answers."""
    if callers == 1:
        return one
    return lambda: [done.result() for done in [pool.submit(one) for _ in range(callers)]]
