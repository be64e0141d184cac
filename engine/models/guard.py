"""Whether a canary may stay: a pure function of what it and the baseline did in the same window.

The statistics are counts, so that they can be added, kept in a ring and written in a test by hand.
"""

import math
import threading
from dataclasses import dataclass, field, fields

from recserve.errors import InvalidRequest

# Latency buckets: four to an octave, from 10 microseconds to about 100 seconds.
FIRST_SECONDS = 1e-5
PER_OCTAVE = 4
N_BUCKETS = 94
# One-sided confidence of about 99.5 %: bad luck in a small window is no reason to roll back.
Z = 2.58


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardConfig:
    """When an arm is taken back; each limit is relative to the baseline arm in the same window."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 - read by the pointer file's validator

    min_requests: int = 100
    """Requests that arm and baseline must have answered before anything is judged."""

    window_seconds: float = 60.0
    """Length of the window; what is older is forgotten."""

    max_error_rate: float = 0.01
    """How much the arm's share of failed requests may exceed the baseline's."""

    max_latency_ratio: float = 1.5
    """How much slower the arm's 95th percentile may be."""

    min_latency_ms: float = 2.0
    """A 95th percentile below this is never too slow."""

    max_model_share_drop: float = 0.05
    """Quality: how much the share of slates that the model made (and not popularity) may fall."""

    def __post_init__(self) -> None:
        if self.min_requests < 1:
            raise InvalidRequest("guard.min_requests", found=self.min_requests, expected="1 or more")
        if not 0 < self.window_seconds < math.inf:
            raise InvalidRequest("guard.window_seconds", found=self.window_seconds, expected="above 0")
        if not self.max_latency_ratio >= 1:
            raise InvalidRequest(
                "guard.max_latency_ratio", found=self.max_latency_ratio, expected="1 or more"
            )
        for field_ in fields(self):
            value = getattr(self, field_.name)
            if not (math.isfinite(value) and value >= 0):
                raise InvalidRequest(f"guard.{field_.name}", found=value, expected="0 or more")


@dataclass(frozen=True, slots=True)
class ArmStats:
    """What an arm did: requests answered or failed, slates by the model, requests by latency bucket."""

    requests: int = 0
    errors: int = 0
    by_model: int = 0
    latencies: tuple[int, ...] = (0,) * N_BUCKETS

    def __add__(self, other: "ArmStats") -> "ArmStats":
        return ArmStats(
            self.requests + other.requests,
            self.errors + other.errors,
            self.by_model + other.by_model,
            tuple(a + b for a, b in zip(self.latencies, other.latencies, strict=True)),
        )

    @property
    def answered(self) -> int:
        """Requests that got a slate."""
        return self.requests - self.errors

    def latency(self, quantile: float) -> float:
        """Returns the upper edge, in seconds, of the bucket that holds ``quantile``; 0 without answers."""
        total = sum(self.latencies)
        seen = 0
        for bucket, n in enumerate(self.latencies):
            seen += n
            if total and seen >= quantile * total:
                return float(FIRST_SECONDS * 2 ** ((bucket + 1) / PER_OCTAVE))
        return 0.0


@dataclass(frozen=True, slots=True)
class Breach:
    """Why an arm was taken back: ``reason`` is error_rate, latency or model_share."""

    arm: str
    reason: str
    found: float
    limit: float


def judge(arm: str, stats: ArmStats, baseline: ArmStats, config: GuardConfig) -> Breach | None:
    """Returns the limit that ``stats`` breaks beyond doubt, None when the arm may stay."""
    if min(stats.requests, baseline.requests) < config.min_requests:
        return None
    limit = baseline.errors / baseline.requests + config.max_error_rate
    low, _ = wilson(stats.errors, stats.requests)
    if low > limit:
        return Breach(arm, "error_rate", stats.errors / stats.requests, limit)
    if min(stats.answered, baseline.answered) < config.min_requests:
        return None
    slowest = max(baseline.latency(0.95) * config.max_latency_ratio, config.min_latency_ms / 1000)
    if stats.latency(0.95) > slowest:
        return Breach(arm, "latency", stats.latency(0.95), slowest)
    least = baseline.by_model / baseline.answered - config.max_model_share_drop
    _, high = wilson(stats.by_model, stats.answered)
    if high < least:
        return Breach(arm, "model_share", stats.by_model / stats.answered, least)
    return None


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Returns the Wilson score interval of a proportion (Wilson 1927), at the confidence of ``Z``."""
    p = successes / n
    centre = p + Z * Z / (2 * n)
    half = Z * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    return (centre - half) / (1 + Z * Z / n), (centre + half) / (1 + Z * Z / n)


@dataclass(slots=True)
class Window:
    """Counts of the last ``seconds``, kept as two halves; safe to share between threads.

    A half is dropped as a whole: what the window spans is between one half and the whole.
    """

    seconds: float
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _started: float = 0.0
    _before: ArmStats = field(default_factory=ArmStats)
    _counts: list[int] = field(default_factory=lambda: [0, 0, 0])
    _latencies: list[int] = field(default_factory=lambda: [0] * N_BUCKETS)

    def record(
        self, now: float, *, answered: int = 0, by_model: int = 0, errors: int = 0, seconds: float = 0.0
    ) -> None:
        """Adds requests: ``answered`` ones took ``seconds`` each, ``by_model`` of them had a history."""
        bucket = int(PER_OCTAVE * math.log2(max(seconds, FIRST_SECONDS) / FIRST_SECONDS))
        with self._lock:
            self._turn(now)
            self._counts[0] += answered + errors
            self._counts[1] += errors
            self._counts[2] += by_model
            self._latencies[min(bucket, N_BUCKETS - 1)] += answered

    def stats(self, now: float) -> ArmStats:
        """Returns the counts of the window."""
        with self._lock:
            self._turn(now)
            return self._before + self._current()

    def _turn(self, now: float) -> None:
        half = self.seconds / 2
        if now - self._started < half:
            return
        self._before = self._current() if now - self._started < self.seconds else ArmStats()
        self._started = now
        self._counts = [0, 0, 0]
        self._latencies = [0] * N_BUCKETS

    def _current(self) -> ArmStats:
        requests, errors, by_model = self._counts
        return ArmStats(requests, errors, by_model, tuple(self._latencies))
