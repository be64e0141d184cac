"""Variants share their item table in memory: a bound on what another encoder costs."""

from pathlib import Path

from recserve.benchmarks.scale.grown import grow_bundle
from recserve.benchmarks.variant_memory import measure


def test_another_encoder_does_not_bring_another_item_table(bundle_folder: Path, tmp_path: Path) -> None:
    grow_bundle(bundle_folder, tmp_path / "grown", 150_000, seed=1)
    found = measure(tmp_path / "grown", copies=3)
    assert found["n_encoders"] == 4
    assert found["table_bytes"] == 150_000 * 16 * 4
    # All items went through each: three copies of the table would be 29 MB.
    assert found["all_bytes"] - found["one_bytes"] < 0.5 * found["table_bytes"]
