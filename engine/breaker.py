"""A model whose batches fail one after the other is left alone; popular items go out instead.

The circuit breaker of Nygard, "Release It!" (2007): after ``FAILURES`` failed batches within
``WITHIN_SECONDS`` it is open for ``OPEN_SECONDS``; then one batch is tried, which closes or opens it again.
"""

from dataclasses import dataclass

FAILURES = 5
WITHIN_SECONDS = 10.0
OPEN_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Breaker:
    """``failed_at``: when the newest batches failed; ``open_until``: minus infinity while it is closed."""

    failed_at: tuple[float, ...] = ()
    open_until: float = float("-inf")

    def is_open(self, now: float) -> bool:
        """Whether the model is left alone."""
        return now < self.open_until

    def after(self, failed: bool, now: float) -> "Breaker":
        """The state after one more batch."""
        if not failed:
            return CLOSED
        failed_at = (*(at for at in self.failed_at if now - at < WITHIN_SECONDS), now)[-FAILURES:]
        opens = len(failed_at) == FAILURES or self.open_until > float("-inf")
        return Breaker(failed_at, now + OPEN_SECONDS if opens else self.open_until)


CLOSED = Breaker()


class Breakers:
    """A breaker for each model that fails, by its name; empty while none does.

    Threads may lose one another's updates: a failure more or less.
    """

    def __init__(self) -> None:
        self._by_model: dict[str, Breaker] = {}

    def __bool__(self) -> bool:
        return bool(self._by_model)

    def is_open(self, model: str, now: float) -> bool:
        """Whether ``model`` is left alone."""
        return self._by_model.get(model, CLOSED).is_open(now)

    def note(self, model: str, failed: bool, now: float) -> bool:
        """Notes a batch of ``model``; returns whether it is left alone from now on and was not before."""
        before = self._by_model.get(model, CLOSED)
        after = before.after(failed, now)
        if after is CLOSED:
            self._by_model.pop(model, None)
        else:
            self._by_model[model] = after
        return after.is_open(now) and not before.is_open(now)
