"""DSSM: two towers that place by content what they do not know by its id."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from recserve.engine import Engine, Request
from recserve.engine.bundle import open_bundle
from recserve.errors import CheckFailed, InvalidRequest
from recserve.exporters.assemble import export_run
from recserve.training.commands import run_config
from recserve.training.data import CleaningReport, Dataset, load_dataset
from recserve.training.evaluate_command import evaluate_run
from recserve.training.loop import BEST, LAST, Trainer
from recserve.training.models import dssm
from recserve.training.models.dssm import DSSM, DSSMConfig
from recserve.training.run import Run, create_run, open_run
from tests.small import histories

SHOP = "synthetic-shop:n_items=1000,n_users=300,n_events=9000,seed=5"
N_USERS, N_ITEMS, N_COLD = 60, 40, 6


def start_run(folder: Path, dataset: Dataset, **settings: object) -> Run:
    torch.manual_seed(0)
    return create_run(folder, run_config("dssm", "leave-one-out", {"embedding_size": 8, **settings}), dataset)


def fit(run: Run) -> Run:
    torch.manual_seed(run.config.loop.seed)
    Trainer(run.new_model(), run.split(), run.folder, run.config.loop).fit()
    return open_run(run.folder)


pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module")
def two_tastes() -> Dataset:
    """Even users have even items, odd users odd ones, and nobody had the last ``N_COLD`` items."""
    rng = np.random.default_rng(0)
    rows = [
        (user, int(item))
        for user in range(N_USERS)
        for item in rng.choice(np.arange(user % 2, N_ITEMS - N_COLD, 2), 9, replace=False)
    ]
    who, had = (np.array(column, np.int32) for column in zip(*rows, strict=True))
    values = {"timestamp": np.arange(len(who)), "value": np.ones(len(who), np.float32)}
    genres = [["jazz", "live"] if item % 2 else ["rock", "live"] for item in range(N_ITEMS)]
    return Dataset.create(
        "two tastes",
        pl.DataFrame({"user_index": who, "item_index": had, **values}),
        pl.DataFrame({"user_id": [f"u{user}" for user in range(N_USERS)]}),
        pl.DataFrame({"item_id": [f"i{item}" for item in range(N_ITEMS)], "genres": genres}),
        report=CleaningReport(rows_read=len(who), kept=len(who)),
        source="a test",
    )


@pytest.fixture(scope="module")
def cold_run(two_tastes: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Run:
    settings = {"epochs": 30, "validate_every": 30, "batch_size": 64}
    settings |= {"learning_rate": 0.02, "unknown_rate": 0.3}
    return fit(start_run(tmp_path_factory.mktemp("cold") / "run", two_tastes, **settings))


def test_an_item_that_nobody_had_is_placed_by_its_content_and_recommended(
    cold_run: Run, tmp_path: Path
) -> None:
    export_run(cold_run, tmp_path / "bundle")
    cold = {f"i{item}" for item in range(N_ITEMS - N_COLD, N_ITEMS)}
    with Engine.load(tmp_path / "bundle") as engine:
        for user in ("u0", "u1", "u2", "u3"):
            slate = engine.recommend(Request(user_id=user, k=11))
            assert slate.source == "model"
            found = {item.item_id for item in slate.items}
            # 20 items of the user's taste, 9 of them had: the 11 others, the cold ones among them.
            assert {int(item[1:]) % 2 for item in found} == {int(user[1:]) % 2}
            assert len(found & cold) == N_COLD // 2
        similar = engine.similar_items("i39", k=10)
        assert {int(item.item_id[1:]) % 2 for item in similar.items} == {1}


def test_the_id_of_an_unknown_item_says_nothing(cold_run: Run) -> None:
    model = cold_run.best_model()
    assert isinstance(model, DSSM)
    known = np.arange(N_ITEMS) < N_ITEMS - N_COLD
    np.testing.assert_array_equal(model.is_known_item.numpy(), known)
    # Of the same content, hence the same vector.
    np.testing.assert_array_equal(model.item_embeddings[-1], model.item_embeddings[-3])
    assert not torch.equal(model.item_embeddings[0], model.item_embeddings[2])


def test_an_unknown_user_is_what_the_history_says(cold_run: Run) -> None:
    model = cold_run.best_model()
    assert isinstance(model, DSSM)
    both = histories([[0, 2], [0, 2], []])
    known = model.queries(np.array([0, 2, 4], np.int32), both)
    assert np.abs(known[0] - known[1]).max() > 1e-3
    model.is_known_user[:] = False
    unknown = model.queries(np.array([0, 2, 4], np.int32), both)
    np.testing.assert_array_equal(unknown[0], unknown[1])
    np.testing.assert_array_equal(unknown[2], [*[0.0] * 7, 1.0])


def test_the_bundle_holds_what_the_towers_compute(cold_run: Run, tmp_path: Path) -> None:
    export_run(cold_run, tmp_path / "bundle")
    model, bundle = cold_run.best_model(), open_bundle(tmp_path / "bundle")
    assert isinstance(model, DSSM)
    whole = cold_run.dataset.histories()
    with torch.no_grad():
        had = model.had_items * model.is_known_item.unsqueeze(1)
        had = had + model.item_features @ model.item_projection
        pooled = torch.stack(
            [
                had[torch.tensor(row[0].tolist())].sum(0) / len(row[0]) ** 0.5
                for row in (whole.row(user) for user in range(N_USERS))
            ]
        )
        users = torch.cat([model.user_ids + pooled, torch.ones(N_USERS, 1)], dim=1)
        shown = model.is_known_item.float().unsqueeze(1)
        items = model.item_ids * shown + model.item_features @ model.item_projection
        bias = model.item_bias * shown + model.item_features @ model.bias_projection
    assert bundle.user_embeddings is not None
    np.testing.assert_allclose(bundle.user_embeddings, users, atol=1e-5)
    np.testing.assert_allclose(bundle.item_embeddings, torch.cat([items, bias], dim=1), atol=1e-5)


def test_an_interaction_is_learned_without_its_own_item() -> None:
    model = dssm.create(DSSMConfig(embedding_size=4), 2, 5).eval()
    train = histories([[0, 3, 3, 1], [4]])
    found = model.training_queries(np.array([0, 1, 0]), torch.tensor([3, 4, 0]), dssm._distinct(train))
    expected = model.queries(np.array([0, 1, 0], np.int32), histories([[0, 1], [], [3, 1]]))
    np.testing.assert_allclose(found.detach(), expected, atol=1e-6)


def test_the_sampled_loss_tends_to_the_full_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    train = histories([rng.integers(0, 30, 9).tolist() for _ in range(50)])
    losses = []
    for limit in (50_000, 1):
        monkeypatch.setattr(dssm, "FULL_SOFTMAX_MAX_ITEMS", limit)
        torch.manual_seed(2)
        # Nothing hidden or dropped, and steps too small to see: the two differ by the sampling alone.
        config = DSSMConfig(
            embedding_size=4, dropout=0, unknown_rate=0, n_negatives=50_000, learning_rate=1e-9
        )
        losses.append(dssm.create(config, 50, 40).fit_epoch(train, epoch=1, seed=0))
    assert losses[1] == pytest.approx(losses[0], abs=0.01)


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    data = load_dataset(SHOP)
    whole = start_run(tmp_path / "whole", data, epochs=4)
    fit(whole)
    stopped = start_run(tmp_path / "stopped", data, epochs=2)
    fit(stopped)
    again = Trainer(stopped.new_model(), stopped.split(), stopped.folder, whole.config.loop)
    assert again.resume().epoch == 2
    again.fit()
    first, second = load_file(whole.folder / LAST), load_file(stopped.folder / LAST)
    assert first.keys() == second.keys()
    assert any(name.startswith("optimizer.") for name in first)
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_it_is_better_than_popularity(tmp_path: Path) -> None:
    run = start_run(tmp_path / "run", load_dataset(SHOP), embedding_size=32, epochs=8, learning_rate=0.01)
    result = evaluate_run(fit(run))
    ours, popularity = (result[side]["metrics"]["NDCG@10"] for side in ("model", "popularity"))
    assert ours["mean"] > 1.2 * popularity["mean"]


def test_a_loss_that_is_no_number_is_never_the_best(
    tmp_path: Path, two_tastes: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start_run(tmp_path / "run", two_tastes)
    monkeypatch.setattr(dssm, "full_softmax", lambda queries, table, targets: queries.sum() * torch.nan)
    with pytest.raises(CheckFailed, match=r"training loss is nan.*smaller --learning-rate"):
        fit(run)
    assert not (run.folder / BEST).exists()


@pytest.mark.parametrize(
    "settings",
    [
        {"embedding_size": 1},
        {"learning_rate": 0.0},
        {"weight_decay": float("nan")},
        {"batch_size": 0},
        {"n_negatives": 0},
        {"dropout": 1.0},
        {"unknown_rate": -0.1},
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(InvalidRequest, match=next(iter(settings))):
        DSSMConfig(**settings)  # type: ignore[arg-type]
