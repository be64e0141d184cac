"""The gate's table: a column for each form that was measured, a line for each that was refused."""

import dataclasses
from pathlib import Path

from recserve.engine.bundle import Refused, open_bundle
from recserve.engine.bundle.gate_table import FIGURES, gate_table, refusals

GATE = {"ndcg": 0.09, "ndcg_loss": -0.004, "ndcg_loss_high": 0.007, "speedup_batch1": 1.5, "size_bytes": 2e6}


def test_a_bundle_without_other_forms_has_no_table(bundle_folder: Path) -> None:
    manifest = open_bundle(bundle_folder).manifest
    assert gate_table(manifest) == ([], [])
    assert refusals(manifest) == []


def test_every_measured_form_has_its_column_and_every_refusal_its_line(bundle_folder: Path) -> None:
    manifest = open_bundle(bundle_folder).manifest
    exact = dataclasses.replace(manifest.variants["fp32"], gate=GATE)
    refused = {"int4": Refused("NDCG@10 lost 3.0%", GATE), "int8": Refused("ndcg not finite", {})}
    columns, rows = gate_table(dataclasses.replace(manifest, variants={"fp32": exact}, refused=refused))
    assert columns == ["", "fp32 *", "int4"]
    assert [row[0] for row in rows] == [*FIGURES, "gate"]
    assert rows[0][1:] == ["0.0900", "0.0900"]
    assert [row[0] for row in rows[2:4]] == ["at least (95 %)", "at most (95 %)"]
    assert rows[3][1] == "+0.70%"
    assert rows[-1] == ["gate", "served", "refused"]
    assert refusals(dataclasses.replace(manifest, refused=refused)) == [
        "int4 refused: NDCG@10 lost 3.0%",
        "int8 refused: ndcg not finite",
    ]
