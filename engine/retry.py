"""When a client asks again: pure decisions of (policy, error, attempt, time left)."""

import random
from collections.abc import Callable
from dataclasses import dataclass

import grpc

from recserve.engine.wire.status import RemoteError
from recserve.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Tries again after UNAVAILABLE, and after RESOURCE_EXHAUSTED where the server says that it helps.

    Every method of the API reads, so a second try is never a second effect. The timeout of the client is
    that of all tries together: a pause that does not fit in it is not made, the error is raised at once.
    """

    max_attempts: int = 3
    """Most tries of one call, the first included; 1 never tries again."""

    first_pause: float = 0.05
    """Seconds before the second try; doubles with each further one. The server's RetryInfo is a minimum."""

    max_pause: float = 1.0
    """Longest pause of our own choice, seconds."""

    jitter: float = 0.2
    """Share by which a pause is longer, at random, so that callers do not come back together."""

    hedge_after: float | None = None
    """Seconds without an answer after which the same call is sent once more; the first good answer counts.
    Not set: never. It costs the server up to twice the work."""

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise ConfigError("retry.max_attempts", found=self.max_attempts, expected="1 or more")
        for name in ("first_pause", "max_pause", "jitter"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"retry.{name}", found=getattr(self, name), expected="0 or more")
        if self.hedge_after is not None and not self.hedge_after > 0:
            raise ConfigError("retry.hedge_after", found=self.hedge_after, expected="above 0, or None")

    def pause(
        self,
        error: RemoteError,
        attempt: int,
        seconds_left: float,
        uniform: Callable[[], float] = random.random,
    ) -> float | None:
        """Returns the seconds to wait after try number ``attempt`` (1 is the first), None to give up."""
        if attempt >= self.max_attempts:
            return None
        asked = error.retry_after
        worth = error.code is grpc.StatusCode.UNAVAILABLE or (
            error.code is grpc.StatusCode.RESOURCE_EXHAUSTED and asked is not None
        )
        if not worth:
            return None
        own = min(self.max_pause, self.first_pause * 2 ** (attempt - 1))
        pause = max(own, asked or 0.0) * (1 + self.jitter * uniform())
        return pause if pause < seconds_left else None


NO_RETRY = RetryPolicy(max_attempts=1)
