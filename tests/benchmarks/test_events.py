"""The benchmark of the event log, for a moment: it measures a real server and counts what its log has."""

import json
from pathlib import Path

import pytest

from recserve.benchmarks.events import main
from recserve.benchmarks.tables import tables_of

pytest.importorskip("apsw")
pytest.importorskip("hpack")


@pytest.mark.slow
def test_the_log_has_what_was_acknowledged(bundle_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "events.json"
    options = ["--seconds", "1", "--rounds", "1", "--round-seconds", "1", "--batch", "100"]
    code = main([str(bundle_folder), *options, "--out", str(out)])
    result = json.loads(out.read_text())
    # Whether this machine is fast enough is not the question here; that the verdict follows is.
    assert code == (0 if all(bar["reached"] for bar in result["bars"]) else 1)
    assert [table.title for table in tables_of(result)][1] == "What was promised"
    assert result["acknowledged"] >= 100
    assert result["record_p99_ms"] >= result["record_p50_ms"] > 0
