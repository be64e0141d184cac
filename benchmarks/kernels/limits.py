"""What the machine can do at most, measured, and the least time that follows for a search.

A full scan of the first pass reads n_items · d bytes of 8-bit codes and does 2 · n_items · d · batch
operations on them. It takes at least the longer of

    bytes / (read bandwidth at that size)    and    operations / (int8 peak),

whichever binds; the fp32 rescoring of the few that pass, the thresholds and the lists come on top and are
what the fraction of the limit leaves out. A search that stops early is held against the part that it scanned.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from recserve.benchmarks.kernels import peaks
from recserve.kernels.isa import PORTABLE

REPETITIONS = 15  # the best counts: a limit is what nothing disturbed
MULTIPLY_TURNS = 1 << 20
READ_SIZES = tuple(size << 10 for size in (256, 2048, 8192, 16384, 32768, 262144))
MIN_READ_BYTES = 1 << 27  # of one timing: small sizes are read again and again


@dataclass(frozen=True, slots=True)
class Limits:
    """What ``threads`` threads reach together.

    int8_gops, fp32_gflops: 10⁹ operations per second, a multiply-add is two · read_gb_per_s: by the number of
    bytes that they go through again and again.
    """

    threads: int
    isa: str
    fp32_gflops: float
    int8_gops: float
    read_gb_per_s: dict[int, float]

    def bandwidth(self, n_bytes: float) -> float:
        """GB/s of reading ``n_bytes`` again: that of the next larger size measured."""
        sizes = sorted(self.read_gb_per_s)
        return self.read_gb_per_s[next((size for size in sizes if size >= n_bytes), sizes[-1])]

    def bound_ms(self, n_items: int, dim: int, batch: int, scanned: float) -> float:
        """The least milliseconds of an int8 pass over the fraction ``scanned`` of the items."""
        n_bytes = n_items * dim
        reading = n_bytes / self.bandwidth(n_bytes)
        computing = 2 * n_bytes * batch / self.int8_gops
        return 1e-6 * scanned * max(reading, computing)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def measure(isa: str, threads: int) -> Limits | None:
    """Measures this machine; None for the portable path, which has no instructions of its own to measure."""
    if isa == PORTABLE:
        return None
    rng = np.random.default_rng(0)
    # Floats around 1 as well as bytes: no denormal slows the multiplications.
    operands = np.ones(peaks.OPERAND_BYTES // 4, np.float32).view(np.uint8)
    rates = {}
    with ThreadPoolExecutor(threads) as pool:
        for name, (loop, n_operations) in peaks.multiply_loops(isa).items():
            calls = [(loop, (operands, MULTIPLY_TURNS, 1))] * threads
            rates[name] = threads * n_operations * MULTIPLY_TURNS / _best_ns(pool, calls)
        memory = rng.integers(0, 256, READ_SIZES[-1], np.uint8)
        read = peaks.read_loop()
        bandwidth = {size: _read_rate(pool, read, memory, size, threads) for size in READ_SIZES}
    return Limits(threads, isa, rates["fp32"], rates["int8"], bandwidth)


def _read_rate(pool: ThreadPoolExecutor, read: Any, memory: Any, size: int, threads: int) -> float:
    """GB/s of all threads together, each over its own share of ``size`` bytes."""
    share = size // threads // peaks.READ_BYTES * peaks.READ_BYTES
    passes = max(1, MIN_READ_BYTES // size)
    turns = share // peaks.READ_BYTES
    calls = [(read, (memory[i * share : (i + 1) * share], turns, passes)) for i in range(threads)]
    return threads * share * passes / _best_ns(pool, calls)


def _best_ns(pool: ThreadPoolExecutor, calls: list[tuple[Any, tuple[Any, ...]]]) -> float:
    """The least nanoseconds in which all calls, one per thread, are done."""
    best = float("inf")
    for repetition in range(1 + REPETITIONS):
        start = time.perf_counter_ns()
        for future in [pool.submit(function, *arguments) for function, arguments in calls]:
            future.result()
        if repetition > 0:  # the first may compile
            best = min(best, time.perf_counter_ns() - start)
    return best
