"""Forms of rankers next to torch and a plain export."""

from pathlib import Path

import pytest

from recserve.benchmarks.encoder_forms import EXPORTED, TORCH
from recserve.benchmarks.kernels.limits import Limits
from recserve.benchmarks.ranker_forms import measure
from recserve.benchmarks.tables import tables_of
from recserve.errors import InvalidRequest
from recserve.exporters import measure as gate_measure
from recserve.exporters.ranker_forms import FORMS

MACHINE = Limits(1, "avx2", fp32_gflops=50.0, int8_gops=100.0, read_gb_per_s={1024: 20.0, 1 << 30: 10.0})


def test_every_case_has_all_contenders(ranker_run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_measure, "MAX_CALLS", gate_measure.MIN_CALLS)
    rows = measure(ranker_run_folder, 0.0, MACHINE)
    assert [(row["case"], row["form"]) for row in rows] == [
        (case, form) for case in ("1", "32") for form in (TORCH, *FORMS, EXPORTED)
    ]
    by_form = {row["form"]: row for row in rows if row["case"] == "32"}
    assert by_form[TORCH]["of_torch"] == by_form[EXPORTED]["of_exported"] == 1
    # What is computed of items alone is a table: fewer operations for the same logits.
    work = {form: row["gflops"] * row["p50_ms"] for form, row in by_form.items() if form != TORCH}
    assert work["fp32"] < work[EXPORTED]
    assert by_form["fp32"]["auc_loss"] == 0
    assert by_form["fp16"]["size_ratio"] < 1
    [table] = tables_of({"bench": "ranker_forms", "rows": rows, "limits": MACHINE.as_dict()})
    assert len(table.rows) == len(rows)


def test_an_encoder_is_no_ranker(run_folder: Path) -> None:
    with pytest.raises(InvalidRequest, match="expected a ranker"):
        measure(run_folder, 0.0, None)
