"""A regression is found, a rerun is none, and what cannot be compared is said."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recserve.benchmarks.compare import compare, read_rules, rows_of
from recserve.benchmarks.load.options import Pace
from recserve.benchmarks.load.process import Samples
from recserve.benchmarks.load.summary import summarise
from recserve.errors import DataError, InvalidRequest

RunCli = Callable[..., tuple[int, str, str]]
PACE = Pace(rate=1000, warm_up=0, duration=10)


def result_of(seed: int, factor: float = 1.0) -> dict[str, Any]:
    """What ``bench load`` writes for 10,000 requests with latencies of about 2 ms times ``factor``."""
    due = np.arange(10_000) / 1000
    latency = 0.002 * factor * np.random.default_rng(seed).lognormal(0, 0.3, len(due))
    samples = Samples(due, due, due, due + latency, np.zeros(len(due), np.int16))
    point = summarise(samples, PACE, [50, 99]) | {"arrivals": "poisson"}
    return {"environment": {"cpu": "x"}, "points": [point]}


def broken(before: dict[str, Any], after: dict[str, Any], *rules: str) -> list[str]:
    rows = compare(before, after, read_rules(rules))["rows"]
    return [rule for row in rows for rule in row["broken"]]


@pytest.mark.parametrize("seed", range(5))
def test_a_planted_regression_of_15_percent_is_found_and_a_rerun_passes(seed: int) -> None:
    before, again, slower = result_of(seed), result_of(seed + 100), result_of(seed + 100, 1.15)
    rules = ["p50>+10%", "p99>+10%"]
    assert broken(before, again, *rules) == []
    assert broken(before, slower, *rules) == rules
    assert broken(slower, before, *rules) == []


def test_a_change_that_lies_within_the_intervals_is_noise() -> None:
    before, after = result_of(1), result_of(1, 1.15)
    for result in (before, after):
        result["points"][0]["interval_ms"]["p99"] = (0.1, 100.0)
    assert broken(before, after, "p99>+10%") == []
    assert [row["within_noise"] for row in compare(before, after, [])["rows"] if row["figure"] == "p99"] == [
        True
    ]


def test_values_and_falls() -> None:
    before, after = result_of(1), result_of(2)
    after["points"][0]["errors"] = {"UNAVAILABLE": 3}
    after["points"][0]["answered_per_second"] *= 0.5
    assert broken(before, after, "errors>0", "answered_per_second<-10%") == [
        "answered_per_second<-10%",
        "errors>0",
    ]
    assert broken(before, after, "errors>5") == []


def test_other_results_are_read() -> None:
    case = {"data": "als", "n_items": 10, "dim": 4, "threads": 1, "batch": 1, "k": 10, "ratio": 2.0}
    case |= {"median_ms": {"recserve": 1.0}, "hot_median_ms": {"recserve": 0.9}}
    [(name, figures)] = rows_of({"cases": [case]}).items()
    assert name == "data=als n_items=10 dim=4 threads=1 batch=1 k=10"
    assert {metric: figure.value for metric, figure in figures.items()} == {
        "median_ms": 1.0,
        "hot_median_ms": 0.9,
        "ratio": 2.0,
    }
    [(name, figures)] = rows_of({"rows": [{"server": "echo", "p50_us": 4.5}]}).items()
    assert (name, figures["p50_us"].value) == ("echo", 4.5)


def test_what_cannot_be_compared() -> None:
    with pytest.raises(DataError, match="unknown form"):
        rows_of({})
    other = result_of(1)
    other["points"][0]["rate"] = 5.0
    with pytest.raises(DataError, match="in common"):
        compare(result_of(1), other, [])
    with pytest.raises(InvalidRequest, match="Did you mean 'p99'"):
        compare(result_of(1), result_of(1), read_rules(["p98>+1%"]))
    with pytest.raises(InvalidRequest, match="--fail-if"):
        read_rules(["p99 + 10%"])


def test_the_verb(run_cli: RunCli, tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.json", "b.json")]
    for path, factor in zip(paths, (1.0, 1.15), strict=True):
        path.write_text(json.dumps(result_of(1, factor)))
    code, out, err = run_cli("bench", "compare", *paths, "--fail-if", "p99>+10%")
    assert code == 1
    assert "BROKEN" in out
    assert "1000/s poisson: p99>+10%" in err
    code, out, _ = run_cli("bench", "compare", *paths, "--json")
    assert code == 0
    assert json.loads(out)["different_machine"] == []
    paths[0].write_text("{")
    assert run_cli("bench", "compare", *paths)[0] == 1
