"""Which waiting calls are answered together, and when: pure functions of (queue, now, settings, rates).

Classes by priority, first come first served within one. A batch is the longest prefix of what waits, most
urgent class first, of at most ``max_size`` entries. Entries whose caller has left are skipped; entries that
cannot be answered before their deadline are dropped *before* anything is computed for them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from types import MappingProxyType
from typing import Generic, Protocol, TypeVar

from recserve.errors import ConfigError

# Weight of the newest batch in the running mean of batch times.
EWMA_WEIGHT = 0.2
# An estimate that nothing confirms fades: one slow batch must not refuse everybody for ever.
ESTIMATE_HALF_LIFE_SECONDS = 1.0
# A batch closes so long before its tightest deadline demands it: at that very moment the call would be late.
CLOSE_EARLY_SECONDS = 0.001
# A batch is to be done in this share of the time that its most urgent entry has: some take twice the mean.
SHARE_OF_TIME_LEFT = 0.5
# What a row adds to a batch is at least this share of what a row of the usual batch takes altogether.
MIN_ROW_SHARE = 0.25
# Batches whose sizes vary by less (rows²) say nothing about it.
MIN_VARIANCE = 1.0
DELAYS_MS = MappingProxyType({"grpcio": 3.0, "native": 0.0})
# An adaptive delay for each call that is expected: twice what one costs the thread of grpcio.
DELAY_SECONDS_PER_CALL = 0.0002
# So much of what was expected before is still expected after a batch that was smaller.
KEPT_CALLERS = 0.9
PRIORITIES = 4
# Less urgent classes wait, or are late, rather than take a cheaper answer.
DEGRADABLE_PRIORITIES = 2
# A cheaper answer is promised to a caller who has so much time left.
DEGRADE_SECONDS = 0.005


@dataclass(frozen=True, slots=True, kw_only=True)
class BatcherConfig:
    """How calls are merged into batches."""

    max_size: int = 64
    """Most calls in one batch; 1 switches batching off."""

    max_delay_ms: float | None = None
    """How long the oldest call waits for company, at most. 0 takes what is there: under load batches form by
    themselves while the one before is computed. Not given: 3 over grpcio, whose calls arrive one by one on a
    thread that every batch takes the interpreter from; 0 over native, whose calls arrive in batches."""

    adaptive_delay: bool = True
    """Wait for as many calls as there were around the last batch and no longer than they take to come; not at
    all for callers who come one by one."""

    preferred_sizes: tuple[int, ...] = ()
    """Batch sizes that the model runs best at: a batch is cut to the largest that is full."""

    threads: int = 1
    """Threads that compute batches. A second one lets the next batch be read while the encoder or a kernel,
    outside the interpreter lock, works on the one before; it also makes batches smaller. Measured on two
    cores: 10 % more requests with an encoder over native, fewer with a table or over grpcio. Processes
    (server.workers) scale better."""

    max_waiting: int = 4096
    """Most calls that wait, those whose caller has left included; more are refused."""

    stuck_seconds: float = 10.0
    """After so long a batch, or another call, counts as hanging: its callers are told, its inference is ended
    and a new thread goes on."""

    brownout: bool = True
    """Whether callers get the popular items, marked as degraded, where the model's would come too late."""

    normal_wait_ms: float = 5.0
    """Waiting that is no sign of overload; neither is one and a half times what a batch takes."""

    def __post_init__(self) -> None:
        for name in ("max_size", "threads", "max_waiting"):
            if getattr(self, name) < 1:
                raise ConfigError(f"batcher.{name}", found=getattr(self, name), expected="1 or more")
        for name in ("max_delay_ms", "normal_wait_ms"):
            if not 0 <= (getattr(self, name) or 0) <= 1000:
                raise ConfigError(f"batcher.{name}", found=getattr(self, name), expected="0 to 1000")
        if not self.stuck_seconds > 0:
            raise ConfigError("batcher.stuck_seconds", found=self.stuck_seconds, expected="above 0")
        if not all(1 <= size <= self.max_size for size in self.preferred_sizes):
            raise ConfigError(
                "batcher.preferred_sizes", found=self.preferred_sizes, expected=f"each 1 to {self.max_size}"
            )

    def over(self, transport: str) -> "BatcherConfig":
        """Returns the settings with the delay that suits ``transport``, where none is given."""
        return self if self.max_delay_ms is not None else replace(self, max_delay_ms=DELAYS_MS[transport])


