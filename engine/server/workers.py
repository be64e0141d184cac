"""A few threads for handlers that take time."""

import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from recserve.engine.server.call import Call
from recserve.engine.threads import Crew
from recserve.errors import Unavailable


class WorkerPool:
    """Runs ordinary functions for calls; a call that is done or late when its turn comes is never run."""

    def __init__(
        self,
        n_threads: int,
        on_exhausted: Callable[[], None] = lambda: None,
        *,
        stuck_seconds: float = float("inf"),
        on_stuck: Callable[[int], None] = lambda thread: None,
    ) -> None:
        """``on_stuck(thread)``: hears of one that has not come back from a call for ``stuck_seconds``."""
        self._n_threads = n_threads
        self._on_stuck = on_stuck
        self._queue: SimpleQueue[tuple[Callable[[Any, Call], Any], Call] | None] = SimpleQueue()
        self._crew = Crew(
            "recserve-worker",
            n_threads,
            self._work,
            on_exhausted=on_exhausted,
            stuck_seconds=stuck_seconds,
            on_stuck=self._give_up,
        )

    def plain(self, function: Callable[[Any, Call], Any]) -> Callable[[Any, Call], None]:
        """Returns a handler that answers with ``function(request, call)``, run on a thread."""

        def handler(request: Any, call: Call) -> None:
            self._queue.put((function, call))

        return handler

    def close(self) -> None:
        """Ends the threads after the work that is queued."""
        for _ in range(self._n_threads):
            self._queue.put(None)
        self._crew.join()

    def _work(self) -> None:
        while (work := self._queue.get()) is not None:
            function, call = work
            if call.is_done:
                continue
            if time.monotonic() >= call.deadline:
                call.expire()
                continue
            self._crew.begins(call)
            try:
                call.reply(function(call.request, call))
            except Exception as error:  # noqa: BLE001 - the caller gets a status for whatever it is
                call.fail(error)
            except BaseException:
                call.fail(
                    Unavailable("worker", found="ended", expected="running", cure="Try again after a moment.")
                )
                raise
            if not self._crew.ends():
                return

    def _give_up(self, thread: int, call: Call) -> None:
        call.fail(Unavailable("worker", found="stuck", expected="done", cure="Try again after a moment."))
        self._on_stuck(thread)
