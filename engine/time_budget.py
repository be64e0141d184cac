"""What is left out of a slate so that it is in time: reasons first, then diversity, then the second stage."""

import math
from collections.abc import Mapping, Sequence

from recserve.engine.types import DEGRADED_EXPLAIN, DEGRADED_RANK, DEGRADED_RERANK, Request

# What a user misses least goes first.
SKIPPED_FIRST = (DEGRADED_EXPLAIN, DEGRADED_RERANK, DEGRADED_RANK)
# The stages before them, which no slate can do without.
UNSKIPPED = "unskipped"
# Of the newest batch in the moving average of what a stage costs.
NEWEST_SHARE = 0.2


def deadlines_of(requests: Sequence[Request], now: float) -> Sequence[float]:
    """Returns when the budget of each request that begins ``now`` (seconds) ends; empty for none."""
    if all(request.budget_ms is None for request in requests):
        return ()
    return [math.inf if one.budget_ms is None else now + one.budget_ms / 1000 for one in requests]


def stages_to_skip(left_ns: float, expected_ns: Mapping[str, float]) -> tuple[str, ...]:
    """Returns the optional stages that do not fit into ``left_ns``, in the order in which they are given up.

    ``expected_ns``: what each stage that the row wants is expected to take. Past the deadline (below 0) all
    of them go: the slate is late already.
    """
    needed, skipped = sum(expected_ns.values()), []
    for stage in SKIPPED_FIRST:
        if needed <= left_ns:
            break
        if stage in expected_ns:
            skipped.append(stage)
            needed -= expected_ns[stage]
    return tuple(skipped)


class StageCosts:
    """Moving averages of nanoseconds per row. Threads may lose one another's updates, which is harmless."""

    def __init__(self) -> None:
        self._per_row: dict[str, float] = {}

    def record(self, stage: str, n_rows: int, ns: float) -> None:
        """Notes that ``stage`` took ``ns`` for ``n_rows`` together."""
        newest, known = ns / n_rows, self._per_row.get(stage)
        self._per_row[stage] = newest if known is None else known + NEWEST_SHARE * (newest - known)

    def expected(self, stage: str, n_rows: int) -> float:
        """Returns the nanoseconds that ``stage`` is expected to take, 0 when it never ran."""
        return self._per_row.get(stage, 0.0) * n_rows

    def in_haste(self, deadlines: Sequence[float], now: float) -> list[int]:
        """Returns the rows of a batch that would be late after all stages: they go better before the others.

        ``deadlines``, ``now``: seconds of one clock. Where all are in haste nobody is: none is to wait for.
        """
        whole = sum(self._per_row.values()) * len(deadlines) / 1e9
        if min(deadlines) - now >= whole:
            return []
        late = [i for i, deadline in enumerate(deadlines) if deadline - now < whole]
        return late if len(late) < len(deadlines) else []
