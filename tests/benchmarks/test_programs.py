"""The verbs that put one front to programs that exist."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from recserve.benchmarks import programs
from recserve.benchmarks.compare import rows_of

RunCli = Callable[..., tuple[int, str, str]]


def test_every_program_that_is_named_exists() -> None:
    for module in programs.TRAIN.values():
        assert Path(programs.__file__).with_name(f"{module}.py").is_file()


def test_a_program_runs_and_its_result_is_shown(
    run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = Path(programs.__file__).with_name("results") / "als_speed.json"
    # Stands in for a program of many minutes: it takes --out and writes a result there.
    script = "import pathlib, sys; pathlib.Path(sys.argv[-1]).write_bytes(pathlib.Path({0!r}).read_bytes())"
    (tmp_path / "stand_in.py").write_text(script.format(str(saved)))
    monkeypatch.setattr(programs, "command_of", lambda module: [str(tmp_path / "stand_in.py")])
    code, out, _ = run_cli("bench", "train", "als", "--csv", tmp_path / "t.csv")
    assert code == 0
    assert "One epoch of ALS" in out
    assert (tmp_path / "t.csv").read_text().startswith("data,width")
    (tmp_path / "stand_in.py").write_text("import sys; sys.exit(3)")
    code, _, err = run_cli("bench", "train")
    assert code == 1
    assert "exit code 3" in err


def test_unknown_names_are_told_the_known_ones(run_cli: RunCli) -> None:
    code, _, err = run_cli("bench", "train", "asl")
    assert code == 2
    assert "als" in err


def test_forms_of_a_bundle_are_timed_in_turns(run_cli: RunCli, bundle_folder: Path, tmp_path: Path) -> None:
    code, out, _ = run_cli(
        "bench", "variants", bundle_folder, "--seconds", 0, "--batch", 4, "--out", tmp_path / "r.json"
    )
    assert code == 0
    assert "speed-up" in out
    result = json.loads((tmp_path / "r.json").read_text())
    assert rows_of(result)["fp32"]["speed_up"].value == 1
    assert rows_of(result)["fp32"]["p50_ms"].low is not None
