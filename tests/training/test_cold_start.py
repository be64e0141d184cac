"""Users cut to a few events: who answers them, and popularity by segment against counting by hand."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recserve.errors import InvalidRequest
from recserve.training.cold_start import evaluate_cold_start
from recserve.training.commands import run_config
from recserve.training.data import Dataset, load_dataset
from recserve.training.loop import Trainer
from recserve.training.models.base import EmbeddingModel
from recserve.training.run import Run, create_run
from recserve.training.segments import fit_segments

SHOP = "synthetic-shop:n_items=1000,n_users=100,n_events=3000,seed=4"


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """A shop whose users have an age; of two thirds of them a city is known."""
    shop = load_dataset(SHOP)
    number = np.arange(shop.n_users)
    city = pl.Series(["Bonn", None, "Lyon"])[number % 3]
    return dataclasses.replace(shop, users=shop.users.with_columns(age=pl.Series(number), city=city))


def trained(folder: Path, model: str, data: Dataset, **settings: object) -> Run:
    run = create_run(folder, run_config(model, "leave-one-out", settings), data)
    Trainer(run.new_model(), run.split(), run.folder, run.config.loop).fit()
    return run


def test_segments_are_counts_smoothed_by_everybody_s(dataset: Dataset) -> None:
    train = dataset.histories()
    tables = fit_segments(dataset, train, ["city", "weekday"])
    assert tables is not None
    user = np.repeat(np.arange(len(train)), train.lengths)
    of_all = dataset.popularity() / dataset.popularity().sum()
    segments = {0: user % 3 == 0, 1: user % 3 == 2, 2: (train.timestamp // 86_400 + 3) % 7 == 0}
    assert len(tables.items) == 2 + 7
    for row, chosen in segments.items():
        counts = np.bincount(train.item_index[chosen], minlength=dataset.n_items)
        shares = (counts + 1000 * of_all) / (counts.sum() + 1000)
        assert tables.shares[row] == pytest.approx(np.sort(shares)[::-1], abs=1e-7)
        assert shares[tables.items[row]] == pytest.approx(tables.shares[row], abs=1e-7)
        assert tables.dense(dataset.popularity())[row] == pytest.approx(shares, abs=1e-7)
    # Each age has six users or seven.
    ages = fit_segments(dataset, train, ["age"])
    assert ages is not None
    assert (ages.items == -1).all()
    with pytest.raises(InvalidRequest, match="segments is shoe; expected of age, city, hour, weekday"):
        fit_segments(dataset, train, ["shoe"])
    assert fit_segments(load_dataset(SHOP), train) is None


def test_the_fewer_events_the_less_is_known(dataset: Dataset, tmp_path: Path) -> None:
    run = trained(tmp_path / "als", "als", dataset, embedding_size=8, epochs=2)
    result = evaluate_cold_start(run)
    assert [(row["events"], row["source"]) for row in result["rows"]] == [
        (0, "popularity"),
        (0, "segment"),
        (1, "als"),
        (5, "als"),
        (None, "als"),
    ]
    model, test = run.best_model(), run.split().test
    assert isinstance(model, EmbeddingModel)
    vectors = model.item_embeddings.numpy()
    for row, n in ((2, 1), (3, 5), (4, 10_000)):
        gains = []
        for i in range(len(test.user_index)):
            seen, _ = test.histories.row(i)
            scores = vectors @ model.fold(test.histories.take(np.array([i])).last(n))[0]  # type: ignore[attr-defined]
            scores[seen] = -np.inf
            [target] = test.targets.row(i)[0]
            # Of equal scores the target is the last.
            place = int((scores >= scores[target]).sum()) - 1
            gains.append(1 / np.log2(place + 2) if place < 10 and target not in seen else 0.0)
        assert result["rows"][row]["mean"] == pytest.approx(np.mean(gains), abs=2e-3)


def test_the_verb_prints_one_row_for_each(
    dataset: Dataset, tmp_path: Path, run_cli: Callable[..., tuple[int, str, str]]
) -> None:
    trained(tmp_path / "ease", "ease", dataset)
    code, table, _ = run_cli("evaluate", tmp_path / "ease", "--cold-start", "--out", tmp_path / "out.json")
    assert code == 0
    assert all(word in table for word in ("popularity", "segment", "ease", "all", "NDCG@10"))
    assert len(json.loads((tmp_path / "out.json").read_text())["rows"]) == 5
    code, _, message = run_cli("evaluate", tmp_path / "ease", tmp_path / "ease", "--cold-start")
    assert code == 2
    assert "--cold-start is given with 2 runs; expected one run, no plot" in message.replace("\n", " ")


def test_a_table_without_fold_in_serves_no_new_user(dataset: Dataset, tmp_path: Path) -> None:
    run = trained(tmp_path / "popularity", "popularity", dataset)
    with pytest.raises(InvalidRequest, match="model popularity is without a fold-in"):
        evaluate_cold_start(run)
