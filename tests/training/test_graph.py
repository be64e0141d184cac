"""LightGCN, GraphSAGE and GCN against dense products, and on data whose answer is known."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from recserve.errors import InvalidRequest
from recserve.training.commands import run_config
from recserve.training.data import CleaningReport, Dataset, leave_one_out, load_dataset
from recserve.training.evaluate_command import evaluate_run
from recserve.training.loop import LAST, Trainer
from recserve.training.models.gcn import GCN
from recserve.training.models.graph import Graph, InductiveConfig, from_attributes
from recserve.training.models.graphsage import GraphSAGE
from recserve.training.models.interactions import Pairs
from recserve.training.models.lightgcn import LightGCN, LightGCNConfig
from recserve.training.run import create_run, open_run
from tests.small import histories

SHOP = "synthetic-shop:n_items=1000,n_users=300,n_events=9000,seed=5"
# Item 4 and user 3 have no edge; user 0 had item 1 twice.
ROWS = [[0, 1, 1], [1, 2, 3], [0], []]
N_ITEMS = 5


pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture
def graph() -> Graph:
    return Graph(Pairs(histories(ROWS), N_ITEMS), N_ITEMS)


def adjacency() -> torch.Tensor:
    edges = torch.zeros(len(ROWS) + N_ITEMS, len(ROWS) + N_ITEMS)
    for user, items in enumerate(ROWS):
        for item in items:
            edges[user, len(ROWS) + item] = edges[len(ROWS) + item, user] = 1
    return edges


def test_spreading_is_the_product_with_the_normalised_matrix_and_so_is_its_gradient(graph: Graph) -> None:
    edges, degrees = adjacency(), adjacency().sum(1).clamp(min=1)
    matrix = edges / (degrees[:, None] * degrees[None, :]).sqrt()
    vectors = torch.randn(len(edges), 3, requires_grad=True)
    outside = torch.randn(len(edges), 3)
    torch.testing.assert_close(graph.spread(vectors), matrix @ vectors)
    torch.testing.assert_close(graph.mean(vectors), edges / degrees[:, None] @ vectors)
    (graph.mean(vectors) * outside).sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(vectors.grad, (edges / degrees[:, None]).T @ outside)
    assert graph.has_edges.tolist() == (adjacency().sum(1) > 0).tolist()


def test_smoothing_is_the_product_with_the_renormalised_matrix(graph: Graph) -> None:
    edges = adjacency()
    with_itself = edges + torch.eye(len(edges))
    degrees = with_itself.sum(1)
    matrix = with_itself / (degrees[:, None] * degrees[None, :]).sqrt()
    vectors = torch.randn(len(edges), 3)
    shown = torch.ones(len(edges), 1)
    torch.testing.assert_close(graph.smooth(vectors, shown), matrix @ vectors)
    # Whose neighbours are hidden is itself; its neighbours see it.
    shown[0] = 0
    hidden = graph.smooth(vectors, shown)
    torch.testing.assert_close(hidden[0], vectors[0])
    torch.testing.assert_close(hidden[1:], (matrix @ vectors)[1:])


def test_lightgcn_is_the_mean_over_powers_of_the_matrix(graph: Graph) -> None:
    model = LightGCN(LightGCNConfig(embedding_size=4, n_layers=2), len(ROWS), N_ITEMS)
    degrees = adjacency().sum(1).clamp(min=1)
    matrix = adjacency() / (degrees[:, None] * degrees[None, :]).sqrt()
    expected = (model.vectors + matrix @ model.vectors + matrix @ matrix @ model.vectors) / 3
    torch.testing.assert_close(model.encode(graph), (model.vectors, expected))


def test_who_was_not_trained_is_folded_in() -> None:
    train = histories(ROWS)
    model = LightGCN(LightGCNConfig(embedding_size=4), len(ROWS), N_ITEMS)
    losses = [model.fit_epoch(train, epoch=epoch, seed=0) for epoch in range(1, 60)]
    assert losses[-1] < losses[0]
    known = histories([[0], [1, 3]])
    queries = model.queries(np.array([0, 3], np.int32), known)
    np.testing.assert_array_equal(queries[0], model.user_embeddings[0])
    np.testing.assert_array_equal(queries[1], model.fold(known)[1])
    assert queries[1].any()


@pytest.mark.parametrize("kind", [GraphSAGE, GCN])
def test_an_item_that_nobody_had_is_placed_by_its_attributes(kind: Any) -> None:
    # Even users have even items, odd users odd ones; nobody had the last six.
    rng = np.random.default_rng(0)
    n_users, n_items, n_cold = 60, 40, 6
    rows = [
        (user, int(item))
        for user in range(n_users)
        for item in rng.choice(np.arange(user % 2, n_items - n_cold, 2), 9, replace=False)
    ]
    who, had = (np.array(column, np.int32) for column in zip(*rows, strict=True))
    dataset = Dataset.create(
        "two tastes",
        pl.DataFrame({"user_index": who, "item_index": had, "timestamp": np.arange(len(who))}).with_columns(
            value=pl.lit(1.0, pl.Float32)
        ),
        pl.DataFrame({"user_id": [f"u{user}" for user in range(n_users)]}),
        pl.DataFrame(
            {
                "item_id": [f"i{item}" for item in range(n_items)],
                "genres": [["jazz", "live"] if item % 2 else ["rock", "live"] for item in range(n_items)],
            }
        ),
        report=CleaningReport(rows_read=len(who), kept=len(who)),
        source="a test",
    )
    split = leave_one_out(dataset)
    config = InductiveConfig(embedding_size=8, batch_size=64, learning_rate=0.02, unknown_rate=0.3)
    torch.manual_seed(0)
    model = from_attributes(kind)(config, dataset, split)
    for epoch in range(1, 21):
        model.fit_epoch(split.train, epoch=epoch, seed=0)
    cold = np.arange(n_items - n_cold, n_items)
    scores = model.user_embeddings.numpy() @ model.item_embeddings.numpy()[cold].T
    same_taste = (np.arange(n_users)[:, None] + cold) % 2 == 0
    best_of_the_other = np.where(same_taste, -np.inf, scores).max(axis=1)
    assert (np.where(same_taste, scores, np.inf).min(axis=1) > best_of_the_other).all()


@pytest.mark.parametrize("model", ["lightgcn", "graphsage", "gcn"])
def test_a_resumed_run_equals_an_uninterrupted_one(model: str, tmp_path: Path) -> None:
    weights = []
    for stops in ([4], [2, 4]):
        config = run_config(model, "random", {"embedding_size": 8, "epochs": 4, "validate_every": 1})
        run = create_run(tmp_path / str(len(stops)), config, load_dataset(SHOP))
        for epochs in stops:
            loop = run_config(model, "random", {"epochs": epochs, "validate_every": 1}).loop
            torch.manual_seed(0)
            trainer = Trainer(run.new_model(), run.split(), run.folder, loop)
            trainer.resume()
            trainer.fit()
        weights.append(load_file(run.folder / LAST))
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


@pytest.mark.parametrize("model", ["lightgcn", "graphsage", "gcn"])
def test_it_is_better_than_popularity(model: str, tmp_path: Path) -> None:
    settings = {"embedding_size": 16, "epochs": 20, "learning_rate": 0.02, "batch_size": 512}
    run = create_run(tmp_path / "run", run_config(model, "random", settings), load_dataset(SHOP))
    torch.manual_seed(0)
    Trainer(run.new_model(), run.split(), run.folder, run.config.loop).fit()
    result = evaluate_run(open_run(run.folder))
    ours, popularity = (result[side]["metrics"]["NDCG@10"]["mean"] for side in ("model", "popularity"))
    assert ours > 1.2 * popularity


@pytest.mark.parametrize(
    "settings",
    [
        {"embedding_size": 0},
        {"n_layers": 0},
        {"learning_rate": 0.0},
        {"reg": 1.0},
        {"batch_size": 0},
        {"dropout": 1.0},
        {"unknown_rate": -0.1},
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(InvalidRequest, match=next(iter(settings))):
        InductiveConfig(**settings)  # type: ignore[arg-type]
