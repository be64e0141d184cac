"""When requests are due: a fixed list of times (open loop), or whenever an answer came (closed loop).

An open loop is what many independent users do: they do not wait for each other's answers. Only its latencies,
counted from the due times, show what a stall of the server costs; a closed loop stops asking while it lasts.
"""

import heapq
import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from recserve.benchmarks.load.options import Arrivals, Pace
from recserve.errors import InvalidRequest

# Of users and gaps that are drawn ahead; longer runs go round.
N_DRAWN = 1 << 16


class Schedule(Protocol):
    """Due times, in seconds since the start."""

    def next_due(self) -> float:
        """When the next request is due; infinite when none is until an answer comes or the run is over."""

    def pop(self) -> float:
        """Takes that request and returns when it was due."""

    def answered(self, now: float) -> None:
        """Is told of every request that ended, well or not."""


def arrival_times(arrivals: Arrivals, rate: float, seconds: float, seed: int) -> NDArray[np.float64]:
    """Returns the due times of (0, seconds), sorted; their expected number is rate × seconds."""
    if arrivals.kind == "constant":
        return np.arange(1, math.ceil(rate * seconds)) / rate
    rng = np.random.default_rng(seed)
    shape = 1 / arrivals.cv**2
    times = np.zeros(0)
    while not len(times) or times[-1] < seconds:
        gaps = rng.gamma(shape, 1 / (rate * shape), int(rate * seconds * 0.1) + 1000)
        times = np.append(times, (times[-1] if len(times) else 0.0) + np.cumsum(gaps))
    return times[times < seconds]


def recorded_times(times: NDArray[np.float64], rate: float) -> NDArray[np.float64]:
    """Returns recorded due times with all gaps scaled alike, so that their mean rate is ``rate``."""
    return times * ((len(times) - 1) / max(float(times[-1]), 1e-9) / rate)


@dataclass(slots=True)
class OpenLoop:
    """Requests at given times, whatever the answers do."""

    times: list[float]
    position: int = 0

    def next_due(self) -> float:
        return self.times[self.position] if self.position < len(self.times) else math.inf

    def pop(self) -> float:
        self.position += 1
        return self.times[self.position - 1]

    def answered(self, now: float) -> None:
        pass


class ClosedLoop:
    """``concurrency`` callers, each of which asks again ``think`` seconds (a mean) after its answer."""

    def __init__(
        self, concurrency: int, warm_up: float, duration: float, requests: int, think: float, seed: int
    ) -> None:
        self._due = [0.0] * concurrency
        self._warm_up = warm_up
        self._end = warm_up + duration if duration else math.inf
        self._left = requests or math.inf
        rng = np.random.default_rng(seed)
        self._pauses = (think * rng.exponential(size=N_DRAWN)).tolist() if think else [0.0]
        self._n = 0

    def next_due(self) -> float:
        return self._due[0] if self._due and self._due[0] < self._end and self._left > 0 else math.inf

    def pop(self) -> float:
        due = heapq.heappop(self._due)
        self._left -= due >= self._warm_up
        return due

    def answered(self, now: float) -> None:
        self._n += 1
        heapq.heappush(self._due, now + self._pauses[self._n % len(self._pauses)])


def schedules(pace: Pace, processes: int, recorded: NDArray[np.float64] | None = None) -> list[Schedule]:
    """Returns the schedule of each process; together they are ``pace``.

    ``recorded``: due times of a trace, which ``pace.rate`` stretches or shortens.
    """
    if pace.rate:
        # What ends the run by count is the due times themselves: a server cannot stretch them.
        measured = pace.duration or math.inf
        if pace.requests:
            measured = min(measured, 1.2 * pace.requests / pace.rate + 10 / pace.rate)
        seconds = pace.warm_up + measured
        if recorded is None:
            times = arrival_times(pace.arrivals, pace.rate, seconds, pace.seed)
        else:
            times = recorded_times(recorded, pace.rate)
            times = times[times < seconds]
            if not len(times) or times[-1] < pace.warm_up:
                raise InvalidRequest(
                    "--trace",
                    found=f"{times[-1] if len(times) else 0:.2f} s long at this rate",
                    expected=f"longer than the {pace.warm_up:g} s of warm-up",
                )
        if pace.requests:
            times = times[: np.searchsorted(times, pace.warm_up) + pace.requests]
        return [OpenLoop(times[i::processes].tolist()) for i in range(processes)]
    return [
        ClosedLoop(
            share(pace.concurrency, i, processes),
            pace.warm_up,
            pace.duration,
            share(pace.requests, i, processes),
            pace.think,
            pace.seed + i,
        )
        for i in range(processes)
    ]


def share(total: int, part: int, parts: int) -> int:
    """Returns how many of ``total`` belong to one of ``parts`` that differ by one at most."""
    return total // parts + (part < total % parts)
