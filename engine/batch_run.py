"""One batch on its way through what answers it: each entry is answered once, and a bad one fails alone."""

from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

import structlog

from recserve.engine.counters import Counters
from recserve.errors import RecserveError, Unavailable

log = structlog.get_logger("recserve.batcher")


class Entry(Protocol):
    """One call that waits; ``priority`` 0 is the most urgent; times are those of ``time.monotonic``."""

    deadline: float
    received_at: float
    priority: int
    stage_ns: dict[str, int]

    @property
    def is_done(self) -> bool:
        """Whether the entry is answered already."""

    def fail(self, error: BaseException) -> bool:
        """Answers with an error."""

    def expire(self) -> bool:
        """Answers that its deadline cannot be met."""


E = TypeVar("E", bound=Entry)
Answer = Callable[[list[E]], None]


class BatchRun(Generic[E]):
    """Runs batches for a batcher, and counts ``failed_batches`` and ``failed_rows`` in ``counters``."""

    def __init__(self, counters: Counters, model_of: Callable[[E], str], clock: Callable[[], float]) -> None:
        self._counters = counters
        self._model_of = model_of
        self._clock = clock

    def run(self, answer: Answer[E], batch: list[E]) -> set[str]:
        """Has every entry of ``batch`` answered; returns the models that could do it for none of theirs."""
        failed: set[str] = set()
        now = self._clock()
        for entry in batch:
            entry.stage_ns["queue"] = max(0, int((now - entry.received_at) * 1e9))
        try:
            try:
                answer(batch)
            except Exception as error:  # noqa: BLE001 - each caller gets a status for whatever it is
                failed = self._one_by_one(answer, batch, error)
            for entry in batch:
                if not entry.is_done:
                    entry.fail(RuntimeError("the batch ended without an answer for one of its entries"))
        except BaseException:
            abort(batch)
            raise
        return failed

    def _one_by_one(self, answer: Answer[E], batch: list[E], error: Exception) -> set[str]:
        if len(batch) == 1:
            self._counters.add(failed_batches=1, failed_rows=int(batch[0].fail(error)))
            # Of ours each says what is to do.
            return set() if isinstance(error, RecserveError) else {self._model_of(batch[0])}
        log.warning("batch failed, trying its rows one by one", rows=len(batch), error=type(error).__name__)
        n_failed = 0
        # Whose time is not over was answered before the error.
        now = self._clock()
        could = {self._model_of(entry) for entry in batch if entry.is_done and entry.deadline > now}
        could_not: set[str] = set()
        for entry in batch:
            if not entry.is_done:
                could_it = could
                try:
                    answer([entry])
                except Exception as own:  # noqa: BLE001 - as above
                    n_failed += entry.fail(own)
                    could_it = could if isinstance(own, RecserveError) else could_not
                could_it.add(self._model_of(entry))
        self._counters.add(failed_batches=1, failed_rows=n_failed)
        return could_not - could


def abort(batch: Sequence[Entry]) -> None:
    """Answers what is not answered yet: its thread has ended."""
    for entry in batch:
        entry.fail(
            Unavailable("batch", found="aborted", expected="computed", cure="Try again after a moment.")
        )
