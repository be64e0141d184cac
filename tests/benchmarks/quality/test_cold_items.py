"""What the comparison on cold items is computed from."""

import numpy as np
import polars as pl
import pytest

from recserve.benchmarks.quality.cold_items import (
    CATEGORY,
    ColdItems,
    category_scores,
    cold_test,
    measure,
    read_purchases,
)

DAY = 86_400


@pytest.fixture(scope="module")
def purchases(tmp_path_factory: pytest.TempPathFactory) -> pl.DataFrame:
    """Even customers buy mugs and odd ones bags; the last tenth of the 60 products came late."""
    rng = np.random.default_rng(0)
    rows = []
    for day in range(200):
        customer = int(rng.integers(0, 30))
        newest = 48 if day < 150 else 60
        product = int(rng.choice(np.arange(customer % 2, newest, 2)))
        title = f"{'BAG' if product % 2 else 'MUG'}"
        rows.append((f"I{day}", f"{10_000 + product}", f"NICE {title}", 1, day * DAY, 2.5, float(customer)))
    names = ["InvoiceNo", "StockCode", "Description", "Quantity", "InvoiceDate", "UnitPrice", "CustomerID"]
    rows += [("C1", "10000", "NICE MUG", 1, 0, 1.0, 1.0), ("I", "POST", "POSTAGE", 1, 0, 1.0, 1.0)]
    rows += [("I", "10000", "NICE MUG", -1, 0, 1.0, 1.0), ("I", "10000", "NICE MUG", 1, 0, 0.0, 1.0)]
    table = pl.DataFrame(rows, schema=names, orient="row")
    path = tmp_path_factory.mktemp("retail") / "retail.parquet"
    table.with_columns(pl.from_epoch("InvoiceDate", "s").cast(pl.Datetime("ns"))).write_parquet(path)
    return read_purchases(path)


def test_returns_postage_and_gifts_are_no_purchases(purchases: pl.DataFrame) -> None:
    assert purchases.height == 200
    assert purchases["timestamp"].is_sorted()


def test_nothing_after_the_cut_is_known(purchases: pl.DataFrame) -> None:
    test = cold_test(purchases)
    cut = purchases.group_by("item").agg(pl.col("timestamp").min())["timestamp"].sort()[-len(test.cold)]
    assert test.dataset.interactions["timestamp"].max() < cut  # type: ignore[operator]
    assert not test.dataset.popularity()[test.cold].any()
    assert test.held_out.targets.timestamp.min() >= cut
    ids = test.dataset.items["item_id"].to_list()
    for row, user in enumerate(test.held_out.user_index.tolist()):
        bought = {ids[test.cold[place]] for place in test.held_out.targets.row(row)[0].tolist()}
        customer = test.dataset.users["user_id"][user]
        later = purchases.filter(pl.col("user") == customer, pl.col("timestamp") >= cut)["item"].to_list()
        assert bought == set(later) & {ids[item] for item in test.cold.tolist()}


def test_the_category_is_the_noun_and_who_bought_of_it_gets_it(purchases: pl.DataFrame) -> None:
    test = cold_test(purchases)
    scores = category_scores(test, seed=0)
    is_bag = np.array([int(test.dataset.items["item_id"][item]) % 2 for item in test.cold.tolist()], np.bool_)
    for user, row in zip(test.held_out.user_index.tolist(), scores, strict=True):
        odd = int(test.dataset.users["user_id"][user]) % 2 == 1
        assert (row[is_bag].min() > row[~is_bag].max()) == odd
    assert measure(test, scores)["NDCG@10"].mean() > measure(test, -scores)["NDCG@10"].mean()


def test_words_find_what_nobody_had(purchases: pl.DataFrame) -> None:
    protocol = ColdItems(cold_test(purchases), seed=0)
    everybody = np.arange(len(protocol.owner))
    by_category, by_words = (
        protocol.figures(protocol.ours(model, {}, 0), everybody)["NDCG@10"] for model in (CATEGORY, "tfidf")
    )
    assert by_category > protocol.figures(protocol.ours("random", {}, 0), everybody)["NDCG@10"]
    assert by_words > 0
