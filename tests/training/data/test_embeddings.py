"""Vectors that came with the items, and items that nobody had yet."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from recserve.engine import Engine, Request
from recserve.engine.bundle import open_bundle
from recserve.errors import DataError, InvalidRequest
from recserve.exporters.assemble import export_run
from recserve.training.commands import run_config
from recserve.training.data import load_dataset
from recserve.training.loop import Trainer
from recserve.training.run import create_run

N_USERS, N_ITEMS, N_COLD = 40, 24, 4


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Even users have even items, odd users odd ones; nobody had the last ``N_COLD`` items of the file."""
    rng = np.random.default_rng(0)
    rows = [
        (f"u{user}", f"i{item}", step)
        for user in range(N_USERS)
        for step, item in enumerate(rng.choice(np.arange(user % 2, N_ITEMS - N_COLD, 2), 6, replace=False))
    ]
    pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row").write_parquet(
        tmp_path / "events.parquet"
    )
    ids = [f"i{item}" for item in range(N_ITEMS)]
    pl.DataFrame({"item": ids, "price": [1.0] * N_ITEMS}).write_csv(tmp_path / "items.csv")
    taste = np.arange(N_ITEMS) % 2
    vectors = np.stack([taste, 1 - taste, np.ones(N_ITEMS)], axis=1).astype(np.float16)
    np.save(tmp_path / "vectors.npy", vectors)
    pl.DataFrame({"item": ids[::-1], "clip": vectors[::-1].astype(np.float32).tolist()}).write_parquet(
        tmp_path / "vectors.parquet"
    )
    return tmp_path


@pytest.mark.parametrize("with_items", [True, False])
def test_rows_follow_the_ids(files: Path, with_items: bool) -> None:
    items = files / "items.csv" if with_items else None
    dataset = load_dataset(
        files / "events.parquet", items_path=items, item_embeddings_path=files / "vectors.parquet"
    )
    for item_id, vector in dataset.items.select("item_id", "embedding").rows():
        assert vector == [int(item_id[1:]) % 2, 1 - int(item_id[1:]) % 2, 1]
    assert dataset.n_items <= N_ITEMS - N_COLD
    assert ("price" in dataset.items.columns) == with_items


def test_rows_of_an_array_follow_the_file_of_items_and_items_nobody_had_stay_if_asked(files: Path) -> None:
    both = {"items_path": files / "items.csv", "item_embeddings_path": files / "vectors.npy"}
    dataset = load_dataset(files / "events.parquet", every_item=True, **both)
    assert dataset.n_items == N_ITEMS
    for item_id, vector in dataset.items.select("item_id", "embedding").rows():
        assert vector == [int(item_id[1:]) % 2, 1 - int(item_id[1:]) % 2, 1]
    cold = dataset.popularity()[dataset.items["item_id"].is_in([f"i{N_ITEMS - 1}"]).to_numpy()]
    assert cold.tolist() == [0]


@pytest.mark.parametrize("model", ["dssm", "sasrec", "gru4rec", "hstu"])
def test_an_item_that_nobody_had_is_recommended_by_its_vector(files: Path, model: str) -> None:
    dataset = load_dataset(
        files / "events.parquet",
        items_path=files / "items.csv",
        item_embeddings_path=files / "vectors.npy",
        every_item=True,
    )
    settings = {"embedding_size": 8, "epochs": 20, "validate_every": 20, "batch_size": 64}
    settings |= {"learning_rate": 0.02, "unknown_rate": 0.3, "seed": 0}
    if model != "dssm":
        settings |= {"content": True, "max_history": 8, "dropout": 0.1}
    run = create_run(files / "run", run_config(model, "leave-one-out", settings), dataset)
    torch.manual_seed(0)
    Trainer(run.new_model(), run.split(), run.folder, run.config.loop).fit()
    export_run(run, files / "bundle")
    assert "embedding" not in open_bundle(files / "bundle").catalogue.attributes(np.array([0]))[0]
    with Engine.load(files / "bundle") as engine:
        found = {item.item_id for item in engine.recommend(Request(user_id="u0", k=6)).items}
    assert {int(item[1:]) % 2 for item in found} == {0}
    assert {"i20", "i22"} <= found


def test_what_does_not_fit_is_refused(files: Path) -> None:
    events = files / "events.parquet"
    np.save(files / "short.npy", np.zeros((3, 2), np.float32))
    with pytest.raises(DataError, match=r"float32 of shape \(3, 2\); expected floats of shape \(24, d\)"):
        load_dataset(events, items_path=files / "items.csv", item_embeddings_path=files / "short.npy")
    with pytest.raises(DataError, match="without ids"):
        load_dataset(events, item_embeddings_path=files / "vectors.npy")
    with pytest.raises(DataError, match="0 columns of lists of numbers"):
        load_dataset(events, item_embeddings_path=files / "items.csv")
    (files / "bad.npy").write_bytes(b"no array")
    with pytest.raises(DataError, match="unreadable"):
        load_dataset(events, items_path=files / "items.csv", item_embeddings_path=files / "bad.npy")
    with pytest.raises(InvalidRequest, match="every_item is given alone"):
        load_dataset(events, every_item=True)
    with pytest.raises(InvalidRequest, match="every_item"):
        load_dataset("synthetic-shop", every_item=True)
