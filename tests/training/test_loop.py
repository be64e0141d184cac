"""The training loop: resume after a kill, early stopping, data parallelism, damaged checkpoints."""

import contextlib
import dataclasses
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from recserve.errors import CheckFailed, DataError, InvalidRequest
from recserve.training.data import leave_one_out, load_dataset
from recserve.training.evaluate_command import evaluate_run
from recserve.training.loop import BEST, LAST, LOG, Trainer, check_learnable
from recserve.training.loop_config import LoopConfig
from recserve.training.models.sasrec import SASRecConfig
from recserve.training.run import Run, RunConfig, create_run, open_run, resume_run

SHOP = "synthetic-shop:n_items=1000,n_users=80,n_events=2000,seed=5"
TIMEOUT_SECONDS = 120


def start_run(folder: Path, **loop: object) -> Run:
    config = RunConfig(
        model="sasrec",
        shape=SASRecConfig(embedding_size=16, n_blocks=1, n_heads=2, max_history=8, dropout=0.2),
        loop=LoopConfig(**{"epochs": 4, "batch_size": 16, "validate_every": 2, "seed": 9, **loop}),  # type: ignore[arg-type]
    )
    return create_run(folder, config, load_dataset(SHOP))


def trainer(run: Run) -> Trainer:
    torch.manual_seed(run.config.loop.seed)
    return Trainer(run.new_model(), run.split(), run.folder, run.config.loop)


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.folder / LAST)


def assert_same_weights(first: Run, second: Run) -> None:
    ours, theirs = weights(first), weights(second)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def test_the_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    first, second = start_run(tmp_path / "a"), start_run(tmp_path / "b")
    trainer(first).fit()
    trainer(second).fit()
    assert_same_weights(first, second)


def test_a_private_run_gets_no_more_epochs_than_its_noise_is_for(tmp_path: Path) -> None:
    run = start_run(tmp_path / "run", epsilon=8.0)
    more = dataclasses.replace(run.config, loop=dataclasses.replace(run.config.loop, epochs=5))
    with pytest.raises(InvalidRequest, match="epochs of the resumed run is 5; expected 4, as it began"):
        resume_run(run.folder, more, run.config.data)
    assert resume_run(run.folder, run.config, run.config.data).config == run.config


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    whole, stopped = start_run(tmp_path / "whole"), start_run(tmp_path / "stopped")
    trainer(whole).fit()

    class Stop(Exception):
        pass

    def stop_after_two(report: object) -> None:
        if report.epoch == 2:  # type: ignore[attr-defined]
            raise Stop

    with pytest.raises(Stop):
        trainer(stopped).fit(stop_after_two)
    again = trainer(open_run(stopped.folder))
    assert again.resume().epoch == 2
    again.fit()
    assert_same_weights(whole, stopped)


