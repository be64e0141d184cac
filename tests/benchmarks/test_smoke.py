"""``make bench-smoke`` writes ratios and tells changes without failing on them."""

import json
from pathlib import Path

import pytest

from recserve.benchmarks import smoke
from recserve.benchmarks.compare import rows_of
from recserve.benchmarks.tables import tables_of


def result_of(ratio: float) -> dict[str, object]:
    row = {"what": "search", "ratio": ratio, "intervals": {"ratio": [ratio, ratio]}}
    return {"bench": "smoke", "environment": {}, "rows": [row]}


def test_a_fall_is_told_and_a_rise_or_noise_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    smoke.tell_changes(result_of(2.0), result_of(1.5))
    smoke.tell_changes(result_of(2.0), result_of(9.0))
    assert "look at this" not in capsys.readouterr().err
    smoke.tell_changes(result_of(2.0), result_of(1.0))
    assert "search fell from 2.00 to 1.00" in capsys.readouterr().err


@pytest.mark.slow
def test_the_program_measures_compares_and_writes(tmp_path: Path) -> None:
    pytest.importorskip("pygrpc_native")
    out = tmp_path / "smoke.json"
    for _ in range(2):
        assert smoke.main(["--out", str(out), "--seconds", "0.1"]) == 0
    result = json.loads(out.read_text())
    assert all(set(figures) == {"ratio"} for figures in rows_of(result).values())
    assert len(tables_of(result)[0].rows) == 6
