"""The speed that this project promises, in one place, and whether a run reached it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Result = dict[str, Any]
Measured = Callable[[Result], float | None]

D64 = 64


@dataclass(frozen=True, slots=True)
class Bar:
    """One promise.

    at_least: the figure must not be below ``must`` (else: not above it) · stretch: where we would like to be,
    None where nothing is named · measured: finds the figure in a result, None if the run did not measure it.
    """

    name: str
    unit: str
    must: float
    stretch: float | None
    measured: Measured
    at_least: bool = True

    def judge(self, result: Result) -> dict[str, Any]:
        """One row of the table of bars, as plain values; ``reached`` is None where nothing was measured."""
        value = self.measured(result)
        reached = None
        if value is not None:
            reached = value >= self.must if self.at_least else value <= self.must
        return {
            "case": self.name,
            "measured": value,
            "must": self.must,
            "stretch": self.stretch,
            "unit": self.unit,
            "at_least": self.at_least,
            "reached": reached,
        }


def judge(result: Result) -> list[dict[str, Any]]:
    """All bars against one result."""
    return [bar.judge(result) for bar in BARS]


def _find(rows: Any, data: str, n_items: int, batch: int, k: int, threads: int = 1) -> Any:
    wanted = {"data": data, "n_items": n_items, "dim": D64, "batch": batch, "k": k, "threads": threads}
    for row in rows:
        if all(row[name] == value for name, value in wanted.items()):
            return row
    return None


def _ratio(data: str, n_items: int, batch: int, k: int) -> Measured:
    """The best exact peer's median by ours, both timed in turns on one thread."""

    def measured(result: Result) -> float | None:
        case = _find(result["cases"], data, n_items, batch, k)
        return case["ratio"] if case else None

    return measured


def _speed_up(data: str, batch: int) -> Measured:
    """One thread's median by two threads', both of this engine."""

    def measured(result: Result) -> float | None:
        row = _find(result["speed_ups"], data, 100_000, batch, 10, threads=2)
        return row["ratio"] if row else None

    return measured


def _exclusion(kind: str) -> Measured:
    """A search with 1,000 excluded items per query by the same one without, see the exclusions module."""

    def measured(result: Result) -> float | None:
        rows = result["exclusions"]
        values = [row["ratio"] for row in rows if (row["kind"], row["count"]) == (kind, 1_000)]
        return max(values, default=None)

    return measured


def _fp32_share(result: Result) -> float | None:
    """Percent of the FMA peak."""
    rate = result["fp32_kernel_gflops"]
    limits = result["limits"].get("1")
    return 100 * rate / limits["fp32_gflops"] if rate and limits else None


def _dispatch(result: Result) -> float | None:
    value: float | None = result["dispatch_us"].get(str(D64))
    return value


def _of_catalogue(name: str, n_items: int) -> Measured:
    def measured(result: Result) -> float | None:
        values = [row[name] for row in result["catalogues"] if (row["n_items"], row["dim"]) == (n_items, D64)]
        return max(values, default=None)

    return measured


def _started(name: str) -> Measured:
    def measured(result: Result) -> float | None:
        return result["start"][name] if result.get("start") else None

    return measured


SMALL, BIG = 100_000, 1_000_000
BARS = (
    Bar("100k × 64 gaussian B1 K10", "×", 3, 5, _ratio("gaussian", SMALL, 1, 10)),
    Bar("100k × 64 gaussian B64 K10", "×", 3, 4, _ratio("gaussian", SMALL, 64, 10)),
    Bar("100k × 64 gaussian B64 K100", "×", 1.5, 2.3, _ratio("gaussian", SMALL, 64, 100)),
    Bar("100k × 64 als B1 K10", "×", 15, 40, _ratio("als", SMALL, 1, 10)),
    Bar("100k × 64 als B64 K10", "×", 15, 28, _ratio("als", SMALL, 64, 10)),
    Bar("100k × 64 als B64 K100", "×", 4, 6, _ratio("als", SMALL, 64, 100)),
    Bar("100k × 64 als-shop B1 K10", "×", 15, 40, _ratio("als-shop", SMALL, 1, 10)),
    Bar("100k × 64 als-shop B64 K10", "×", 15, 28, _ratio("als-shop", SMALL, 64, 10)),
    Bar("100k × 64 als-shop B64 K100", "×", 4, 6, _ratio("als-shop", SMALL, 64, 100)),
    Bar("1M × 64 gaussian B1 K10", "×", 3.5, 7, _ratio("gaussian", BIG, 1, 10)),
    Bar("1M × 64 gaussian B64 K10", "×", 3.8, 5, _ratio("gaussian", BIG, 64, 10)),
    Bar("1M × 64 als B1 K10", "×", 50, None, _ratio("als", BIG, 1, 10)),
    Bar("1M × 64 als B64 K10", "×", 100, None, _ratio("als", BIG, 64, 10)),
    Bar("fp32 micro-kernel, of FMA peak", "%", 90, 96, _fp32_share),
    Bar("2 threads, gaussian 100k B64", "×", 1.8, 1.95, _speed_up("gaussian", 64)),
    Bar("2 threads, gaussian 100k B256", "×", 1.8, 1.95, _speed_up("gaussian", 256)),
    Bar("1,000 excluded per query, B64", "×", 1.2, None, _exclusion("any"), at_least=False),
    Bar("  the best 1,000, by an index without", "×", 1.2, None, _exclusion("best"), at_least=False),
    Bar("dispatch of search at B1", "µs", 10, 3, _dispatch, at_least=False),
    Bar(
        "memory, d = 64",
        "B/item",
        D64 * 5 + 16,
        D64 + 16,
        _of_catalogue("bytes_per_item", BIG),
        at_least=False,
    ),
    Bar("build, 1M × 64", "s", 4, 1.5, _of_catalogue("build_s", BIG), at_least=False),
    Bar("warm start to ready", "s", 2, None, _started("ready_s"), at_least=False),
    Bar("first search by the median", "×", 2, None, _started("first_by_median"), at_least=False),
)
