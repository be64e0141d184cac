"""Brown-out: while more is asked than the model can answer, the rest gets a cheaper answer at once. Pure.

Full answers go on as fast as the model gives them. Whoever waits behind a full batch meanwhile gets what is
kept of an earlier answer (slate_cache) or the popular items, marked as degraded, instead of an answer that is
late or none. The two thresholds are apart in time, so that the state does not flutter: it is entered when
calls have waited too long for half a second (the "not empty for N ms" of Maurer, "Fail at Scale", 2015), or
at once when more wait than can be answered in their time, and left after five seconds without pressure.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from recserve.engine.batch_policy import Waiting

ENTER_SECONDS = 0.5
LEAVE_SECONDS = 5.0
# Of a batch that takes no time, as before the first one.
TINY_SECONDS = 1e-9
# Waiting for the batch before is no sign of overload, whatever it takes.
NORMAL_BATCH_TIMES = 1.5


def has_waited(
    taken: Sequence[Waiting], n_batches: float, now: float, batch_seconds: float, shortest: float
) -> bool:
    """Whether calls wait too long: one of those ``taken`` now, or the last of the ``n_batches`` behind.

    ``batch_seconds``: what a batch takes; ``shortest``: seconds of waiting that are never too long.
    """
    longest = max(now - min(entry.received_at for entry in taken), batch_seconds * n_batches)
    return longest > max(shortest, NORMAL_BATCH_TIMES * batch_seconds)


def will_be_late(
    taken: Sequence[Waiting],
    behind: Sequence[Sequence[Waiting]],
    n_batches: float,
    now: float,
    batch_seconds: float,
) -> bool:
    """Whether the last of several batches will be late, though it be as patient as any that is taken now.

    ``behind``: who waits for them; whoever left needs no answer.
    """
    most = (max(entry.deadline for entry in taken) - now) / max(batch_seconds, TINY_SECONDS)
    if n_batches <= max(1.0, most):
        return False
    n_live = sum(not entry.is_done for entries in behind for entry in entries)
    n_batches *= n_live / max(1, sum(map(len, behind)))
    return n_batches > max(1.0, most)


@dataclass(frozen=True, slots=True)
class Brownout:
    """Whether it ``is_on``, and since when all signs say otherwise (None: the newest did not)."""

    is_on: bool = False
    turning_since: float | None = None
    seen_at: float = float("-inf")

    def after(self, is_pressed: bool, now: float, *, is_sure: bool = False) -> "Brownout":
        """The state after one more sign: whether calls wait too long, or some had to be degraded.

        ``is_sure``: some of those who wait will be late, whatever comes.
        """
        if is_sure:
            return Brownout(True, None, now)
        if is_pressed == self.is_on:
            return Brownout(self.is_on, None, now)
        since = self.turning_since
        if since is None or (is_pressed and now - self.seen_at > ENTER_SECONDS):
            since = now  # Between two bursts that far apart there was none.
        if now - since >= (LEAVE_SECONDS if self.is_on else ENTER_SECONDS):
            return Brownout(not self.is_on, None, now)
        return Brownout(self.is_on, since, now)
