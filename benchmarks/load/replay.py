"""A captured trace as a workload: the recorded times, kinds and sizes, asked by users of a bundle."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recserve.benchmarks.load.messages import Question, Workload
from recserve.benchmarks.load.run import Ids
from recserve.engine.traces import KINDS, NOBODY, SIMILAR, read_trace
from recserve.errors import InvalidRequest


def read_replay(path: Path, ids: Ids, seed: int) -> Workload:
    """Reads a trace. Each of its pseudonyms becomes one user (of ``similar``: item) of ``ids``, by chance.

    Who asked often asks often; where there are more pseudonyms than ids, several share one. A request that
    brought a history brings one as long, and events are as many, of items by chance.
    """
    trace = read_trace(path)
    if not ids.items and (trace.n_items.any() or SIMILAR in trace.kinds):
        raise InvalidRequest(
            "--trace",
            found="with items, whose ids it does not know",
            expected="a bundle to take them from",
            cure="Give --bundle.",
        )
    rng = np.random.default_rng(seed)
    pools = {kind: ids.items if kind == SIMILAR else ids.users for kind in KINDS}
    rows = {kind: rows_by_chance(trace.subjects, len(pool), seed) for kind, pool in pools.items() if pool}
    numbers: dict[Question, int] = {}
    order = np.empty(len(trace.seconds), np.int32)
    for i, kind in enumerate(trace.kinds):
        id_ = pools[kind][rows[kind][i]] if trace.subjects[i] != NOBODY else ""
        items = rng.integers(0, max(1, len(ids.items)), trace.n_items[i]).tolist()
        question = Question(kind, id_, int(trace.k[i]), tuple(ids.items[item] for item in items))
        order[i] = numbers.setdefault(question, len(numbers))
    return Workload(list(numbers), order, trace.seconds)


def rows_by_chance(subjects: NDArray[np.uint64], n: int, seed: int) -> NDArray[np.int64]:
    """Returns a row below ``n`` for each of ``subjects``, equal ones for equal subjects."""
    rng = np.random.default_rng(seed)
    different, which = np.unique(subjects, return_inverse=True)
    rows: NDArray[np.int64] = rng.permutation(max(n, len(different)))[: len(different)] % n
    return rows[which]
