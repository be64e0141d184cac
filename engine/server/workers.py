"""Runs engine calls on a few threads, under a deadline and a bound on what is admitted."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from recserve.errors import DeadlineExceeded, Overloaded, Unavailable

T = TypeVar("T")


class WorkerPool:
    """Admits at most ``max_in_flight`` calls; used from one event loop.

    A call whose deadline passes while it waits is never run.
    """

    def __init__(self, threads: int, max_in_flight: int) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="recserve-worker")
        self._max_in_flight = max_in_flight
        self._in_flight = 0
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def in_flight(self) -> int:
        """Calls admitted and not yet answered."""
        return self._in_flight

    async def run(self, work: Callable[[], T], seconds: float) -> T:
        """Runs ``work`` on a thread; ``seconds`` from now its answer is no longer wanted.

        Raises :class:`Overloaded` when too much is admitted, :class:`DeadlineExceeded` when the time
        passes, :class:`Unavailable` while draining.
        """
        if self._draining:
            raise Unavailable("server", found="shutting down", expected="serving", cure="Ask another one.")
        if self._in_flight >= self._max_in_flight:
            raise Overloaded(
                "requests in flight",
                found=self._in_flight,
                expected=f"below {self._max_in_flight}",
                cure="Try again after a pause.",
            )
        deadline = time.monotonic() + seconds

        def work_unless_late() -> T:
            if time.monotonic() >= deadline:
                raise _late(seconds)
            return work()

        self._in_flight += 1
        self._idle.clear()
        try:
            future = asyncio.get_running_loop().run_in_executor(self._executor, work_unless_late)
            async with asyncio.timeout(seconds) as limit:
                return await future
        except TimeoutError:
            if not limit.expired():
                raise  # The work's own: no matter of our deadline.
            raise _late(seconds) from None
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self._idle.set()

    def drain(self) -> None:
        """Refuses new calls; the admitted ones go on."""
        self._draining = True

    async def wait_until_idle(self, seconds: float) -> None:
        """Returns when no admitted call is left, or after ``seconds``."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), seconds)

    def close(self) -> None:
        """Waits for the running calls and ends the threads."""
        self._executor.shutdown(wait=True, cancel_futures=True)


def _late(seconds: float) -> DeadlineExceeded:
    return DeadlineExceeded(
        "answer", found="not ready", expected=f"within {seconds * 1000:.0f} ms", cure="Allow more time."
    )
