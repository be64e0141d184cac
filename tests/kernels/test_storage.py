"""Save and open: the same answers from mapped files, and a broken folder is named."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recserve.errors import BundleInvalid, InvalidRequest
from recserve.kernels import ItemIndex
from recserve.kernels.snapshot import rebuild


def index_of(n_items: int) -> ItemIndex:
    rng = np.random.default_rng(3)
    return ItemIndex.build(rng.standard_normal((n_items, 9)).astype(np.float32))


QUERIES = np.random.default_rng(4).standard_normal((5, 9)).astype(np.float32)


@pytest.mark.parametrize("n_items", [0, 1, 33, 100])
def test_an_opened_index_answers_as_the_saved_one(tmp_path: Path, n_items: int) -> None:
    index = index_of(n_items)
    index.save(tmp_path / "index")
    opened = ItemIndex.open(tmp_path / "index")
    assert (opened.n_items, opened.dim) == (n_items, 9)
    for ours, theirs in zip(index.search(QUERIES, 7), opened.search(QUERIES, 7), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_changes_are_saved_and_an_opened_index_can_be_changed(tmp_path: Path) -> None:
    index = index_of(40)
    index.remove(np.array([3, 39], np.int32))
    index.upsert(np.array([40], np.int32), 9 * QUERIES[:1])
    index.save(tmp_path / "new" / "index")
    opened = ItemIndex.open(str(tmp_path / "new" / "index"))
    np.testing.assert_array_equal(index.search(QUERIES, 50)[1], opened.search(QUERIES, 50)[1])
    opened.remove(np.array([40], np.int32))
    assert opened.search(QUERIES[:1], 50)[1].max() == 38
    assert index.search(QUERIES[:1], 1)[1][0, 0] == 40


def test_a_fresh_index_is_saved_as_it_is() -> None:
    index = ItemIndex.build(np.eye(3, dtype=np.float32))
    assert rebuild(index.snapshot) is index.snapshot
    index.remove(np.array([1], np.int32))
    assert len(rebuild(index.snapshot).base.item_of_row) == 2


def test_the_arrays_of_an_opened_index_are_mapped(tmp_path: Path) -> None:
    index_of(40).save(tmp_path / "index")
    vectors: Any = ItemIndex.open(tmp_path / "index")._snapshot.base.vectors
    while vectors is not None and not isinstance(vectors, np.memmap):
        vectors = vectors.base
    assert isinstance(vectors, np.memmap)


def test_a_folder_in_use_is_not_overwritten(tmp_path: Path) -> None:
    index_of(4).save(tmp_path / "index")
    with pytest.raises(InvalidRequest, match=r"folder is .*; expected a new or empty folder"):
        index_of(5).save(tmp_path / "index")
    assert ItemIndex.open(tmp_path / "index").n_items == 4
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_what_is_missing_or_broken_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleInvalid, match=r"index\.json is "):
        ItemIndex.open(tmp_path / "nowhere")
    folder = tmp_path / "index"
    index_of(40).save(folder)
    np.save(folder / "high.npy", np.zeros(3, np.uint8))
    with pytest.raises(BundleInvalid, match=r"high\.npy is uint8 of shape \(3,\); expected uint8 of shape"):
        ItemIndex.open(folder)
    (folder / "high.npy").write_bytes(b"not an array")
    with pytest.raises(BundleInvalid, match=r"high\.npy is .*; expected an array"):
        ItemIndex.open(folder)
    (folder / "index.json").write_text('{"format": 3, "n_items": 1, "n_rows": 1, "dim": 1}')
    with pytest.raises(BundleInvalid, match=r"index\.json format is 3; expected 2\."):
        ItemIndex.open(folder)
    (folder / "index.json").write_text("[]")
    with pytest.raises(BundleInvalid, match=r"expected an object with the numbers"):
        ItemIndex.open(folder)
