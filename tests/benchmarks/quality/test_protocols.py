"""Splits that contenders are asked about, and what their answers are worth."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from recserve.benchmarks.quality.clicks import Clicks
from recserve.benchmarks.quality.protocol import Protocol, arrays_of
from recserve.benchmarks.quality.ranking import K, of_random_split, ranks_in
from recserve.benchmarks.quality.ratings import Ratings
from recserve.training.data import Dataset, Histories, load_dataset, random_folds, random_split
from recserve.training.evaluate import evaluate, popularity_scorer
from recserve.training.loop import popularity_of

Arrays = Mapping[str, NDArray[Any]]


@pytest.fixture(scope="module")
def shop() -> Dataset:
    return load_dataset("synthetic-shop:n_items=1000,n_users=40,n_events=900,seed=2")


def figures(protocol: Protocol, values: dict[str, NDArray[Any]]) -> dict[str, float]:
    return protocol.figures(values, np.arange(len(protocol.owner)))


def test_lists_are_scored_like_everything_else(shop: Dataset) -> None:
    split = random_split(shop, 1)
    counts = popularity_of(split, shop.n_items)
    # Ties count against a model in evaluate and go by index in a list: without them the two agree.
    noise = np.random.default_rng(0).random(shop.n_items).astype(np.float32)
    order = np.argsort(-(counts + noise), kind="stable")

    def answer(arrays: Arrays) -> Arrays:
        seen = [set(split.test.histories.row(row)[0].tolist()) for row in range(len(arrays["test_user"]))]
        return {"lists": np.array([[item for item in order.tolist() if item not in had][:K] for had in seen])}

    scorer = popularity_scorer(counts)
    expected = evaluate(lambda rows: scorer(rows) + noise, split.test, shop.n_items).metrics
    protocol = of_random_split(shop, 1)
    found = figures(protocol, protocol.theirs(answer))
    assert found == pytest.approx({name: expected[name].mean for name in found})
    assert found["NDCG@10"] > 0


def test_our_lists_leave_out_what_is_known(shop: Dataset) -> None:
    protocol = of_random_split(shop, 0)
    values = protocol.ours("popularity", {}, 0)
    assert values["HR@10"].shape == protocol.owner.shape
    assert 0 < figures(protocol, values)["HR@10"] < 1


def test_a_target_has_its_place_in_the_list() -> None:
    targets = Histories.from_sorted(np.array([0, 0, 1]), np.array([7, 7, 3], np.int32), np.zeros(3, int), 2)
    first, second = ranks_in(np.array([[1, 7], [4, 5]]), targets)
    assert first.tolist() == [2.0]
    assert second.tolist() == [np.inf]


def test_the_peer_gets_no_test_item(shop: Dataset) -> None:
    split = random_split(shop)
    arrays = arrays_of(shop, split)
    assert len(arrays["train_user"]) == len(arrays["train_item"]) == split.train.lengths.sum()
    assert len(arrays["validation_item"]) == split.validation.targets.lengths.sum()
    row = len(split.test.user_index) // 2
    known = arrays["known_item"][arrays["known_user"] == split.test.user_index[row]]
    assert known.tolist() == split.test.histories.row(row)[0].tolist()
    parts = {name.partition("_")[0] for name in arrays if not name.startswith("test")}
    assert parts == {"shape", "train", "validation", "known"}
    assert [name for name in arrays if name.startswith("test")] == ["test_user", "test_timestamp"]


def test_the_folds_together_are_one_test_in_the_order_of_users(shop: Dataset) -> None:
    protocol = Ratings(shop, seed=3)
    assert len(protocol.owner) == shop.interactions.height
    assert (np.diff(protocol.owner) >= 0).all()
    folds = iter(random_folds(shop, 5, 3))

    def truth(arrays: Arrays) -> Arrays:
        tested = next(folds).test.targets
        assert arrays["test_item"].tolist() == tested.item_index.tolist()
        assert "test_value" not in arrays
        return {"predicted": tested.value}

    assert figures(protocol, protocol.theirs(truth))["RMSE"] == 0
    found = figures(protocol, protocol.ours("svd", {"embedding_size": 4, "epochs": 2}, 0))
    assert 0 < found["RMSE"] < 2


def test_clicks_of_the_test_are_not_told_and_ours_beat_noise(shop: Dataset) -> None:
    rated = load_dataset("synthetic-shop:n_items=1000,n_users=60,n_events=2500,seed=3")
    # The shop's ratings are noise, which nobody learns: these depend on the item.
    rated = replace(rated, interactions=rated.interactions.with_columns(value=pl.col("item_index") % 2 * 2.0))
    protocol = Clicks(rated, click_at=2.0)
    told: dict[str, NDArray[Any]] = {}

    def noise(arrays: Arrays) -> Arrays:
        told.update(arrays)
        rng = np.random.default_rng(0)
        return {part: rng.normal(size=len(arrays[f"{part}_item"])) for part in ("validation", "test")}

    random = figures(protocol, protocol.theirs(noise))
    assert {"train_click", "validation_click"} <= set(told)
    assert "test_click" not in told
    assert len(told["test_history"]) == len(protocol.owner)
    learned = figures(protocol, protocol.ours("lr", {"epochs": 2, "click_at": 2.0}, 0))
    assert learned["AUC"] > random["AUC"]
    assert 0 <= learned["ECE"] < 1
