"""How much one caller may ask: so many calls a second, in bursts, and so many at once.

The bucket of a caller is one number, the moment at which it is full again (GCRA, the "virtual scheduling"
form of the leaky bucket; ITU-T I.371, annex A). A caller that asked nothing for long has no entry, and there
are at most ``MAX_CALLERS`` of them, however many names tokens bring.
"""

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from recserve.engine.server.call import Call
from recserve.errors import ConfigError, RateLimited

# Beyond it the one that asked longest ago is forgotten: its bucket counts as full.
MAX_CALLERS = 10_000
EVERYBODY_ELSE = "*"
# Moments far from zero are not exact; this much early is in time.
ROUNDING_SECONDS = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class CallerLimit:
    """``per_second`` on average, ``burst`` of them together, ``in_flight`` at once; 0: no such limit."""

    per_second: float = 0.0
    burst: int = 0
    in_flight: int = 0

    def __post_init__(self) -> None:
        for name, kinds in (("per_second", int | float), ("burst", int), ("in_flight", int)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, kinds) or not 0 <= value < float("inf"):
                raise ConfigError(f"policy limits {name}", found=value, expected="a number, 0 or more")
        if bool(self.per_second) != bool(self.burst):
            raise ConfigError(
                "policy limits burst",
                found=self.burst,
                expected="1 or more with per_second, and none without it",
            )


class Buckets:
    """The token buckets of all callers; not safe for several threads at once."""

    def __init__(self, max_callers: int = MAX_CALLERS) -> None:
        self._max_callers = max_callers
        # By caller, who asked last at the end: when its bucket is full again.
        self._full_at: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._full_at)

    def take(self, caller: str, limit: CallerLimit, now: float) -> float:
        """Takes a token; returns 0, or the seconds until there is one."""
        wait = self._after(caller, limit, 1, now) - now - limit.burst / limit.per_second
        if wait > ROUNDING_SECONDS:
            return wait
        self.charge(caller, limit, 1, now)
        return 0.0

    def charge(self, caller: str, limit: CallerLimit, n: int, now: float) -> None:
        """Takes ``n`` tokens, those that are not there yet too."""
        self._full_at[caller] = self._after(caller, limit, n, now)
        self._full_at.move_to_end(caller)
        if len(self._full_at) > self._max_callers:
            self._full_at.popitem(last=False)

    def _after(self, caller: str, limit: CallerLimit, n: int, now: float) -> float:
        return max(self._full_at.get(caller, now), now) + n / limit.per_second


class CallerLimits:
    """Refuses the calls that are beyond their caller's limit; safe to call from any thread.

    ``limits()``: the limits of now by the caller's name, ``EVERYBODY_ELSE`` being each other one's.
    """

    def __init__(
        self, limits: Callable[[], Mapping[str, CallerLimit]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limits = limits
        self._clock = clock
        # Guards the fields below.
        self._lock = threading.Lock()
        self._buckets = Buckets()
        self._in_flight: Counter[str] = Counter()

    def enter(self, call: Call) -> None:
        """Lets an authorised call in; raises :class:`RateLimited`."""
        caller = str(call.principal)
        limit = self._limit(caller)
        if limit is None:
            return
        with self._lock:
            if limit.in_flight and self._in_flight[caller] >= limit.in_flight:
                raise RateLimited(
                    "your calls in flight", found=self._in_flight[caller], expected=f"below {limit.in_flight}"
                )
            if limit.per_second and (wait := self._buckets.take(caller, limit, self._clock())):
                raise RateLimited(
                    "your rate of calls",
                    found="over its limit",
                    expected=f"{limit.per_second:g} a second, {limit.burst} at once",
                    retry_after=wait,
                )
            if limit.in_flight:
                self._in_flight[caller] += 1
        if limit.in_flight:
            call.on_done(lambda: self._leave(caller))

    def charge(self, call: Call, n: int) -> None:
        """Counts ``n`` more calls for one that was let in and asks for several things."""
        caller = str(call.principal)
        limit = self._limit(caller)
        if limit is not None and limit.per_second and n > 0:
            with self._lock:
                self._buckets.charge(caller, limit, n, self._clock())

    def _limit(self, caller: str) -> CallerLimit | None:
        limits = self._limits()
        return limits.get(caller) or limits.get(EVERYBODY_ELSE)

    def _leave(self, caller: str) -> None:
        with self._lock:
            self._in_flight[caller] -= 1
            if not self._in_flight[caller]:
                del self._in_flight[caller]