class Waiting(Protocol):
    """What the policy reads of an entry; times are seconds of one monotonic clock."""

    deadline: float
    received_at: float

    @property
    def is_done(self) -> bool:
        """Whether the entry is answered already (its caller has left, its time has passed)."""


W = TypeVar("W", bound=Waiting)


# Neither is frozen: both are made per batch, and freezing triples the time that takes.
@dataclass(slots=True)
class Rates:
    """What the policy knows of the past: ``batch_seconds`` and the ``rows`` of one, as running means.

    ``variance`` of the rows (rows²) and ``covariance`` with the seconds: the straight line through batches.
    ``callers``: how many ask at a time: the rows of a batch, or more where others waited when it was done.
    """

    batch_seconds: float = 0.0
    measured_at: float = 0.0
    rows: float = 0.0
    variance: float = 0.0
    covariance: float = 0.0
    callers: int = 0

    def expected_seconds(self, now: float) -> float:
        """Returns how long a batch takes, as far as that is still believed."""
        return float(self.batch_seconds * 0.5 ** ((now - self.measured_at) / ESTIMATE_HALF_LIFE_SECONDS))

    def after_batch(self, n_rows: int, seconds: float, now: float, n_waiting: int = 0) -> "Rates":
        """Returns the rates after a batch of ``n_rows`` that took ``seconds``; then ``n_waiting`` wait."""
        if self.batch_seconds == 0:
            return Rates(seconds, now, n_rows, callers=n_rows)
        # Of many who ask, few get through while a batch is computed: those stand for others.
        others = max(n_rows, n_waiting) if n_waiting else 0
        more_seconds, more_rows = seconds - self.batch_seconds, n_rows - self.rows
        old = 1 - EWMA_WEIGHT
        return Rates(
            self.batch_seconds + EWMA_WEIGHT * more_seconds,
            now,
            self.rows + EWMA_WEIGHT * more_rows,
            old * (self.variance + EWMA_WEIGHT * more_rows * more_rows),
            old * (self.covariance + EWMA_WEIGHT * more_rows * more_seconds),
            max(n_rows + others, int(KEPT_CALLERS * self.callers)),
        )

    def seconds_per_row(self, now: float) -> float:
        """Returns what one row more than usual adds: no more than in a batch that costs nothing besides."""
        whole = self.expected_seconds(now) / max(1.0, self.rows)
        if self.variance < MIN_VARIANCE or self.batch_seconds == 0:
            return whole
        share = self.covariance / self.variance * max(1.0, self.rows) / self.batch_seconds
        return whole * min(max(share, MIN_ROW_SHARE), 1.0)


@dataclass(slots=True)
class Decision(Generic[W]):
    """What to do now: compute ``take``, answer ``late`` with DEADLINE_EXCEEDED, look again at ``wake_at``.

    ``company``: how many must wait for a look before that to be worth it, those that are done included.
    ``degrade``: who gets the cheaper answer. ``consumed``: how many entries leave the head of each class;
    ``n_gone``: how many of them were done.
    """

    take: list[W] = field(default_factory=list)
    late: list[W] = field(default_factory=list)
    degrade: list[W] = field(default_factory=list)
    consumed: tuple[int, ...] = ()
    n_gone: int = 0
    wake_at: float | None = None
    company: int = 0


