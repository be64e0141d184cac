"""Rows that are measured, kept and shown."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from recserve.benchmarks.peers.venv import PEERS
from recserve.benchmarks.quality import run as runs
from recserve.benchmarks.quality.bars import ROWS, Bar, Contender, Row, ours
from recserve.benchmarks.quality.cells import Cells
from recserve.benchmarks.tables import tables_of
from recserve.errors import InvalidRequest

SHOP = "synthetic-shop:n_items=1000,n_users=40,n_events=900,seed=2"
BY_HAND = Contender("numpy", "popularity", script="numpy_baselines")
ROW = Row(
    "popularity-shop",
    SHOP,
    "random",
    (ours("popularity"), BY_HAND),
    (Bar("NDCG@10", over=BY_HAND.name, kind="equal", tolerance=5e-5), Bar("HR@10", 2.0)),
)
RunCli = Callable[..., tuple[int, str, str]]


def options(folder: Path, row: Row = ROW, *, again: bool = False) -> runs.Options:
    return runs.Options((row,), (0, 1), None, Cells(folder / "cells", folder), folder / "q.json", again)


def test_every_row_can_be_measured_and_judged() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)
    for row in ROWS:
        names = [contender.name for contender in row.contenders]
        assert row.contenders[0].library == "recserve"
        assert len(set(names)) == len(names)
        assert {bar.over for bar in row.bars} <= {"", *names[1:]}
        for peer in row.contenders[1:]:
            assert peer.library == "recserve" or (PEERS / f"{peer.script}.py").is_file()
            assert peer.library in ("recserve", "numpy") or (PEERS / f"{peer.library}.txt").is_file()


def test_a_row_is_measured_once_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = runs.run(options(tmp_path))
    row = result["rows"][ROW.name]
    assert [bar["reached"] for bar in row["bars"]] == [True, False]
    assert row["seeds"] == [0, 1]
    assert row["contenders"]["numpy popularity"]["metrics"]["NDCG@10"]["mean"] > 0
    assert {"cpu", "torch"} <= set(row["environment"])
    assert json.loads((tmp_path / "q.json").read_text()) == result
    for table in tables_of(result):
        assert {len(line) for line in table.rows} == {len(table.columns)}

    def measured(*_: object) -> None:
        raise AssertionError("measured again")

    with monkeypatch.context() as patch:
        patch.setattr(Cells, "measure", measured)
        assert runs.run(options(tmp_path)) == result
        with pytest.raises(AssertionError, match="measured again"):
            runs.run(options(tmp_path, again=True))


def test_other_rows_stay_and_one_without_data_is_named(tmp_path: Path) -> None:
    (tmp_path / "q.json").write_text(json.dumps({"bench": "quality", "rows": {"x": 1}, "not_measured": {}}))
    row = Row("sasrec-toys", "toys", "leave-one-out", (ours("sasrec"),), ())
    result = runs.run(options(tmp_path, row))
    assert result["rows"] == {"x": 1}
    assert "Toys_and_Games.txt" in result["not_measured"]["sasrec-toys"]


def test_a_peer_that_fails_is_named_and_what_ours_learned_is_kept(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    broken = Contender("numpy", "ease", script="numpy_baselines")
    row = Row("broken", SHOP, "leave-one-out", (ours("popularity"), broken), ())
    told = options(tmp_path, row)
    assert "numpy ease is exit code 1" in runs.run(told)["not_measured"]["broken"]
    assert "KeyError" in capfd.readouterr().err
    assert told.cells.find(row, row.contenders[0], 0) is not None
    assert told.cells.find(row, broken, 0) is None


def test_rows_are_chosen_by_name(run_cli: RunCli) -> None:
    assert [row.name for row in runs.chosen_rows(["als"], quick=True)] == ["als"]
    assert 0 < len(runs.chosen_rows([], quick=True)) < len(runs.chosen_rows([], quick=False)) == len(ROWS)
    with pytest.raises(InvalidRequest, match="sasrec-lastfm"):
        runs.chosen_rows(["sasrec-lastm"], quick=False)
    code, _, err = run_cli("bench", "quality", "--rows", "alls")
    assert code == 2
    assert "als" in err
