"""Loading by name or path: what a person types is understood, or answered with what would be."""

import gzip
from pathlib import Path

import pytest

from recserve.errors import DataError, InvalidRequest
from recserve.training.data import CleaningRules, ColumnMap, default_cache_dir, load_dataset

EVENTS = "customer,sku,when,qty\nann,s1,2024-01-01,2\nann,s2,2024-01-02,-1\nbob,s1,2024-01-03,1\n"
ITEMS = '{"sku":"s1","title":"Kettle","price":19.5}\n{"sku":"s3","title":"Lamp","price":5}\n'


def test_a_file_of_the_users_own_loads_through_the_mapping_alone(tmp_path: Path) -> None:
    (tmp_path / "shop.csv").write_text(EVENTS)
    (tmp_path / "items.jsonl").write_text(ITEMS)
    notes: list[str] = []
    dataset = load_dataset(
        tmp_path / "shop.csv",
        columns=ColumnMap.parse("user=customer,item=sku,timestamp=when,value=qty"),
        rules=CleaningRules(min_value=0),
        items_path=tmp_path / "items.jsonl",
        on_note=notes.append,
    )
    assert dataset.name == "shop.csv"
    assert dataset.users["user_id"].to_list() == ["ann", "bob"]
    assert dataset.items.rows() == [("s1", "Kettle", 19.5)]
    assert dataset.report.table_rows() == [("rows read", 3), ("out of range: value", 1), ("kept", 2)]
    assert notes == ["item attributes: 1 items without an interaction are left out"]


def test_the_core_is_part_of_the_report(tmp_path: Path) -> None:
    (tmp_path / "shop.csv.gz").write_bytes(gzip.compress(EVENTS.encode()))
    dataset = load_dataset(str(tmp_path / "shop.csv.gz"), min_item_interactions=2)
    assert dataset.report.table_rows() == [("rows read", 3), ("below k-core", 1), ("kept", 2)]
    assert dataset.items["item_id"].to_list() == ["s1"]


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        (
            "ml100k",
            r"dataset is ml100k; expected ml-100k, .*sequences:PATH or the path .* Did you mean 'ml-100k'\?",
        ),
        ("sintetic-shop:seed=1", r"Did you mean 'synthetic-shop'\?"),
        ("ml-100k:seed=1", "options of ml-100k is seed=1; expected none"),
        (
            "synthetic-shop:n_item=5",
            r"option of synthetic-shop is n_item; expected .* Did you mean 'n_items'\?",
        ),
        ("synthetic-shop:seed=x", "seed of synthetic-shop is x; expected an integer"),
        ("synthetic-shop:n_items=5", "n_items of synthetic-shop is 5; expected between 1000 and 10000000"),
        ("synthetic-shop:n_users=9,n_events=8", "n_events of synthetic-shop is 8; expected between 27 and"),
    ],
)
def test_an_unknown_name_or_option_is_answered_with_the_known_ones(spec: str, sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=sentence):
        load_dataset(spec)


def test_a_missing_path_is_a_missing_file_and_not_an_unknown_name(tmp_path: Path) -> None:
    for spec in (tmp_path / "gone.csv", str(tmp_path / "gone"), "gone.csv"):
        with pytest.raises(DataError, match=r"data file .*gone"):
            load_dataset(spec)


def test_a_file_with_a_line_per_user_loads_in_its_order(tmp_path: Path) -> None:
    (tmp_path / "shop.txt").write_text("u9 b a c\n\nu1 a\n")
    dataset = load_dataset(f"sequences:{tmp_path / 'shop.txt'}")
    assert dataset.name == "shop.txt"
    assert dataset.users["user_id"].to_list() == ["u1", "u9"]
    items, times = dataset.histories().row(1)
    assert dataset.items["item_id"][items.tolist()].to_list() == ["b", "a", "c"]
    assert times.tolist() == [1, 2, 3]
    assert load_dataset(f"sequences:{tmp_path / 'shop.txt'}", min_user_interactions=2).n_users == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"u1 a\nu2\n", "line 2 of shop.txt is one field"),
        (b"u1 \xff\n", "not UTF-8"),
        (None, "No such file"),
    ],
)
def test_a_bad_file_of_sequences_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "shop.txt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_dataset(f"sequences:{tmp_path / 'shop.txt'}")


def test_a_named_data_set_has_its_own_columns() -> None:
    with pytest.raises(InvalidRequest, match="dataset synthetic-shop is given columns"):
        load_dataset("synthetic-shop", columns=ColumnMap())


def test_the_cache_is_where_xdg_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "recserve"
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert default_cache_dir() == Path.home() / ".cache" / "recserve"