def test_a_killed_training_process_goes_on(tmp_path: Path) -> None:
    arguments = ["train", "--data", SHOP, "--epochs", "500", "--patience", "500", "--embedding-size", "16"]
    arguments += [
        "--blocks",
        "1",
        "--max-history",
        "8",
        "--validate-every",
        "1",
        "--out",
        str(tmp_path / "run"),
    ]
    command = [sys.executable, "-m", "recserve.engine.cli", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    log = tmp_path / "run" / LOG
    try:
        # The second line of the log: at least one epoch is complete and another may be half done.
        while not (log.is_file() and log.read_text().count("\n") >= 2):
            with contextlib.suppress(subprocess.TimeoutExpired):
                pytest.fail(f"training ended by itself with {process.wait(0.05)}")
    finally:
        process.send_signal(signal.SIGKILL)
        assert process.wait(TIMEOUT_SECONDS) == -signal.SIGKILL
    run = open_run(tmp_path / "run")
    done = trainer(run).resume()
    assert done.epoch >= 2
    command[command.index("500")] = str(done.epoch + 1)
    finished = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert f"resuming after epoch {done.epoch}" in finished.stderr
    assert trainer(run).resume().epoch == done.epoch + 1
    # To the last bit what a run that nobody killed has.
    command[command.index(str(tmp_path / "run"))] = str(tmp_path / "whole")
    whole = subprocess.run(command, capture_output=True, text=True, check=False)
    assert whole.returncode == 0, whole.stderr
    assert_same_weights(open_run(tmp_path / "whole"), run)


def test_training_stops_when_patience_is_used_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = start_run(tmp_path / "run", epochs=50, patience=2, validate_every=1)
    scores = iter([0.1, 0.3, 0.2, 0.2, 0.2, 0.2])
    ours = trainer(run)
    monkeypatch.setattr(ours, "_validate", lambda: next(scores))
    progress = ours.fit()
    assert (progress.best_epoch, progress.best_metric, progress.epoch) == (2, 0.3, 4)
    assert (run.folder / BEST).is_file()


def test_training_learns(tmp_path: Path) -> None:
    run = start_run(tmp_path / "run", epochs=6, validate_every=6)
    losses = []
    trainer(run).fit(lambda report: losses.append(report.loss))
    assert losses[-1] < losses[0] - 0.3


def test_the_sampled_loss_learns_too(tmp_path: Path) -> None:
    run = start_run(tmp_path / "run", epochs=12, validate_every=12, loss="sampled", n_negatives=64)
    losses = []
    trainer(run).fit(lambda report: losses.append(report.loss))
    assert losses[-1] < losses[0] - 0.3


def test_bf16_learns_as_float32_does(tmp_path: Path) -> None:
    losses: dict[str, list[float]] = {}
    for precision in ("fp32", "bf16"):
        run = start_run(tmp_path / precision, epochs=3, validate_every=3, precision=precision)
        found = losses.setdefault(precision, [])
        trainer(run).fit(lambda report, found=found: found.append(report.loss))
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=1e-2)
    assert losses["bf16"] != losses["fp32"]


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    run = start_run(tmp_path / "run")
    ours = trainer(run)
    with torch.no_grad():
        ours._model.item_embeddings.fill_(float("nan"))
    with pytest.raises(CheckFailed, match="training loss is nan"):
        ours.fit()
    assert not (run.folder / BEST).exists()


