"""One search on several threads: the batch is split, for searches hold no lock."""

import statistics
import threading
from queue import SimpleQueue
from typing import Any

import numpy as np

from recserve.benchmarks.kernels import timing
from recserve.kernels import ItemIndex

# A part smaller than this costs more to hand to another thread than to search.
MIN_SPLIT = 16
TIMEOUT_SECONDS = 600.0

Task = tuple[Any, int] | None


class Split:
    """An index that is searched by ``threads`` threads at once, the caller's among them."""

    def __init__(self, index: ItemIndex, threads: int) -> None:
        self._index = index
        # Bare queues: a future of an executor costs a lock and a condition of its own.
        self._queues = [(SimpleQueue[Task](), SimpleQueue[Any]()) for _ in range(threads - 1)]
        for tasks, answers in self._queues:
            threading.Thread(target=self._work, args=(tasks, answers), daemon=True).start()

    def search(self, queries: Any, k: int) -> tuple[Any, Any]:
        """ItemIndex.search, with the same answer."""
        n_parts = 1 + len(self._queues)
        if n_parts == 1 or len(queries) < n_parts * MIN_SPLIT:
            return self._index.search(queries, k)
        ends = [len(queries) * part // n_parts for part in range(1, n_parts + 1)]
        for (tasks, _), start, end in zip(self._queues, ends, ends[1:], strict=False):
            tasks.put((queries[start:end], k))
        answers = [self._index.search(queries[: ends[0]], k)]
        answers += [answers_of.get(timeout=TIMEOUT_SECONDS) for _, answers_of in self._queues]
        scores, indices = (np.concatenate(part) for part in zip(*answers, strict=True))
        return scores, indices

    def close(self) -> None:
        """Ends the threads."""
        for tasks, _ in self._queues:
            tasks.put(None)

    def _work(self, tasks: SimpleQueue[Task], answers: SimpleQueue[Any]) -> None:
        while (task := tasks.get()) is not None:
            answers.put(self._index.search(*task))


def speed_up(
    index: ItemIndex, threads: int, queries: Any, batch: int, k: int, seconds: float
) -> dict[str, Any]:
    """Times one thread and ``threads`` in turns: medians, their ratio, and that of the least times.

    Call it before any peer has run: threads of OpenMP and of BLAS spin after their work and would take the
    other core.
    """
    split = Split(index, threads)
    times = timing.interleaved(
        {timing.OURS: split.search, "one thread": index.search}, queries, batch, k, seconds, drop=False
    )
    split.close()
    many, one = times[timing.OURS], times["one thread"]
    return {
        "batch": batch,
        "k": k,
        "one_ms": statistics.median(one),
        "ms": statistics.median(many),
        "ratio": statistics.median(one) / statistics.median(many),
        "least_ratio": min(one) / min(many),
    }
