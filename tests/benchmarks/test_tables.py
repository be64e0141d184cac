"""The page's tables are those of the results, and every kind of result has one."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from recserve.benchmarks import tables
from recserve.benchmarks.compare import read_result
from recserve.errors import CheckFailed, DataError

PAGE = tables.PAGE.read_text(encoding="utf-8")


def test_the_page_is_what_the_command_writes() -> None:
    assert tables.rewritten(PAGE, tables.RESULTS) == PAGE
    assert tables.main(["--check"]) == 0


@pytest.mark.parametrize("path", sorted(tables.RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_every_result_has_tables_and_tells_its_machine(path: Path) -> None:
    result = read_result(path)
    for table in tables.tables_of(result):
        assert table.rows
        assert {len(row) for row in table.rows} == {len(table.columns)}
    assert "cpu" in tables.machine_of(result)


def test_a_changed_result_is_noticed_and_written(tmp_path: Path) -> None:
    results, page = tmp_path / "results", tmp_path / "page.md"
    results.mkdir()
    shutil.copy(tables.RESULTS / "als_speed.json", results)
    page.write_text(f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter\n")
    options = ["--page", str(page), "--results", str(results)]
    with pytest.raises(CheckFailed, match="make bench-tables"):
        tables.main([*options, "--check"])
    assert "old" in page.read_text()
    tables.main(options)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| ml-100k | 64 | 1 |" in text
    assert tables.main([*options, "--check"]) == 0


def test_what_cannot_be_a_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="unknown form"):
        tables.tables_of({"something": 1})
    with pytest.raises(DataError, match="marks"):
        tables.rewritten("a page", tmp_path)


def test_tables_become_csv(tmp_path: Path) -> None:
    result = json.loads((tables.RESULTS / "als_speed.json").read_text())
    tables.write_csv(result, tmp_path / "t.csv")
    rows = list(csv.reader((tmp_path / "t.csv").read_text().splitlines()))
    assert rows[0][:3] == ["data", "width", "threads"]
    assert len(rows) == 1 + len(result["cases"])
