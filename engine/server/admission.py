"""What is let in: a bound on the calls in flight, their deadlines, and the drain."""

import threading
from collections.abc import Iterator

from recserve.engine.server.call import Call
from recserve.errors import Overloaded, Unavailable

SETTLE_SECONDS = 0.2
MAX_PAUSES = 10


class Admission:
    """The calls that are admitted and not yet answered; safe to call from any thread.

    Several receiving threads may pass the bound together: it then overshoots by one call each, which
    spares every call a lock.
    """

    def __init__(self, max_in_flight: int) -> None:
        self._max_in_flight = max_in_flight
        # Every operation on it is one atomic step of the interpreter.
        self._calls: dict[Call, None] = {}
        self._draining = False
        # Calls that came after the drain began.
        self._n_too_late = 0
        self.is_short_of_memory = False
        self._idle = threading.Event()

    @property
    def in_flight(self) -> int:
        """Calls admitted and not yet answered."""
        return len(self._calls)

    @property
    def is_draining(self) -> bool:
        """Whether new calls are refused for good."""
        return self._draining

    def enter(self, call: Call) -> None:
        """Admits ``call``; raises :class:`Unavailable` while draining, :class:`Overloaded` when full."""
        if self._draining:
            self._n_too_late += 1
            raise Unavailable("server", found="shutting down", expected="serving", cure="Ask another one.")
        if self.is_short_of_memory:
            raise Overloaded(
                "memory", found="nearly used up", expected="some to spare", cure="Try again after a pause."
            )
        if len(self._calls) >= self._max_in_flight:
            raise Overloaded(
                "requests in flight",
                found=len(self._calls),
                expected=f"below {self._max_in_flight}",
                cure="Try again after a pause.",
            )
        self._calls[call] = None

    def leave(self, call: Call) -> None:
        """Forgets a call that is done."""
        self._calls.pop(call, None)
        if self._draining and not self._calls:
            self._idle.set()

    def expire(self, now: float) -> int:
        """Answers the calls whose deadline is before ``now``; returns how many."""
        return sum(call.expire() for call in list(self._calls) if call.deadline <= now)

    def drain(self) -> None:
        """Refuses new calls; the admitted ones go on."""
        self._draining = True
        if not self._calls:
            self._idle.set()

    def pauses_until_quiet(self) -> Iterator[float]:
        """After :meth:`drain`: yields the seconds to wait, again as long as calls come that are refused.

        What closed at once would cut off calls on their way from a socket, without a status that says why.
        """
        for _ in range(MAX_PAUSES):
            before = self._n_too_late
            yield SETTLE_SECONDS
            if self._n_too_late == before:
                return

    def wait_until_idle(self, seconds: float) -> bool:
        """After :meth:`drain`: returns whether all admitted calls were answered within ``seconds``."""
        return self._idle.wait(seconds)
