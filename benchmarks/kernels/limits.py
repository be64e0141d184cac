"""What the machine can do at most, measured, and the least time that follows for a search.

A full scan of the first pass reads n_items · d bytes of 8-bit codes, or half of that for so few queries that
their upper halves alone are read, and does 2 · n_items · d · batch operations on them. It takes at least the
longer of

    bytes / (read bandwidth at that size)    and    operations / (int8 peak),

whichever binds; the fp32 rescoring of the few that pass, the thresholds and the lists come on top and are
what the fraction of the limit leaves out. A search that stops early is held against the part that it scanned.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numba import njit

from recserve.benchmarks.kernels import peaks
from recserve.kernels import floats
from recserve.kernels.checks import read_only
from recserve.kernels.index import MAX_FEW
from recserve.kernels.isa import PORTABLE

REPETITIONS = 15  # the best counts: a limit is what nothing disturbed
MULTIPLY_TURNS = 1 << 20
KERNEL_ROWS = 64
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
        n_read = n_bytes / 2 if batch <= MAX_FEW else n_bytes
        reading = n_read / self.bandwidth(n_read)
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


def fp32_kernel_gflops(dim: int = 64) -> float:
    """10⁹ operations per second of the float32 micro-kernel on rows in the first-level cache, one thread."""
    rng = np.random.default_rng(0)
    vectors = read_only(rng.standard_normal((KERNEL_ROWS, dim), np.float32))
    columns = floats.side_by_side(rng.standard_normal((floats.WIDTH, dim), np.float32), 1)
    limits = np.full(floats.WIDTH, np.inf, np.float32)  # nothing passes
    passing = np.zeros(floats.ROWS, np.uint32)
    passes = MULTIPLY_TURNS // dim
    calls = [(_sum_floats, (vectors, columns, limits, passing, passes))]
    with ThreadPoolExecutor(1) as pool:
        return 2 * KERNEL_ROWS * dim * floats.WIDTH * passes / _best_ns(pool, calls)


@njit(nogil=True)  # type: ignore[untyped-decorator]
def _sum_floats(vectors: Any, columns: Any, limits: Any, passing: Any, passes: Any) -> Any:
    hits = 0
    for _ in range(passes):
        for row in range(0, KERNEL_ROWS, floats.ROWS):
            hits += floats.passing_rows(vectors, row, columns, 0, limits, passing)
    return hits


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
