"""The serving benchmarks run and report what they promise; their figures are nobody's business here."""

import json
import shutil
from pathlib import Path

import pytest

from recserve.benchmarks import engine_overhead, h2load, serving
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
        serving.main(["nowhere"])


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
        h2load.h2load("127.0.0.1:1", serving.SHAPES[0], tmp_path / "body", 1, 300)


@pytest.mark.slow
def test_all_servers_are_measured(bundle_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if shutil.which("h2load") is None:
        pytest.skip("h2load is not installed")
    assert serving.main([str(bundle_folder), "--rounds", "1", "--seconds", "1", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert len(rows) == 2 * len(serving.SERVERS) * len(serving.SHAPES)
    assert all(row["requests_per_second"] > 0 and row["of_echo"] > 0 for row in rows)
