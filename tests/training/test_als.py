"""ALS: exact steps, the same result whatever the threads, and better than popularity."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from recserve.errors import CheckFailed, InvalidRequest
from recserve.kernels import reference
from recserve.training.commands import run_config
from recserve.training.data import load_dataset
from recserve.training.distributed import Processes
from recserve.training.evaluate_command import evaluate_run
from recserve.training.loop import BEST, LAST, Trainer
from recserve.training.models import als
from recserve.training.models.als import ALS, ALSConfig
from recserve.training.run import Run, create_run, open_run
from tests.small import histories

SHOP = "synthetic-shop:n_items=1000,n_users=300,n_events=9000,seed=5"


def start_run(folder: Path, **settings: object) -> Run:
    return create_run(
        folder, run_config("als", "leave-one-out", {"embedding_size": 8, **settings}), load_dataset(SHOP)
    )


def trainer(run: Run) -> Trainer:
    return Trainer(run.new_model(), run.split(), run.folder, run.config.loop)


def objective(model: ALS, counts: np.ndarray) -> float:  # type: ignore[type-arg]
    """The regularised loss over every pair, the plain way."""
    users, items = model.user_embeddings.numpy().astype(float), model.item_embeddings.numpy().astype(float)
    config, confidence = model.config, 1 + model.config.weight * counts
    total = (confidence * ((counts > 0) - users @ items.T) ** 2).sum()
    for table, weights in ((users, config.weight * counts.sum(1)), (items, config.weight * counts.sum(0))):
        growth = (counts.size / len(table) + weights) ** config.reg_exponent
        scale = config.reg * weights[weights > 0].mean() / growth[weights > 0].mean()
        total += (scale * growth * (table**2).sum(1)).sum()
    return float(total)


@pytest.mark.parametrize("reg_exponent", [0.0, 1.0])
def test_each_epoch_lowers_the_objective(reg_exponent: float) -> None:
    rng = np.random.default_rng(0)
    # Every user and item has something: an empty row becomes zero at once, which the objective would show.
    rows = [[user % 12, *rng.integers(0, 12, rng.integers(0, 9)).tolist()] for user in range(24)]
    counts = np.array([np.bincount(row, minlength=12) for row in rows], float)
    model = ALS(ALSConfig(embedding_size=3, reg=0.05, reg_exponent=reg_exponent), 24, 12)
    found = []
    for epoch in range(1, 8):
        loss = model.fit_epoch(histories(rows), epoch=epoch, seed=1)
        found.append(objective(model, counts))
    assert found == sorted(found, reverse=True)
    # The loss lies between the halves of an epoch: nearly the same when little changes any more.
    scores = model.user_embeddings.numpy() @ model.item_embeddings.numpy().T
    plain = ((1 + model.config.weight * counts) * ((counts > 0) - scores) ** 2).sum() / (counts > 0).sum()
    assert loss == pytest.approx(plain, rel=0.1)


def test_it_arrives_where_both_sides_are_solved() -> None:
    rows = [[0, 1, 1], [1, 2], [0, 2, 3], []]
    model = ALS(ALSConfig(embedding_size=2, weight=3.0, reg=0.1), 4, 5)
    for epoch in range(1, 300):
        model.fit_epoch(histories(rows), epoch=epoch, seed=0)
    users, items = model.user_embeddings.numpy(), model.item_embeddings.numpy()
    np.testing.assert_allclose(users, model.fold(histories(rows)), atol=1e-4)
    by_item = (np.array([0, 2, 4, 6, 7, 7]), np.array([0, 2, 0, 1, 1, 2, 2], np.int32))
    weights = np.array([3, 3, 6, 3, 3, 3, 3], np.float32)
    _, side = model._both_sides(histories(rows))
    np.testing.assert_array_equal(side.weights, weights)
    expected = reference.fold_in(users, by_item, weights, side.reg, reg_exponent=1.0)
    np.testing.assert_allclose(items, expected, atol=1e-4)


def test_the_number_of_threads_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    train = histories([rng.integers(0, 50, 9).tolist() for _ in range(80)])
    tables = []
    for n_threads in (1, 5):
        monkeypatch.setattr(als, "n_threads", lambda n_threads=n_threads: n_threads)
        model = ALS(ALSConfig(embedding_size=4), 80, 50)
        for epoch in (1, 2):
            model.fit_epoch(train, epoch=epoch, seed=0)
        tables.append(model.item_embeddings.numpy())
    np.testing.assert_array_equal(tables[0], tables[1])


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    whole, stopped = start_run(tmp_path / "whole", epochs=4), start_run(tmp_path / "stopped", epochs=2)
    trainer(whole).fit()
    trainer(stopped).fit()
    again = Trainer(stopped.new_model(), stopped.split(), stopped.folder, whole.config.loop)
    assert again.resume().epoch == 2
    again.fit()
    first, second = load_file(whole.folder / LAST), load_file(stopped.folder / LAST)
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_it_is_better_than_popularity(tmp_path: Path) -> None:
    run = start_run(tmp_path / "run", seed=2)
    trainer(run).fit()
    result = evaluate_run(open_run(run.folder))
    ours, popularity = (result[side]["metrics"]["NDCG@10"] for side in ("model", "popularity"))
    assert ours["mean"] > 1.2 * popularity["mean"]


def test_an_item_that_nobody_had_has_no_vector() -> None:
    model = ALS(ALSConfig(embedding_size=2), 2, 3)
    model.fit_epoch(histories([[0, 1], [1]]), epoch=1, seed=0)
    assert not model.item_embeddings[2].any()


@pytest.mark.parametrize(
    "settings",
    [
        {"embedding_size": 0},
        {"embedding_size": 4096},
        {"weight": 0.0},
        {"reg": 0.0},
        {"reg": float("nan")},
        {"reg_exponent": 1.5},
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(InvalidRequest, match=next(iter(settings))):
        ALSConfig(**settings)  # type: ignore[arg-type]


def test_a_setting_of_another_family_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="setting n_heads is given; expected not given with model als"):
        run_config("als", "leave-one-out", {"n_heads": 2})


def test_more_than_one_process_is_refused(tmp_path: Path) -> None:
    run = start_run(tmp_path / "run")
    with pytest.raises(InvalidRequest, match="processes is 2"):
        Trainer(run.new_model(), run.split(), run.folder, run.config.loop, Processes(0, 2))


def test_tables_that_are_no_numbers_are_never_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start_run(tmp_path / "run")
    monkeypatch.setattr(ALS, "fit_epoch", lambda self, train, epoch, seed: float("nan"))
    with pytest.raises(CheckFailed, match="training loss is nan"):
        trainer(run).fit()
    assert not (run.folder / BEST).exists()
