"""DP-SGD: every user is clipped, the noise is what (ε, δ) needs, and nothing else is trained this way."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from recserve.errors import InvalidRequest
from recserve.training.commands import run_config
from recserve.training.data import load_dataset
from recserve.training.loop import BEST, LAST, Trainer
from recserve.training.loop_config import LoopConfig
from recserve.training.private import PrivateLearner, noise_for
from recserve.training.run import Run, create_run

accountants = pytest.importorskip("opacus.accountants")
SMALL = {"embedding_size": 8, "max_history": 6, "dropout": 0.0, "batch_size": 10, "epochs": 2}
PRIVATE = {"epsilon": 8.0, "delta": 1e-3, "max_norm": 0.5}
MODELS = ["sasrec", "hstu"]


def small_run(model: str, folder: Path, **settings: object) -> Run:
    dataset = load_dataset("synthetic-shop:n_items=1000,n_users=40,n_events=600,seed=3")
    return create_run(folder, run_config(model, "leave-one-out", {**SMALL, **settings}), dataset)


@pytest.mark.parametrize("model", MODELS)
def test_a_step_is_the_sum_of_clipped_gradients_of_users(model: str, tmp_path: Path) -> None:
    run = small_run(model, tmp_path / "run", **PRIVATE)
    torch.manual_seed(0)
    trained = run.new_model()
    learner = PrivateLearner(trained, run.split().train, run.config.loop)
    trained.eval()
    rows = learner._rows[:5]
    total = {name: torch.zeros_like(value) for name, value in trained.named_parameters()}
    n_clipped = learner._add(total, rows)
    expected = {name: torch.zeros_like(value) for name, value in total.items()}
    for row in rows:
        # The same, one user after the other, with ordinary gradients.
        alone = {name: torch.zeros_like(value) for name, value in total.items()}
        items, times = (part[-SMALL["max_history"] - 1 :] for part in run.split().train.row(int(row)))
        history, targets = (
            torch.from_numpy(items[:-1].astype(np.int64)),
            torch.from_numpy(items[1:].astype(np.int64)),
        )
        trained.zero_grad()
        gaps = torch.from_numpy(np.diff(times).astype(np.float32)[None]) if trained.config.time_gaps else None
        scores = trained.score(trained(history[None], gaps))[0]
        torch.nn.functional.cross_entropy(scores, targets).backward()
        for name, value in trained.named_parameters():
            alone[name] = torch.zeros_like(value) if value.grad is None else value.grad
        norm = math.sqrt(sum(float((value**2).sum()) for value in alone.values()))
        for name, value in alone.items():
            expected[name] += value * min(1.0, PRIVATE["max_norm"] / norm)
    assert 0 < n_clipped <= len(rows)
    assert all(value.any() for value in total.values())
    for name, value in total.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Optimal order:UserWarning")
def test_the_noise_is_what_epsilon_needs_and_more_for_a_smaller_one() -> None:
    config = LoopConfig(epochs=5, epsilon=4.0, delta=1e-4)
    noise = noise_for(config, 0.25)
    accountant = accountants.RDPAccountant()
    for _ in range(20):
        accountant.step(noise_multiplier=noise, sample_rate=0.25)
    assert 3.5 < accountant.get_epsilon(1e-4) <= 4.0
    assert noise_for(LoopConfig(epochs=5, epsilon=1.0, delta=1e-4), 0.25) > noise


def test_the_last_epoch_counts_and_the_noise_is_nobodys(tmp_path: Path) -> None:
    weights = []
    for name in ("one", "other"):
        run = small_run("sasrec", tmp_path / name, seed=1, validate_every=1, **PRIVATE)
        torch.manual_seed(1)
        progress = Trainer(run.new_model(), run.split(), run.folder, run.config.loop).fit()
        assert progress.best_epoch == progress.epoch == SMALL["epochs"]
        assert (run.folder / BEST).is_file()
        assert (run.folder / LAST).is_file()
        weights.append(run.best_model().state_dict()["item_embeddings"])
    assert not torch.equal(*weights)


@pytest.mark.parametrize("model", ["bert4rec", "gru4rec"])
def test_models_without_gradients_by_user_are_refused(model: str, tmp_path: Path) -> None:
    settings = dict(PRIVATE)
    dataset = load_dataset("synthetic-shop:n_items=1000,n_users=40,n_events=600,seed=3")
    run = create_run(tmp_path / "run", run_config(model, "leave-one-out", settings), dataset)
    with pytest.raises(InvalidRequest, match="expected given with sasrec or hstu"):
        Trainer(run.new_model(), run.split(), run.folder, run.config.loop)


def test_content_is_refused(tmp_path: Path) -> None:
    run = small_run("sasrec", tmp_path / "run", content=True, **PRIVATE)
    with pytest.raises(InvalidRequest, match="given with content; expected given without"):
        Trainer(run.new_model(), run.split(), run.folder, run.config.loop)


@pytest.mark.parametrize("setting", [{"epsilon": -1.0}, {"delta": 0.0}, {"max_norm": 0.0}])
def test_settings_that_mean_nothing_are_refused(setting: dict[str, float]) -> None:
    with pytest.raises(InvalidRequest, match="epsilon, delta, max_norm"):
        LoopConfig(**setting)
