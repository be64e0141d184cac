"""Folders of Parquet files: the same data set as from one file, in a fraction of the memory of the files."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recserve.errors import DataError
from recserve.training.data import load_dataset

N_SHARDS, ROWS = 4, 30_000
PAYLOAD_CHARACTERS = 2400
# In a fresh process: the most memory that loading takes beyond what importing took, in bytes. The peak of
# getrusage would be that of the process that started this one; the kernel's own is set back to what is held.
MEASURE = """
import pathlib, sys
from recserve.training.data import leave_one_out, load_dataset
status = lambda key: 1024 * int(pathlib.Path("/proc/self/status").read_text().split(key + ":")[1].split()[0])
pathlib.Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
dataset = load_dataset(sys.argv[1])
leave_one_out(dataset)
print(dataset.interactions.height, status("VmHWM") - before)
"""


def shard(number: int, n_rows: int) -> pl.DataFrame:
    rng = np.random.default_rng(number)
    return pl.DataFrame(
        {
            "user_id": [f"user-{user:032}" for user in rng.integers(0, 2000, n_rows)],
            "item_id": [f"item-{item:032}" for item in rng.integers(0, 500, n_rows)],
            "timestamp": rng.integers(1_500_000_000, 1_600_000_000, n_rows),
            "rating": rng.integers(0, 6, n_rows).astype(np.float64),
        }
    )


def test_shards_are_the_data_set_of_one_file(tmp_path: Path) -> None:
    parts = [shard(number, 500) for number in range(3)]
    parts[1] = parts[1].with_columns(
        rating=pl.when(pl.col("rating") == 0).then(None).otherwise("rating"),
        timestamp=pl.when(pl.col("rating") == 5).then(9_999_999_999).otherwise("timestamp"),
    )
    parts.append(parts[0].head(40))
    (tmp_path / "shards" / "day=2").mkdir(parents=True)
    for number, part in enumerate(parts):
        folder = tmp_path / "shards" / ("day=2" if number == 2 else "")
        part.write_parquet(folder / f"part-{number}.parquet", row_group_size=100)
    order = [2, 0, 1, 3]
    pl.concat([parts[number] for number in order]).write_parquet(tmp_path / "one.parquet")
    from_shards, from_file = load_dataset(tmp_path / "shards"), load_dataset(tmp_path / "one.parquet")
    assert from_shards.sha256 == from_file.sha256
    assert from_shards.items.equals(from_file.items)
    found, expected = from_shards.report, from_file.report
    assert found.table_rows() == expected.table_rows()
    assert found.duplicates == 40
    assert found.missing["value"] > 0
    assert found.out_of_range["timestamp"] > 0
    small = load_dataset(tmp_path / "shards", min_user_interactions=2)
    assert small.sha256 == load_dataset(tmp_path / "one.parquet", min_user_interactions=2).sha256


def test_without_a_time_the_order_of_the_shards_is_the_time(tmp_path: Path) -> None:
    for number, items in enumerate((["b", "a"], ["c", "a"])):
        pl.DataFrame({"user": ["u"] * 2, "item": items}).write_parquet(tmp_path / f"{number}.parquet")
    dataset = load_dataset(tmp_path)
    assert dataset.interactions["timestamp"].to_list() == [0, 1, 2, 3]
    assert dataset.interactions["item_index"].to_list() == [1, 0, 2, 0]


def test_a_folder_without_shards_or_with_a_damaged_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"without a \.parquet file"):
        load_dataset(tmp_path)
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match="damaged Parquet data"):
        load_dataset(tmp_path)
    pl.DataFrame({"who": ["u"], "item": ["i"]}).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match="user column is not found"):
        load_dataset(tmp_path)


def test_the_memory_is_a_fraction_of_the_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(N_SHARDS):
        # Random bytes as text: what a compressor makes no smaller than three quarters.
        codes = rng.integers(48, 112, ROWS * PAYLOAD_CHARACTERS, dtype=np.uint8).tobytes().decode("ascii")
        payload = [codes[i : i + PAYLOAD_CHARACTERS] for i in range(0, len(codes), PAYLOAD_CHARACTERS)]
        table = shard(number, ROWS).with_columns(payload=pl.Series(payload))
        table.write_parquet(tmp_path / f"{number}.parquet", compression="uncompressed")
    on_disk = sum(path.stat().st_size for path in tmp_path.iterdir())
    finished = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    kept, peak = map(int, finished.stdout.split())
    assert kept > 0.99 * N_SHARDS * ROWS
    assert on_disk > 280e6
    assert peak < on_disk / 2, f"{peak / 1e6:.0f} MB for files of {on_disk / 1e6:.0f} MB"
