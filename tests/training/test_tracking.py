"""TensorBoard and MLflow are told every epoch, also of a run that goes on."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from recserve.errors import ConfigError
from recserve.training import tracking
from recserve.training.run import open_run

Cli = Callable[..., tuple[int, str, str]]
SHOP = "synthetic-shop:n_items=1000,n_users=80,n_events=2000,seed=5"


def train(run_cli: Cli, folder: Path, *options: str) -> None:
    arguments = ["train", "--data", SHOP, "--model", "als", "--embedding-size", "4", "--out", folder]
    code, _, said = run_cli(*arguments, "--validate-every", "1", "--patience", "9", *options)
    assert code == 0, said


def test_tensorboard_reads_the_curves_of_a_run_that_went_on(run_cli: Cli, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(run_cli, tmp_path / "run", "--epochs", "2", "--track", "tensorboard")
    train(run_cli, tmp_path / "run", "--epochs", "3", "--track", "tensorboard", "--resume")
    found = EventAccumulator(str(tmp_path / "run" / tracking.TENSORBOARD_FOLDER))
    found.Reload()
    lines = [json.loads(line) for line in (tmp_path / "run" / "epochs.jsonl").read_text().splitlines()]
    for name in ("loss", "NDCG@10"):
        assert [point.step for point in found.Scalars(name)] == [1, 2, 3]
        assert [point.value for point in found.Scalars(name)] == pytest.approx([line[name] for line in lines])


def test_mlflow_keeps_one_run_with_settings_and_curves(
    run_cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    train(run_cli, tmp_path / "run", "--epochs", "1", "--track", "mlflow")
    train(run_cli, tmp_path / "run", "--epochs", "2", "--track", "mlflow", "--resume")
    client = MlflowClient()
    experiment = client.get_experiment_by_name("recserve")
    [run] = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["embedding_size"] == "4"
    assert run.data.tags["data_sha256"] == open_run(tmp_path / "run").dataset.sha256
    assert [point.step for point in client.get_metric_history(run.info.run_id, "NDCG_at_10")] == [1, 2]


def test_an_unknown_tracker_and_one_that_is_not_installed_are_refused(
    run_cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, said = run_cli("train", "--data", SHOP, "--track", "tensorbord", "--out", tmp_path / "run")
    assert code == 2
    assert "Did you mean 'tensorboard'?" in said
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"Run: pip install 'recserve\[mlflow\]'"):
        tracking.check_trackers("mlflow")
    assert not (tmp_path / "run").exists()
