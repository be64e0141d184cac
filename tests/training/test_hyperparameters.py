"""The search for settings: it finds what is better, and goes on after a kill."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("optuna")

from recserve.errors import CheckFailed, ConfigError, InvalidRequest
from recserve.training import hyperparameters
from recserve.training.hyperparameters import Sweep

SHOP = "synthetic-shop:n_items=1000,n_users=80,n_events=2000,seed=5"
SPACE: dict[str, Any] = {"embedding_size": [4, 8], "reg": {"low": 0.01, "high": 1.0, "log": True}}


class Killed(BaseException):
    """No Exception: Optuna writes nothing of a trial that ends so, as after SIGKILL."""


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Trials whose metric is set here instead of trained: the later, the better; returns what was tried."""
    done: list[float] = []

    def fake(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        config = Path(command[command.index("--config") + 1]).read_text()
        done.append(float(config.rpartition("reg = ")[2]))
        return subprocess.CompletedProcess(command, 0, stderr="")

    class FakeRun:
        def __init__(self, folder: Path) -> None:
            self.value = float(len(done))

        def best_model(self) -> Any:
            return type("Model", (), {"validation_metric": hyperparameters_metric()})

        def best_progress(self) -> Any:
            return type("Progress", (), {"best_metric": self.value})

    monkeypatch.setattr(hyperparameters.subprocess, "run", fake)  # type: ignore[attr-defined]
    monkeypatch.setattr(hyperparameters, "open_run", FakeRun)
    return done


def hyperparameters_metric() -> Any:
    from recserve.training.models.base import ValidationMetric

    return ValidationMetric("NDCG@10")


def test_a_sweep_trains_and_lists_the_best_first(
    run_cli: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    config = tmp_path / "sweep.toml"
    lines = [f'data = "{SHOP}"', 'model = "als"', "epochs = 1", "[sweep]", "embedding-size = [4, 8]"]
    config.write_text("\n".join([*lines, "reg = {low = 0.01, high = 1.0, log = true}"]))
    arguments = ["sweep", "--config", config, "--out", tmp_path / "sweep", "--json"]
    code, found, said = run_cli(*arguments, "--trials", "1")
    assert code == 0, said
    [trial] = json.loads(found)["trials"]
    assert json.loads((Path(trial["run"]) / "run.json").read_text())["shape"]["reg"] == trial["reg"]
    assert 0.01 <= trial["reg"] <= 1
    code, found, _ = run_cli(*arguments, "--trials", "2")
    trials = json.loads(found)["trials"]
    assert len(trials) == 2
    assert trials[0]["validation"] >= trials[1]["validation"]
    config.write_text(config.read_text().replace("[4, 8]", "[4]"))
    code, _, said = run_cli(*arguments, "--trials", "3")
    assert code == 2
    assert "is over another space" in said
    config.write_text(config.read_text().replace("embedding-size", "embeding-size"))
    code, _, said = run_cli(*arguments)
    assert code == 3
    assert "Did you mean 'embedding_size'?" in said


def test_what_was_being_tried_when_it_was_killed_is_tried_again(
    tmp_path: Path, tried: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    search = Sweep(tmp_path / "sweep", {"data": SHOP}, SPACE, seed=3)
    count = iter([False, True])

    def killed_in_the_second(trial: Any) -> float:
        value = original(search, trial)
        if next(count):
            raise Killed
        return value

    original = Sweep._try
    with monkeypatch.context() as patch:
        patch.setattr(Sweep, "_try", lambda self, trial: killed_in_the_second(trial))
        with pytest.raises(Killed):
            search.run(3)
    assert len(tried) == 2
    done = Sweep(tmp_path / "sweep", {"data": SHOP}, SPACE, seed=3).run(3)
    assert len(done) == 3
    assert tried[2] == tried[1]
    assert len(set(tried)) == 3


def test_failing_trials_are_counted_and_all_of_them_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fake(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, stderr="error: training loss is nan")

    monkeypatch.setattr(hyperparameters.subprocess, "run", fake)  # type: ignore[attr-defined]
    with pytest.raises(CheckFailed, match="trials is all failed"):
        Sweep(tmp_path / "sweep", {}, SPACE).run(2)
    logs = sorted((tmp_path / "sweep").glob("*.log.txt"))
    assert [log.read_text() for log in logs] == ["error: training loss is nan"] * 2


@pytest.mark.parametrize(
    "space", [{}, {"reg": 3}, {"reg": []}, {"reg": {"low": 2, "high": 1}}, {"reg": {"low": 1, "top": 2}}]
)
def test_a_space_that_is_none_is_refused(space: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="sweep"):
        Sweep(tmp_path, {}, space)


def test_no_trial_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="n_trials is 0"):
        Sweep(tmp_path, {}, SPACE).run(0)
