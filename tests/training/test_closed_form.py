"""BPR, popularity, EASE and ItemKNN against plain computations of the same."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from recserve.errors import InvalidRequest
from recserve.training.commands import run_config
from recserve.training.data import EvaluationSet, Histories, load_dataset
from recserve.training.evaluate_command import evaluate_run
from recserve.training.loop import LAST, Trainer
from recserve.training.models import item_knn
from recserve.training.models.bpr import BPR, BPRConfig
from recserve.training.models.ease import EASE, EASEConfig
from recserve.training.models.interactions import Pairs
from recserve.training.models.item_knn import ItemKNN, ItemKNNConfig
from recserve.training.models.popularity import Popularity, PopularityConfig
from recserve.training.run import create_run, open_run, resume_run
from tests.small import histories

SHOP = "synthetic-shop:n_items=1000,n_users=300,n_events=9000,seed=5"
N_ITEMS = 15


@pytest.fixture
def train() -> Histories:
    rng = np.random.default_rng(0)
    # Repeated items and an empty history among them.
    return histories([rng.integers(0, N_ITEMS, n).tolist() for n in (*rng.integers(1, 9, 40), 0)])


def dense(train: Histories) -> np.ndarray:  # type: ignore[type-arg]
    had = np.zeros((len(train), N_ITEMS))
    had[np.repeat(np.arange(len(train)), train.lengths), train.item_index] = 1
    return had


def scores(model: EASE | ItemKNN | BPR | Popularity, train: Histories) -> np.ndarray:  # type: ignore[type-arg]
    everybody = EvaluationSet(np.arange(len(train), dtype=np.int32), train, train)
    return model.score_rows(everybody, np.arange(len(train)))


def test_ease_is_the_least_squares_solution_with_a_zero_diagonal(train: Histories) -> None:
    model = EASE(EASEConfig(reg=3.0), len(train), N_ITEMS)
    loss = model.fit_epoch(train, epoch=1, seed=0)
    x = dense(train)
    # Column by column, as a ridge regression on all other items.
    weights = np.zeros((N_ITEMS, N_ITEMS))
    for item in range(N_ITEMS):
        others = np.arange(N_ITEMS) != item
        left = x[:, others].T @ x[:, others] + 3.0 * np.eye(N_ITEMS - 1)
        weights[others, item] = np.linalg.solve(left, x[:, others].T @ x[:, item])
    np.testing.assert_allclose(model.weights.numpy(), weights, atol=1e-5)
    np.testing.assert_allclose(scores(model, train), x @ weights, atol=1e-5)
    assert loss == pytest.approx(((x - x @ weights) ** 2).sum() / x.sum(), rel=1e-5)


def test_ease_refuses_a_catalogue_that_it_cannot_invert() -> None:
    with pytest.raises(InvalidRequest, match="items for ease is 20001"):
        EASE(EASEConfig(), 10, 20_001)


@pytest.mark.parametrize("neighbours", [3, 1000])
def test_item_knn_is_the_damped_cosine_of_the_nearest(
    train: Histories, neighbours: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Several tasks, the last one smaller.
    monkeypatch.setattr(item_knn, "MAX_COUNTS_PER_TASK", 4 * N_ITEMS)
    model = ItemKNN(ItemKNNConfig(neighbours=neighbours, shrinkage=2.0), len(train), N_ITEMS)
    model.fit_epoch(train, epoch=1, seed=0)
    x = dense(train)
    likeness = (x.T @ x) / (np.sqrt(np.outer(x.sum(0), x.sum(0))) + 2.0)
    np.fill_diagonal(likeness, 0)
    kept = np.sort(likeness, axis=1)[:, ::-1][:, : model.likeness.shape[1]]
    np.testing.assert_allclose(np.sort(model.likeness.numpy(), axis=1)[:, ::-1], kept, atol=1e-6)
    for item in range(N_ITEMS):
        near = model.nearest[item].numpy()
        np.testing.assert_allclose(likeness[item, near], model.likeness[item].numpy(), atol=1e-6)
        assert len(set(near.tolist())) == len(near)
        assert item not in near
    if neighbours > N_ITEMS:
        np.testing.assert_allclose(scores(model, train), x @ likeness, atol=1e-5)


def test_popularity_counts(train: Histories) -> None:
    model = Popularity(PopularityConfig(), len(train), N_ITEMS)
    model.fit_epoch(train, epoch=1, seed=0)
    share = np.bincount(train.item_index, minlength=N_ITEMS) / len(train.item_index)
    np.testing.assert_allclose(scores(model, train), np.tile(share, (len(train), 1)), rtol=1e-6)


def test_bpr_ranks_what_a_user_had_above_the_rest(train: Histories) -> None:
    model = BPR(BPRConfig(embedding_size=16, reg=0.001), len(train), N_ITEMS)
    losses = [model.fit_epoch(train, epoch=epoch, seed=0) for epoch in range(1, 200)]
    assert losses[-1] < 0.3 * losses[0]
    had, found = dense(train)[:-1] > 0, scores(model, train)[:-1]
    assert np.mean([row[mine].mean() > row[~mine].mean() for row, mine in zip(found, had, strict=True)]) == 1
    assert (model.user_embeddings[:-1, -1] == 1).all()


def test_bpr_folds_in_who_was_not_trained(train: Histories) -> None:
    model = BPR(BPRConfig(embedding_size=8), len(train), N_ITEMS)
    for epoch in range(1, 50):
        model.fit_epoch(train, epoch=epoch, seed=0)
    stranger = len(train) - 1
    assert not model.user_embeddings[stranger].any()
    known = histories([[1, 2], [3, 4, 5]])
    queries = model.queries(np.array([stranger, 0], np.int32), known)
    np.testing.assert_array_equal(queries[0], model.fold(known)[0])
    np.testing.assert_array_equal(queries[1], model.user_embeddings[0])


def test_what_is_drawn_for_a_pair_is_never_had() -> None:
    pairs = Pairs(histories([[0, 1, 3], [0, 1, 2, 3]]), 4)
    rows = np.repeat(np.array([0, 3]), 50)
    users, items, others = pairs.triples(rows, np.random.default_rng(0))
    # User 1 had everything: its pairs are left out.
    assert users.tolist() == items.tolist() == [0] * 50
    assert set(others.tolist()) == {2}


def test_a_resumed_bpr_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    weights = []
    for stops in ([4], [2, 4]):
        config = run_config("bpr", "random", {"embedding_size": 8, "epochs": 4, "validate_every": 1})
        run = create_run(tmp_path / str(len(stops)), config, load_dataset(SHOP))
        for epochs in stops:
            loop = run_config("bpr", "random", {"epochs": epochs, "validate_every": 1}).loop
            trainer = Trainer(run.new_model(), run.split(), run.folder, loop)
            trainer.resume()
            trainer.fit()
        weights.append(load_file(run.folder / LAST))
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


@pytest.mark.parametrize("model", ["bpr", "ease", "item-knn"])
def test_it_is_better_than_popularity(model: str, tmp_path: Path) -> None:
    run = create_run(tmp_path / "run", run_config(model, "random", {}), load_dataset(SHOP))
    Trainer(run.new_model(), run.split(), run.folder, run.config.loop).fit()
    result = evaluate_run(open_run(run.folder))
    ours, popularity = (result[side]["metrics"]["NDCG@10"]["mean"] for side in ("model", "popularity"))
    assert ours > popularity


@pytest.mark.parametrize(
    ("settings", "values"),
    [
        (BPRConfig, {"embedding_size": 1}),
        (BPRConfig, {"learning_rate": 0.0}),
        (BPRConfig, {"reg": -0.1}),
        (EASEConfig, {"reg": 0.0}),
        (ItemKNNConfig, {"neighbours": 0}),
        (ItemKNNConfig, {"shrinkage": float("inf")}),
    ],
)
def test_wrong_settings_are_refused(settings: type, values: dict[str, float]) -> None:
    with pytest.raises(InvalidRequest, match=next(iter(values))):
        settings(**values)


def test_a_resumed_bpr_keeps_its_rate(tmp_path: Path) -> None:
    run = create_run(tmp_path / "run", run_config("bpr", "random", {}), load_dataset(SHOP))
    with pytest.raises(InvalidRequest, match=r"learning_rate of the resumed run is 0\.1; expected 0\.05"):
        resume_run(run.folder, run_config("bpr", "random", {"learning_rate": 0.1}), "")
