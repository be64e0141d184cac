"""The serving benchmarks run and report what they promise; their figures are nobody's business here."""

import json
import shutil
from pathlib import Path

import pytest

from recserve.benchmarks import engine_overhead, h2load, overload
from recserve.benchmarks.serving import SHAPES, __main__, bars, transports
from recserve.benchmarks.tables import tables_of
from recserve.engine import Engine
from recserve.errors import CheckFailed, ConfigError


def test_the_engine_is_timed_next_to_its_parts(
    bundle_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert engine_overhead.main([str(bundle_folder), "--rounds", "2", "--batch", "1", "3", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [row["batch"] for row in result["rows"]] == [1, 3]
    assert all(row[way] > 0 for row in result["rows"] for way in engine_overhead.WAYS)


def test_without_its_client_the_benchmark_names_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match="nghttp2-client"):
        __main__.main([])


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("nothing was said", "expected counts of replies"),
        ("status codes: 100 2xx, 0 3xx\ntraffic: 9KB (9000) total, 1KB (1000) data", "bytes of 100 replies"),
    ],
)
def test_failed_calls_are_not_counted_as_fast_ones(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, output: str, message: str
) -> None:
    class Finished:
        stdout = output

    monkeypatch.setattr(h2load.subprocess, "run", lambda *_, **__: Finished)
    with pytest.raises(CheckFailed, match=message):
        h2load.h2load("127.0.0.1:1", SHAPES[0], tmp_path / "body", 1, 300)


def test_promises_are_judged_by_what_was_measured() -> None:
    row = {"transport": "native", "server": "recommend", "in_flight": "8×32"}
    figures = {"requests_per_second": 16_000.0, "p50_us": 9000.0, "p99_us": 20_000.0, "of_echo": 0.5}
    result = {"bench": "serving", "k": 10, "rows": [{**row, **figures}], "cases": {"start": {"als": 3.5}}}
    result["bars"] = bars.judge(result)
    judged = {bar["case"]: (bar["measured"], bar["reached"]) for bar in result["bars"]}
    assert judged["table model, native, 8×32"] == (16_000, True)
    assert judged["table model, native, of its echo"] == (0.5, False)
    assert judged["start to SERVING, table model"] == (3.5, False)
    assert judged["table model, native, one in flight, p50"] == (None, None)
    rates, rest, promises = tables_of(result)
    assert rates.rows == [["native", "recommend", "8×32", "16,000", "9.00", "20.0", "0.50"]]
    assert rest.rows == [["start", "als", "3.5"]]
    assert len(promises.rows) == 3


@pytest.mark.slow
def test_all_servers_are_measured(bundle_folder: Path, engine: Engine, tmp_path: Path) -> None:
    if shutil.which("h2load") is None:
        pytest.skip("h2load is not installed")
    options = __main__.parse(["--quick"])
    options.bundle = bundle_folder
    body = transports.ask_for(engine, options.k, tmp_path)
    rows = transports.measure(engine, "native", body, options)
    assert len(rows) == len(transports.SERVERS) * len(SHAPES)
    assert all(row["requests_per_second"] > 0 and row["of_echo"] > 0 for row in rows)


@pytest.mark.slow
def test_the_program_makes_its_bundles_and_writes_its_result(tmp_path: Path) -> None:
    if shutil.which("h2load") is None:
        pytest.skip("h2load is not installed")
    out = tmp_path / "serving.json"
    assert __main__.main(["--quick", "--cases", "late", "--bundles", str(tmp_path), "--out", str(out)]) == 0
    case = json.loads(out.read_text())["cases"]["late"]
    assert case["never_computed"] > 0
    assert case["in_vain"] <= case["computed"]


def test_a_recovery_counts_from_the_first_of_the_good_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([(1.0, ("model",)), (9.0, ()), *[(1.0, ())] * overload.N_IN_A_ROW])
    clock = iter(range(100))
    monkeypatch.setattr(overload, "_ask", lambda client, user: next(answers))
    monkeypatch.setattr(overload.time, "monotonic", lambda: float(next(clock)) / 4)
    assert overload.recover("127.0.0.1:1", "u", limit_ms=3.0) == pytest.approx(0.75)


def test_the_promises_of_an_overload_are_judged() -> None:
    figures = {"deadline_ms": 500, "goodput_of_peak": 0.95, "model_of_peak": 0.5, "p99_of_deadline": 0.9}
    result = {"bench": "overload", **figures, "share_in_time": 0.2, "recovery_s": 0.1, "rss_of_before": 1.0}
    result["bars"] = [bar.judge(result) for bar in overload.BARS]
    assert [bar["reached"] for bar in result["bars"]] == [True, False, True, False, True, True]
    shown, promised = tables_of(result)
    assert ["share in time", "0.2"] in shown.rows
    assert promised.rows[3][-1] == "missed"
