"""Cheaper answers in a brown-out (engine/brownout.py), given by a thread that the model never keeps."""

from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Generic

from recserve.engine.batch_run import E, abort
from recserve.engine.threads import this_crew

# How often its thread looks who waits: in a brown-out, and else.
RELIEF_SECONDS, IDLE_SECONDS = 0.01, 0.1


class Relief(Generic[E]):
    """Answers those who are put, and those who wait for more than the next batch, whatever the model does."""

    def __init__(
        self,
        answer: Callable[[list[E]], None],
        size: int,
        *,
        is_on: Callable[[], bool],
        surplus: Callable[[], list[E]],
    ) -> None:
        """``answer``: takes ``size`` entries at most; ``surplus()``: takes out of the queue who is to be
        answered besides, asked again and again while ``is_on()``."""
        self._answer = answer
        self._size = size
        self._is_on = is_on
        self._surplus = surplus
        # None at the end.
        self._queue: SimpleQueue[list[E] | None] = SimpleQueue()

    def put(self, entries: list[E]) -> None:
        """Has ``entries`` answered; without any, its thread looks at once who waits."""
        self._queue.put(entries)

    def close(self) -> None:
        """Lets :meth:`work` return."""
        self._queue.put(None)

    def work(self) -> None:
        """Answers until the end; what the one thread of a crew runs."""
        crew = this_crew()
        while (entries := self._next()) is not None:
            crew.begins(entries)
            try:
                for start in range(0, len(entries), self._size):
                    self._answer(entries[start : start + self._size])
            except BaseException:
                abort(entries)
                raise
            if not crew.ends():
                return

    def _next(self) -> list[E] | None:
        entries: list[E] | None = []
        with suppress(Empty):
            entries = self._queue.get(timeout=RELIEF_SECONDS if self._is_on() else IDLE_SECONDS)
        return None if entries is None else entries + self._surplus()
