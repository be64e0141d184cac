"""The speed that the server promises (2 cores, client on the same machine), and whether a run reached it."""

from typing import Any

from recserve.benchmarks.kernels.bars import Bar, Measured, Result

FULL, ALONE = "8×32", "1×1"
MS_PER_US = 1e-3


def judge(result: Result) -> list[dict[str, Any]]:
    """All promises against one result."""
    return [bar.judge(result) for bar in BARS]


def _row(transport: str, in_flight: str, figure: str, scale: float = 1.0) -> Measured:
    wanted = {"transport": transport, "server": "recommend", "in_flight": in_flight}

    def measured(result: Result) -> float | None:
        for row in result["rows"]:
            if all(row[name] == value for name, value in wanted.items()):
                return scale * float(row[figure])
        return None

    return measured


def _case(name: str, figure: str) -> Measured:
    return lambda result: result["cases"].get(name, {}).get(figure)


BARS = (
    Bar("table model, native, 8×32", "req/s", 15_000, None, _row("native", FULL, "requests_per_second")),
    Bar("table model, native, of its echo", "", 0.6, None, _row("native", FULL, "of_echo")),
    Bar("table model, grpcio, of its echo", "", 0.8, None, _row("grpcio", FULL, "of_echo")),
    Bar(
        "table model, native, one in flight, p50",
        "ms",
        0.35,
        None,
        _row("native", ALONE, "p50_us", MS_PER_US),
        at_least=False,
    ),
    Bar(
        "table model, grpcio, one in flight, p50",
        "ms",
        0.6,
        None,
        _row("grpcio", ALONE, "p50_us", MS_PER_US),
        at_least=False,
    ),
    Bar("SASRec, served, of recommend_many", "", 0.85, None, _case("served", "of_recommend_many")),
    Bar("SASRec, batches, of batches of one, same p99", "×", 2.5, None, _case("batching", "ratio")),
    Bar("engine, by inference and search, batch 1", "×", 1.1, None, _case("overhead", "1"), at_least=False),
    Bar("engine, by inference and search, batch 8", "×", 1.1, None, _case("overhead", "8"), at_least=False),
    Bar("engine, by inference and search, batch 64", "×", 1.1, None, _case("overhead", "64"), at_least=False),
    Bar("p99 during swaps, of steady", "×", 1.5, None, _case("swaps", "p99_ratio"), at_least=False),
    Bar("start to SERVING, SASRec", "s", 3, None, _case("start", "sasrec"), at_least=False),
    Bar("start to SERVING, table model", "s", 3, None, _case("start", "als"), at_least=False),
)
