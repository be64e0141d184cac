"""Tables in several files: one array without a copy, the same answers, and what the loader refuses."""

import shutil
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recserve.engine import Engine, Request
from recserve.engine.bundle import layout, open_bundle
from recserve.engine.bundle.shards import PAGE, files_of, joined, save_shard, split
from recserve.errors import BundleReason as R
from recserve.errors import InvalidRequest
from recserve.exporters.assemble import FormOptions, export_run
from recserve.training.run import open_run
from tests.engine.bundle.conftest import Break, BundleCopy, Case, Cases, refused
from tests.once import made_once

# 64 items of 16 numbers fill a page: the shop's table takes 4 or 5 files.
SHARD_BYTES = 4 * PAGE + 1
CASES = Cases()


def parts_of(bundle: BundleCopy, name: str = layout.ITEM_EMBEDDINGS) -> list[str]:
    return files_of(name, bundle.manifest()["files"])


@pytest.fixture(scope="session")
def sharded_folder(run_folder: Path, shared_folder: Path) -> Path:
    folder = shared_folder / "sharded"
    with made_once(folder) as is_missing:
        if is_missing:
            export_run(open_run(run_folder), folder, options=FormOptions(shard_bytes=SHARD_BYTES))
    return folder


@pytest.fixture
def bundle(sharded_folder: Path, tmp_path: Path) -> BundleCopy:
    return BundleCopy(shutil.copytree(sharded_folder, tmp_path / "bundle"))


@given(
    n=st.integers(1, 400),
    width=st.integers(1, 70),
    dtype=st.sampled_from(["<f4", "<f2", "i1"]),
    n_pages=st.integers(1, 30),
)
def test_shards_are_whole_pages_of_all_rows_in_order(n: int, width: int, dtype: str, n_pages: int) -> None:
    table = np.arange(n * width).reshape(n, width).astype(dtype)
    try:
        parts = list(split("t.npy", table, n_pages * PAGE))
    except InvalidRequest:
        assert n_pages * PAGE < np.lcm(PAGE, table.strides[0])
        return
    np.testing.assert_array_equal(np.concatenate([rows for _, rows in parts]), table)
    assert all(rows.nbytes <= n_pages * PAGE for _, rows in parts)
    assert all(rows.nbytes % PAGE == 0 for _, rows in parts[:-1])
    names = [name for name, _ in parts]
    assert files_of("t.npy", {*names, "other.npy"}) == names
    file = BytesIO()
    save_shard(file, parts[0][1])
    assert len(file.getvalue()) == PAGE + parts[0][1].nbytes
    np.testing.assert_array_equal(np.load(BytesIO(file.getvalue())), parts[0][1])


def test_an_item_table_in_several_files_gives_the_answers_of_one(
    bundle_folder: Path, sharded_folder: Path
) -> None:
    some = [Request(user_id="1", k=20), Request(history=("3", "8"), k=20)]
    with Engine.load(bundle_folder) as whole, Engine.load(sharded_folder) as sharded:
        assert items_and_scores(whole, some) == items_and_scores(sharded, some)
    assert (sharded_folder / "item_embeddings.4.npy").is_file()


def test_a_user_table_lies_in_several_files_too(
    als_run_folder: Path, table_bundle_folder: Path, tmp_path: Path
) -> None:
    export_run(open_run(als_run_folder), tmp_path / "bundle", options=FormOptions(shard_bytes=PAGE))
    assert (tmp_path / "bundle" / "user_embeddings.2.npy").is_file()
    with Engine.load(table_bundle_folder) as whole, Engine.load(tmp_path / "bundle") as sharded:
        some = [Request(user_id=user, k=5) for user in ("1", "2", "77")]
        assert items_and_scores(whole, some) == items_and_scores(sharded, some)


def items_and_scores(engine: Engine, some: list[Request]) -> list[list[tuple[str, float]]]:
    return [[(item.item_id, item.score) for item in slate.items] for slate in engine.recommend_many(some)]


@pytest.mark.skipif(sys.platform != "linux", reason="reads the list of maps that Linux keeps")
def test_nothing_is_copied_and_nothing_can_be_written(bundle: BundleCopy) -> None:
    vectors = open_bundle(bundle.folder).item_embeddings
    begin = vectors.__array_interface__["data"][0]
    maps = [
        line.split() for line in Path("/proc/self/maps").read_text().splitlines() if "item_embeddings" in line
    ]
    mine = [line for line in maps if line[-1].startswith(str(bundle.folder))]
    spans = {
        tuple(int(end, 16) - begin for end in line[0].split("-")) for line in mine if line[2] == "00001000"
    }
    place = 0
    for name in parts_of(bundle):
        n_bytes = bundle.array(name).nbytes
        assert (place, place + -(-n_bytes // PAGE) * PAGE) in spans
        place += n_bytes
    assert place == vectors.nbytes
    with pytest.raises(ValueError, match="read-only"):
        vectors[0, 0] = 1.0


def test_files_of_other_headers_are_copied_together(tmp_path: Path) -> None:
    rows = np.arange(12, dtype=np.float32).reshape(6, 2)
    names = ["a.npy", "b.npy"]
    for name, part in zip(names, (rows[:4], rows[4:]), strict=True):
        np.save(tmp_path / name, part)
    shards: list[Any] = [np.load(tmp_path / name, mmap_mode="r") for name in names]
    found = joined(shards)
    np.testing.assert_array_equal(found, rows)
    assert not found.flags.writeable


def test_a_part_without_rows_adds_none(tmp_path: Path) -> None:
    rows = np.arange(2 * PAGE, dtype=np.int8).reshape(-1, 64)
    names = ["a.npy", "a.2.npy", "a.3.npy"]
    for name, part in zip(names, (rows[:64], rows[:0], rows[64:]), strict=True):
        with (tmp_path / name).open("wb") as file:
            save_shard(file, part)
    shards: list[Any] = [np.load(tmp_path / name, mmap_mode="r") for name in names]
    np.testing.assert_array_equal(joined(shards), rows)


def rewrite(number: int, change: Callable[[Any], Any]) -> Break:
    def broken(bundle: BundleCopy) -> None:
        name = parts_of(bundle)[number]
        bundle.write_array(name, change(bundle.array(name)))

    return broken


@CASES.broken(R.SHAPE, "shape of item_embeddings.npy")
def a_part_that_is_not_listed(bundle: BundleCopy) -> None:
    (bundle.folder / "item_embeddings.2.npy").unlink()
    bundle.edit(lambda manifest: manifest["files"].pop("item_embeddings.2.npy"))


CASES.add("fewer rows", R.SHAPE, "rows of item_embeddings.npy", rewrite(1, lambda rows: rows[:-1]))
CASES.add("other width", R.SHAPE, "shape of item_embeddings.2.npy", rewrite(1, lambda rows: rows[:, :-1]))
CASES.add("flat", R.SHAPE, "shape of item_embeddings.npy", rewrite(0, np.ravel))
CASES.add("other type", R.ARRAY_TYPE, "item_embeddings.3.npy", rewrite(2, lambda rows: rows.astype("f8")))
CASES.add("no number", R.NOT_FINITE, "item_embeddings", rewrite(0, lambda rows: rows * np.float32(np.inf)))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_broken_parts_are_refused(bundle: BundleCopy, case: Case) -> None:
    refused(bundle, case)


def test_files_that_cannot_hold_a_page_of_rows_are_refused(run_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="shard_bytes is 100; expected at least 4096"):
        export_run(open_run(run_folder), tmp_path / "bundle", options=FormOptions(shard_bytes=100))
    assert not (tmp_path / "bundle").exists()
