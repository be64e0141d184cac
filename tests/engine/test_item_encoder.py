"""An item that came after the bundle gets its place from what is known of it."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recserve.engine import Engine, Request
from recserve.engine.bundle.item_encoder import described
from recserve.engine.state.config import StateConfig
from recserve.engine.state.items import ItemChange
from recserve.engine.state.state import open_state
from recserve.errors import BundleInvalid, CheckFailed
from recserve.exporters.assemble import export_run
from recserve.exporters.item_encoder import write_item_encoder
from recserve.training.run import open_run
from tests.engine.bundle.conftest import BundleCopy
from tests.once import made_once


@pytest.fixture(scope="session")
def folder(als_run_folder: Path, shared_folder: Path) -> Path:
    folder = shared_folder / "item-encoder"
    with made_once(folder) as is_missing:
        if is_missing:
            export_run(open_run(als_run_folder), folder, item_encoder=True)
    return folder


def twin(engine: Engine, item_id: str) -> ItemChange:
    """A new item that is described as one of the bundle."""
    return ItemChange(item_id="twin", attributes=engine.get_items([item_id])[item_id])


def test_a_new_item_is_found_by_its_attributes_at_once_and_after_a_restart(
    folder: Path, tmp_path: Path
) -> None:
    config = StateConfig(url=f"sqlite:///{tmp_path}/events.db")
    for is_first in (True, False):
        with open_state(config) as state:
            state.load()
            with Engine.load(folder, live_items=state.live_items) as engine:
                known = engine.loaded.bundle.catalogue.vocabulary.ids([0])[0]
                if is_first:
                    assert "twin" not in near(engine, known)
                    state.change_items([twin(engine, known)]).result()
                assert "twin" in near(engine, known)
                slate = engine.recommend(Request(history=[known], k=20))
                assert "twin" in [item.item_id for item in slate.items]


def near(engine: Engine, item_id: str) -> list[str]:
    return [item.item_id for item in engine.similar_items(item_id, k=20).items]


def test_an_item_of_which_nothing_that_counts_is_known_is_left_out(folder: Path, bundle_folder: Path) -> None:
    with Engine.load(folder) as engine, Engine.load(bundle_folder) as without:
        n_items = engine.manifest.n_items
        known = engine.loaded.bundle.catalogue.vocabulary.ids([0])[0]
        engine.change_items([ItemChange(item_id="x", attributes={"price": 3.0, "unheard of": "y"})])
        assert len(engine.loaded.bundle.catalogue) == n_items
        without.change_items([twin(without, known)])
        assert len(without.loaded.bundle.catalogue) == n_items


def test_a_vector_is_as_long_as_those_of_the_items(folder: Path) -> None:
    with Engine.load(folder) as engine:
        bundle = engine.loaded.bundle
        assert bundle.item_encoder is not None
        vector = bundle.item_encoder.encode({"title": "Wool Socks", "category": "Clothes"})
        assert vector is not None
        assert np.linalg.norm(vector) == pytest.approx(bundle.item_encoder.entry.length, rel=1e-5)


def test_what_is_read_of_an_item() -> None:
    rows = [
        {"title": "Red", "tags": ["a", "b"], "sale": True, "price": 3.0},
        {"title": "red", "tags": ["b", "a"], "sale": True, "price": 4.0, "other": "z"},
        {"title": None, "tags": [], "sale": None},
        {"tags": "a"},
    ]
    found = described(rows, ["title", "tags", "sale", "price"], 512)
    np.testing.assert_array_equal(found[0], found[1])
    assert np.linalg.norm(found[0]) == pytest.approx(1)
    assert not found[2].any()
    assert found[3] @ found[0] > 0


class _Writer:
    """A bundle of which only the item encoder is written."""

    def __init__(self) -> None:
        self.arrays: dict[str, np.ndarray] = {}

    def add_array(self, name: str, array: np.ndarray) -> None:
        self.arrays[name] = array


def test_attributes_that_say_nothing_make_no_encoder(als_run_folder: Path) -> None:
    dataset = open_run(als_run_folder).dataset
    rng = np.random.default_rng(0)
    noise = pl.Series("title", [f"w{n}" for n in rng.integers(0, 1 << 40, dataset.n_items)])
    silent = replace(dataset, items=dataset.items.select("item_id").with_columns(noise))
    vectors = rng.normal(size=(dataset.n_items, 8)).astype(np.float32)
    with pytest.raises(CheckFailed, match=r"item encoder .* expected surely above that of the mean item"):
        write_item_encoder(_Writer(), silent, vectors)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "refused"),
    [
        (lambda entry: entry.update(width=9), "item_encoder.npy"),
        (lambda entry: entry.update(width=0), "width of the item encoder"),
        (lambda entry: entry.update(length=0.0), "length of the item encoder"),
        (lambda entry: entry.update(file="other.npy"), "file of the item encoder"),
    ],
)
def test_a_wrong_entry_is_refused(folder: Path, tmp_path: Path, change: object, refused: str) -> None:
    copy = BundleCopy(shutil.copytree(folder, tmp_path / "bundle"))
    copy.edit(lambda manifest: change(manifest["item_encoder"]))  # type: ignore[operator]
    with pytest.raises(BundleInvalid, match=refused):
        Engine.load(copy.folder)
