"""``bench load`` as a whole: it shows what it is for, and its output is what it says."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hdrh.histogram import HdrHistogram

from recserve.benchmarks.load.options import Client, Pace, Slo, Target
from recserve.benchmarks.load.process import Samples
from recserve.benchmarks.load.run import Ids, Load
from recserve.benchmarks.load.search import highest_rate
from recserve.benchmarks.load.summary import summarise

USERS = Ids([str(i) for i in range(50)])
RunCli = Callable[..., tuple[int, str, str]]


def test_an_open_loop_shows_a_stall_that_a_closed_loop_hides(stalling_port: int) -> None:
    load = Load(Target("grpc", "127.0.0.1", stalling_port), USERS, client=Client(1, 4))
    open_loop = load.measure(Pace(rate=200, warm_up=0, duration=2, timeout=30))
    closed_loop = load.measure(Pace(concurrency=1, warm_up=0, duration=0, requests=1000, timeout=30))
    assert open_loop["errors"] == closed_loop["errors"] == {}
    # A tenth of the due times lie in stalls of 100 ms, so a twentieth wait for 50 ms or longer.
    assert open_loop["latency_ms"]["p99"] >= 50
    # One request waits for each stall: a p99 of a thousand shows what happens in ten seconds or more.
    assert closed_loop["latency_ms"]["p99"] < 50


def test_two_processes_share_the_load(stalling_port: int) -> None:
    load = Load(Target("grpc", "127.0.0.1", stalling_port), USERS, client=Client(2, 5))
    point = load.measure(Pace(rate=300, warm_up=0.2, duration=0, requests=100, timeout=30))
    assert point["requests"] == 100
    assert point["warm_up"]["requests"] > 0
    assert point["errors"] == {}


def test_the_verb_over_the_embedded_engine(run_cli: RunCli, bundle_folder: Path, tmp_path: Path) -> None:
    table, saved = tmp_path / "t.csv", tmp_path / "r.json"
    arguments = [
        "--concurrency",
        2,
        "--requests",
        40,
        "--warmup",
        0.05,
        "--csv",
        table,
        "--out",
        saved,
        "--json",
    ]
    code, out, _ = run_cli(
        "bench", "load", f"embed:{bundle_folder}", "--mix", "recommend,similar", *arguments
    )
    assert code == 0
    result = json.loads(out)
    assert json.loads(saved.read_text()) == result
    [point] = result["points"]
    assert point["requests"] == 40
    assert {"resolve", "encode", "retrieve"} < set(point["stages_ms"])
    assert {"cpu", "caches", "isa", "revision", "noise", "governor"} < set(result["environment"])
    [row] = csv.DictReader(table.read_text().splitlines())
    assert float(row["p99_ms"]) == point["latency_ms"]["p99"]


def test_the_verb_shows_tables(run_cli: RunCli, bundle_folder: Path) -> None:
    arguments = ["--rate-sweep", "40:80:40", "--requests", 8, "--warmup", 0, "--slo", "p99:30s"]
    code, out, err = run_cli("bench", "load", f"embed:{bundle_folder}", *arguments)
    assert code == 0
    assert "40/s" in out
    assert "held" in out
    assert "req/s" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rate", 5, "--concurrency", 1], "of two kinds"),
        (["--find-max", "--duration", 1], "without --slo"),
        (["--mix", "similar"], "Give --bundle"),
    ],
)
def test_refusals(run_cli: RunCli, arguments: list[object], message: str) -> None:
    code, _, err = run_cli("bench", "load", "grpc://127.0.0.1:1", *arguments)
    assert code == 2
    assert message in err


def test_nobody_who_listens(run_cli: RunCli) -> None:
    code, _, err = run_cli("bench", "load", "grpc://127.0.0.1:1", "--duration", 1)
    assert code == 4
    assert "expected a server that listens" in err


def samples_of(latency: np.ndarray[Any, Any], code: list[int] | None = None) -> Samples:
    """One request per 10 ms with the given latencies (seconds)."""
    due = np.arange(len(latency)) / 100
    return Samples(due, due, due, due + latency, np.array(code or [0] * len(latency), np.int16))


def test_figures_are_those_of_the_samples() -> None:
    latency = np.random.default_rng(0).lognormal(-6, 0.5, 5000)
    point = summarise(samples_of(latency), Pace(rate=100, warm_up=10, duration=40), [50, 99])
    measured = 1e3 * latency[1000:]
    assert point["requests"] == 4000
    assert point["warm_up"]["requests"] == 1000
    assert point["latency_ms"]["p99"] == pytest.approx(np.percentile(measured, 99, method="inverted_cdf"))
    low, high = point["interval_ms"]["p50"]
    assert low <= point["latency_ms"]["p50"] <= high
    assert high < 1.1 * low
    histogram = HdrHistogram.decode(point["histogram"])
    assert histogram.get_total_count() == 4000
    assert histogram.get_value_at_percentile(99) == pytest.approx(1e3 * point["latency_ms"]["p99"], rel=2e-3)
    assert [share for _, share in point["cdf"]] == sorted(share for _, share in point["cdf"])
    assert point["warnings"] == []


def test_a_failed_request_breaks_a_promise_and_is_no_fast_one() -> None:
    latency = np.full(1000, 0.001)
    codes = [0] * 980 + [8] * 20
    pace = Pace(rate=100, warm_up=0, duration=10)
    point = summarise(samples_of(latency, codes), pace, [50], [Slo(99, 5), Slo(50, 5)])
    assert point["errors"] == {"RESOURCE_EXHAUSTED": 20}
    assert point["slos"] == {"p99:5ms": False, "p50:5ms": True}
    assert point["goodput_per_second"] == pytest.approx(98)


def test_nothing_but_errors_has_no_latency() -> None:
    point = summarise(
        samples_of(np.full(100, 0.001), [14] * 100), Pace(rate=100, warm_up=0, duration=1), [50]
    )
    assert point["errors"] == {"UNAVAILABLE": 100}
    assert set(point["latency_ms"].values()) == {None}
    assert point["answered_per_second"] == 0


def test_doubts_are_told() -> None:
    pace = Pace(rate=100, warm_up=0, duration=10)
    samples = samples_of(np.where(np.arange(1000) < 500, 0.001, 0.003))
    samples.noticed = samples.due + 0.002
    samples.busy, samples.unreadable = 0.95, 3
    told = " ".join(summarise(samples, pace, [99])["warnings"])
    for part in ("client is the bottleneck", "schedule is the bottleneck", "no slates", "Noisy"):
        assert part in told
    late = " ".join(summarise(samples_of(np.linspace(0, 5, 1000)), pace, [99])["warnings"])
    assert "overloaded" in late


@pytest.mark.parametrize("limit", [137.0, 100.0, 5000.0])
def test_the_search_finds_the_limit_to_its_precision(limit: float) -> None:
    good, bad = highest_rate(lambda rate: rate <= limit, 100, 0.05)
    assert good is not None
    assert bad is not None
    assert good <= limit < bad <= 1.05 * good


def test_the_search_says_what_it_did_not_meet() -> None:
    assert highest_rate(lambda rate: False, 100, 0.05) == (None, 100)
    good, bad = highest_rate(lambda rate: True, 1, 0.05)
    assert good is not None
    assert bad is None
