"""Times methods in turns: every round calls each once, on queries that none has seen, in a rotating order.

What else the machine does meets all of them, and every call finds the caches as another method left them
("cold"). A method timed alone, call after call, is "hot": what a server with nothing else to do sees.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from recserve.errors import CheckFailed, InvalidRequest

Vectors = npt.NDArray[np.float32]
Search = Callable[[Vectors, int], tuple[Any, Any]]

OURS = "recserve"
MIN_ROUNDS, MAX_ROUNDS = 5, 400
# A peer this many times slower than the fastest is not timed any further: after one call if it takes long,
# else after three, so that one disturbed call of a fast peer decides nothing.
HOPELESS = 4.0
LONG_MS = 250.0
ROUNDS_TO_JUDGE = 3
DISPATCH_CALLS = 2000
DISPATCH_BATCH = 65


def interleaved(
    methods: Mapping[str, Search], queries: Vectors, batch: int, k: int, seconds: float, *, drop: bool = True
) -> dict[str, list[float]]:
    """Returns the milliseconds of every call by method, the first of each left out.

    Goes on for ``seconds``, and for 5 rounds at least. ``drop``: a peer that is 4 times slower than the
    fastest drops out soon, so that it does not use up everybody's time. Call every method once before: a
    first call that sets something up is not to be held against it.
    """
    times: dict[str, list[float]] = {name: [] for name in methods}
    active = list(methods)
    parts = _parts(queries, batch)
    deadline = time.perf_counter() + seconds
    n_rounds = 0
    while n_rounds <= MIN_ROUNDS or (time.perf_counter() < deadline and n_rounds <= MAX_ROUNDS):
        part = next(parts)
        turn = n_rounds % len(active)
        for name in active[turn:] + active[:turn]:
            times[name].append(_call_ms(methods[name], part, k))
        if drop and n_rounds < ROUNDS_TO_JUDGE:
            surely = n_rounds == ROUNDS_TO_JUDGE - 1
            active = [name for name in active if not _is_hopeless(name, times, surely)]
        n_rounds += 1
    return {name: values[1:] or values for name, values in times.items()}


def alone(method: Search, queries: Vectors, batch: int, k: int, seconds: float) -> list[float]:
    """Returns the milliseconds of every call of one method, call after call."""
    parts = _parts(queries, batch)
    deadline = time.perf_counter() + seconds
    times: list[float] = []
    while len(times) <= MIN_ROUNDS or (time.perf_counter() < deadline and len(times) <= MAX_ROUNDS):
        times.append(_call_ms(method, next(parts), k))
    return times[1:]


def check_same(name: str, ours: Any, theirs: Any) -> None:
    """Raises CheckFailed unless two answers agree, up to the rounding of the peer's own sums.

    The scores must be the same, and the items too up to scores that tie within rounding.
    """
    scores, indices = ours
    peer_scores, peer_indices = theirs
    tolerance = 1e-5 * max(1.0, float(np.abs(scores).max()))
    if not np.allclose(scores, peer_scores, rtol=0, atol=tolerance):
        raise CheckFailed(f"answer of {name}", found="of other scores", expected="the scores of recserve")
    for row_scores, row, peer_row in zip(scores, indices, peer_indices, strict=True):
        differing = row_scores[~np.isin(row, peer_row)]
        if len(differing) and (differing > row_scores[-1] + 2 * tolerance).any():
            raise CheckFailed(f"answer of {name}", found="of other items", expected="the items of recserve")


def dispatch_overhead_us(search: Search, queries: Vectors) -> float:
    """Microseconds of one call of ``search`` over a tiny index that are not the kernel's work.

    A call with b queries takes (overhead + b · work). Both follow from the medians with 1 and with 65
    queries; no internals are timed, so the figure holds for whatever the search is made of.
    """
    single, block = queries[:1], queries[:DISPATCH_BATCH]
    times: dict[int, list[float]] = {1: [], DISPATCH_BATCH: []}
    for _ in range(DISPATCH_CALLS):
        times[1].append(_call_ms(search, single, 10))
        times[DISPATCH_BATCH].append(_call_ms(search, block, 10))
    one, many = (statistics.median(times[n][10:]) for n in (1, DISPATCH_BATCH))
    work = (many - one) / (DISPATCH_BATCH - 1)
    return 1e3 * (one - work)


def _call_ms(method: Search, queries: Vectors, k: int) -> float:
    start = time.perf_counter_ns()
    method(queries, k)
    return 1e-6 * (time.perf_counter_ns() - start)


def _parts(queries: Vectors, batch: int) -> Iterator[Vectors]:
    """Endlessly the next ``batch`` queries."""
    if batch > len(queries):
        raise InvalidRequest(
            "--batch", found=batch, expected=f"at most {len(queries)}, the queries there are"
        )
    first = 0
    while True:
        yield queries[first : first + batch]
        first = (first + batch) % (len(queries) - batch + 1)


def _is_hopeless(name: str, times: Mapping[str, list[float]], surely: bool) -> bool:
    if name == OURS:
        return False
    fastest = min(min(values) for peer, values in times.items() if peer != OURS)
    least = min(times[name])
    return least > HOPELESS * fastest and (surely or least > LONG_MS)
