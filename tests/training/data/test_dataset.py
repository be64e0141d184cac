"""Dataset: stable order, lineage, and a folder that is whole or absent."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import polars as pl
import pytest

from recserve.errors import DataError, InvalidRequest
from recserve.training.data import CleaningReport, Dataset

Maker = Callable[[Sequence[tuple[str, str, int]]], Dataset]
EVENTS = [("u2", "b", 5), ("u10", "a", 5), ("u2", "c", 5), ("u2", "a", 5), ("u10", "b", 1)]


def test_ids_are_numbered_in_byte_order_and_ties_stay_in_source_order(make_dataset: Maker) -> None:
    dataset = make_dataset(EVENTS)
    assert dataset.users["user_id"].to_list() == ["u10", "u2"]
    assert dataset.items["item_id"].to_list() == ["a", "b", "c"]
    rows = dataset.interactions.select("user_index", "item_index", "timestamp").rows()
    assert rows == [(0, 1, 1), (0, 0, 5), (1, 1, 5), (1, 2, 5), (1, 0, 5)]
    assert dataset.popularity().tolist() == [2, 2, 1]
    assert (dataset.n_users, dataset.n_items) == (2, 3)


def test_many_ties_stay_in_source_order(make_dataset: Maker) -> None:
    items = [f"i{number:04}" for number in range(2000)]
    random.Random(7).shuffle(items)
    dataset = make_dataset([("u", item, number // 500) for number, item in enumerate(items)])
    numbered = dataset.items["item_id"].gather(dataset.histories().row(0)[0])
    assert numbered.to_list() == items


def test_the_hash_is_of_the_content(make_dataset: Maker) -> None:
    # Users in another order of the file are the same data; another item, time or boundary is not.
    assert make_dataset(EVENTS).sha256 == make_dataset([EVENTS[1], EVENTS[4], EVENTS[0], *EVENTS[2:4]]).sha256
    hashes = {
        make_dataset(events).sha256
        for events in (
            EVENTS,
            [*EVENTS[:4], ("u10", "b", 2)],
            [*EVENTS[:4], ("u10", "d", 1)],
            [("ab", "c", 1)],
            [("a", "bc", 1)],
        )
    }
    assert len(hashes) == 5


def test_a_saved_dataset_loads_as_it_was(make_dataset: Maker, tmp_path: Path) -> None:
    dataset = make_dataset(EVENTS)
    dataset.save(tmp_path / "deep" / "data")
    loaded = Dataset.load(tmp_path / "deep" / "data")
    for table in ("interactions", "users", "items"):
        assert getattr(loaded, table).equals(getattr(dataset, table))
    for name in ("name", "report", "source", "licence", "sha256"):
        assert getattr(loaded, name) == getattr(dataset, name)
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["data"]
    with pytest.raises(InvalidRequest, match="is there; expected a new folder"):
        dataset.save(tmp_path / "deep" / "data")


def test_nothing_half_written_stays(
    make_dataset: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("recserve.training.data.dataset.os.fsync", full)
    with pytest.raises(OSError, match="no space left"):
        make_dataset(EVENTS).save(tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_folder_is_refused(make_dataset: Maker, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    dataset = make_dataset(EVENTS)
    with pytest.raises(DataError, match=r"is without dataset\.json; expected a saved dataset"):
        Dataset.load(folder)
    dataset.save(folder)
    dataset.items.with_columns(item_id=pl.Series(["a", "b", "x"])).write_parquet(folder / "items.parquet")
    with pytest.raises(DataError, match="is changed since it was written"):
        Dataset.load(folder)
    (folder / "items.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="Make it again from its source"):
        Dataset.load(folder)
    (folder / "items.parquet").unlink()
    with pytest.raises(DataError, match="Make it again from its source"):
        Dataset.load(folder)
    (folder / "dataset.json").write_text('{"format_version": 99}')
    with pytest.raises(DataError, match="is of another format version"):
        Dataset.load(folder)
    (folder / "dataset.json").write_text("{")
    with pytest.raises(DataError, match=r"is damaged in dataset\.json"):
        Dataset.load(folder)


def test_tables_that_do_not_fit_together_are_refused(make_dataset: Maker) -> None:
    dataset = make_dataset(EVENTS)

    def create(
        interactions: pl.DataFrame = dataset.interactions,
        users: pl.DataFrame = dataset.users,
        items: pl.DataFrame = dataset.items,
    ) -> Dataset:
        report = CleaningReport(rows_read=5, kept=5)
        return Dataset.create("x", interactions, users, items, report=report, source="test")

    with pytest.raises(DataError, match="item_index is 0 to 2; expected 0 to 1"):
        create(items=dataset.items.head(2))
    with pytest.raises(DataError, match="user_id is repeated or empty; expected distinct ids"):
        create(users=pl.DataFrame({"user_id": ["u", "u"]}))
    with pytest.raises(DataError, match=r"first column of items is .*; expected item_id"):
        create(items=pl.DataFrame({"id": ["u"]}))
    with pytest.raises(DataError, match="column timestamp is String; expected Int64"):
        create(interactions=dataset.interactions.cast({"timestamp": pl.String}))
    with pytest.raises(DataError, match="column value is partly empty"):
        create(interactions=dataset.interactions.with_columns(value=pl.lit(None, pl.Float32)))
