"""The generator next to h2load: both settle at the rate that holds; the way there does not count."""

import random
from collections.abc import Callable

import pytest

from recserve.benchmarks.load_check import up_and_down
from recserve.benchmarks.speed_tables import client


@pytest.mark.parametrize("start", [300.0, 2900.0])
def test_rates_settle_around_what_holds_however_noisy(start: float) -> None:
    rng = random.Random(5)

    def holds_up_to(limit: float) -> Callable[[float], bool]:
        return lambda rate: rate * rng.uniform(0.9, 1.1) < limit

    limits = {"one": 1000.0, "other": 1300.0}
    clients = {name: holds_up_to(limit) for name, limit in limits.items()}
    asked = up_and_down(clients, start, 120, 0.05)
    for name, limit in limits.items():
        assert sorted(asked[name])[len(asked[name]) // 2] == pytest.approx(limit, rel=0.06)
        assert len(asked[name]) > 80  # the way from the start does not count


def test_a_client_that_never_turns_gives_its_last_rate() -> None:
    asked = up_and_down({"always": lambda rate: True}, 100.0, 3, 0.5)
    assert asked == {"always": [225.0]}


def test_the_table_has_both_and_their_ratio() -> None:
    result = {
        "alone": {"in_flight": "8×32", "recserve": 50_000.0, "h2load": 60_000.0},
        "together": {
            "slo": "p99:20ms",
            "recserve": 9_500.0,
            "h2load": 10_000.0,
            "ratio": 0.95,
            "intervals": {"recserve": [9_000.0, 10_000.0], "h2load": [9_500.0, 10_400.0]},
        },
    }
    [table] = client(result)
    assert [row[-1] for row in table.rows] == ["0.83", "0.95"]
    assert "h2load 9,500 to 10,400" in table.note
