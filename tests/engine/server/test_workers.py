"""The worker pool by itself: admission, lateness, draining."""

import asyncio
import threading

import pytest

from recserve.engine.server.workers import WorkerPool
from recserve.errors import DeadlineExceeded, Overloaded, Unavailable

TIMEOUT_SECONDS = 30


def test_work_that_is_late_already_is_never_run() -> None:
    ran = []

    async def ask() -> None:
        pool = WorkerPool(threads=1, max_in_flight=1)
        with pytest.raises(DeadlineExceeded, match="within 0 ms"):
            # The thread is free, and may take the work before the loop looks at the clock.
            await pool.run(lambda: ran.append(1), 0.0)
        assert pool.in_flight == 0
        pool.close()

    asyncio.run(ask())
    assert ran == []


def test_what_is_admitted_is_counted_until_it_is_answered() -> None:
    async def ask() -> None:
        pool = WorkerPool(threads=1, max_in_flight=2)
        gate = threading.Event()
        calls = [asyncio.ensure_future(pool.run(gate.wait, TIMEOUT_SECONDS)) for _ in range(2)]
        await asyncio.sleep(0)  # One turn of the loop: both are admitted.
        assert pool.in_flight == 2
        with pytest.raises(Overloaded, match="requests in flight is 2; expected below 2"):
            await pool.run(gate.wait, TIMEOUT_SECONDS)
        calls[1].cancel()
        with pytest.raises(asyncio.CancelledError):
            await calls[1]
        assert pool.in_flight == 1
        pool.drain()
        with pytest.raises(Unavailable, match="server is shutting down"):
            await pool.run(gate.wait, TIMEOUT_SECONDS)
        idle = asyncio.ensure_future(pool.wait_until_idle(TIMEOUT_SECONDS))
        gate.set()
        assert await calls[0]
        await idle
        assert pool.in_flight == 0
        pool.close()

    asyncio.run(ask())