def decide(
    classes: Sequence[Sequence[W]],
    now: float,
    config: BatcherConfig,
    rates: Rates,
    *,
    may_degrade: bool = False,
) -> Decision[W]:
    """Returns what to do with what waits: ``classes[0]`` is the most urgent, each class in arrival order.

    ``may_degrade``: there is a cheaper answer for who would be late.
    """
    finished_at = now + rates.expected_seconds(now)
    degrade_until = now + DEGRADE_SECONDS if may_degrade else None
    full = _scan(classes, config.max_size, finished_at, degrade_until)
    n = len(full.take)
    if n == 0:
        return full
    company, delay = company_of(config, rates)
    if n < company and delay:
        oldest = min(entry.received_at for entry in full.take)
        tightest = min(entry.deadline for entry in full.take)
        demanded_at = tightest - (finished_at - now) - CLOSE_EARLY_SECONDS
        close_at = min(oldest + delay, demanded_at)
        if now < close_at:
            # Who left or will be late is no company, and stays in the queue until then.
            n_others = sum(map(len, classes)) - n
            return Decision(consumed=(0,) * len(classes), wake_at=close_at, company=company + n_others)
    n = min(n, in_time(full.take, now, rates))
    size = max((size for size in config.preferred_sizes if size <= n), default=n)
    return full if size == len(full.take) else _scan(classes, size, finished_at, degrade_until)


def in_time(rows: Sequence[W], now: float, rates: Rates) -> int:
    """Returns how many of ``rows`` are computed in a share of the time that the most urgent one has left.

    As many as usual always are: else batches under load, where the most urgent has little time left, would
    shrink from one to the next, and what a batch costs whatever its size would be paid for every row.
    """
    usual = max(1.0, rates.rows)
    seconds_per_row = rates.seconds_per_row(now)
    left = SHARE_OF_TIME_LEFT * (min(row.deadline for row in rows) - now)
    # Of the usual batch the time is known; what goes beyond is paid by the row.
    spare = left - rates.expected_seconds(now)
    if (len(rows) - usual) * seconds_per_row <= spare:
        return len(rows)
    return max(math.ceil(usual), int(usual + spare / seconds_per_row))


def surplus(classes: Sequence[Sequence[W]], now: float, size: int) -> Decision[W]:
    """Returns who gets the cheaper answer in a brown-out: all but the newest ``size``, and the patient.

    The next batch is left to the newest (the "adaptive LIFO" of Maurer, "Fail at Scale", 2015): who has
    waited for one batch already would be late after another.
    """
    degrade: list[W] = []
    late: list[W] = []
    consumed = []
    n_gone = 0
    for priority, entries in enumerate(classes):
        n = max(0, len(entries) - size) if priority < DEGRADABLE_PRIORITIES else 0
        size = max(0, size - len(entries))
        for entry in islice(entries, n):
            if entry.is_done:
                n_gone += 1
            else:
                (degrade if entry.deadline > now + DEGRADE_SECONDS else late).append(entry)
        consumed.append(n)
    return Decision([], late, degrade, tuple(consumed), n_gone)


def company_of(config: BatcherConfig, rates: Rates) -> tuple[int, float]:
    """Returns for how many calls a batch waits, the oldest included, and for how long (seconds)."""
    most, longest = max(config.preferred_sizes, default=config.max_size), (config.max_delay_ms or 0) / 1000
    if not config.adaptive_delay:
        return most, longest
    company = min(most, rates.callers)
    return company, min(longest, company * DELAY_SECONDS_PER_CALL)


def _scan(
    classes: Sequence[Sequence[W]], size: int, finished_at: float, degrade_until: float | None
) -> Decision[W]:
    """Fills a batch of ``size``; who comes before its end and would be late is degraded."""
    take: list[W] = []
    late: list[W] = []
    degrade: list[W] = []
    consumed = []
    n_gone = 0
    for priority, entries in enumerate(classes):
        may_degrade = degrade_until if priority < DEGRADABLE_PRIORITIES else None
        n_seen = 0
        for entry in entries:
            if len(take) == size:
                break
            n_seen += 1
            if entry.is_done:
                n_gone += 1
            elif entry.deadline > finished_at:
                take.append(entry)
            elif may_degrade is not None and entry.deadline > may_degrade:
                degrade.append(entry)
            else:
                late.append(entry)
        consumed.append(n_seen)
    return Decision(take, late, degrade, tuple(consumed), n_gone)
