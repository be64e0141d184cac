"""A thread without haste lets others go first, within limits."""

import os
import time
from collections.abc import Callable

# What may be lost to others of the time that was worked: a machine that is full of other programs would take
# all of it.
SHARE = 1 / 3
# What was not lost does not count for ever: beside a long calm one burst would take very long.
MAX_CREDIT_SECONDS = 0.004


class Courtesy:
    """Call it often while working: whoever waits for this processor gets it now.

    The kernel alone would let them in at its next tick, up to 4 ms later: as long as a slate takes.
    """

    def __init__(
        self,
        give_way: Callable[[], object] = os.sched_yield,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._give_way, self._clock = give_way, clock
        self._credit = 0.0
        self._since = clock()

    def __call__(self) -> None:
        """Gives way, unless others have had too much of the time already."""
        now = self._clock()
        self._credit = min(MAX_CREDIT_SECONDS, self._credit + SHARE * (now - self._since))
        self._since = now
        if self._credit > 0:
            self._give_way()
            self._since = self._clock()
            self._credit -= self._since - now