def test_two_processes_train_as_one_run(tmp_path: Path) -> None:
    # Every history fills the window and nothing is dropped: two halves of a step then weigh the same as it.
    rng = np.random.default_rng(3)
    n_users, n_events = 32, 12
    events = pl.DataFrame(
        {
            "user": np.repeat(np.arange(n_users), n_events),
            "item": rng.integers(0, 60, n_users * n_events),
            "timestamp": 1_600_000_000 + np.arange(n_users * n_events),
        }
    )
    events.write_parquet(tmp_path / "events.parquet")
    arguments = ["train", "--data", str(tmp_path / "events.parquet"), "--epochs", "2", "--dropout", "0"]
    arguments += ["--embedding-size", "16", "--blocks", "1", "--max-history", "8", "--validate-every", "1"]
    alone, launcher = [sys.executable], [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    for name, start, users in (("one", alone, 16), ("two", [*launcher, "--nproc-per-node", "2"], 8)):
        finished = subprocess.run(
            [
                *(*start, "-m", "recserve.engine.cli", *arguments),
                *("--batch-size", str(users), "--out", str(tmp_path / name)),
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_SECONDS,
        )
        assert finished.returncode == 0, finished.stderr
    one, two = (open_run(tmp_path / name) for name in ("one", "two"))
    logs = [[json.loads(line) for line in (run.folder / LOG).read_text().splitlines()] for run in (one, two)]
    assert [entry["epoch"] for entry in logs[1]] == [1, 2]
    for ours, theirs in zip(*logs, strict=True):
        assert theirs == pytest.approx(ours, rel=1e-5)
    two.best_model()


def test_a_resumed_run_may_change_its_budget_and_nothing_else(tmp_path: Path) -> None:
    run = start_run(tmp_path / "run")
    longer = dataclasses.replace(run.config.loop, epochs=9, patience=7)
    assert resume_run(run.folder, dataclasses.replace(run.config, loop=longer), "").config.loop.epochs == 9
    assert open_run(run.folder).config.loop == longer
    wider = dataclasses.replace(run.config.shape, embedding_size=32)
    with pytest.raises(InvalidRequest, match="embedding_size of the resumed run is 32; expected 16"):
        resume_run(run.folder, dataclasses.replace(run.config, shape=wider), "")
    with pytest.raises(InvalidRequest, match=r"data of the resumed run is other\.csv"):
        resume_run(run.folder, run.config, "other.csv")


def test_data_without_a_second_item_teaches_nothing(tmp_path: Path) -> None:
    lines = [f"u{user},i{step},{step}" for user in range(20) for step in range(3)]
    (tmp_path / "events.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(lines) + "\n")
    with pytest.raises(DataError, match="longest training history is 1"):
        check_learnable(leave_one_out(load_dataset(tmp_path / "events.csv")))


def test_weights_that_are_no_numbers_are_never_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start_run(tmp_path / "run", epochs=1, validate_every=1)
    ours = trainer(run)

    def diverge(epoch: int) -> float:
        with torch.no_grad():
            ours._model.item_embeddings.fill_(float("nan"))
        return 1.0

    monkeypatch.setattr(ours._learner, "train_epoch", diverge)
    with pytest.raises(CheckFailed, match="scores is NaN"):
        ours.fit()
    assert not (run.folder / BEST).exists()


def test_an_evaluation_of_other_weights_is_not_read(tmp_path: Path) -> None:
    run = start_run(tmp_path / "run", epochs=1, validate_every=1)
    trainer(run).fit()
    result = evaluate_run(run)
    run.write_evaluation(result)
    assert run.read_evaluation() == result
    (run.folder / BEST).write_bytes((run.folder / BEST).read_bytes() + b"x")
    assert run.read_evaluation() is None


@pytest.mark.parametrize("damage", ["cut", "junk", "empty"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, damage: str) -> None:
    run = start_run(tmp_path / "run", epochs=1, validate_every=1)
    trainer(run).fit()
    data = (run.folder / BEST).read_bytes()
    (run.folder / BEST).write_bytes(
        {"cut": data[: len(data) // 2], "junk": b"junk" * 100, "empty": b""}[damage]
    )
    with pytest.raises(DataError, match="checkpoint"):
        run.best_model()


def test_a_checkpoint_of_another_shape_is_refused(tmp_path: Path) -> None:
    small, large = start_run(tmp_path / "a", epochs=1, validate_every=1), start_run(tmp_path / "b")
    trainer(small).fit()
    data = (small.folder / BEST).read_bytes()
    settings = json.loads((large.folder / "run.json").read_text())
    settings["shape"]["embedding_size"] = 32
    (large.folder / "run.json").write_text(json.dumps(settings))
    (large.folder / BEST).write_bytes(data)
    with pytest.raises(DataError, match="another shape"):
        open_run(large.folder).best_model()


def test_an_untrained_run_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Run `recserve train` first"):
        start_run(tmp_path / "run").best_model()


def test_a_run_folder_is_not_overwritten_by_accident(tmp_path: Path) -> None:
    start_run(tmp_path / "run")
    with pytest.raises(InvalidRequest, match="--resume"):
        start_run(tmp_path / "run")
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match="Check the path"):
        open_run(tmp_path / "other")


@pytest.mark.parametrize(
    "loop",
    [
        {"epochs": 0},
        {"learning_rate": 0.0},
        {"learning_rate": 1e19},
        {"loss": "hinge"},
        {"precision": "fp8"},
        {"weight_decay": -1.0},
        {"patience": 0},
    ],
)
def test_wrong_settings_are_refused(loop: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest, match=next(iter(loop))):
        LoopConfig(**loop)  # type: ignore[arg-type]


def test_a_step_learns_from_a_share_of_the_users_within_bounds() -> None:
    assert [LoopConfig().users_per_step(n) for n in (5, 943, 1500, 20_000)] == [32, 32, 50, 128]
    assert LoopConfig(batch_size=7).users_per_step(943) == 7
